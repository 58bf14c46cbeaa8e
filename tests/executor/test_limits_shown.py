"""What ``celery-streams limits`` shows of rates: as people write them, and as numbers for programs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery.bin.base import CLIContext
from celery.utils.time import rate
from click.testing import CliRunner

from celery_streams.bin.limits import limits
from celery_streams.lanes import set_limits
from celery_streams.limits import written_rate
from tests.executor.test_limits import limited
from tests.support.bench import Bench

WRITTEN = [("1/h", "1/h"), ("100/h", "100/h"), ("60/h", "1/m"), ("10/m", "10/m"), ("90/m", "90/m"), ("10/s", "10/s"),
           ("600/m", "10/s"), (3, "3/s"), (0.5, "30/m"), ("1000000/s", "1000000/s"), (0.3333, "0.3333/s"),
           (1e-06, "1e-06/s"), ("7/h", "7/h"), (1 / 3, "20/m")]  # fmt: skip


@pytest.mark.parametrize(("given", "shown"), WRITTEN)
def test_rate_is_written_in_the_unit_in_which_it_is_a_whole_number(given: Any, shown: str) -> None:
    assert written_rate(float(rate(given))) == shown


@pytest.mark.parametrize("unit", ["s", "m", "h"])
def test_written_rate_is_the_rate_whatever_it_is(unit: str) -> None:
    for number in range(1, 500):
        assert rate(written_rate(rate(f"{number}/{unit}"))) == pytest.approx(rate(f"{number}/{unit}"))


@pytest.mark.parametrize("source", ["task", "setting", "redis"])
def test_limits_shows_a_rate_as_it_was_written_and_its_number_in_json(make: Any, source: str) -> None:
    bench: Bench = make(**({"streams_limits": {"slow": {"rate": "1/h"}}} if source == "setting" else {}))
    limited(bench, **({"rate_limit": "1/h"} if source == "task" else {}))
    if source == "redis":
        set_limits(bench.broker, "slow", {"rate": "1/h"})
    context = CLIContext(app=bench.app, no_color=True, workdir=None)

    table = CliRunner().invoke(limits, obj=context).output
    found = json.loads(CliRunner().invoke(limits, ["--json"], obj=context).output)["limits"]
    (row,) = [one for one in found if one["task"] == "slow"]

    assert "1/h" in table
    assert "0.000" not in table
    assert (row["rate"], row["rate_written"]) == (pytest.approx(1 / 3600), "1/h")

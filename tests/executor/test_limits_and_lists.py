"""Limits and locks of what was moved to lists and back: places and tokens are asked for as always, locks have ended."""

from __future__ import annotations

from typing import Any

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_streams.bin.migrate import migrate
from celery_streams.locks import count_locks
from tests.executor.test_limits import held, lane_of_all, limited, run_all
from tests.support.bench import NOTHING, QUEUE, Bench
from tests.support.redis_state import read_all


@pytest.mark.parametrize(
    "options",
    [
        {"rate_limit": "1/h"},
        {"streams_concurrency": 1},
        {"streams_concurrency_key": "customer", "streams_concurrency_per_key": 1},
    ],
    ids=["rate", "number", "number of a key"],
)
def test_what_was_held_and_comes_back_from_lists_is_limited_again_and_binds_nobody(
    make: Any, options: dict[str, Any]
) -> None:
    bench: Bench = make(streams_rate_limit_scope="global")
    slow = limited(bench, streams_unique=True, **options)
    sent = [slow.delay(number, "x").id for number in range(4)]
    bench.executor.prepare()
    first, *others = read_all(bench.broker, [QUEUE], "me")
    assert bench.settler.admit(first, *lane_of_all(bench, slow, "x"), ahead=False).admitted
    for one in others:
        bench.executor.execute(one)
    context = CLIContext(app=bench.app, no_color=True, workdir=None)
    for way in ("lists", "streams"):
        assert CliRunner().invoke(migrate, [QUEUE, "--to", way], obj=context).exit_code == 0

    # Limited as before: the first one runs still
    for one in read_all(bench.broker, [QUEUE], "me"):
        bench.executor.execute(one)
    assert (bench.ran, held(bench)) == ([], 3)

    # The lock of the first, which stayed, is there; the others have none
    assert count_locks(bench.broker, QUEUE) == 1
    assert slow.delay(0, "x").id == sent[0]
    assert slow.delay(1, "x").id != sent[1]

    run_all(bench)
    bench.executor.execute(first)
    run_all(bench)
    if "rate_limit" not in options:
        assert sorted(bench.ran) == ["x0", "x1", "x1", "x2", "x3"]
        assert (bench.left(), held(bench), count_locks(bench.broker, QUEUE)) == (NOTHING, 0, 0)

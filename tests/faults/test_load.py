"""The load under a mixture of faults: the build as it is passes, and builds that are broken on purpose fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import load


def _told(report: load.Report) -> str:
    lines = [f"{check.letter} {'ok' if check.ok else 'FAIL'} {check.text}" for check in report.verdict.checks]
    return "\n".join([*lines, str(report.verdict.figures), f"logs: {report.directory}"])


@pytest.fixture
def on_cluster(pytestconfig: pytest.Config) -> bool:
    """Whether the load runs on a Redis Cluster."""
    return bool(pytestconfig.getoption("--on-cluster"))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_nothing_is_lost_and_little_runs_twice_while_processes_and_redis_are_killed(
    tmp_path: Path, on_cluster: bool
) -> None:
    plan = replace(load.PROFILES["short"], seed=7, directory=str(tmp_path), cluster=on_cluster)

    report = load.run(plan)

    assert report.ok, _told(report)
    assert report.verdict.figures["hard_kills"] >= 8
    assert report.verdict.figures["submitted"] > 1_000


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_build_that_acknowledges_before_it_executes_fails_because_tasks_are_lost(
    tmp_path: Path, on_cluster: bool
) -> None:
    plan = replace(load.BROKEN["ack-first"], broken="ack-first", directory=str(tmp_path), cluster=on_cluster)

    report = load.run(plan)

    assert not report.verdict.check("L").ok, _told(report)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_build_that_settles_what_it_does_not_own_fails_because_retries_run_twice(
    tmp_path: Path, on_cluster: bool
) -> None:
    plan = replace(load.BROKEN["no-ownership"], broken="no-ownership", directory=str(tmp_path), cluster=on_cluster)

    report = load.run(plan)

    assert not report.verdict.check("D").ok, _told(report)


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_the_build_as_it_is_passes_where_the_one_that_settles_what_it_does_not_own_fails(
    tmp_path: Path, on_cluster: bool
) -> None:
    report = load.run(replace(load.BROKEN["no-ownership"], directory=str(tmp_path), cluster=on_cluster))

    # Here every fault stops a worker for too long, and each may cost as many second runs as it has children.
    second = report.verdict.check("D").text
    assert "belong to no fault" not in second, _told(report)
    assert "not marked" not in second, _told(report)
    assert all(check.ok for check in report.verdict.checks if check.letter != "D"), _told(report)

"""Unique tasks, with real workers: one message of a key at a time, and no kill leaves a lock behind."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from celery_streams import streams_of
from tests.support.eventually import eventually

ACT = "tests.proj.actions.act"


def publisher(project, **limits):
    """Return the task of an app that publishes with these limits, and the settings of its workers."""
    said = {"streams_limits": {ACT: limits}}
    return project.app(**said).tasks[ACT], said


def locks(project):
    return project.broker.client.call("HLEN", project.broker.queue_keys("celery").unique)


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "gevent"])
def test_message_that_is_there_is_not_stored_again_and_the_next_one_is_when_it_is_done(project, worker, pool):
    act, settings = publisher(project, unique=True)
    results = [act.apply_async(("sleep", number % 4), {"seconds": 0.1}) for number in range(20)]
    assert len({result.id for result in results}) == 4

    worker(pool=pool, concurrency=2, **settings)

    assert [result.get(timeout=30) for result in results] == [number % 4 for number in range(20)]
    eventually(lambda: (project.status().length, locks(project)) == (0, 0))
    assert set(project.counted().values()) == {1}
    assert act.apply_async(("sleep", 1), {"seconds": 0.1}).id not in {result.id for result in results}


@pytest.fixture
def gate(tmp_path):
    """Return what a task is told that runs until somebody makes the file ``gate``."""
    return {"gate": str(tmp_path / "gate"), "then": "ok"}


def open_gate(gate):
    Path(gate["gate"]).touch()


def test_one_runs_and_exactly_one_more_after_it_with_the_newest_arguments(project, worker, gate):
    act, settings = publisher(
        project,
        unique=True,
        unique_key="action",
        unique_until="start",
        unique_replace=True,
        concurrency_key="action",
        concurrency_per_key=1,
    )
    worker(concurrency=4, **settings)

    first = act.apply_async(("after_gate", 0), gate)
    project.starts(first.id)
    later = [act.apply_async(("after_gate", number), gate) for number in range(1, 10)]
    eventually(lambda: project.status().held == 1)
    assert project.ledger.runs(later[0].id) == []
    open_gate(gate)

    assert len({result.id for result in later}) == 1
    assert (first.get(timeout=30), later[0].get(timeout=30)) == (0, 9)
    eventually(lambda: (project.status().length, project.status().held, locks(project)) == (0, 0, 0))
    assert project.counted() == {first.id: 1, later[0].id: 1}
    (end,) = project.ledger.read("end", first.id)
    (start,) = project.ledger.runs(later[0].id)
    assert end["at"] <= start["at"]


def test_kill_minus_nine_frees_no_lock_of_what_runs_again_and_leaves_none_behind(project, worker, gate):
    act, settings = publisher(project, unique=True)
    settings["streams_visibility_timeout"] = 2
    first = worker(name="first", concurrency=2, **settings)
    results = {number: act.apply_async(("after_gate", number), gate) for number in range(6)}
    eventually(lambda: len(project.ledger.runs()) >= 2)

    children = {run["pid"] for run in project.ledger.runs()}
    first.kill()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # Nobody has settled anything of what runs or waits: all of it is there, and holds its lock.
    assert all(act.apply_async(("after_gate", number), gate).id == result.id for number, result in results.items())
    worker(name="second", concurrency=2, **settings)
    open_gate(gate)

    assert [result.get(timeout=60) for result in results.values()] == list(range(6))
    eventually(lambda: (project.status().length, locks(project)) == (0, 0))
    for number, result in results.items():
        assert act.apply_async(("after_gate", number), gate).id != result.id


def test_child_that_is_killed_leaves_its_message_with_its_lock(project, worker, gate):
    act, settings = publisher(project, unique=True)
    worker(concurrency=2, **settings)
    result = act.apply_async(("after_gate", 1), gate)
    (run,) = project.starts(result.id)

    os.kill(run["pid"], signal.SIGKILL)

    project.starts(result.id, 2)
    assert act.apply_async(("after_gate", 1), gate).id == result.id
    open_gate(gate)
    assert result.get(timeout=30) == 1
    eventually(lambda: (project.status().length, locks(project)) == (0, 0))


def test_scripts_that_are_flushed_and_a_stream_that_is_trimmed_leave_no_stale_lock(project):
    act, _ = publisher(project, unique=True)
    result = act.delay("ok", 1)
    client = streams_of(act.app).broker.client
    client.call("SCRIPT", "FLUSH")

    assert act.delay("ok", 1).id == result.id
    client.call("XTRIM", project.broker.queue_keys("celery").streams[0], "MAXLEN", 0)
    assert act.delay("ok", 1).id != result.id

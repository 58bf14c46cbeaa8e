"""What comes back runs before the backlog: seen from tasks, with a thousand of them waiting."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import pytest

from tests.support.eventually import eventually

BACKLOG = 600


def place_of(project, task_id: str, *, run: int = -1) -> int:
    """Return how many tasks were started before this run of a task."""
    starts = project.ledger.runs()
    return starts.index([one for one in starts if one["id"] == task_id][run])


def finished(project, results: Sequence[object]) -> bool:
    return eventually(lambda: project.status().length == 0, timeout=60, message="the queue is empty")


@pytest.mark.parametrize("concurrency", [1, 2])
def test_task_of_a_killed_child_runs_again_before_what_waits(project, act, worker, concurrency):
    worker(concurrency=concurrency)
    result = act.delay("sleep_first", "done", seconds=60)
    (first,) = project.starts(result.id)
    others = [act.delay("sleep", number, seconds=0.005) for number in range(BACKLOG)]
    if concurrency == 2:
        project.starts(others[50].id)

    ran = len(project.ledger.runs())
    os.kill(first["pid"], signal.SIGKILL)

    assert result.get(timeout=20) == "done"
    assert finished(project, others)
    # The other child goes on meanwhile; a new one takes a moment to start.
    assert place_of(project, result.id) - ran < BACKLOG // 2
    assert sorted(project.counted().values()) == [1] * BACKLOG + [2]


def test_message_that_kills_its_child_again_does_not_hold_up_what_waits(project, act, worker):
    worker(concurrency=1)
    poison = act.delay("kill", "done", times=3)
    others = [act.delay("sleep", number, seconds=0.005) for number in range(BACKLOG)]

    assert poison.get(timeout=40) == "done"
    assert finished(project, others)
    first, second, third, _ = (place_of(project, poison.id, run=run) for run in range(4))
    assert second - first < 50
    assert third - second > 20


def test_due_task_runs_before_what_waits(project, act, worker):
    worker(concurrency=1)
    blocker = act.delay("sleep", "first", seconds=2.5)
    project.starts(blocker.id)
    due = act.apply_async(("ok", "due"), countdown=1)
    others = [act.delay("ok", number) for number in range(BACKLOG)]

    assert due.get(timeout=20) == "due"
    assert finished(project, others)
    assert place_of(project, due.id) < 50


def test_what_waited_behind_a_long_task_runs_before_what_came_after_it(project, act, worker):
    worker(concurrency=1)
    for number in range(300):
        act.delay("ok", number)
    finished(project, ())
    act.delay("sleep", "blocker", seconds=1)
    held = [act.delay("ok", number) for number in range(20)]
    later = [act.delay("ok", number) for number in range(BACKLOG)]
    act.delay("ok", "last").get(timeout=30)

    places = [place_of(project, result.id) for result in held]
    assert max(places) < min(place_of(project, result.id) for result in later)


def test_requeued_task_goes_behind_what_waits(project, act, worker):
    worker(concurrency=1)
    blocker = act.delay("sleep", "first", seconds=1)
    project.starts(blocker.id)
    again = act.delay("reject_requeue", "done", times=1)
    others = [act.delay("ok", number) for number in range(50)]

    assert again.get(timeout=20) == "done"
    assert finished(project, others)
    assert place_of(project, again.id) > max(place_of(project, result.id) for result in others)


def test_shutdown_hands_on_in_order_and_before_what_waits(project, act, worker):
    first = worker(name="first", concurrency=1)
    blocker = act.delay("sleep", "blocker", seconds=2)
    project.starts(blocker.id)
    waiting = [act.delay("ok", number) for number in range(BACKLOG)]

    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    worker(name="second", concurrency=1)

    assert finished(project, waiting)
    places = [place_of(project, result.id) for result in waiting]
    assert places == sorted(places)

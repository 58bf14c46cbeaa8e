"""The order in which messages of one queue run: what goes behind what waits, and what before it."""

from __future__ import annotations

import uuid

import pytest


@pytest.fixture
def blocked(plain, another_worker):
    """A queue whose only child is busy for some seconds: ``blocked(task, action, ...)`` publishes there."""
    name = uuid.uuid4().hex
    another_worker(plain, name)

    def send(task, *args, later=None, **kwargs):
        return plain.task(task).apply_async(args, kwargs, queue=f"{plain.queue}-{name}", countdown=later)

    plain.ran(send("act", "sleep", "blocker", seconds=3.0).id)
    return send


def first_start(side, result) -> float:
    return side.ran(result.id)[0]["at"]


@pytest.mark.parametrize("again", [("reject_requeue", {"times": 1}), ("retry", {"until": 1, "countdown": 0})])
def test_message_that_a_task_puts_back_goes_behind_what_waits(plain, blocked, again):
    action, options = again
    result = blocked("act_late", action, "done", **options)
    others = [blocked("act", "ok", number) for number in range(30)]

    for other in others:
        plain.value(other)
    second = plain.ran(result.id, times=2)[1]

    assert [number for number, other in enumerate(others) if first_start(plain, other) > second["at"]] == []


def test_message_that_becomes_due_runs_before_what_waits(plain, blocked):
    due = blocked("act", "ok", "due", later=1.0)
    others = [blocked("act", "sleep", number, seconds=0.02) for number in range(60)]

    assert plain.value(due) == "due"
    for other in others:
        plain.value(other)

    # A stock worker fetches some ahead.
    assert sum(first_start(plain, other) < first_start(plain, due) for other in others) < 20

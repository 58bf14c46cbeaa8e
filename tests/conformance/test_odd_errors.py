"""What a task may raise besides ordinary exceptions: both sides settle the message once, by what happened."""

from __future__ import annotations

import pytest
from celery.exceptions import WorkerLostError

from tests.support.eventually import eventually
from tests.support.versions import CELERY, needs_celery

#: Exceptions of odd classes; see ``tests.proj.actions``.
ODD = [
    *("frozen", "repr", "cause", "str", "set", "bool", "pickle", "args", "context", "class", "loop", "init", "several"),
]


@pytest.mark.parametrize("kind", ["cancelled", "generator", "own"])
@pytest.mark.parametrize("task", ["act", "act_early", "act_tracked", "act_autoretry"])
def test_body_that_raises_what_is_no_exception_fails_once(side, task, kind):
    result = side.task(task).delay("raise", "odd", kind=kind)

    if CELERY >= (5, 7):
        error = result.get(timeout=15, interval=0.02, propagate=False)

        assert (result.state, type(error).__name__) == (
            "FAILURE",
            {"cancelled": "CancelledError", "generator": "GeneratorExit", "own": "OddError"}[kind],
        )
    else:
        side.ran(result.id)  # what is no Exception cannot be stored as a result before
    side.settled()
    assert len(side.ledger.runs(result.id)) == 1


@needs_celery((5, 7), "before, it depends on billiard what is said of it")
@pytest.mark.parametrize("task", ["act", "act_early"])
@pytest.mark.parametrize(
    ("how", "said"),
    [("nothing", "exitcode 0"), ("number", "exitcode 3"), ("text", "exitcode 1"), ("keyboard", "KeyboardInterrupt")],
)
def test_body_that_ends_its_process_fails_once_and_says_how(side, task, how, said):
    result = side.task(task).delay("leave", how=how)

    error = side.error(result)

    assert isinstance(error, WorkerLostError)
    assert str(error) == f"Worker exited prematurely: {said}."
    side.settled()
    assert len(side.ledger.runs(result.id)) == 1


@pytest.mark.parametrize("expires", [None, 60])
@pytest.mark.parametrize("task", ["act", "act_early"])
def test_body_that_raises_what_ends_a_process_that_is_terminated_is_revoked(side, task, expires):
    result = side.task(task).apply_async(("raise", "odd"), {"kind": "terminated"}, expires=expires)

    # Asked anew: it is FAILURE for a moment, which a result would keep.
    eventually(lambda: side.app.AsyncResult(result.id).state == "REVOKED")
    eventually(lambda: "task_revoked" in side.ledger.signals(result.id))
    if side.on_streams:  # nobody revoked it
        eventually(lambda: [letter.reason for letter in side.dead_letters(result.id)] == ["failed"])
    side.settled()
    assert len(side.ledger.runs(result.id)) == 1


@pytest.mark.parametrize("kind", ODD)
def test_exception_of_an_odd_class_fails_once(side, kind):
    result = side.act.delay("raise", "odd", kind=kind)

    side.state(result, "FAILURE")

    side.settled()
    assert len(side.ledger.runs(result.id)) == 1


@pytest.mark.parametrize("expires", [None, 60])
@pytest.mark.parametrize("hook", ["operational", "soft", "os"])
def test_task_whose_on_failure_raises_fails_once(side, hook, expires):
    result = side.task("act_hook_fails").apply_async(("error", "odd"), {"hook": hook}, expires=expires)

    side.ran(result.id)
    side.settled()

    assert len(side.ledger.runs(result.id)) == 1
    assert side.state(result, "FAILURE")


@pytest.mark.parametrize("expires", [None, 60])
@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "bool"])  # ``self.retry()`` itself asks for its truth
def test_retry_for_an_exception_of_an_odd_class_runs_again(side, kind, expires):
    result = side.act.apply_async(("retry_odd", "done"), {"kind": kind}, expires=expires)

    assert [run["retries"] for run in side.ran(result.id, times=2)] == [0, 1]
    if kind != "args":  # Celery cannot store that it is retried, and says FAILURE in between
        assert side.value(result) == "done"
    side.state(result, "SUCCESS")
    side.settled()
    assert len(side.ledger.runs(result.id)) == 2


@pytest.mark.parametrize("asked", ["retry_then", "retry_caught_then"])
@pytest.mark.parametrize("then", ["error", "ok", "reject"])
def test_retry_that_was_asked_for_runs_whatever_the_task_does_afterwards(side, asked, then):
    result = side.act.delay(asked, "done", then=then)

    runs = side.ran(result.id, times=2)

    assert 1 in [run["retries"] for run in runs]
    side.state(result, "SUCCESS")


@pytest.mark.parametrize("asked", ["retry_then", "retry_caught_then"])
@pytest.mark.parametrize("then", ["exit", "os_exit", "kill"])
@pytest.mark.parametrize("task", ["act", "act_early", "act_tracked"])
def test_retry_that_was_asked_for_runs_though_the_process_ends(streams, task, asked, then):
    side = streams
    result = side.task(task).delay(asked, "done", then=then)

    runs = side.ran(result.id, times=2)

    assert 1 in [run["retries"] for run in runs]
    side.state(result, "SUCCESS")
    side.settled()
    assert sorted(run["retries"] for run in side.ledger.runs(result.id)) == [0, 1]
    assert side.dead_letters(result.id) == []


@pytest.mark.parametrize("asked", ["retry_then", "retry_caught_then"])
def test_retry_that_was_asked_for_runs_after_a_hard_time_limit(side, asked):
    result = side.act.apply_async((asked, "done"), {"then": "sleep", "seconds": 30}, time_limit=1)

    side.ran(result.id, times=2)
    side.state(result, "SUCCESS")

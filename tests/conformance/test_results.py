"""Results and states, through Celery's own backend."""

from __future__ import annotations

import pytest
from celery.exceptions import TimeoutError as ResultTimeout

from tests.proj.actions import ActionError, ExpectedError
from tests.support.eventually import eventually
from tests.support.versions import needs_celery


def test_state_goes_from_pending_to_success(side, new_id):
    result = side.app.AsyncResult(new_id)
    before = result.state

    side.act.apply_async(("ok", 1), task_id=new_id)
    side.value(result)

    assert before == "PENDING"
    assert result.state == "SUCCESS"
    assert result.successful()
    assert result.date_done is not None


def test_exception_of_the_task_is_raised_by_get(side):
    result = side.act.delay("error", "on purpose")

    with pytest.raises(ActionError, match="on purpose"):
        side.value(result)

    assert result.state == "FAILURE"
    assert "ActionError" in result.traceback


def test_expected_exception_is_a_failure_too(side):
    result = side.task("act_throws").delay("expected_error", "known")

    assert isinstance(side.error(result), ExpectedError)
    assert result.state == "FAILURE"


def test_ignored_result_is_not_stored(side):
    result = side.task("act_ignored").delay("ok", 1)

    eventually(lambda: "after_return" in side.ledger.hooks(result.id))

    assert side.app.backend.get_task_meta(result.id)["status"] == "PENDING"


@needs_celery((5, 6), "before, a call cannot ask for the result of a task that ignores its results")
def test_ignore_result_can_be_asked_for_at_each_call(side):
    ignored = side.act.apply_async(("ok", 1), ignore_result=True)
    stored = side.task("act_ignored").apply_async(("ok", 2), ignore_result=False)

    eventually(lambda: "after_return" in side.ledger.hooks(ignored.id))

    assert side.app.backend.get_task_meta(ignored.id)["status"] == "PENDING"
    assert side.value(stored) == 2


def test_ignored_error_is_not_stored(side):
    result = side.task("act_ignored").delay("error", 1)

    eventually(lambda: "after_return" in side.ledger.hooks(result.id))

    assert side.app.backend.get_task_meta(result.id)["status"] == "PENDING"


def test_started_is_stored_when_it_is_tracked(side):
    result = side.task("act_tracked").delay("sleep", "done", seconds=0.7)

    side.state(result, "STARTED")
    info = result.info

    assert info["pid"] == side.ran(result.id)[0]["pid"]
    assert info["hostname"] == side.worker.hostname
    assert side.value(result) == "done"


def test_state_of_the_tasks_own_is_stored(side):
    result = side.act.delay("progress", 30)

    side.state(result, "PROGRESS")

    assert result.info == {"done": 30}


def test_result_that_cannot_be_serialised_is_a_failure(side):
    result = side.act.delay("unserialisable")

    error = side.error(result)

    assert result.state == "FAILURE"
    assert "EncodeError" in type(error).__name__ or "not JSON serializable" in str(error)
    side.settled()
    assert len(side.ledger.runs(result.id)) == 1


def test_large_result_arrives_whole(side):
    assert len(side.value(side.act.delay("big", size=3_000_000))) == 3_000_000


def test_get_gives_up_after_its_timeout(plain, new_id):
    with pytest.raises(ResultTimeout):
        plain.app.AsyncResult(new_id).get(timeout=0.05)


def test_forgotten_result_is_pending_again(side):
    result = side.act.delay("ok", 1)
    side.value(result)

    result.forget()

    assert side.app.AsyncResult(result.id).state == "PENDING"


def test_callback_of_get_sees_id_and_value(side):
    seen = []
    result = side.act.delay("ok", 5)

    result.get(timeout=10, callback=lambda task_id, value: seen.append((task_id, value)))

    assert seen == [(result.id, 5)]


def test_failure_is_returned_when_it_shall_not_propagate(side):
    result = side.act.delay("error", "kept")

    assert str(side.error(result)) == "kept"
    assert result.failed()


def test_ignore_leaves_the_state_alone(side):
    result = side.act.delay("ignore")

    eventually(lambda: side.ledger.read("end", result.id))
    side.settled()

    assert result.state == "PENDING"


@needs_celery((5, 7), "before, a rejected task has no state")
def test_rejected_task_is_a_failure_and_does_not_run_again(side):
    result = side.act.delay("reject", "not today")

    side.state(result, "FAILURE")
    side.settled()

    assert len(side.ledger.runs(result.id)) == 1


def test_requeued_task_runs_again_and_knows_it(side):
    result = side.task("act_late").delay("reject_requeue", "second time", times=1)

    assert side.value(result) == "second time"
    assert [run["redelivered"] for run in side.ledger.runs(result.id)] == [False, True]

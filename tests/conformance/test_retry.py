"""``self.retry`` and autoretry."""

from __future__ import annotations

import pytest
from celery.exceptions import MaxRetriesExceededError

from tests.proj.actions import ActionError, TransientError


def test_retried_task_runs_again_with_the_same_id(side):
    result = side.act.delay("retry", "done", until=2, countdown=0)

    assert side.value(result) == "done"
    assert [run["retries"] for run in side.ledger.runs(result.id)] == [0, 1, 2]


def test_state_is_retry_while_the_task_waits(side):
    result = side.act.delay("retry", "done", until=1, countdown=0.6)

    side.state(result, "RETRY")
    assert side.value(result) == "done"

    assert result.state == "SUCCESS"


def test_retry_waits_for_its_countdown(side):
    result = side.act.delay("retry", "done", until=1, countdown=0.5)

    side.value(result)
    first, second = side.ledger.runs(result.id)

    assert 0.5 <= second["at"] - first["at"] < 10


def test_retries_end_with_the_tasks_own_exception(side):
    result = side.act.delay("retry_error", "never works", max_retries=2, countdown=0)

    with pytest.raises(ActionError, match="never works"):
        side.value(result)

    assert len(side.ledger.runs(result.id)) == 3


def test_retries_without_an_exception_end_with_celerys(side):
    result = side.act.delay("retry", until=99, max_retries=1, countdown=0)

    assert isinstance(side.error(result), MaxRetriesExceededError)
    assert len(side.ledger.runs(result.id)) == 2


def test_max_retries_of_zero_fails_at_once(side):
    result = side.act.delay("retry_error", "at once", max_retries=0, countdown=0)

    with pytest.raises(ActionError, match="at once"):
        side.value(result)

    assert len(side.ledger.runs(result.id)) == 1


def test_retry_can_change_the_arguments(side):
    result = side.act.delay("retry_with", args=["ok"], kwargs={"value": "changed"})

    assert side.value(result) == "changed"


def test_retry_can_change_the_queue(side):
    result = side.act.delay("retry_then_request", countdown=0, queue=side.routed_queue)

    assert side.value(result)["delivery_info"]["routing_key"] == side.routed_queue


def test_retry_that_does_not_leave_the_task_stores_its_message_too(side):
    result = side.act.delay("retry_quietly", "second")

    side.ran(result.id, times=2)
    side.state(result, "SUCCESS")
    side.settled()

    assert [run["retries"] for run in side.ledger.runs(result.id)] == [0, 1]


def test_autoretry_goes_on_until_the_task_succeeds(side):
    result = side.task("act_autoretry").delay("transient_error", until=2)

    assert side.value(result) == 2
    assert len(side.ledger.runs(result.id)) == 3


def test_autoretry_gives_up_with_the_tasks_exception(side):
    result = side.task("act_autoretry").delay("transient_error", "still down", until=99)

    with pytest.raises(TransientError, match="still down"):
        side.value(result)

    assert len(side.ledger.runs(result.id)) == 3


def test_autoretry_leaves_other_exceptions_alone(side):
    result = side.task("act_autoretry").delay("error", "another kind")

    with pytest.raises(ActionError, match="another kind"):
        side.value(result)

    assert len(side.ledger.runs(result.id)) == 1


def test_autoretry_backs_off(side):
    result = side.task("act_backoff").delay("transient_error", until=1)

    assert side.value(result) == 1
    first, second = side.ledger.runs(result.id)
    assert 1.0 <= second["at"] - first["at"] < 10


def test_chain_goes_on_after_a_retry(side):
    chain = side.act.si("retry", 4, until=1, countdown=0) | side.task("add").s(1)

    assert side.value(chain.apply_async()) == 5


def test_link_is_called_once_after_a_retry(side, new_id):
    result = side.act.apply_async(
        ("retry", 4), {"until": 2, "countdown": 0}, link=side.task("remember").s().set(task_id=new_id)
    )

    side.value(result)
    side.value(side.app.AsyncResult(new_id))
    side.settled()

    assert [line["args"] for line in side.ledger.read("called", new_id)] == [[4]]

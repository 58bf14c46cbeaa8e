"""Where a streams worker does something else than a stock worker, on purpose; each name says why."""

from __future__ import annotations

import pytest
from celery.exceptions import TimeLimitExceeded
from kombu.serialization import register, unregister

import celery_streams
from celery_streams.delayed_messages import delayed_messages
from celery_streams.inspect import purge, queue_status
from tests.proj.actions import ActionError, ExpectedError
from tests.support.eventually import eventually


@pytest.fixture
def broker(streams):
    return celery_streams.streams_of(streams.app).broker


def letter(side, result):
    """Wait for the only dead letter of a task and return it."""
    (found,) = eventually(lambda: side.dead_letters(result.id), message="a dead letter")
    return found


def test_failed_task_becomes_a_dead_letter_because_nothing_is_given_up_silently(streams):
    result = streams.act.delay("error", "for good")

    assert isinstance(streams.error(result), ActionError)
    dead = letter(streams, result)

    assert dead.reason == "failed"
    assert dead.task == "tests.proj.actions.act"
    assert dead.exception == "ActionError('for good')"
    assert "ActionError: for good" in dead.traceback
    assert dead.message.decode_headers()["id"] == result.id
    assert b"for good" in dead.message.body


def test_task_out_of_retries_becomes_a_dead_letter_because_nothing_is_given_up_silently(streams):
    result = streams.act.delay("retry_error", "gave up", max_retries=1, countdown=0)

    streams.error(result)

    assert letter(streams, result).exception == "ActionError('gave up')"


def test_expected_failure_is_no_dead_letter_because_the_task_names_it_in_throws(streams):
    result = streams.task("act_throws").delay("expected_error", "fine")

    assert isinstance(streams.error(result), ExpectedError)
    streams.settled()

    assert streams.dead_letters(result.id) == []


def test_rejected_task_becomes_a_dead_letter_because_redis_has_no_dead_letter_exchange(streams):
    result = streams.act.delay("reject", "unwanted")

    assert letter(streams, result).reason == "rejected"


def test_task_over_its_hard_limit_becomes_a_dead_letter_because_nothing_is_given_up_silently(streams):
    result = streams.act.apply_async(("sleep",), {"seconds": 30}, time_limit=1)

    assert isinstance(streams.error(result), TimeLimitExceeded)

    assert letter(streams, result).reason == "time-limit"


def test_message_of_a_refused_content_type_becomes_a_dead_letter_because_nothing_is_given_up_silently(streams):
    register("secret", lambda obj: "not for you", lambda text: text, "application/x-secret", "utf-8")
    try:
        result = streams.act.apply_async(("ok", 1), serializer="secret")
    finally:
        unregister("secret")

    dead = letter(streams, result)

    assert dead.reason == "not-accepted"
    assert dead.message.body == b"not for you"


def test_requeue_works_without_acks_late_because_streams_acknowledge_after_the_task(streams):
    result = streams.act.delay("reject_requeue", "again", times=2)

    assert streams.value(result) == "again"
    assert [run["redelivered"] for run in streams.ledger.runs(result.id)] == [False, True, True]


@pytest.mark.parametrize("death", ["kill", "os_exit"])
def test_task_of_a_dead_process_runs_again_because_streams_acknowledge_after_the_task(streams, death):
    result = streams.act.delay(death, "survived", times=1)

    assert streams.value(result) == "survived"
    first, second = streams.ledger.runs(result.id)
    assert (first["redelivered"], second["redelivered"]) == (False, True)
    assert second["at"] - first["at"] < 8.0


def test_unknown_task_is_put_back_because_a_newer_worker_may_know_it(streams, broker):
    result = streams.app.send_task("tests.proj.actions.of_the_next_release", args=[1])

    eventually(lambda: f"[{result.id}] is not registered here" in streams.worker.log)
    (kept,) = eventually(lambda: delayed_messages(broker, streams.queue))
    purge(broker, streams.queue)

    assert result.state == "PENDING"
    assert kept.message.decode_headers()["id"] == result.id
    assert streams.dead_letters(result.id) == []


def test_delayed_message_is_kept_in_redis_because_a_worker_may_die(streams, broker):
    result = streams.act.apply_async(("ok", "kept"), countdown=0.8)

    status = queue_status(broker, streams.queue)

    assert status.delayed == 1
    assert streams.value(result) == "kept"


def test_request_names_the_queue_instead_of_the_exchange_because_streams_have_no_exchanges(streams):
    result = streams.act.apply_async(("request",), exchange=f"{streams.queue}-exchange", routing_key="bound.key")

    assert streams.value(result)["delivery_info"] == {
        "exchange": "",
        "routing_key": streams.bound_queue,
        "priority": 0,
        "redelivered": False,
    }


def test_properties_are_those_of_the_message_because_no_list_carries_it(streams):
    properties = streams.value(streams.act.apply_async(("request",), priority=3, app_id="shop"))["properties"]

    assert sorted(properties) == [
        *("app_id", "content_encoding", "content_type", "correlation_id", "delivery_mode", "priority", "reply_to"),
    ]


def test_time_limit_set_at_run_time_holds_for_the_next_task_because_the_command_says_so(streams):
    name = "tests.proj.actions.act_tracked"

    streams.control("time_limit", name, hard=10, soft=0.3)
    try:
        value = streams.value(streams.task("act_tracked").delay("soft_limit"))
    finally:
        streams.control("time_limit", name, hard=None, soft=None)

    assert value == "cleaned up"


def test_queue_is_empty_when_all_is_done_because_acknowledged_entries_are_deleted(streams, broker):
    for result in [streams.act.delay("ok", n) for n in range(20)]:
        streams.value(result)

    eventually(lambda: queue_status(broker, streams.queue).length == 0)

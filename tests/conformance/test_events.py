"""Task and worker events, as Flower and ``celery events`` receive them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter

import pytest

from tests.support.eventually import eventually
from tests.support.versions import needs_celery

TASK_FIELDS = {"hostname", "utcoffset", "pid", "clock", "timestamp", "type", "uuid", "local_received"}


def collect(side):
    """Yield a list that every event of this side's worker is added to."""
    seen, stop = [], threading.Event()

    def receive():
        with side.app.connection_for_read() as connection:
            receiver = side.app.events.Receiver(connection, handlers={"*": seen.append})
            with receiver.consumer_context(wakeup=False) as (own, _, _):
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        own.drain_events(timeout=0.1)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()

    def connected():
        side.app.control.heartbeat([side.worker.hostname])
        return [event for event in seen if event["type"] == "worker-heartbeat"]

    eventually(connected)
    yield seen
    stop.set()
    thread.join()


@pytest.fixture
def events(watched):
    """Every event of the worker, task events switched on as Flower does it."""
    watched.control("enable_events")
    yield from collect(watched)


@pytest.fixture
def plain_events(plain):
    """Every event of a worker that was started without task events."""
    yield from collect(plain)


def beat_of(events):
    """Return the last heartbeat that the worker sent by itself; those that were asked for say nothing of its load."""
    return eventually(lambda: [event for event in events if event["type"] == "worker-heartbeat" and "active" in event])[
        -1
    ]


def of(events, result, last):
    """Return the events of one task, once one of type ``last`` is among them."""

    def found():
        mine = [event for event in events if event.get("uuid") == result.id]
        return mine if last in [event["type"] for event in mine] else []

    return eventually(found, message=f"event {last}")


def test_events_of_a_success(watched, events):
    result = watched.act.delay("ok", 5)

    received, started, succeeded = of(events, result, "task-succeeded")

    assert [one["type"] for one in (received, started, succeeded)] == [
        "task-received",
        "task-started",
        "task-succeeded",
    ]
    assert received["name"] == "tests.proj.actions.act"
    assert received["args"] == "('ok', 5)"
    assert received["kwargs"] == "{}"
    assert received["root_id"] == result.id
    assert received["retries"] == 0
    assert succeeded["result"] == "5"
    assert 0 <= succeeded["runtime"] < 5
    assert {one["hostname"] for one in (received, started, succeeded)} == {watched.worker.hostname}
    assert set(started) >= TASK_FIELDS


def test_events_of_a_failure(watched, events):
    result = watched.act.delay("error", "seen")

    found = of(events, result, "task-failed")

    assert [one["type"] for one in found] == ["task-received", "task-started", "task-failed"]
    assert found[-1]["exception"] == "ActionError('seen')"
    assert "ActionError: seen" in found[-1]["traceback"]


def test_events_of_a_retry(watched, events):
    result = watched.act.delay("retry", until=1, countdown=0.3)

    def types():
        return Counter(one["type"] for one in of(events, result, "task-succeeded") if one["type"] != "task-received")

    # The retry is stored before its event is sent: another process may start and end it before that.
    expected = {"task-started": 2, "task-retried": 1, "task-succeeded": 1}
    assert eventually(lambda: types() if types().total() >= 4 else None) == expected


@pytest.mark.parametrize(("action", "said"), [("retry", "None"), ("retry_error", "ActionError('why')")])
def test_event_of_a_retry_says_why(watched, events, action, said):
    result = watched.act.delay(action, "why", max_retries=1, countdown=0.3)

    (retried,) = [event for event in of(events, result, "task-retried") if event["type"] == "task-retried"]

    assert retried["exception"] == said


@needs_celery((5, 7), "before, a rejected task does not fail")
def test_event_of_a_rejected_task_says_what_it_raised(watched, events):
    result = watched.act.delay("reject", "unwanted")

    (failed,) = [event for event in of(events, result, "task-failed") if event["type"] == "task-failed"]

    assert failed["exception"] == "reject requeue=False: unwanted"


def test_events_of_a_revoked_task(watched, events):
    result = watched.act.apply_async(("ok", 1), expires=-1)

    (revoked,) = of(events, result, "task-revoked")

    assert revoked["expired"] is True
    assert revoked["terminated"] is False


def test_events_of_a_terminated_task(watched, events):
    result = watched.act.delay("sleep", seconds=30)
    watched.ran(result.id)

    watched.control("revoke", result.id, terminate=True)

    revoked = of(events, result, "task-revoked")[-1]
    assert revoked["terminated"] is True


def test_events_of_a_rejected_task(watched, events):
    result = watched.task("act_late").delay("reject", "no")

    found = of(events, result, "task-rejected")

    assert found[-1]["requeue"] is False


def test_events_of_a_task_that_exceeds_its_hard_limit(watched, events):
    result = watched.act.apply_async(("sleep",), {"seconds": 30}, time_limit=0.5)

    found = of(events, result, "task-failed")

    # Stock Celery may send task-failed twice.
    assert list(dict.fromkeys(one["type"] for one in found)) == ["task-received", "task-started", "task-failed"]


def test_event_that_a_task_sends_itself_comes_after_what_tells_which_task_it_is(watched, events):
    results = [watched.act.delay("send_event", number) for number in range(20)]

    for number, result in enumerate(results):
        found = of(events, result, "task-succeeded")
        types = [one["type"] for one in found]
        # Of stock Celery's two processes either may be the first to tell that a task started, or to send its own event.
        assert types.index("task-received") < types.index("task-own") < types.index("task-succeeded")
        assert found[types.index("task-own")]["value"] == number
        if watched.on_streams:
            assert types == ["task-received", "task-started", "task-own", "task-succeeded"]


@pytest.mark.parametrize("action", ["exit", "os_exit"])
def test_failed_task_is_known_by_its_name_whatever_became_of_its_process(watched, events, action):
    task = watched.task("act") if action == "exit" else watched.task("act_not_again")
    options = {"times": 99} if action == "os_exit" else {}
    result = task.delay(action, "a value", **options)

    found = of(events, result, "task-failed")

    assert found[0]["type"] == "task-received"
    assert found[0]["name"] == task.name
    assert "a value" in found[0]["args"]
    assert found[0]["retries"] == 0
    if watched.on_streams:
        assert [one["type"] for one in found] == ["task-received", "task-started", "task-failed"]


def test_task_that_is_terminated_as_it_starts_is_known_by_its_name(watched, events):
    result = watched.act.delay("sleep", seconds=30)
    watched.ran(result.id)
    watched.control("revoke", result.id, terminate=True)

    types = [one["type"] for one in of(events, result, "task-revoked")]
    assert types.index("task-received") < types.index("task-revoked")


def test_task_that_is_terminated_as_it_starts_is_announced_once_however_long_its_process_takes_to_end(watched, events):
    result = watched.act.delay("linger", after=1.0)
    watched.ran(result.id)
    watched.control("revoke", result.id, terminate=True)
    of(events, result, "task-revoked")
    # As many as there are processes: one of them is the successor of the one that ended.
    others = [watched.act.delay("sleep", seconds=0.5) for _ in range(2)]
    for one in others:
        of(events, one, "task-succeeded")

    types = [one["type"] for one in events if one.get("uuid") == result.id]
    assert sorted(types) == ["task-received", "task-revoked", "task-started"]
    assert types.index("task-received") < types.index("task-revoked")


def test_worker_announces_itself_with_its_load(watched, events):
    heartbeat = beat_of(events)

    assert heartbeat["hostname"] == watched.worker.hostname
    assert heartbeat["freq"] == 2.0
    assert heartbeat["sw_ident"] == "py-celery"
    assert heartbeat["active"] >= 0
    assert heartbeat["processed"] >= 0
    assert len(heartbeat["loadavg"]) == 3


def test_worker_announces_its_start_and_its_end(watched, events, another_worker):
    def types():
        return [event["type"] for event in events if event["hostname"] == leaving.hostname]

    leaving = another_worker(watched, "leaving")
    eventually(lambda: "worker-online" in types())

    leaving.signal(signal.SIGTERM)
    leaving.wait()

    eventually(lambda: "worker-offline" in types())
    assert (types()[0], types()[-1]) == ("worker-online", "worker-offline")
    assert types().count("worker-online") == types().count("worker-offline") == 1


def test_processed_counts_the_tasks(watched, events):
    before = beat_of(events)["processed"]
    for _ in range(5):
        watched.value(watched.act.delay("ok"))

    eventually(lambda: beat_of(events)["processed"] >= before + 5)


def test_publisher_sends_task_sent_when_asked_to(watched, events):
    result = watched.act.apply_async(("ok", 1), headers={}, priority=3)
    watched.value(result)
    watched.app.conf.task_send_sent_event = True
    watched.app.amqp.__dict__.pop("send_task_message", None)
    try:
        sent = watched.act.delay("ok", 1)
    finally:
        watched.app.conf.task_send_sent_event = False
        watched.app.amqp.__dict__.pop("send_task_message", None)

    event = next(one for one in of(events, sent, "task-succeeded") if one["type"] == "task-sent")

    assert event["queue"] == watched.queue
    assert event["routing_key"] == watched.queue
    assert [one for one in events if one["type"] == "task-sent" and one["uuid"] == result.id] == []


def test_events_are_switched_on_and_off(plain, plain_events):
    published = []

    def heard():
        published.append(plain.act.delay("ok", len(published)))
        plain.value(published[-1])
        return {event["uuid"] for event in plain_events if "uuid" in event} & {one.id for one in published}

    plain.control("enable_events")
    eventually(heard)
    plain.control("disable_events")
    silent = [plain.act.delay("ok", n) for n in range(20)]
    for result in silent:
        plain.value(result)
    # A result is there before the worker has done with its task, the event of its success among other things.
    eventually(lambda: plain.inspect.active() == {plain.worker.hostname: []})
    published.clear()
    plain.control("enable_events")
    eventually(heard)
    plain.control("disable_events")

    # The children of a streams worker may hear of it a moment after the parent has answered.
    assert [event for event in plain_events if event.get("uuid") in {one.id for one in silent[10:]}] == []

"""Messages that do not run."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery.exceptions import InvalidTaskError, NotRegistered
from celery.worker import state as worker_state
from kombu.exceptions import ContentDisallowed

from tests.support.bench import NOTHING, QUEUE, STREAM, Bench, NoBackend, but, sent
from tests.support.redis_state import redis_state


def test_expired_message_is_revoked_and_acknowledged(bench: Bench) -> None:
    @bench.task()
    def note() -> None:
        bench.ran.append("ran")

    result = note.apply_async(expires=datetime.now(timezone.utc) - timedelta(seconds=5))

    bench.run()

    assert (bench.ran, bench.left(), result.state) == ([], NOTHING, "REVOKED")


@pytest.mark.parametrize("protocol", [2, 1])
@pytest.mark.parametrize("task_id", ["revoked-5", uuid.UUID(int=77), b"revoked-5"])
def test_revoked_message_is_acknowledged_whatever_kind_of_id_it_has(
    make: Callable[..., Bench], task_id: Any, protocol: int
) -> None:
    bench = make(task_protocol=protocol)

    @bench.task()
    def note() -> None:
        bench.ran.append("ran")

    result = note.apply_async(task_id=task_id)
    worker_state.revoked.add(str(task_id))  # what other processes and later workers are told

    bench.run()

    assert (bench.ran, bench.left(), result.state) == ([], NOTHING, "REVOKED")


def test_message_that_is_not_due_yet_goes_back_until_it_is(both: Bench) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")

    both.publish_task("note", eta=(datetime.now(timezone.utc) + timedelta(seconds=60)).isoformat())

    both.run()

    assert (both.ran, both.left()) == ([], but(delayed=1))
    ((due, message),) = both.delayed()
    assert 58_000 < due - time.time() * 1000 < 61_000
    assert "redelivered" not in message.decode_history()


def test_message_whose_eta_is_over_runs(both: Bench) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")

    both.publish_task("note", eta=(datetime.now(timezone.utc) - timedelta(seconds=60)).isoformat())

    both.run()

    assert (both.ran, both.left()) == (["ran"], NOTHING)


def test_unknown_task_is_put_back_for_newer_workers(bench: Bench) -> None:
    bench.publish_task("not.yet")

    bench.run()

    assert bench.left() == but(delayed=1)
    ((due, message),) = bench.delayed()
    assert 0 < due - time.time() * 1000 < 2_000
    assert message.decode_history()["unknown"] == pytest.approx(time.time() * 1000, abs=5_000)


def test_task_that_stayed_unknown_is_a_dead_letter_and_a_failure(make: Callable[..., Bench]) -> None:
    bench = make(streams_unknown_task_ttl=0)
    task_id = bench.publish_task("never")

    with sent("task_unknown") as seen:
        bench.run()

    assert bench.left() == but(dead=["unknown-task"])
    assert bench.app.AsyncResult(task_id).state == "FAILURE"
    ((message, exc, name, known_as),) = [(one["message"], one["exc"], one["name"], one["id"]) for one in seen]
    assert (name, known_as) == ("never", task_id)
    assert (message.headers["task"], message.delivery_info["routing_key"]) == ("never", QUEUE)
    assert isinstance(exc, NotRegistered)


@pytest.mark.parametrize("name", [5, 1.5, True, None])
def test_task_name_that_is_no_text_is_unknown_at_once_and_for_ever(both: Bench, name: Any) -> None:
    both.publish({"task": name, "id": "an-id"}, [[], {}, {}])

    with sent("task_unknown") as seen:
        both.run()

    assert both.left() == but(dead=["unknown-task"])
    assert [(one["name"], one["id"]) for one in seen] == [(name, "an-id")]
    (death,) = both.deaths()
    assert (death["task"], death["exception"]) == (str(name), repr(NotRegistered(name)))


@pytest.mark.parametrize("task_id", [None, 1.5, 7, ""])
def test_task_id_that_is_no_text_runs(both: Bench, task_id: Any) -> None:
    @both.task(bind=True, ignore_result=True)  # result backends cannot keep one under such an id
    def note(self: Any) -> None:
        both.ran.append(self.request.id)

    both.publish({"task": "note", "id": task_id}, [[], {}, {}])

    both.run()

    assert (both.ran, both.left()) == ([task_id], NOTHING)


def test_unknown_task_that_is_put_back_is_not_announced(bench: Bench) -> None:
    bench.publish_task("not.yet")

    with sent("task_unknown") as seen:
        bench.run()

    assert seen == []


def test_unknown_task_is_a_dead_letter_also_while_the_result_backend_is_away(make: Callable[..., Bench]) -> None:
    bench = make(streams_unknown_task_ttl=0)
    bench.app._local.backend = NoBackend()
    bench.publish_task("never")

    bench.run()

    assert bench.left() == but(dead=["unknown-task"])


GOOD = {"task": "note", "id": "an-id"}
MALFORMED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "a body that is not JSON": (GOOD, b"{", {}),
    "a body that is no triple": (GOOD, [[], {}], {}),
    "a body that is a number": (GOOD, 5, {}),
    "keyword arguments that are a list": (GOOD, [[], [], {}], {}),
    "options that are a list": (GOOD, [[], {}, [1]], {}),
    "no id": ({"task": "note"}, [[], {}, {}], {}),
    "an id that is a list": ({"task": "note", "id": ["x"]}, [[], {}, {}], {}),
    "a task name that is a list": ({"task": ["note"], "id": "x"}, [[], {}, {}], {}),
    "time limits that are a number": ({**GOOD, "timelimit": 5}, [[], {}, {}], {}),
    "an eta that is a number": ({**GOOD, "eta": 5}, [[], {}, {}], {}),
    "an expiry that is no date": ({**GOOD, "expires": "soon"}, [[], {}, {}], {}),
    "no task at all": ({}, {"args": []}, {}),
    "an unknown compression": ({**GOOD, "compression": "application/x-nothing"}, [[], {}, {}], {}),
    "an unknown content type": (GOOD, b"x", {"content_type": "application/x-nothing"}),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_message_with_odd_parts_is_a_dead_letter_with_its_bytes(both: Bench, what: str) -> None:
    headers, body, properties = MALFORMED[what]

    @both.task()
    def note() -> None:
        both.ran.append("ran")

    both.publish(headers, body, **properties)

    delivery = both.run()

    assert both.ran == []
    assert (len(both.deaths()), {**both.left(), "dead": []}) == (1, NOTHING)
    ((_, entry),) = redis_state(both.broker.client)[f"{STREAM}:dead"].entries.items()
    assert delivery.message is not None
    assert (entry["headers"], entry["body"]) == (delivery.message.headers, delivery.message.body)


@pytest.mark.parametrize(
    "fields",
    [
        ["headers", "{}", "body", "x"],
        ["headers", "{", "properties", "{}", "body", "x"],
        ["headers", "[]", "properties", "{}", "body", "x"],
        ["headers", "{}", "properties", "{}", "body", "x", "history", "nonsense"],
        ["something", "else"],
    ],
)
def test_entry_that_is_no_message_is_a_dead_letter(bench: Bench, fields: list[str]) -> None:
    bench.broker.client.call("XADD", STREAM, "*", *fields)

    bench.run()

    assert bench.left() == but(dead=["malformed"])


def test_content_type_that_is_not_accepted_is_a_dead_letter(both: Bench) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")

    note.apply_async(serializer="pickle")

    both.run()

    assert (both.ran, both.left()) == ([], but(dead=["not-accepted"]))


@pytest.mark.parametrize(
    ("what", "refused"),
    [
        ("an unknown content type", ContentDisallowed),
        ("an eta that is a number", InvalidTaskError),
        ("an expiry that is no date", InvalidTaskError),
    ],
)
def test_message_that_is_refused_is_announced_once_with_the_reason(
    both: Bench, what: str, refused: type[Exception]
) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")

    headers, body, properties = MALFORMED[what]
    both.publish(headers, body, **properties)

    with sent("task_rejected") as seen:
        both.run()

    ((message, exc),) = [(one["message"], one["exc"]) for one in seen]
    assert isinstance(exc, refused)
    assert message.headers == headers
    assert message.body == (body if isinstance(body, bytes) else json.dumps(body).encode())
    assert message.delivery_info["routing_key"] == QUEUE


def test_message_without_a_task_name_is_announced_without_an_exception(bench: Bench) -> None:
    bench.publish({"id": "an-id"}, {"args": []})

    with sent("task_rejected") as seen:
        bench.run()

    assert [(one["message"].headers, one["exc"]) for one in seen] == [({"id": "an-id"}, None)]


@pytest.mark.parametrize("what", ["a body that is not JSON", "an unknown compression", "a body that is a number"])
def test_message_that_cannot_be_decoded_is_not_announced(both: Bench, what: str) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")

    headers, body, properties = MALFORMED[what]
    both.publish(headers, body, **properties)

    with sent("task_rejected") as seen:
        both.run()

    assert (seen, len(both.deaths())) == ([], 1)


def test_content_type_that_is_accepted_runs(make: Callable[..., Bench]) -> None:
    bench = make(accept_content=["pickle"], result_accept_content=["json"])

    @bench.task()
    def note(value: Any) -> None:
        bench.ran.append(value)

    note.apply_async(({1, 2},), serializer="pickle")

    bench.run()

    assert (bench.ran, bench.left()) == ([{1, 2}], NOTHING)

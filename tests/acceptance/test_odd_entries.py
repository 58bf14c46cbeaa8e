"""Entries that no publisher of ours writes, read by real workers: dead letters, and nobody else is held up."""

from __future__ import annotations

import pytest

from celery_streams import inspect
from celery_streams.message import Message, pack
from tests.support.control import asked
from tests.support.eventually import eventually
from tests.support.redis_state import make_idle

MANY = [part for number in range(4_001) for part in (b"field-%d" % number, b"%d" % number)]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_entry_of_thousands_of_fields_is_a_dead_letter_and_ends_no_child(project, act, worker, pool):
    running = worker(concurrency=1, pool=pool)
    before = act.delay("ok", "before")
    assert before.get(timeout=10) == "before"

    project.broker.client.call("XADD", project.broker.queue_keys("celery").streams[0], "*", *MANY)
    after = act.delay("ok", "after")

    assert after.get(timeout=10) == "after"
    (letter,) = eventually(lambda: project.dead_letters())
    assert letter.reason == "malformed"
    assert [part for pair in letter.fields for part in pair] == MANY
    assert len({run["pid"] for run in project.ledger.runs()}) == 1
    assert "Traceback" not in running.log
    assert project.status().length == 0


def held_by_the_dead(project, history: bytes | None = None, fields: list[bytes] | None = None) -> None:
    """Let a consumer that is long gone hold the newest message, or one of these fields."""
    broker = project.broker
    stream = broker.streams(["celery"])[0]
    if history is not None:
        [(entry_id, flat)] = broker.client.call("XREVRANGE", stream.key, "+", "-", "COUNT", 1)
        plain = Message.from_fields(flat)
        broker.client.call("XDEL", stream.key, entry_id)
        broker.publish("celery", Message(plain.headers, plain.properties, plain.body, history))
    if fields is not None:
        broker.client.call("XADD", stream.key, "*", *fields)
    for found in broker.read([stream], "dead@host/1.00000000", count=1):
        make_idle(broker, found.stream, "dead@host/1.00000000", found.entry_id, idle_ms=3_600_000)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_odd_entries_that_a_dead_worker_held_stop_the_recovery_of_none(project, act, worker, pool):
    project.broker.ensure_groups(["celery"])
    results = []
    for history in (b'{"x": 1e999}', b'{"crashes": NaN}', b'{"crashes": "nan"}', b'{"crashes": 1, "first": []}'):
        results.append(act.delay("ok", len(results)))
        held_by_the_dead(project, history=history)
    for fields in (MANY, [b"junk", b"1"]):
        held_by_the_dead(project, fields=fields)
    results.append(act.delay("ok", len(results)))
    held_by_the_dead(project, history=b"{}")
    broker = project.broker
    for member, value in ((b"\xff\xfe", b"no packed message"), (b"empty", b"")):
        broker.client.call("ZADD", broker.queue_keys("celery").delayed, 1, member)
        broker.client.call("HSET", broker.queue_keys("celery").delayed_messages, member, value)

    worker(concurrency=2, pool=pool, streams_visibility_timeout=3)

    assert [result.get(timeout=20) for result in results] == list(range(5))
    assert eventually(lambda: inspect.queue_status(broker, "celery").length == 0, timeout=15)
    assert sorted(letter.reason for letter in project.dead_letters()) == ["malformed"] * 4
    assert broker.client.call("ZCARD", broker.queue_keys("celery").delayed) == 0


def test_odd_delayed_messages_hide_no_others_from_inspect_scheduled(project, act, worker):
    running = worker(concurrency=1)
    delayed = act.apply_async(("ok", 1), countdown=600)
    broker = project.broker
    names = broker.queue_keys("celery")
    odd = [
        b"no packed message",
        pack(Message(b"no JSON", b"{}", b"[]")),
        pack(Message(b"{}", b"{}", b"[]")),
        pack(Message(b'{"task":"t","id":"1","eta":"no date"}', b'{"content_type":"no/such"}', b"[]")),
        pack(Message(b'{"task":[],"id":{}}', b"[]", b"\xff", b"nan")),
    ]
    for number, value in enumerate(odd):
        broker.client.call("HSET", names.delayed_messages, b"\xff%d" % number, value)
        broker.client.call("ZADD", names.delayed, "inf" if number == 0 else 2**50, b"\xff%d" % number)

    answers = asked(act.app, "scheduled", running.hostname)

    shown = [entry["request"]["id"] for entry in answers[running.hostname]]
    assert delayed.id in shown
    assert act.delay("ok", 2).get(timeout=10) == 2

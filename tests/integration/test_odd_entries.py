"""What anybody can write to Redis: one odd entry, history or delayed member never stops what serves the others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from celery_streams import inspect, keys, recovery
from celery_streams.broker import StreamBroker
from celery_streams.dead_letters import dead_letters
from celery_streams.delayed_messages import delayed_messages
from celery_streams.entries import Delivery
from celery_streams.message import Message, encode_history
from celery_streams.migration import Migration
from celery_streams.worker.outcome import crash_pauses_ms
from tests.support.redis_state import delivered, make_idle, message, number_of, read_all

STREAM = "celery-streams:{q}"
DELAYED, MESSAGES, DEAD = f"{STREAM}:delayed", f"{STREAM}:delayed:messages", f"{STREAM}:dead"

#: Beyond what a script can pass to one command.
MANY = [part for number in range(4_001) for part in (b"field-%d" % number, b"%d" % number)]

HISTORIES = [
    b'{"x": 1e999}',
    b'{"x": -1e999, "y": [1, {"z": 1e999}]}',
    b'{"crashes": NaN}',
    b'{"crashes": Infinity}',
    b'{"crashes": "nan"}',
    b'{"crashes": "inf"}',
    b'{"crashes": -3}',
    b'{"crashes": [1]}',
    b'{"crashes": null, "first": 7, "worker": {}}',
    b'{"first": "\\u0000", "redelivered": {}}',
    b'{"attempts": [1, 2]}',
    b'{"attempts": "999999999999999\\t9\\t9\\tx\\ty\\tz\\n\\n\\u0000"}',
    b'{"attempts": "' + b"1\\t\\t\\t" * 5_000 + b'"}',
    b"nan",
    b"[1, 2]",
    b'"text"',
    b"no JSON",
    b"\xff\xfe",
    b"[" * 2_000,
    b'{"a": ' * 2_000,
]


def recover(broker: StreamBroker, *, limit: int = 100, delivery_limit: int = 5) -> Any:
    broker.client.call("DEL", f"{STREAM}:claims")
    return recovery.recover(
        broker, "q", "claimer", idle_ms=1_000, turn_ms=50, pauses_ms=crash_pauses_ms(delivery_limit), limit=limit
    )


def abandon(broker: StreamBroker, *found: Delivery) -> None:
    for one in found:
        make_idle(broker, one.stream, "dead", one.entry_id, idle_ms=60_000)


def odd_entry(broker: StreamBroker, fields: list[bytes], consumer: str) -> Delivery:
    broker.ensure_groups(["q"])
    broker.client.call("XADD", STREAM, "*", *fields)
    (found,) = broker.read(broker.streams(["q"]), consumer, count=1)
    return found


@pytest.mark.parametrize("history", HISTORIES, ids=repr)
def test_odd_history_stops_nobody_from_being_recovered(broker: StreamBroker, history: bytes) -> None:
    abandon(broker, *delivered(broker, "q", "dead", message(1), message(2, history=history), message(3)))

    recovery = recover(broker)
    again = read_all(broker, ["q"], "me")

    assert recovery.moved == 3
    assert [number_of(one) for one in again] == [1, 2, 3]
    for one in again:
        assert one.message is not None
        assert one.message.decode_history()["crashes"] == 1
        json.loads(one.message.history, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_crashes_beyond_all_measure_are_at_the_delivery_limit(broker: StreamBroker) -> None:
    abandon(broker, *delivered(broker, "q", "dead", message(1, history=b'{"crashes": 1e300}'), message(2)))

    recovery = recover(broker)

    assert recovery.moved == 1
    assert [number_of(one) for one, _ in recovery.exhausted] == [1]


@pytest.mark.parametrize(
    ("history", "read"),
    [
        (b'{"crashes": NaN, "x": 1e999}', {}),
        (b'{"crashes": 2.0, "first": "1-0", "granted": 1}', {"crashes": 2, "first": "1-0", "granted": 1}),
        (b'{"crashes": "2", "unknown": -1, "first": 5, "worker": []}', {}),
        (b'{"redelivered": true, "from a newer version": "x"}', {"redelivered": True, "from a newer version": "x"}),
    ],
)
def test_history_is_read_for_what_makes_sense(history: bytes, read: dict[str, Any]) -> None:
    found = Message(b"{}", b"{}", b"", history).decode_history()

    assert found == read
    assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))
    json.loads(encode_history(found) or b"{}", parse_constant=lambda name: pytest.fail(name))


def by_recovery(broker: StreamBroker, one: Delivery) -> None:
    abandon(broker, one)
    assert recover(broker).moved == 1


def by_release(broker: StreamBroker, one: Delivery) -> None:
    assert broker.put_back("dead", [one.entry]) == 1


def by_release_of_all(broker: StreamBroker, one: Delivery) -> None:
    assert broker.put_back_all(broker.streams(["q"]), "dead") == 1


def by_requeue(broker: StreamBroker, one: Delivery) -> None:
    assert broker.requeue("dead", one.entry, history={"crashes": 1}, delay_ms=1_000)


@pytest.mark.parametrize("put_back", [by_recovery, by_release, by_release_of_all, by_requeue])
def test_entry_of_thousands_of_fields_is_put_back_and_dead_lettered_whole(
    broker: StreamBroker, put_back: Callable[[StreamBroker, Delivery], None]
) -> None:
    put_back(broker, odd_entry(broker, MANY, "dead"))
    (again,) = broker.read(broker.streams(["q"]), "me", count=1)

    assert again.message is None
    broker.reject("me", again.entry, death=b'{"reason":"malformed"}', max_length=10, ttl=None)

    (letter,) = dead_letters(broker, "q")
    assert letter.reason == "malformed"
    assert [part for pair in letter.fields for part in pair if pair[0] != b"history"] == MANY
    assert broker.client.call("XLEN", STREAM) == 0


@pytest.mark.parametrize("count", [1_999, 2_000, 2_001, 4_001, 20_000])
def test_entry_of_many_fields_becomes_a_dead_letter_at_once(broker: StreamBroker, count: int) -> None:
    fields = [part for number in range(count) for part in (b"%d" % number, b"")]
    odd = odd_entry(broker, fields, "me")

    broker.reject("me", odd.entry, death=b'{"reason":"malformed"}', max_length=10, ttl=None)

    (letter,) = dead_letters(broker, "q")
    assert [part for pair in letter.fields for part in pair] == fields
    assert len(odd.error) < 1_000


def test_dead_letter_with_a_field_called_fields_is_shown_as_it_is(broker: StreamBroker) -> None:
    odd = odd_entry(broker, [b"fields", b"of wheat"], "me")

    broker.reject("me", odd.entry, death=b"{}", max_length=10, ttl=None)

    (letter,) = dead_letters(broker, "q")
    assert letter.fields == ((b"fields", b"of wheat"),)


def odd_members(broker: StreamBroker) -> None:
    for score, member, value in (
        ("-inf", b"\xff\xfe", b"no packed message"),
        ("inf", b"never", b"x"),
        ("1e300", b"hardly", b"x"),
        ("1e18", b"late", b"x"),
        ("5", b"without a message", None),
        ("6", b"", b""),
        ("7", b"long", b"\xff" * 30),
    ):
        broker.client.call("ZADD", DELAYED, score, member)
        if value is not None:
            broker.client.call("HSET", MESSAGES, member, value)


def test_odd_members_of_the_delayed_set_stop_no_promotion(broker: StreamBroker) -> None:
    broker.ensure_groups(["q", "r"])
    odd_members(broker)
    broker.delay("q", message(1), due_ms=8, member="m")
    broker.delay("r", message(2), due_ms=8, member="m")

    promotion = broker.promote(["q", "r"])

    found = read_all(broker, ["q", "r"], "me")
    assert sorted(number_of(one) for one in found if one.message) == [1, 2]
    assert [dict(zip(one.fields[::2], one.fields[1::2], strict=True)) for one in found if not one.message] == [
        {b"packed": b"no packed message"},
        {b"packed": b""},
        {b"packed": b"\xff" * 30},
    ]
    assert promotion.missing == 1
    assert promotion.next_due_ms == 86_400_000
    assert broker.client.call("ZCARD", DELAYED) == 3


def test_delayed_messages_that_never_come_due_do_not_hide_when_the_next_one_does(broker: StreamBroker) -> None:
    broker.ensure_groups(["q", "r"])
    broker.client.call("ZADD", DELAYED, "inf", "never")

    assert broker.promote(["q"]).next_due_ms == 86_400_000


def test_odd_members_of_the_delayed_set_can_be_listed(broker: StreamBroker) -> None:
    odd_members(broker)
    broker.delay("q", message(1), due_ms=8, member="m")

    found = delayed_messages(broker, "q")

    assert len(found) == 8
    assert [one.member for one in found if one.message] == ["m"]
    assert inspect.queue_status(broker, "q").delayed == 8


def test_odd_members_of_the_delayed_set_stop_no_rollback(broker: StreamBroker) -> None:
    odd_members(broker)
    for due in (8, 2**45):
        broker.delay("q", message(due), due_ms=due, member=f"m{due}")
    packed = broker.client.call("HGET", MESSAGES, "m8")
    for score, member in (("1e300", "whole, but never"), ("-inf", "whole, for ever")):
        broker.client.call("ZADD", DELAYED, score, member)
        broker.client.call("HSET", MESSAGES, member, packed)

    moves = Migration(broker, broker.client, options={}, visibility_timeout=15.0).to_lists("q")

    assert moves.delayed == 3
    assert broker.client.call("LLEN", "q") == 3


@pytest.mark.parametrize("priority", ["1e999", "-1e999", "NaN", '"x"', "[]", "{}", '"1e999"'])
def test_odd_priority_of_one_message_stops_no_migration(broker: StreamBroker, priority: str) -> None:
    migration = Migration(broker, broker.client, options={}, visibility_timeout=15.0)
    broker.ensure_groups(["q"])
    broker.publish("q", Message(b'{"task":"t","id":"1"}', b'{"priority":%s}' % priority.encode(), b"[]"))
    broker.publish("q", message(2))
    moves = migration.to_lists("q")
    lists = list(broker.client.call("KEYS", "q*"))
    on_lists = sum(broker.client.call("LLEN", key) for key in lists)

    back = migration.to_streams("q")

    assert (moves.moved, on_lists) == (2, 2)
    assert back.moved + back.malformed == 2
    assert 2 in [number_of(one) for one in read_all(broker, ["q"], "me") if one.message]


@pytest.mark.parametrize("first", ["²-0", "9" * 5_000 + "-0", "-", "x", "1-0-0", "٣-0"])
def test_odd_first_id_in_a_history_breaks_no_status(broker: StreamBroker, first: str) -> None:
    broker.ensure_groups(["q"])
    broker.publish("q", message(1, history=encode_history({"first": first})))
    (held,) = delivered(broker, "r", "me", message(2, history=encode_history({"first": first})))
    broker.reject("me", held.entry, death=b"{}", max_length=None, ttl=None)

    status = inspect.queue_status(broker, "q")
    (letter,) = dead_letters(broker, "r")

    assert status.waiting == 1
    assert status.oldest_waiting is not None
    assert status.oldest_waiting < 60
    assert letter.published is None


def test_names_that_are_no_text_break_no_status(broker: StreamBroker) -> None:
    abandon(broker, *delivered(broker, "q", "dead", message(1, history=b'{"crashes": 9}')))
    broker.client.call("XCLAIM", STREAM, keys.GROUP, b"\xff", 0, broker.client.call("XRANGE", STREAM, "-", "+")[0][0])
    make_idle(
        broker, broker.streams(["q"])[0], b"\xff", broker.client.call("XRANGE", STREAM, "-", "+")[0][0], idle_ms=9_999
    )
    broker.client.call("SADD", keys.queues(broker.prefix), b"\xff")

    assert len(inspect.consumers(broker, "q")) == 2
    assert "q" in inspect.known_queues(broker)
    assert recover(broker).exhausted[0][1] == "�"


@pytest.mark.parametrize("depth", [10, *range(900, 1_000, 7), 5_000])
def test_message_of_any_depth_stops_no_migration(broker: StreamBroker, depth: int) -> None:
    migration = Migration(broker, broker.client, options={}, visibility_timeout=15.0)
    deep = b'{"id":"1","task":"t","deep":' + b"[" * depth + b"]" * depth + b"}"
    broker.ensure_groups(["q"])
    broker.publish("q", Message(deep, b"{}", b"[]"))
    broker.publish("q", message(2))

    there = migration.to_lists("q")
    back = migration.to_streams("q")

    assert there.moved + there.skipped == 2
    assert back.moved + back.malformed == there.moved
    assert [number_of(one) for one in read_all(broker, ["q"], "me") if one.message and one.message.headers != deep] == [
        2
    ]

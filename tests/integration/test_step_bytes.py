"""A step is bounded by bytes as well as by number: however large the messages, Redis is not held up for long."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from celery_streams import inspect, keys, scripts
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.dead_letters import dead_letters
from celery_streams.delayed_messages import delayed_messages
from celery_streams.message import Message
from celery_streams.migration import Migration
from celery_streams.pages import STEP_BYTES
from celery_streams.recovery import recover
from celery_streams.worker.outcome import crash_pauses_ms
from tests.support.redis_state import delivered, make_idle, message, number_of, read_all

STREAM = "celery-streams:{q}"

#: What a step may take at most, the message that goes beyond included.
MOST = 4


def large(number: int) -> Message:
    small = message(number)
    return Message(small.headers, small.properties, b"x" * (STEP_BYTES // 3), small.history, small.step)


def test_promotion_takes_several_steps_for_large_messages(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    for number in range(7):
        broker.delay("q", large(number), due_ms=number + 1, member=str(number))

    steps = [broker.promote(["q"])]
    while steps[-1].next_due_ms == 0:
        steps.append(broker.promote(["q"]))

    assert sum(step.moved for step in steps) == 7
    assert max(step.moved for step in steps) <= MOST
    assert len(steps) >= 2
    assert [number_of(one) for one in read_all(broker, ["q"], "me")] == list(range(7))


def test_message_that_is_larger_than_a_step_is_promoted(broker: StreamBroker) -> None:
    broker.ensure_groups(["q", "r"])
    broker.delay("q", Message(b"{}", b"{}", b"x" * 3 * STEP_BYTES), due_ms=1, member="a")
    broker.delay("r", message(2), due_ms=1, member="b")

    moved = [broker.promote(["q", "r"]).moved for _ in range(2)]

    assert moved == [1, 1]


def test_recovery_takes_several_steps_for_large_messages(broker: StreamBroker) -> None:
    for one in delivered(broker, "q", "dead", *map(large, range(7))):
        make_idle(broker, one.stream, "dead", one.entry_id, idle_ms=60_000)

    steps: list[Any] = []
    while not steps or steps[-1].more:
        steps.append(recover(broker, "q", "claimer", idle_ms=1_000, turn_ms=60_000, pauses_ms=crash_pauses_ms(5)))

    assert sum(step.moved for step in steps) == 7
    assert max(step.moved for step in steps) <= MOST
    assert sorted(number_of(one) for one in read_all(broker, ["q"], "me")) == list(range(7))


def by_entry(broker: StreamBroker, entries: list[Any]) -> int:
    return broker.put_back("me", entries)


def all_at_once(broker: StreamBroker, entries: list[Any]) -> int:
    return broker.put_back_all(broker.streams(["q"]), "me")


@pytest.mark.parametrize("put_back", [by_entry, all_at_once])
def test_large_entries_are_put_back_in_several_steps_and_all(
    broker: StreamBroker, monkeypatch: pytest.MonkeyPatch, put_back: Callable[[StreamBroker, list[Any]], int]
) -> None:
    held = delivered(broker, "q", "me", *map(large, range(7)))
    steps: list[int] = []
    run = broker.client.run

    def counted(*command: Any) -> Any:
        reply = run(*command)
        steps.append(reply[0])
        return reply

    monkeypatch.setattr(broker.client, "run", counted)
    count = put_back(broker, [one.entry for one in held])
    monkeypatch.undo()

    assert count == sum(steps) == 7
    assert max(steps) <= MOST
    assert sorted(number_of(one) for one in read_all(broker, ["q"], "other")) == list(range(7))


def migration(broker: StreamBroker, lists: RedisClient) -> Migration:
    return Migration(broker, lists, options={}, visibility_timeout=15.0)


@pytest.mark.parametrize("databases", [1, 2])
def test_migration_of_large_messages_needs_the_memory_of_a_few(
    broker: StreamBroker, redis_url: str, databases: int
) -> None:
    lists = broker.client if databases == 1 else RedisClient(redis_url.rpartition("/")[0] + "/5")
    size, number = 3 * STEP_BYTES, 30
    body = b"x" * size
    broker.ensure_groups(["q"])
    for index in range(number // 2):
        broker.publish("q", Message(b'{"id":"%d","task":"t"}' % index, b"{}", body))
        broker.delay("q", Message(b'{"id":"%d","task":"t"}' % index, b"{}", body), due_ms=2**45, member=str(index))
    mover = migration(broker, lists)
    tracemalloc.start()
    try:
        there = mover.to_lists("q")
        back = mover.to_streams("q")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (there.total, back.total) == (number, number)
    assert (back.moved, back.delayed) == (15, 15)
    assert peak < 20 * size
    assert inspect.queue_status(broker, "q").waiting == 15


def pages_of(broker: StreamBroker, script: scripts.Script, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the lengths of what ``script`` answers from now on."""
    lengths: list[int] = []
    run = broker.client.run

    def counted(asked: scripts.Script, *args: Any) -> Any:
        reply = run(asked, *args)
        if asked == script:
            lengths.append(len(reply))
        return reply

    monkeypatch.setattr(broker.client, "run", counted)
    return lengths


def test_dead_letters_are_listed_without_reading_a_hundred_large_ones_at_once(
    broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in delivered(broker, "q", "me", *map(large, range(7))):
        broker.reject("me", one.entry, death=b"{}", max_length=None, ttl=None)
    pages = pages_of(broker, scripts.SCAN, monkeypatch)

    letters = list(dead_letters(broker, "q"))

    assert len(letters) == 7
    assert max(pages) <= MOST


def bury(broker: StreamBroker, body: bytes, *, max_memory: int | None) -> None:
    (held,) = delivered(broker, "q", "me", Message(b"{}", b"{}", body))
    broker.reject("me", held.entry, death=b"{}", max_length=10_000, ttl=None, max_memory=max_memory)


def test_dead_letters_are_bounded_by_memory_and_the_oldest_go(broker: StreamBroker) -> None:
    for number in range(20):
        bury(broker, b"%d " % number + b"x" * 100_000, max_memory=1_000_000)

    kept = [one.message.body.split()[0] for one in dead_letters(broker, "q") if one.message]

    used = broker.client.call("MEMORY", "USAGE", f"{STREAM}:dead", "SAMPLES", 0)
    assert used <= 1_200_000
    assert 5 <= len(kept) <= 10
    assert kept == [b"%d" % number for number in range(20 - len(kept), 20)]


def test_large_dead_letters_behind_many_small_ones_are_bounded_too(broker: StreamBroker) -> None:
    for _ in range(100):
        bury(broker, b"small", max_memory=1_000_000)
    for _ in range(30):
        bury(broker, b"x" * 100_000, max_memory=1_000_000)

    assert broker.client.call("MEMORY", "USAGE", f"{STREAM}:dead", "SAMPLES", 0) <= 1_200_000


def test_dead_letter_that_is_larger_than_the_bound_is_kept_until_the_next(broker: StreamBroker) -> None:
    for number in (1, 2):
        bury(broker, b"%d" % number * 2_000_000, max_memory=1_000_000)

        (letter,) = dead_letters(broker, "q")
        assert letter.message is not None
        assert letter.message.body[:1] == b"%d" % number


def test_bound_that_is_lowered_deletes_some_dead_letters_at_a_time(broker: StreamBroker) -> None:
    for _ in range(300):
        bury(broker, b"x" * 10_000, max_memory=None)

    bury(broker, b"x" * 10_000, max_memory=100_000)

    assert broker.client.call("XLEN", f"{STREAM}:dead") == 201


def test_dead_letter_is_kept_when_redis_does_not_say_what_it_takes(broker: StreamBroker, redis_url: str) -> None:
    broker.client.call("ACL", "SETUSER", "poor", "on", ">pw", "~*", "&*", "+@all", "-memory")
    poor = StreamBroker(RedisClient(redis_url.replace("redis://", "redis://poor:pw@")))

    try:
        for _ in range(2):
            bury(poor, b"x" * 100_000, max_memory=10_000)
    finally:
        broker.client.call("ACL", "DELUSER", "poor")

    assert broker.client.call("XLEN", f"{STREAM}:dead") == 2


def test_purge_of_large_messages_takes_several_steps(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    (held,) = delivered(broker, "q", "me", large(99))
    for number in range(7):
        broker.publish("q", large(number))
    steps: list[int] = []
    more = True
    while more:
        args = [keys.GROUP, len(broker.steps), 0, 1_000, STEP_BYTES]
        count, more = broker.client.run(scripts.PURGE, broker.queue_keys("q").shelf_and_streams, args)
        steps.append(count)

    assert sum(steps) == 7
    assert max(steps) <= MOST
    assert broker.fetch(held.entry) is not None
    for number in range(7):
        broker.publish("q", large(number))
    assert inspect.purge(broker, "q") == 7


def test_large_delayed_messages_are_listed_in_several_steps(
    broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        broker.delay("q", large(number), due_ms=2**45 + number, member=str(number))
    pages = pages_of(broker, scripts.PREVIEW, monkeypatch)

    assert [one.member for one in delayed_messages(broker, "q")] == [str(number) for number in range(7)]
    assert [one.member for one in delayed_messages(broker, "q", limit=2)] == ["0", "1"]
    assert max(pages) <= MOST

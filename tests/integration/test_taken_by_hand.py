"""Entries that somebody took from their consumers by hand are found, and run; those that run already run once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from celery_streams import keys, presence
from celery_streams.broker import StreamBroker
from celery_streams.entries import Delivery
from celery_streams.recovery import gather
from celery_streams.worker.claimer import Claimer
from tests.integration.test_presence import about
from tests.support.redis_state import StreamState, delivered, make_idle, message, number_of, read_all, redis_state

ME = "w@host/1.00000000"
TIMEOUT = 2.0

#: By hand, for all of these entries.
By = Callable[[StreamBroker, Iterable[Delivery]], None]


def _delete_consumer(broker: StreamBroker, found: Iterable[Delivery]) -> None:
    for one in found:
        broker.client.call("XGROUP", "DELCONSUMER", one.stream.key, keys.GROUP, ME)


def _acknowledge(broker: StreamBroker, found: Iterable[Delivery]) -> None:
    for one in found:
        broker.client.call("XACK", one.stream.key, keys.GROUP, one.entry_id)


def _make_group_anew(broker: StreamBroker, found: Iterable[Delivery]) -> None:
    for key in {one.stream.key for one in found}:
        broker.client.call("XGROUP", "DESTROY", key, keys.GROUP)
        broker.client.call("XGROUP", "CREATE", key, keys.GROUP, "$")


HANDS = [_delete_consumer, _acknowledge, _make_group_anew]


def _claimer(broker: StreamBroker, queues: list[str]) -> Claimer:
    return Claimer(
        broker,
        "w@host/0.00000000",
        lambda: queues,
        visibility_timeout=TIMEOUT,
        delivery_limit=1,
        on_exhausted=lambda delivery, holder: pytest.fail("counted as a crash"),
    )


def _held(broker: StreamBroker, queues: list[str], *, front: bool = False) -> list[Delivery]:
    """Each queue has three messages of each priority that ME holds, on the stream or its front, and one that waits."""
    found = []
    for at, queue in enumerate(queues):
        numbers = [(100 * at + 10 * step, step) for step in range(len(broker.steps))]
        some = delivered(
            broker, queue, ME, *(message(first + more, step=step) for first, step in numbers for more in range(3))
        )
        for first, step in numbers:
            broker.publish(queue, message(first + 3, step=step))
        if front:
            broker.put_back(ME, [one.entry for one in some])
            for ref in broker.streams([queue]):
                found += broker.read([ref], ME, count=3)
        else:
            found += some
    assert all(("front" in one.stream.key) == front for one in found)
    return found


def _look_until(claimer: Claimer, done: Callable[[], bool]) -> None:
    for number in range(40):
        claimer.run_once(now=number * claimer.interval)
        if done():
            return
    pytest.fail("never")


def _pending(broker: StreamBroker) -> dict[str, dict[str, str]]:
    """Return who holds what, by stream."""
    return {
        key: {one: holder for one, (holder, _) in value.pending[keys.GROUP].items()}
        for key, value in redis_state(broker.client).items()
        if isinstance(value, StreamState) and keys.GROUP in value.pending
    }


def _holders(broker: StreamBroker) -> set[str]:
    return {holder for held in _pending(broker).values() for holder in held.values()}


def _age(broker: StreamBroker, queues: list[str]) -> None:
    """Make what nobody holds look as if it had been found long ago."""
    for ref in broker.streams(queues):
        for place in (ref, ref.at_front()):
            for entry_id, holder in _pending(broker).get(place.key, {}).items():
                if holder == keys.NOBODY:
                    make_idle(broker, place, keys.NOBODY, entry_id.encode(), idle_ms=60_000)


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("by_hand", HANDS)
def test_what_somebody_took_by_hand_runs_again_before_what_waits_and_counts_no_crash(
    broker: StreamBroker, by_hand: By, front: bool
) -> None:
    queues = ["q", "other"]
    held = _held(broker, queues, front=front)
    by_hand(broker, held)
    claimer = _claimer(broker, queues)

    _look_until(claimer, lambda: keys.NOBODY in _holders(broker))
    assert claimer.moved == 0, "whoever runs it has a visibility timeout to say so"
    _age(broker, queues)
    _look_until(claimer, lambda: not _pending(broker) or not _holders(broker))

    # Whatever a group that was made anew at the end of the stream skips was in nobody's list, too.
    last = 1 if by_hand is _make_group_anew and not front else None
    for queue in queues:
        for step in range(len(broker.steps)):
            again = broker.read(broker.streams([queue])[step : step + 1], "reader", count=9)
            numbers = [number_of(one) for one in again]
            assert numbers == sorted(numbers)
            histories = [one.message.decode_history() for one in again if one.message is not None]
            assert [known.get("redelivered") for known in histories] == [1, 1, 1, last]
            assert not any(known.get("crashes") for known in histories)
            assert all(known.get("first") for known in histories[:3])


def test_group_that_was_made_anew_at_its_end_skips_nothing(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    for number in range(1_200):
        broker.publish("q", message(number, step=number % 2))
    for key in broker.queue_keys("q").streams:
        broker.client.call("XGROUP", "DESTROY", key, keys.GROUP)
        broker.client.call("XGROUP", "CREATE", key, keys.GROUP, "$")
    broker.publish("q", message(9_999))
    claimer = _claimer(broker, ["q"])

    _look_until(claimer, lambda: keys.NOBODY in _holders(broker))
    _age(broker, ["q"])
    _look_until(claimer, lambda: claimer.moved == 1_200)

    numbers = [number_of(one) for one in read_all(broker, ["q"], "reader", count=2_000)]
    assert numbers == [*range(0, 1_200, 2), 9_999, *range(1, 1_200, 2)]


@pytest.mark.parametrize("found_before", [False, True])
@pytest.mark.parametrize("by_hand", [_delete_consumer, _acknowledge])
def test_what_a_living_worker_runs_is_its_own_again_at_the_next_heartbeat(
    broker: StreamBroker, by_hand: By, found_before: bool
) -> None:
    held = _held(broker, ["q"])
    by_hand(broker, held)
    if found_before:
        assert gather(broker, ["q"]) == ({"q": len(held)}, "")

    assert broker.extend([(ME, one.entry) for one in held]) == []

    assert gather(broker, ["q"]) == ({}, "")
    assert _holders(broker) == {ME}
    assert sum(map(len, _pending(broker).values())) == len(held)


def test_heartbeat_takes_nothing_that_is_gone_or_that_another_has(broker: StreamBroker) -> None:
    gone, taken = delivered(broker, "q", ME, message(1), message(2))
    broker.ack(ME, [gone.entry])
    broker.client.call("XCLAIM", taken.stream.key, keys.GROUP, "other", 0, taken.entry_id)
    before = redis_state(broker.client)

    assert broker.extend([(ME, gone.entry), (ME, taken.entry)]) == [0, 1]

    assert redis_state(broker.client) == before


SETTLE: dict[str, Callable[[StreamBroker, Delivery], Any]] = {
    "ack": lambda broker, one: broker.ack(ME, [one.entry]) == [],
    "put_back": lambda broker, one: broker.put_back(ME, [one.entry]),
    "requeue": lambda broker, one: broker.requeue(ME, one.entry, history={}),
    "requeue later": lambda broker, one: broker.requeue(ME, one.entry, history={}, delay_ms=60_000),
    "retry": lambda broker, one: broker.retry(ME, one.entry, message(7), queue="q"),
    "reject": lambda broker, one: broker.reject(ME, one.entry, death=b"{}", max_length=None, ttl=None),
}


@pytest.mark.parametrize("found_before", [False, True])
@pytest.mark.parametrize("by_hand", [_delete_consumer, _acknowledge])
@pytest.mark.parametrize("verb", SETTLE)
def test_task_that_ends_before_the_next_heartbeat_is_settled_by_what_happened(
    broker: StreamBroker, verb: str, by_hand: By, found_before: bool
) -> None:
    one, another = delivered(broker, "q", ME, message(1), message(2))
    by_hand(broker, [one, another])
    if found_before:
        gather(broker, ["q"])

    assert SETTLE[verb](broker, one)

    left = broker.client.call("XRANGE", one.stream.key, "-", "+")
    left = [entry_id for entry_id, _ in left]
    assert one.entry_id not in left
    assert another.entry_id in left
    assert not any(one.entry_id.decode() in held for held in _pending(broker).values())


def test_many_acknowledgements_of_which_some_were_taken_by_hand_are_all_carried_out(broker: StreamBroker) -> None:
    held = _held(broker, ["q", "other"])
    _acknowledge(broker, held[::3])
    stolen, gone = held[1], held[2]
    broker.client.call("XCLAIM", stolen.stream.key, keys.GROUP, "other", 0, stolen.entry_id)
    broker.client.call("XDEL", gone.stream.key, gone.entry_id)
    broker.client.call("XACK", gone.stream.key, keys.GROUP, gone.entry_id)

    assert broker.ack(ME, [one.entry for one in held]) == [stolen.entry, gone.entry]

    assert _holders(broker) == {"other"}
    assert gather(broker, ["q", "other"]) == ({}, "")


@pytest.mark.parametrize("seed", range(8))
def test_of_any_mixture_exactly_what_nobody_holds_is_found(broker: StreamBroker, seed: int) -> None:
    chance = random.Random(seed)
    holders = [f"w{number}@host/1.00000000" for number in range(4)]
    for number in range(chance.choice([3, 150, 700])):
        broker.publish("q", message(number, step=chance.randrange(4)))
    broker.ensure_groups(["q"])
    held: dict[str, dict[bytes, str]] = {}
    while more := broker.read(broker.streams(["q"]), holder := chance.choice(holders), count=chance.randrange(1, 60)):
        for one in more:
            held.setdefault(one.stream.key, {})[one.entry_id] = holder
        if chance.random() < 0.1:
            break
    expected = 0
    gone = chance.choice(holders)
    for key, entries in held.items():
        settled = [entry_id for entry_id in entries if chance.random() < 0.3]
        for entry_id in settled:
            broker.client.call("XDEL", key, entry_id)
            broker.client.call("XACK", key, keys.GROUP, entry_id)
        left = {entry_id: holder for entry_id, holder in entries.items() if entry_id not in settled}
        by_ack = [entry_id for entry_id, holder in left.items() if chance.random() < 0.1 and holder != gone]
        for entry_id in by_ack:
            broker.client.call("XACK", key, keys.GROUP, entry_id)
        broker.client.call("XGROUP", "DELCONSUMER", key, keys.GROUP, gone)
        expected += len(by_ack) + sum(holder == gone for holder in left.values())
    before = _pending(broker)

    found, said = gather(broker, ["q"])

    assert (sum(found.values()), said) == (expected, "")
    after = _pending(broker)
    assert sum(holder == keys.NOBODY for one in after.values() for holder in one.values()) == expected
    assert all(after[key][one] == holder for key, entries in before.items() for one, holder in entries.items())


@pytest.mark.parametrize(("slowest", "silent", "moved"), [(60.0, 30, 0), (60.0, 60, 1), (0.5, 2, 1), (0.5, 1, 0)])
def test_what_nobody_holds_waits_for_the_slowest_worker_of_the_fleet(
    broker: StreamBroker, slowest: float, silent: int, moved: int
) -> None:
    """Any of them may run it, and says so at its own pace."""
    presence.beat(broker, about(timeout=slowest), forget=False)
    (one,) = delivered(broker, "q", ME, message(1))
    _acknowledge(broker, [one])
    claimer = _claimer(broker, ["q"])
    for number in range(100):
        claimer.run_once(now=number * claimer.interval)
    gather(broker, ["q"])
    make_idle(broker, one.stream, keys.NOBODY, one.entry_id, idle_ms=silent * 1000)
    broker.client.call("DEL", broker.queue_keys("q").claims)

    assert claimer.run_once(now=100 * claimer.interval) == moved

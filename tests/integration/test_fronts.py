"""What is put back, or due, runs before what waits, in its old order; ``Reject(requeue=True)`` goes behind that."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from celery_streams import inspect, keys
from celery_streams.broker import StreamBroker
from celery_streams.consumers import forget_consumer, forget_idle_consumers
from celery_streams.dead_letters import dead_letters
from celery_streams.entries import Delivery
from celery_streams.exceptions import BrokerError
from celery_streams.message import Message
from celery_streams.migration import Migration
from celery_streams.probes import silent_consumers, silent_holders, streams_without_group
from celery_streams.reads import receive_blocking_read, send_blocking_read
from celery_streams.recovery import busy_queues, recover
from celery_streams.worker.outcome import crash_pauses_ms
from tests.support.redis_state import delivered, make_idle, message, number_of, read_all, redis_now_ms, redis_state

STREAM = "celery-streams:{q}"


def waiting(broker: StreamBroker, *numbers: int, queue: str = "q", step: int = 0) -> None:
    for number in numbers:
        broker.publish(queue, message(number, step=step))


def order(broker: StreamBroker, *, queue: str = "q", consumer: str = "other") -> list[int]:
    return [number_of(one) for one in read_all(broker, [queue], consumer) if one.message]


def put_back(broker: StreamBroker, *held: Delivery) -> None:
    assert broker.put_back("me", [one.entry for one in held]) == len(held)


def put_back_in_bulk(broker: StreamBroker, *held: Delivery) -> None:
    assert broker.put_back_all([one.stream for one in held], "me") == len(held)


def requeued(broker: StreamBroker, *held: Delivery) -> None:
    for one in held:
        assert broker.requeue("me", one.entry, history={"crashes": 1})


def recovered(broker: StreamBroker, *held: Delivery) -> None:
    for one in held:
        make_idle(broker, one.stream, "me", one.entry_id, idle_ms=60_000)
    recovery = recover(broker, "q", "claimer", idle_ms=1_000, turn_ms=50, pauses_ms=crash_pauses_ms(5))
    assert recovery.moved == len(held)
    broker.client.call("DEL", f"{STREAM}:claims")


def due(broker: StreamBroker, *held: Delivery) -> None:
    for number, one in enumerate(held):
        assert one.message is not None
        assert broker.retry("me", one.entry, one.message, queue="q", due_ms=number + 1, member="m")
    assert broker.promote(["q"]).moved == len(held)


def put_off(broker: StreamBroker, *held: Delivery) -> None:
    for number, one in enumerate(held):
        assert broker.requeue("me", one.entry, history={"granted": 1}, delay_ms=60_000)
        (member,) = broker.client.call("ZRANGE", f"{STREAM}:delayed", -1, -1)
        broker.client.call("ZADD", f"{STREAM}:delayed", number + 1, member)
    assert broker.promote(["q"]).moved == len(held)


WAYS = [put_back, put_back_in_bulk, requeued, recovered, due, put_off]
Way = Callable[..., None]


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_put_back_runs_before_the_backlog_in_its_order(broker: StreamBroker, way: Way, step: int) -> None:
    held = delivered(broker, "q", "me", *(message(number, step=step) for number in range(5)))
    waiting(broker, *range(5, 300), step=step)

    way(broker, *held)

    assert order(broker) == list(range(100))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_put_back_while_nothing_waits_wakes_readers_and_runs_before_what_comes_then(
    broker: StreamBroker, way: Way
) -> None:
    held = delivered(broker, "q", "me", *map(message, range(5)))
    reading = broker.client.open()
    send_blocking_read(reading, broker.streams(["q"]), "idle", block_ms=5_000)

    way(broker, *held)
    waiting(broker, 5, 6)

    (first,) = receive_blocking_read(reading, broker.streams(["q"]), timeout=4.0)
    assert [number_of(first), *order(broker)] == list(range(7))
    assert not broker.client.call("EXISTS", f"{STREAM}:front")


@pytest.mark.parametrize("way", [way for way in WAYS if way is not put_back_in_bulk])
def test_what_is_put_back_one_after_another_keeps_its_order(broker: StreamBroker, way: Way) -> None:
    held = delivered(broker, "q", "me", *map(message, range(6)))
    for one in held[:3]:  # while nothing waits
        way(broker, one)
    waiting(broker, 6, 7)
    for one in held[3:]:  # while something does
        way(broker, one)

    found = order(broker)

    assert [number for number in found if number < 3] == [0, 1, 2]
    assert [number for number in found if 2 < number < 6] == [3, 4, 5]
    assert found[-2:] == [6, 7]


def test_what_came_back_before_keeps_its_place_when_it_comes_back_again(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", *map(message, range(3)))
    waiting(broker, 3, 4)
    for way in (put_back, put_back_in_bulk, recovered, requeued):
        way(broker, *held)
        held = read_all(broker, ["q"], "me", count=3)
        assert [number_of(one) for one in held] == [0, 1, 2]
        assert {one.stream.key for one in held} == {f"{STREAM}:front"}

    assert broker.ack("me", [one.entry for one in held]) == []
    assert order(broker) == [3, 4]


def test_rejected_message_that_is_requeued_goes_behind_what_waits(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", message(0))
    waiting(broker, 1, 2)

    broker.requeue("me", held[0].entry, history={}, behind=True)

    assert order(broker) == [1, 2, 0]


def test_retry_at_once_goes_behind_what_waits_as_a_new_message_does(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(0))
    waiting(broker, 1, 2)

    broker.retry("me", held.entry, message(3), queue="q")

    assert order(broker) == [1, 2, 3]


def test_message_that_no_worker_knew_goes_behind_what_waits(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", message(0))
    waiting(broker, 1, 2)

    broker.requeue("me", held[0].entry, history={"unknown": 1}, delay_ms=60_000)
    broker.client.call("ZADD", f"{STREAM}:delayed", 1, broker.client.call("ZRANGE", f"{STREAM}:delayed", 0, 0)[0])

    assert broker.promote(["q"]).moved == 1
    assert order(broker) == [1, 2, 0]


def test_message_that_kills_its_process_again_and_again_lets_others_run(broker: StreamBroker) -> None:
    waiting(broker, *range(50))
    broker.ensure_groups(["q"])
    ran: list[int] = []
    for _ in range(40):
        (one,) = broker.read(broker.streams(["q"]), "me", count=1)
        number = number_of(one)
        ran.append(number)
        if number == 0:
            recovery_of(broker, one)
        else:
            broker.ack("me", [one.entry])

    assert ran.count(0) == 2
    assert broker.client.call("ZCARD", f"{STREAM}:delayed") == 1


def recovery_of(broker: StreamBroker, one: Delivery) -> None:
    make_idle(broker, one.stream, "me", one.entry_id, idle_ms=200)
    recover(broker, "q", "claimer", idle_ms=100, turn_ms=1, pauses_ms=crash_pauses_ms(5))
    broker.client.call("DEL", f"{STREAM}:claims")


def test_higher_priority_still_comes_before_what_was_put_back_of_a_lower_one(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", message(1, step=1))
    waiting(broker, 2, 3, step=1)
    waiting(broker, 4)

    put_back(broker, *held)

    assert order(broker) == [4, 1, 2, 3]


def test_queues_do_not_mix_what_is_put_back(broker: StreamBroker) -> None:
    one = delivered(broker, "q", "me", message(1))
    two = delivered(broker, "r", "me", message(2))
    waiting(broker, 3)
    waiting(broker, 4, queue="r")

    put_back(broker, *one, *two)

    assert order(broker) == [1, 3]
    assert order(broker, queue="r") == [2, 4]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_doubled_whichever_way_it_comes_back(broker: StreamBroker, seed: int) -> None:
    chance = random.Random(seed)
    broker.ensure_groups(["q"])
    published, done = 0, []
    for _ in range(150):
        if chance.random() < 0.5:
            waiting(broker, published, step=chance.choice([0, 0, 3]))
            published += 1
        held = broker.read(broker.streams(["q"]), "me", count=chance.randint(1, 4))
        if not held:
            continue
        if chance.random() < 0.4:
            chance.choice([put_back, put_back_in_bulk, requeued])(broker, *held)
        else:
            done += [number_of(one) for one in held]
            assert broker.ack("me", [one.entry for one in held]) == []
    done += [number_of(one) for one in read_all(broker, ["q"], "me", count=10_000)]

    assert sorted(done) == list(range(published))


# -- what else knows of fronts ----------------------------------------------------------------------------------------


@pytest.fixture
def fronted(broker: StreamBroker) -> StreamBroker:
    """Two messages at the front, of which one is pending, three behind it, and a delayed one."""
    held = delivered(broker, "q", "me", message(1), message(2))
    waiting(broker, 3, 4, 5)
    put_back(broker, *held)
    broker.read(broker.streams(["q"]), "other", count=1)
    broker.delay("q", message(6), due_ms=2**45, member="m")
    assert set(redis_state(broker.client)) >= {STREAM, f"{STREAM}:front"}
    return broker


def test_status_counts_what_was_put_back(fronted: StreamBroker) -> None:
    status = inspect.queue_status(fronted, "q")

    assert (status.waiting, status.pending, status.delayed) == (4, 1, 1)
    assert {one.name: one.pending for one in inspect.consumers(fronted, "q")} == {"me": 0, "other": 1}


def test_age_of_what_was_put_back_is_that_of_the_message(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    broker.publish("q", message(1, history=b'{"first":"%d-0"}' % (redis_now_ms(broker.client) - 60_000)))
    held = broker.read(broker.streams(["q"]), "me", count=1)
    waiting(broker, 2)
    put_back(broker, *held)

    oldest = inspect.queue_status(broker, "q").oldest_waiting

    assert oldest is not None
    assert 60 <= oldest < 70


def test_purge_discards_what_was_put_back_and_not_what_runs(fronted: StreamBroker) -> None:
    assert inspect.purge(fronted, "q") == 5
    assert inspect.queue_status(fronted, "q").length == 1


@pytest.mark.one_server("a cluster holds no lists")
def test_rollback_moves_what_was_put_back_first(fronted: StreamBroker) -> None:
    moves = Migration(fronted, fronted.client, options={}, visibility_timeout=15.0).to_lists("q")

    elements = [fronted.client.call("RPOP", "q") for _ in range(fronted.client.call("LLEN", "q"))]
    assert (moves.moved, moves.delayed, moves.abandoned) == (4, 1, 0)
    assert [number for element in elements for number in range(7) if b'"id": "%d"' % number in element][-4:] == [
        2,
        3,
        4,
        5,
    ]


@pytest.mark.one_server("a cluster holds no lists")
def test_rollback_moves_what_a_dead_worker_took_from_a_front(fronted: StreamBroker) -> None:
    ((entry_id, *_),) = fronted.client.call("XPENDING", f"{STREAM}:front", keys.GROUP, "-", "+", 9)
    front = fronted.streams(["q"])[0].at_front()
    make_idle(fronted, front, "other", entry_id, idle_ms=60_000)
    mover = Migration(fronted, fronted.client, options={}, visibility_timeout=15.0)

    assert mover.plan("q", "lists").total == 6
    assert mover.to_lists("q").abandoned == 1


@pytest.mark.one_server("its queues lie apart, and are asked slot by slot")
def test_probes_look_at_fronts(fronted: StreamBroker) -> None:
    ((entry_id, *_),) = fronted.client.call("XPENDING", f"{STREAM}:front", keys.GROUP, "-", "+", 9)
    make_idle(fronted, fronted.streams(["q"])[0].at_front(), "other", entry_id, idle_ms=60_000)

    assert [(one.consumer, one.entries) for one in silent_holders(fronted, "q", idle_ms=30_000)] == [("other", 1)]
    assert silent_consumers(fronted, "q", silent=0.0) == ["me"]
    assert busy_queues(fronted, ["r", "q"]).queues == ("q",)
    fronted.client.call("XGROUP", "DESTROY", f"{STREAM}:front", keys.GROUP)
    assert streams_without_group(fronted, "q") == {f"{STREAM}:front": 2}


def test_what_was_put_back_counts_for_the_bound_of_a_queue(fronted: StreamBroker) -> None:
    with pytest.raises(BrokerError, match="holds 6"):
        fronted.publish("q", message(7), max_length=6)
    with pytest.raises(BrokerError, match="holds 6"):
        fronted.delay("q", message(7), due_ms=2**45, member="n", max_length=6)


def test_front_is_deleted_with_its_consumers_when_it_is_empty_and_made_again(fronted: StreamBroker) -> None:
    held = read_all(fronted, ["q"], "other")
    forget_idle_consumers(fronted, ["q"], idle_ms=0)
    assert fronted.client.call("EXISTS", f"{STREAM}:front") == 1  # one is pending there

    again_by_the_other = fronted.put_back_all(fronted.streams(["q"]), "other")
    for one in read_all(fronted, ["q"], "other"):
        fronted.ack("other", [one.entry])
    forget_consumer(fronted, ["q"], "other")

    assert (len(held), again_by_the_other) == (4, 5)
    assert fronted.client.call("EXISTS", f"{STREAM}:front") == 0
    assert inspect.queue_status(fronted, "q").length == 0


def test_front_without_its_group_is_read_all_the_same(fronted: StreamBroker) -> None:
    fronted.client.call("XGROUP", "DESTROY", f"{STREAM}:front", keys.GROUP)

    assert order(fronted) == [1, 2, 3, 4, 5]


def test_front_of_another_type_keeps_nobody_from_the_stream(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", message(1))
    waiting(broker, 2)
    broker.client.call("SET", f"{STREAM}:front", "of another type")

    with pytest.raises(BrokerError, match="WRONGTYPE"):
        broker.put_back("me", [held[0].entry])

    assert [number_of(one) for one in broker.read(broker.streams(["q"]), "other", count=9)] == [2]
    assert redis_state(broker.client)[STREAM].pending[keys.GROUP][held[0].entry_id.decode()] == ("me", 1)


def test_heartbeat_reject_and_retry_reach_an_entry_of_a_front(fronted: StreamBroker) -> None:
    (held,) = fronted.read(fronted.streams(["q"]), "me", count=1)

    assert held.stream.key == f"{STREAM}:front"
    assert fronted.extend([("me", held.entry), ("other", held.entry)]) == [1]
    assert fronted.fetch(held.entry) == held
    assert fronted.reject("me", held.entry, death=b"{}", max_length=None, ttl=None)
    (again,) = fronted.read(fronted.streams(["q"]), "me", count=1)
    assert fronted.retry("me", again.entry, message(9), queue="q", due_ms=5, member="m")
    assert [one.fields[0][0] for one in dead_letters(fronted, "q")] == [b"headers"]


def test_entry_of_a_front_that_reached_the_delivery_limit_is_handed_over_from_there(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", message(1, history=b'{"crashes":3}'))
    waiting(broker, 2)
    put_back(broker, *held)
    (again,) = broker.read(broker.streams(["q"]), "dead", count=1)
    make_idle(broker, again.stream, "dead", again.entry_id, idle_ms=60_000)

    ((found, holder),) = recover(
        broker, "q", "claimer", idle_ms=1_000, turn_ms=50, pauses_ms=crash_pauses_ms(4)
    ).exhausted

    assert (found.entry, holder) == (again.entry, "dead")
    assert broker.reject("claimer", found.entry, death=b"{}", max_length=None, ttl=None)


def test_worker_of_a_version_without_fronts_finds_what_came_back_while_nothing_waited(broker: StreamBroker) -> None:
    held: Any = delivered(broker, "q", "me", *map(message, range(3)))
    put_back(broker, *held)

    found = broker.client.call("XREADGROUP", "GROUP", keys.GROUP, "old", "COUNT", 9, "STREAMS", STREAM, ">")

    assert len(found[0][1]) == 3


def test_delayed_messages_of_several_queues_are_promoted_past_one_that_is_refused(broker: StreamBroker) -> None:
    broker.ensure_groups(["a", "b"])
    for queue in ("a", "b"):
        broker.delay(queue, message(1), due_ms=1, member="m")
        waiting(broker, 2, queue=queue)
    broker.client.call("SET", "celery-streams:{a}:front", "of another type")

    promotion = broker.promote(["a", "b"])

    assert promotion.moved == 1
    assert "WRONGTYPE" in promotion.refusal
    assert order(broker, queue="b") == [1, 2]
    assert broker.client.call("ZCARD", "celery-streams:{a}:delayed") == 1


def test_large_messages_that_are_put_back_keep_their_order(broker: StreamBroker) -> None:
    large = [Message(b'{"id":"%d"}' % number, b"{}", b"x" * 400_000) for number in range(7)]
    held = delivered(broker, "q", "me", *large)
    for backlog in (0, 1):
        waiting(broker, *range(50, 50 + backlog))
        put_back(broker, *held)
        held = read_all(broker, ["q"], "me", count=7)
        assert [number_of(one) for one in held] == list(range(7))

"""A Redis that is full (noeviction): publishing says so, and everything that settles or saves goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from kombu.exceptions import OperationalError

from celery_streams import scripts
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.consumers import forget_consumer
from celery_streams.database_transfer import DEPART
from celery_streams.embedded import EmbeddedRedis
from celery_streams.entries import Delivery
from celery_streams.exceptions import BrokerFull, QueueFull
from celery_streams.lanes import Lane, admit, release, vacating
from celery_streams.migration import RECALL, Migration
from celery_streams.recovery import recover
from celery_streams.worker.outcome import crash_pauses_ms
from tests.support.eventually import eventually
from tests.support.redis_state import delivered, make_idle, message, number_of, redis_state

STREAM = "celery-streams:{q}"


@pytest.fixture(scope="module")
def small_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(maxmemory=8_000_000) as server:
        yield server


@pytest.fixture
def small(small_server: EmbeddedRedis) -> Iterator[StreamBroker]:
    """A broker on an empty server that can be filled with :func:`fill`."""
    client = RedisClient(small_server.url)
    client.call("CONFIG", "SET", "maxmemory", 8_000_000)
    client.call("FLUSHALL")
    yield StreamBroker(client)
    client.close()


def fill(broker: StreamBroker) -> None:
    """Lower the bound below what is in use already."""
    broker.client.call("CONFIG", "SET", "maxmemory", 500_000)
    with pytest.raises(BrokerFull):
        broker.client.call("SET", "x", "y")


PUBLISHING: dict[str, Callable[[StreamBroker], object]] = {
    "publish": lambda broker: broker.publish("q", message(2)),
    "bounded publish": lambda broker: broker.publish("q", message(2), max_length=100),
    "publish to a new queue": lambda broker: broker.publish("new", message(2)),
    "delay": lambda broker: broker.delay("q", message(2), due_ms=2**45, member="m"),
}


@pytest.mark.parametrize("how", PUBLISHING)
def test_publish_to_a_full_redis_raises_and_stores_nothing(small: StreamBroker, how: str) -> None:
    small.publish("q", message(1))
    fill(small)
    before = redis_state(small.client)

    with pytest.raises(BrokerFull, match="is full") as caught:
        PUBLISHING[how](small)

    assert isinstance(caught.value, OperationalError)
    assert not isinstance(caught.value, QueueFull)
    assert redis_state(small.client) == before


SETTLING: dict[str, Callable[[StreamBroker, Delivery], object]] = {
    "ack": lambda broker, one: broker.ack("me", [one.entry]) == [],
    "put_back": lambda broker, one: broker.put_back("me", [one.entry]) == 1,
    "requeue": lambda broker, one: broker.requeue("me", one.entry, history={"crashes": 1}),
    "requeue later": lambda broker, one: broker.requeue("me", one.entry, history={"crashes": 1}, delay_ms=60_000),
    "retry": lambda broker, one: broker.retry("me", one.entry, message(2), queue="q"),
    "retry later": lambda broker, one: broker.retry("me", one.entry, message(2), queue="q", due_ms=2**45, member="m"),
    "retry on a new queue": lambda broker, one: broker.retry("me", one.entry, message(2), queue="new"),
    "reject": lambda broker, one: broker.reject("me", one.entry, death=b"{}", max_length=9, ttl=9.0),
    "extend": lambda broker, one: broker.extend([("me", one.entry)]) == [],
}

#: Where the message must be found afterwards.
KEPT = {
    "ack": (),
    "put_back": (STREAM,),
    "requeue": (STREAM,),
    "requeue later": (STREAM + ":delayed:messages",),
    "retry": (STREAM,),
    "retry later": (STREAM + ":delayed:messages",),
    "retry on a new queue": ("celery-streams:{new}",),
    "reject": (STREAM + ":dead",),
    "extend": (STREAM,),
}


@pytest.mark.parametrize("verb", SETTLING)
def test_settling_works_on_a_full_redis(small: StreamBroker, verb: str) -> None:
    (held,) = delivered(small, "q", "me", message(1))
    fill(small)

    done = SETTLING[verb](small, held)

    state = redis_state(small.client)
    kept = {
        key
        for key, value in state.items()
        if key.startswith("celery-streams:{") and not key.endswith((":wake", ":delayed", ":mark"))
        if (value if isinstance(value, dict) else value.entries)
    }
    assert done
    assert kept == set(KEPT[verb])


def test_reading_works_on_a_full_redis(small: StreamBroker) -> None:
    small.ensure_groups(["q"])
    small.publish("q", message(1))
    fill(small)

    found = small.read(small.streams(["q"]), "a-new-consumer", count=1)

    assert [number_of(one) for one in found] == [1]


def test_due_messages_are_promoted_on_a_full_redis(small: StreamBroker) -> None:
    small.ensure_groups(["q"])
    small.delay("q", message(1), due_ms=1, member="m")
    fill(small)

    promotion = small.promote(["q"])

    assert promotion.moved == 1
    assert [number_of(one) for one in small.read(small.streams(["q"]), "w", count=1)] == [1]


@pytest.mark.parametrize(("crashes", "where"), [(0, STREAM), (2, STREAM + ":delayed:messages")])
def test_entries_of_the_dead_are_recovered_on_a_full_redis(small: StreamBroker, crashes: int, where: str) -> None:
    (held,) = delivered(small, "q", "dead", message(1, history=b'{"crashes":%d}' % crashes if crashes else b""))
    make_idle(small, held.stream, "dead", held.entry_id, idle_ms=500)
    fill(small)

    recovery = recover(small, "q", "claimer", idle_ms=100, turn_ms=60_000, pauses_ms=crash_pauses_ms(9))

    state = redis_state(small.client)
    assert recovery.moved == 1
    assert len(state[where] if crashes else state[where].entries) == 1


def test_consumers_are_forgotten_on_a_full_redis(small: StreamBroker) -> None:
    (held,) = delivered(small, "q", "w", message(1))
    small.ack("w", [held.entry])
    fill(small)

    assert forget_consumer(small, ["q"], "w") >= 1


def test_limited_tasks_go_on_and_are_held_and_released_when_redis_is_full(small: StreamBroker) -> None:
    first, second = delivered(small, "q", "w", message(1), message(2))
    lane = Lane("t", '{"task":"t","rate":"t","interval":200,"limit":1}', lasting=True)
    fill(small)

    assert admit(small, "w", first.entry, lane).placed
    assert not admit(small, "w", second.entry, lane).admitted
    vacating(small, [first.entry], {}).ack("w", [first.entry])

    assert eventually(lambda: release(small, ["q"], {}).count) == 1


def test_everything_goes_back_to_the_lists_on_a_full_redis(small: StreamBroker) -> None:
    (held,) = delivered(small, "q", "dead", message(1))
    make_idle(small, held.stream, "dead", held.entry_id, idle_ms=60_000)
    small.publish("q", message(2))
    small.delay("q", message(3), due_ms=2**45, member="m")
    fill(small)

    moves = Migration(small, small.client, options={}, visibility_timeout=15.0).to_lists("q")

    assert (moves.abandoned, moves.moved, moves.delayed) == (1, 1, 1)
    assert small.client.call("LLEN", "q") == 3


def test_dead_letter_is_moved_back_on_a_full_redis(small: StreamBroker) -> None:
    (held,) = delivered(small, "q", "me", message(1))
    dead = small.reject("me", held.entry, death=b"{}", max_length=None, ttl=None)
    fill(small)

    replayed = small.client.run(scripts.REPLAY, [f"{STREAM}:dead", STREAM], [dead])

    assert list(redis_state(small.client)[STREAM].entries) == [replayed.decode()]


def test_list_departs_for_another_database_on_a_full_redis(small: StreamBroker) -> None:
    small.client.call("RPUSH", "q", "two", "one")
    fill(small)

    taken = small.client.run(DEPART, ["q", "out"], [1_000, "1", "2", "3"])

    assert taken == 2
    assert redis_state(small.client) == {"out": [b"2two", b"1one"]}


def test_what_a_stock_worker_fetched_is_recalled_on_a_full_redis(small: StreamBroker) -> None:
    small.client.call("HSET", "unacked", "tag", "value")
    small.client.call("ZADD", "unacked_index", 1, "tag")
    fill(small)

    recalled = small.client.run(RECALL, ["unacked", "unacked_index", "q"], ["tag", "element"])

    assert recalled == 1
    assert redis_state(small.client) == {"q": [b"element"]}

"""A store that Redis refuses half-way: nothing was settled, and the message is still pending for its consumer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.database_transfer import DatabaseTransfer
from celery_streams.dead_letters import dead_letters, replay
from celery_streams.entries import Delivery
from celery_streams.exceptions import BrokerError
from celery_streams.kombu_lists import list_keys
from celery_streams.migration import Migration
from tests.support.redis_state import delivered, make_idle, message, redis_state

STREAM = "celery-streams:{q}"

#: verb -> the key that has the wrong type, and the call.
REFUSED: dict[str, tuple[str, Callable[[StreamBroker, Delivery], Any]]] = {
    "reject": (
        f"{STREAM}:dead",
        lambda broker, one: broker.reject("me", one.entry, death=b'{"reason":"failed"}', max_length=None, ttl=None),
    ),
    "retry": (
        f"{STREAM}:delayed",
        lambda broker, one: broker.retry("me", one.entry, message(2), queue="q", due_ms=2**45, member="m"),
    ),
    "requeue": (
        f"{STREAM}:delayed",
        lambda broker, one: broker.requeue("me", one.entry, history={"crashes": 1}, delay_ms=60_000),
    ),
}


@pytest.mark.parametrize("verb", REFUSED)
def test_message_stays_pending_when_its_new_place_cannot_be_written(broker: StreamBroker, verb: str) -> None:
    wrong, act = REFUSED[verb]
    (held,) = delivered(broker, "q", "me", message(1))
    broker.client.call("SET", wrong, "of another type")

    with pytest.raises(BrokerError):
        act(broker, held)

    state = redis_state(broker.client)[STREAM]
    assert state.pending[keys.GROUP] == {held.entry_id.decode(): ("me", 1)}
    assert list(state.entries) == [held.entry_id.decode()]


def migration(broker: StreamBroker, lists: RedisClient | None = None) -> Migration:
    return Migration(broker, lists or broker.client, options={}, visibility_timeout=15.0)


def a_delayed_one(broker: StreamBroker) -> None:
    broker.delay("q", message(1), due_ms=1, member="m")


def an_abandoned_one(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "dead", message(1))
    make_idle(broker, held.stream, "dead", held.entry_id, idle_ms=60_000)


def a_dead_letter(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    broker.reject("me", held.entry, death=b"{}", max_length=None, ttl=None)


def on_the_list(broker: StreamBroker, *, eta: str | None = None) -> None:
    broker.publish("q", message(1))
    migration(broker).to_lists("q")
    if eta:
        element = broker.client.call("RPOP", "q")
        broker.client.call("RPUSH", "q", element.replace(b'"task": "t"', b'"task": "t", "eta": "%s"' % eta.encode()))


def fetched_by_a_stock_worker(broker: StreamBroker) -> None:
    on_the_list(broker)
    element = broker.client.call("RPOP", "q")
    broker.client.call("HSET", "unacked", "tag", b'[%s, "", "q"]' % element)
    broker.client.call("ZADD", "unacked_index", 1, "tag")


def replay_one(broker: StreamBroker) -> None:
    (letter,) = dead_letters(broker, "q")
    replay(broker, letter)


#: verb -> where the message is, the key that has the wrong type, and the move.
MOVING: dict[str, tuple[Callable[[StreamBroker], Any], str, Callable[[StreamBroker], Any]]] = {
    "undelay": (a_delayed_one, "q", lambda broker: migration(broker).to_lists("q")),
    "surrender": (
        lambda broker: broker.publish("q", message(1)),
        "q",
        lambda broker: migration(broker).to_lists("q"),
    ),
    "surrender what the dead held": (an_abandoned_one, "q", lambda broker: migration(broker).to_lists("q")),
    "replay": (a_dead_letter, STREAM, replay_one),
    "adopt": (on_the_list, STREAM, lambda broker: migration(broker).to_streams("q")),
    "adopt for later": (
        lambda broker: on_the_list(broker, eta="2999-01-01T00:00:00+00:00"),
        f"{STREAM}:delayed:messages",
        lambda broker: migration(broker).to_streams("q"),
    ),
    "recall": (
        fetched_by_a_stock_worker,
        "q",
        lambda broker: migration(broker).to_streams("q", include_unacked=True),
    ),
}


@pytest.mark.parametrize("verb", MOVING)
def test_message_stays_where_it_is_when_its_new_place_cannot_be_written(broker: StreamBroker, verb: str) -> None:
    seed, wrong, move = MOVING[verb]
    seed(broker)
    broker.client.call("DEL", wrong)
    broker.client.call("SET", wrong, "of another type")
    before = redis_state(broker.client)

    for _ in range(2):
        with pytest.raises(BrokerError):
            move(broker)

    after = redis_state(broker.client)
    before.pop(keys.queues(broker.prefix), None)
    after.pop(keys.queues(broker.prefix), None)
    assert after == before


@pytest.mark.parametrize("wrong", ["departure", "arrival"])
def test_element_between_two_databases_is_not_lost_when_its_new_place_cannot_be_written(
    broker: StreamBroker, redis_url: str, wrong: str
) -> None:
    other = RedisClient(redis_url.rpartition("/")[0] + "/5")
    other.call("LPUSH", "q", "element")
    kept = keys.migration_keys(broker.prefix, "q")
    transfer = DatabaseTransfer(other, broker.client, kept, list_keys("q", {}))
    steps = {"departure": lambda: transfer.depart("q"), "arrival": transfer.to_streams}
    side, key = (other, kept.outgoing) if wrong == "departure" else (broker.client, kept.incoming)
    if wrong == "arrival":
        transfer.depart("q")
    side.call("SET", key, "of another type")
    for _ in range(2):
        with pytest.raises(BrokerError):
            steps[wrong]()
    side.call("DEL", key)

    transfer.depart("q")
    transfer.to_streams()

    left = redis_state(other)
    other.close()
    assert left == {}
    assert broker.client.call("LRANGE", kept.incoming, 0, -1) == [b"element"]


@pytest.mark.parametrize("wrong", ["", ":delayed", ":delayed:messages"])
def test_queue_that_is_refused_keeps_its_delayed_messages_and_holds_up_no_other(
    broker: StreamBroker, wrong: str
) -> None:
    for queue in ("a", "b"):
        for number in range(3):
            broker.delay(queue, message(number), due_ms=1, member=str(number))
    broker.client.call("DEL", "celery-streams:{a}" + wrong)
    broker.client.call("SET", "celery-streams:{a}" + wrong, "of another type")
    before = {key: value for key, value in redis_state(broker.client).items() if "{a}" in key}
    broker.ensure_groups(["b"])

    promotions = [broker.promote(["a", "b"], limit=3) for _ in range(2)]

    assert [one.moved for one in promotions] == [3, 0]
    assert all("WRONGTYPE" in one.refusal for one in promotions[1:])
    assert promotions[1].next_due_ms is None, "what is refused must not be asked for without a pause"
    assert len(broker.read(broker.streams(["b"]), "w", count=9)) == 3
    assert {key: value for key, value in redis_state(broker.client).items() if "{a}" in key} == before


def test_stream_that_is_gone_does_not_hide_what_is_held_on_others(broker: StreamBroker) -> None:
    (gone,) = delivered(broker, "gone", "me", message(1))
    (held,) = delivered(broker, "q", "me", message(2))
    broker.client.call("DEL", "celery-streams:{gone}")

    extended = broker.extend([("me", gone.entry), ("me", held.entry)])
    lost = broker.ack("me", [gone.entry, held.entry])

    assert extended == [0]
    assert lost == [gone.entry]
    assert redis_state(broker.client)[STREAM].entries == {}

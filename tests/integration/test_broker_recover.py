"""Recovery: what a dead consumer held comes back, is counted, backs off, and is given up at the limit."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from celery_streams import keys, recovery
from celery_streams.attempts import parse
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.consumers import forget_consumer, forget_idle_consumers, touch_consumers
from celery_streams.inspect import consumers
from celery_streams.recovery import MAX_BACKOFF_MS, Recovery
from celery_streams.worker.outcome import crash_pauses_ms
from tests.support.eventually import eventually
from tests.support.redis_state import (
    delivered,
    make_idle,
    message,
    number_of,
    redis_now_ms,
    redis_state,
)

STREAM = "celery-streams:{q}"
HOUR_MS = 3_600_000


def recover(broker: StreamBroker, **options: Any) -> Recovery:
    options = {"idle_ms": 15_000, "turn_ms": 1, "pauses_ms": crash_pauses_ms(5), **options}
    # The turn of the last claimer must be over, or this one may not look.
    eventually(lambda: not broker.client.call("EXISTS", broker.queue_keys("q").claims))
    return recovery.recover(broker, "q", "claimer", **options)


def held_by_the_dead(
    broker: StreamBroker, number: int = 1, *, crashes: int = 0, step: int = 0, idle_ms: int = HOUR_MS
) -> bytes:
    history = json.dumps({"first": "1-0", "crashes": crashes}).encode() if crashes else b""
    (held,) = delivered(broker, "q", "dead", message(number, step=step, history=history))
    make_idle(broker, held.stream, "dead", held.entry_id, idle_ms=idle_ms)
    return held.entry_id


def test_nothing_pending_is_nothing_to_do_and_takes_no_turn(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    before = redis_state(broker.client)

    assert recover(broker) == Recovery(0, 0, ())
    assert redis_state(broker.client) == before


def test_queue_that_does_not_exist_is_nothing_to_do(broker: StreamBroker) -> None:
    assert recover(broker) == Recovery(0, 0, ())
    assert redis_state(broker.client) == {}


def test_stream_without_a_group_does_not_hide_what_others_hold(broker: StreamBroker) -> None:
    held_by_the_dead(broker, 1, step=1)
    broker.client.call("DEL", STREAM)
    broker.publish("q", message(2))

    recovery = recover(broker)

    assert recovery.moved == 1


def test_entry_of_a_dead_consumer_is_delivered_again_at_once(broker: StreamBroker) -> None:
    entry_id = held_by_the_dead(broker, 1, step=2)

    recovery = recover(broker)

    (again,) = broker.read(broker.streams(["q"]), "alive", count=5)
    assert recovery == Recovery(1, 0, ())
    assert (number_of(again), again.stream.step) == (1, 2)
    assert again.message is not None
    history = again.message.decode_history()
    ((number, outcome, worker, ended),) = [
        (one.number, one.outcome, one.worker, one.ended) for one in parse(history.pop("attempts"))
    ]
    assert (number, outcome, worker) == (1, "lost", "dead")
    assert redis_now_ms(broker.client) - HOUR_MS - 60_000 < ended * 1000 <= redis_now_ms(broker.client) - HOUR_MS + 10
    assert history == {
        "first": entry_id.decode(),
        "crashes": 1,
        "redelivered": 1,
        "worker": "dead",
    }


def test_entry_with_a_heartbeat_is_left_alone(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "slow", message(1))
    make_idle(broker, held.stream, "slow", held.entry_id, idle_ms=HOUR_MS)

    lost = broker.extend([("slow", held.entry)])
    recovery = recover(broker)

    assert lost == []
    assert recovery == Recovery(0, 0, ())
    assert redis_state(broker.client)[STREAM].pending[keys.GROUP] == {held.entry_id.decode(): ("slow", 1)}


@pytest.mark.parametrize(("crashes", "delay"), [(1, 1_000), (2, 2_000), (3, 4_000), (6, 32_000), (30, MAX_BACKOFF_MS)])
def test_repeated_crashes_back_off(broker: StreamBroker, crashes: int, delay: int) -> None:
    # Commands have a clock that may be some milliseconds behind what TIME says.
    crashed = redis_now_ms(broker.client) - 500 - 10
    held_by_the_dead(broker, crashes=crashes, step=1, idle_ms=500)

    recovery = recover(broker, pauses_ms=crash_pauses_ms(99), idle_ms=100)

    state = redis_state(broker.client)
    ((member, due),) = state[STREAM + ":delayed"].items()
    assert recovery == Recovery(1, 0, ())
    assert crashed + delay <= due <= redis_now_ms(broker.client) - 500 + delay
    assert state[STREAM + ":3"].entries == {}
    assert [entry["due"] for entry in state[STREAM + ":wake"].entries.values()] == [b"%d" % due]
    broker.client.call("ZADD", STREAM + ":delayed", 0, member)
    broker.promote(["q"])
    (again,) = broker.read(broker.streams(["q"]), "alive", count=5)
    assert again.stream.step == 1
    assert again.message is not None
    history = again.message.decode_history()
    assert [(one.number, one.outcome, one.worker) for one in parse(history.pop("attempts"))] == [
        (crashes + 1, "lost", "dead")
    ]
    assert history == {
        "first": "1-0",
        "crashes": crashes + 1,
        "redelivered": 1,
        "worker": "dead",
    }


@pytest.mark.parametrize(("crashes", "waits"), [(3, False), (4, False), (5, True)])
def test_pause_counts_from_the_crash_and_not_from_when_it_was_noticed(
    broker: StreamBroker, crashes: int, waits: bool
) -> None:
    # Pauses of 4, 8 and 16 s, and the last heartbeat was 15 s ago.
    held_by_the_dead(broker, crashes=crashes, idle_ms=15_000)

    assert recover(broker, pauses_ms=crash_pauses_ms(9)).moved == 1

    found = broker.read(broker.streams(["q"]), "alive", count=5)
    assert (len(found), broker.client.call("ZCARD", STREAM + ":delayed")) == ((0, 1) if waits else (1, 0))


def test_entry_that_redis_refuses_stays_pending_and_ends_the_step_for_no_other(broker: StreamBroker) -> None:
    for number in range(5):
        held_by_the_dead(broker, number, crashes=4 if number % 2 == 0 else 0, idle_ms=500)
    broker.client.call("SET", STREAM + ":delayed", "of another type")

    recovery = recover(broker, idle_ms=100, pauses_ms=crash_pauses_ms(9), limit=2)

    assert (recovery.moved, recovery.more) == (2, True)
    assert "WRONGTYPE" in recovery.refusal
    state = redis_state(broker.client)
    assert len(state[STREAM].pending[keys.GROUP]) == 3
    assert STREAM + ":delayed:messages" not in state, "nothing is left over of what was refused"
    again = broker.read(broker.streams(["q"]), "alive", count=5)
    assert sorted(number_of(one) for one in again) == [1, 3]
    broker.client.call("DEL", STREAM + ":delayed")
    assert recover(broker, idle_ms=100, pauses_ms=crash_pauses_ms(9)).moved == 3


@pytest.mark.parametrize("command", ["XACK", "XDEL"])
@pytest.mark.one_server("it asks one server what it was asked, or has a user or a client there alone")
def test_what_cannot_be_settled_is_not_stored_again_and_again(
    broker: StreamBroker, redis_url: str, command: str
) -> None:
    held_by_the_dead(broker, 1)
    broker.client.call("ACL", "SETUSER", "chat", "reset", "on", ">pw", "~*", "+@all", f"-{command.lower()}")
    client = RedisClient(redis_url.replace("://", "://chat:pw@"))

    found = recovery.recover(StreamBroker(client), "q", "claimer", idle_ms=100, turn_ms=1, pauses_ms=crash_pauses_ms(5))
    client.close()
    broker.client.call("ACL", "DELUSER", "chat")

    assert found.moved == 0
    assert command in found.refusal
    assert broker.client.call("XLEN", STREAM) == 1


def test_two_messages_with_one_first_id_both_survive_the_back_off(broker: StreamBroker) -> None:
    # Ids are per stream: the same one may stand on the streams of two priorities.
    held_by_the_dead(broker, 1, crashes=4, step=0, idle_ms=500)
    held_by_the_dead(broker, 2, crashes=4, step=1, idle_ms=500)

    recovery = recover(broker, idle_ms=100, pauses_ms=crash_pauses_ms(9))

    assert recovery.moved == 2
    assert len(redis_state(broker.client)[STREAM + ":delayed:messages"]) == 2


def test_message_at_the_delivery_limit_becomes_the_claimers(broker: StreamBroker) -> None:
    entry_id = held_by_the_dead(broker, 1, crashes=4)

    recovery = recover(broker)

    ((exhausted, holder),) = recovery.exhausted
    assert recovery.moved == 0
    assert (exhausted.entry_id, number_of(exhausted), holder) == (entry_id, 1, "dead")
    assert exhausted.message is not None
    assert exhausted.message.decode_history() == {"first": "1-0", "crashes": 4}
    assert redis_state(broker.client)[STREAM].pending[keys.GROUP] == {entry_id.decode(): ("claimer", 1)}
    assert broker.reject("claimer", exhausted.entry, death=b'{"reason":"crashed"}', max_length=None, ttl=None)


def test_limit_of_one_gives_up_at_the_first_crash(broker: StreamBroker) -> None:
    held_by_the_dead(broker)

    recovery = recover(broker, pauses_ms=crash_pauses_ms(1))

    assert (recovery.moved, len(recovery.exhausted)) == (0, 1)


def test_entry_that_somebody_deleted_is_counted_and_no_longer_pending(broker: StreamBroker) -> None:
    entry_id = held_by_the_dead(broker)
    broker.client.call("XDEL", STREAM, entry_id)

    recovery = recover(broker)

    assert recovery == Recovery(0, 1, ())
    assert redis_state(broker.client)[STREAM].pending[keys.GROUP] == {}


@pytest.mark.parametrize(
    "history",
    [b"not json", b"[]", b"null", b"3", b'{"first":{}}', b'{"first":7}', b'{"crashes":"many"}', b'{"crashes":[]}'],
)
def test_history_that_cannot_be_read_starts_anew(broker: StreamBroker, history: bytes) -> None:
    (held,) = delivered(broker, "q", "dead", message(1, history=history))
    make_idle(broker, held.stream, "dead", held.entry_id, idle_ms=HOUR_MS)

    recover(broker)

    (again,) = broker.read(broker.streams(["q"]), "alive", count=5)
    assert again.message is not None
    assert again.message.decode_history()["crashes"] == 1
    assert again.message.decode_history()["first"] == held.entry_id.decode()


def test_entry_that_is_no_message_keeps_its_fields_through_every_crash(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    broker.client.call("XADD", STREAM, "*", "junk", "1")

    for _ in range(3):
        (held,) = broker.read(broker.streams(["q"]), "dead", count=1)
        make_idle(broker, held.stream, "dead", held.entry_id, idle_ms=HOUR_MS)
        assert recover(broker).moved == 1

    (again,) = broker.read(broker.streams(["q"]), "alive", count=1)
    fields = dict(zip(again.fields[::2], again.fields[1::2], strict=True))
    assert fields.pop(b"junk") == b"1"
    assert json.loads(fields.pop(b"history"))["crashes"] == 3
    assert fields == {}


def test_one_claimer_looks_in_each_turn(broker: StreamBroker) -> None:
    held_by_the_dead(broker, 1)
    first = recovery.recover(broker, "q", "one", idle_ms=15_000, turn_ms=60_000, pauses_ms=crash_pauses_ms(5))
    held_by_the_dead(broker, 2)

    second = recovery.recover(broker, "q", "two", idle_ms=15_000, turn_ms=60_000, pauses_ms=crash_pauses_ms(5))

    assert (first.moved, second.moved) == (1, 0)


def test_no_more_than_the_limit_of_a_step_is_moved(broker: StreamBroker) -> None:
    for number in range(5):
        held_by_the_dead(broker, number, step=number % 2)

    moved = [recover(broker, limit=3).moved, recover(broker, limit=3).moved]

    assert moved == [3, 2]


def test_claimers_at_the_same_moment_move_each_entry_once(broker: StreamBroker, redis_url: str) -> None:
    for number in range(40):
        held_by_the_dead(broker, number)
    start = threading.Barrier(4)

    def claim() -> None:
        own = StreamBroker(RedisClient(redis_url))
        start.wait(10)
        for _ in range(10):
            recovery.recover(own, "q", "c", idle_ms=15_000, turn_ms=1, pauses_ms=crash_pauses_ms(5), limit=5)
        own.client.close()

    claimers = [threading.Thread(target=claim) for _ in range(4)]
    for claimer in claimers:
        claimer.start()
    for claimer in claimers:
        claimer.join(30)
    while recover(broker).moved:
        pass

    found = broker.read(broker.streams(["q"]), "alive", count=100)
    assert sorted(number_of(one) for one in found) == list(range(40))


# -- consumers --------------------------------------------------------------------------------------------------------


def consumers_of(broker: StreamBroker) -> list[str]:
    return redis_state(broker.client)[STREAM].consumers[keys.GROUP]


def test_consumer_that_holds_nothing_is_forgotten_on_all_streams(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "w", message(1))
    broker.ack("w", [held.entry])

    count = forget_consumer(broker, ["q"], "w")

    assert count >= 1
    assert consumers_of(broker) == []


def test_consumer_that_holds_an_entry_is_never_forgotten(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "w", message(1))

    forget_consumer(broker, ["q"], "w")
    forget_idle_consumers(broker, ["q"], idle_ms=-1)

    assert consumers_of(broker) == ["w"]
    assert redis_state(broker.client)[STREAM].pending[keys.GROUP] == {held.entry_id.decode(): ("w", 1)}


def test_only_consumers_that_were_silent_for_so_long_are_forgotten(broker: StreamBroker) -> None:
    for name in ("one", "two"):
        (held,) = delivered(broker, "q", name, message(1))
        broker.ack(name, [held.entry])

    none = forget_idle_consumers(broker, ["q"], idle_ms=60_000)
    some = forget_idle_consumers(broker, ["q"], idle_ms=-1)

    assert none == 0
    assert some >= 2
    assert consumers_of(broker) == []


def test_forgetting_on_a_queue_that_does_not_exist_does_nothing(broker: StreamBroker) -> None:
    assert forget_consumer(broker, ["q"], "w") == 0
    assert forget_consumer(broker, [], "w") == 0
    assert forget_idle_consumers(broker, ["q"], idle_ms=0) == 0


def test_forgetting_on_a_stream_without_a_group_does_nothing(broker: StreamBroker) -> None:
    broker.publish("q", message(1))

    assert forget_consumer(broker, ["q"], "w") == 0
    assert forget_idle_consumers(broker, ["q"], idle_ms=0) == 0


def test_touched_consumer_is_no_longer_taken_for_silent(broker: StreamBroker) -> None:
    for name in ("living", "gone"):
        (held,) = delivered(broker, "q", name, message(1))
        broker.ack(name, [held.entry])
    eventually(lambda: min(info.idle for info in consumers(broker, "q")) > 0.2, message="both were silent for a while")

    touch_consumers(broker, ["q"], ["living"])
    forget_idle_consumers(broker, ["q"], idle_ms=200)

    assert consumers_of(broker) == ["living"]


def test_touching_a_consumer_that_holds_an_entry_leaves_the_entry_with_it(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "w", message(1))

    touch_consumers(broker, ["q"], ["w"])

    assert redis_state(broker.client)[STREAM].pending[keys.GROUP] == {held.entry_id.decode(): ("w", 1)}


def test_touching_without_queues_consumers_or_groups_does_nothing(broker: StreamBroker) -> None:
    broker.publish("q", message(1))

    assert touch_consumers(broker, [], ["w"]) == 0
    assert touch_consumers(broker, ["q"], []) == 0
    assert touch_consumers(broker, ["q"], ["w"]) == 0

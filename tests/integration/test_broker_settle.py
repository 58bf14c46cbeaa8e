"""Settling: each verb does its one thing to an entry that is ours, and nothing at all to one that is not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.entries import Delivery
from celery_streams.exceptions import BrokerError
from celery_streams.message import Message, pack
from celery_streams.reads import receive_blocking_read, send_blocking_read
from celery_streams.recovery import recover
from celery_streams.worker.outcome import crash_pauses_ms
from tests.support.redis_state import StreamState, delivered, message, number_of, read_all, redis_now_ms, redis_state

STREAM = "celery-streams:{q}"
DEATH = b'{"reason":"failed"}'

Verb = Callable[[StreamBroker, str, Delivery], Any]

#: Every verb that settles, with what it returns for an entry that is no longer ours.
VERBS: dict[str, tuple[Verb, Callable[[Delivery], Any]]] = {
    "ack": (
        lambda broker, consumer, one: broker.ack(consumer, [one.entry]),
        lambda one: [one.entry],
    ),
    "put_back": (
        lambda broker, consumer, one: broker.put_back(consumer, [one.entry]),
        lambda one: 0,
    ),
    "put_back_all": (
        lambda broker, consumer, one: broker.put_back_all(broker.streams(["q"]), consumer),
        lambda one: 0,
    ),
    "requeue": (
        lambda broker, consumer, one: broker.requeue(consumer, one.entry, history={"crashes": 1}),
        lambda one: False,
    ),
    "requeue later": (
        lambda broker, consumer, one: broker.requeue(consumer, one.entry, history={"crashes": 1}, delay_ms=60_000),
        lambda one: False,
    ),
    "retry": (
        lambda broker, consumer, one: broker.retry(consumer, one.entry, message(7), queue="q"),
        lambda one: False,
    ),
    "retry later": (
        lambda broker, consumer, one: broker.retry(
            consumer, one.entry, message(7), queue="q", due_ms=2**45, member="m"
        ),
        lambda one: False,
    ),
    "reject": (
        lambda broker, consumer, one: broker.reject(consumer, one.entry, death=DEATH, max_length=None, ttl=None),
        lambda one: None,
    ),
    "extend": (
        lambda broker, consumer, one: broker.extend([(consumer, one.entry)]),
        lambda one: [0],
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_entry_that_another_consumer_holds_is_left_alone(broker: StreamBroker, verb: str) -> None:
    act, answer = VERBS[verb]
    (held,) = delivered(broker, "q", "other", message(1))
    before = redis_state(broker.client)

    result = act(broker, "me", held)

    assert result == answer(held)
    assert redis_state(broker.client) == before


@pytest.mark.parametrize("verb", VERBS)
def test_entry_that_is_settled_already_is_left_alone(broker: StreamBroker, verb: str) -> None:
    act, answer = VERBS[verb]
    (held,) = delivered(broker, "q", "me", message(1))
    broker.ack("me", [held.entry])
    before = redis_state(broker.client)

    result = act(broker, "me", held)

    assert result == answer(held)
    assert redis_state(broker.client) == before


@pytest.mark.parametrize("verb", VERBS)
def test_entry_that_was_put_back_by_somebody_is_left_alone(broker: StreamBroker, verb: str) -> None:
    act, answer = VERBS[verb]
    (held,) = delivered(broker, "q", "me", message(1))
    recover(broker, "q", "other", idle_ms=0, turn_ms=60_000, pauses_ms=crash_pauses_ms(9))
    before = redis_state(broker.client)

    result = act(broker, "me", held)

    assert result == answer(held)
    assert redis_state(broker.client) == before


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "extend"])
def test_settling_twice_changes_nothing_more(broker: StreamBroker, verb: str) -> None:
    act, answer = VERBS[verb]
    (held,) = delivered(broker, "q", "me", message(1))
    first = act(broker, "me", held)
    before = redis_state(broker.client)

    result = act(broker, "me", held)

    # Of a dead letter its id is known then, too: whoever lost the reply has to say that there is one.
    assert result == (first if verb == "reject" else answer(held))
    assert redis_state(broker.client) == before


@pytest.mark.parametrize(("others", "known"), [(0, True), (60, True), (150, False)])
def test_dead_letter_whose_reply_was_lost_is_known_by_its_death_among_the_newest(
    broker: StreamBroker, others: int, known: bool
) -> None:
    def bury(one: Delivery, death: bytes) -> bytes | None:
        return broker.reject("me", one.entry, death=death, max_length=None, ttl=None)

    mine, *rest = delivered(broker, "q", "me", *(message(number) for number in range(others + 2)))
    letter = bury(mine, b'{"number":0}')
    for number, one in enumerate(rest[:others]):
        bury(one, b'{"number":%d}' % (number + 1))

    assert bury(mine, b'{"number":0}') == (letter if known else None)
    assert bury(mine, b'{"number":"of another worker"}') is None
    assert broker.client.call("XLEN", "celery-streams:{q}:dead") == others + 1


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("extend", "put_back_all")])
def test_other_entries_of_the_same_consumer_stay_pending(broker: StreamBroker, verb: str) -> None:
    act, _ = VERBS[verb]
    held, other = delivered(broker, "q", "me", message(1), message(2))

    act(broker, "me", held)

    state = redis_state(broker.client)[STREAM]
    assert state.pending[keys.GROUP] == {other.entry_id.decode(): ("me", 1)}
    assert held.entry_id.decode() not in state.entries


# -- ack --------------------------------------------------------------------------------------------------------------


def test_ack_deletes_and_leaves_an_empty_stream(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", message(1), message(2, step=1))

    lost = broker.ack("me", [one.entry for one in held])

    assert lost == []
    state = redis_state(broker.client)
    assert state[STREAM] == StreamState({}, {keys.GROUP: {}}, {keys.GROUP: ["me"]})
    assert state[STREAM + ":3"].entries == {}


def test_ack_of_several_names_those_that_were_not_ours(broker: StreamBroker) -> None:
    ours, theirs = delivered(broker, "q", "me", message(1), message(2))
    broker.client.call("XCLAIM", theirs.stream.key, keys.GROUP, "other", 0, theirs.entry_id, "JUSTID")

    lost = broker.ack("me", [ours.entry, theirs.entry])

    assert lost == [theirs.entry]
    assert list(redis_state(broker.client)[STREAM].entries) == [theirs.entry_id.decode()]


def test_more_entries_than_a_script_can_pass_at_once_are_acknowledged(broker: StreamBroker) -> None:
    held = [
        one
        for queue in ("a", "b")
        for one in delivered(broker, queue, "me", *[message(number) for number in range(1_203)])
    ]
    kept = held.pop(700)
    twice = held[5]

    lost = broker.ack("me", [one.entry for one in [*held, twice]])

    state = redis_state(broker.client)
    assert lost == [twice.entry]
    assert list(state["celery-streams:{a}"].entries) == [kept.entry_id.decode()]
    assert list(state["celery-streams:{a}"].pending[keys.GROUP]) == [kept.entry_id.decode()]
    assert state["celery-streams:{b}"].entries == state["celery-streams:{b}"].pending[keys.GROUP] == {}


@pytest.mark.one_server("it asks one server what it was asked, or has a user or a client there alone")
def test_acknowledging_many_entries_is_a_few_commands(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", *[message(number) for number in range(100)])
    broker.client.call("CONFIG", "RESETSTAT")

    broker.ack("me", [one.entry for one in held])

    stats = broker.client.call("INFO", "commandstats").decode()
    assert "cmdstat_xpending:calls=1," in stats
    assert "cmdstat_xack:calls=1," in stats
    assert "cmdstat_xdel:calls=1," in stats


@pytest.mark.parametrize("seed", range(8))
def test_batch_of_which_some_were_claimed_away_is_acknowledged_for_the_rest(broker: StreamBroker, seed: int) -> None:
    # Given entries in any order: some are held by another consumer now, some are gone, some are not to be settled.
    chance = random.Random(seed)
    held = delivered(broker, "q", "me", *[message(number) for number in range(300)])
    batch = [one.entry for one in (held if seed % 2 else chance.sample(held, len(held)))]
    batch = batch[: (2, 60, 250, 300)[seed // 2]]
    claimed, gone = set(chance.sample(batch, len(batch) // 3)), set(chance.sample(batch, len(batch) // 5))
    for entry in claimed:
        broker.client.call("XCLAIM", entry.stream.key, keys.GROUP, "other", 0, entry.id, "JUSTID")
    for entry in gone:
        broker.client.call("XACK", entry.stream.key, keys.GROUP, entry.id)
        broker.client.call("XDEL", entry.stream.key, entry.id)
    before = redis_state(broker.client)[STREAM]

    lost = broker.ack("me", batch)

    after = redis_state(broker.client)[STREAM]
    settled = {entry.id.decode() for entry in batch if entry not in claimed | gone}
    assert lost == [entry for entry in batch if entry in claimed | gone]
    assert after.entries == {key: value for key, value in before.entries.items() if key not in settled}
    assert after.pending[keys.GROUP] == {
        key: value for key, value in before.pending[keys.GROUP].items() if key not in settled
    }


@pytest.mark.one_server("it asks one server what it was asked, or has a user or a client there alone")
def test_batch_out_of_order_among_many_others_of_ours_costs_two_looks(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", *[message(number) for number in range(40)])
    batch = [one.entry for one in reversed(held[::2])]
    broker.client.call("CONFIG", "RESETSTAT")

    lost = broker.ack("me", batch)

    assert lost == []
    assert "cmdstat_xpending:calls=2," in broker.client.call("INFO", "commandstats").decode()
    assert list(redis_state(broker.client)[STREAM].entries) == [one.entry_id.decode() for one in held[1::2]]


def test_settling_nothing_asks_nobody(broker: StreamBroker) -> None:
    broker.client.close()

    assert broker.ack("me", []) == []
    assert broker.put_back("me", []) == 0
    assert broker.put_back_all([], "me") == 0
    assert broker.extend([]) == []


# -- release ----------------------------------------------------------------------------------------------------------


def test_released_entry_is_delivered_again_with_its_first_id_and_no_crash(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))

    count = broker.put_back("me", [held.entry])

    (again,) = broker.read(broker.streams(["q"]), "other", count=5)
    assert count == 1
    assert again.message is not None
    assert (again.message.headers, again.message.body) == (message(1).headers, message(1).body)
    assert again.message.decode_history() == {"first": held.entry_id.decode()}
    assert redis_state(broker.client)[STREAM].pending[keys.GROUP] == {again.entry_id.decode(): ("other", 1)}


def test_entry_released_twice_keeps_the_id_it_was_published_with(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    broker.put_back("me", [held.entry])
    (again,) = broker.read(broker.streams(["q"]), "me", count=5)

    broker.put_back("me", [again.entry])

    (last,) = broker.read(broker.streams(["q"]), "me", count=5)
    assert last.message is not None
    assert last.message.decode_history() == {"first": held.entry_id.decode()}


def test_released_entries_keep_their_order(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", *[message(number) for number in range(5)])

    broker.put_back("me", [one.entry for one in held])

    assert [number_of(one) for one in broker.read(broker.streams(["q"]), "me", count=9)] == [0, 1, 2, 3, 4]


def test_release_all_puts_back_every_step_and_only_ours(broker: StreamBroker) -> None:
    delivered(broker, "q", "me", message(1), message(2, step=2))
    (theirs,) = delivered(broker, "q", "other", message(3))

    count = broker.put_back_all(broker.streams(["q"]), "me")

    assert count == 2
    assert redis_state(broker.client)[STREAM].pending[keys.GROUP] == {theirs.entry_id.decode(): ("other", 1)}
    assert [number_of(one) for one in read_all(broker, ["q"], "me")] == [1, 2]


def test_release_wakes_a_blocked_reader(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    connection = broker.client.open()
    send_blocking_read(connection, broker.streams(["q"]), "other", block_ms=5_000)

    broker.put_back("me", [held.entry])

    found = receive_blocking_read(connection, broker.streams(["q"]), timeout=5)
    connection.close()
    assert [number_of(one) for one in found] == [1]


# -- requeue ----------------------------------------------------------------------------------------------------------


def test_requeued_entry_carries_the_new_history_only(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1, step=1, history=b'{"first":"1-0","crashes":1}'))
    history = {"first": "1-0", "unknown": 5}

    ours = broker.requeue("me", held.entry, history=history)

    (again,) = broker.read(broker.streams(["q"]), "me", count=5)
    assert ours is True
    assert again.message == message(1, step=1, history=json.dumps(history, separators=(",", ":")).encode())


def test_requeue_with_a_delay_is_a_delayed_message_of_the_same_priority(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1, step=2))
    before = redis_now_ms(broker.client)

    ours = broker.requeue("me", held.entry, history={"first": "1-0"}, delay_ms=5_000)

    state = redis_state(broker.client)
    ((member, due),) = state[STREAM + ":delayed"].items()
    assert ours is True
    assert before + 5_000 <= due <= redis_now_ms(broker.client) + 5_000
    assert state[STREAM + ":delayed:messages"] == {member: pack(message(1, step=2, history=b'{"first":"1-0"}'))}
    assert state[STREAM + ":6"].entries == {}
    assert [entry["due"] for entry in state[STREAM + ":wake"].entries.values()] == [b"%d" % due]


# -- retry ------------------------------------------------------------------------------------------------------------


def test_retry_takes_the_place_of_the_entry(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))

    ours = broker.retry("me", held.entry, message(2, step=3), queue="q")

    found = broker.read(broker.streams(["q"]), "me", count=9)
    assert ours is True
    assert [one.message for one in found] == [message(2, step=3)]


@pytest.mark.one_server("its queues lie apart, and are asked slot by slot")
def test_retry_may_go_to_another_queue(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    broker.ensure_groups(["elsewhere"])

    broker.retry("me", held.entry, message(2), queue="elsewhere")

    assert redis_state(broker.client)[STREAM].entries == {}
    assert [number_of(one) for one in broker.read(broker.streams(["elsewhere"]), "me", count=9)] == [2]


@pytest.mark.one_server("its queues lie apart, and are asked slot by slot")
def test_retry_to_a_queue_that_was_never_used_makes_it_known(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))

    broker.retry("me", held.entry, message(2), queue="new")

    assert redis_state(broker.client)["celery-streams:queues"] == {"q", "new"}


def test_retry_with_a_due_time_is_delayed(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))

    broker.retry("me", held.entry, message(2, step=1), queue="q", due_ms=2**45, member="id:1")

    state = redis_state(broker.client)
    assert state[STREAM].entries == {}
    member = f"id:1:{STREAM}:{held.entry_id.decode()}"
    assert state[STREAM + ":delayed"] == {member: 2**45}
    assert state[STREAM + ":delayed:messages"] == {member: pack(message(2, step=1))}
    assert [entry["due"] for entry in state[STREAM + ":wake"].entries.values()] == [b"%d" % 2**45]


@pytest.mark.one_server("its queues lie apart, and are asked slot by slot")
def test_retries_of_several_messages_with_one_task_id_are_as_many(broker: StreamBroker) -> None:
    held = [*delivered(broker, "q", "me", message(1)), *delivered(broker, "q", "me", message(1, step=1))]
    held += delivered(broker, "r", "me", message(1))

    for one in held:
        broker.retry("me", one.entry, message(1), queue="q", due_ms=5, member="1:1")

    assert broker.promote(["q"]).moved == 3
    assert len(broker.read(broker.streams(["q"]), "me", count=9)) == 3


# -- reject -----------------------------------------------------------------------------------------------------------


def test_rejected_entry_is_a_dead_letter_with_everything_it_had(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1, step=1, history=b'{"first":"1-0"}'))

    dead = broker.reject("me", held.entry, death=DEATH, max_length=None, ttl=None)

    state = redis_state(broker.client)
    assert dead is not None
    assert state[STREAM + ":3"] == StreamState({}, {keys.GROUP: {}}, {keys.GROUP: ["me"]})
    assert state[STREAM + ":dead"].entries == {
        dead.decode(): {
            "headers": message(1).headers,
            "properties": message(1).properties,
            "body": message(1).body,
            "history": b'{"first":"1-0"}',
            "death": DEATH,
        }
    }


def test_entry_that_is_no_message_is_rejected_with_its_raw_fields(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    broker.client.call("XADD", STREAM, "*", "junk", "\x00", "more", "2")
    (held,) = broker.read(broker.streams(["q"]), "me", count=1)

    dead = broker.reject("me", held.entry, death=DEATH, max_length=None, ttl=None)

    assert dead is not None
    assert redis_state(broker.client)[STREAM + ":dead"].entries[dead.decode()] == {
        "junk": b"\x00",
        "more": b"2",
        "death": DEATH,
    }


def test_message_that_was_acknowledged_before_it_ran_is_rejected_whole(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    broker.ack("me", [held.entry])

    dead = broker.reject("me", held.entry, death=DEATH, max_length=None, ttl=None, message=message(1))

    assert dead is not None
    assert redis_state(broker.client)[STREAM + ":dead"].entries[dead.decode()]["body"] == message(1).body


def test_message_that_was_acknowledged_before_it_ran_is_rejected_once_however_often_it_is_sent(
    broker: StreamBroker,
) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    broker.ack("me", [held.entry])

    def reject(death: bytes) -> bytes | None:
        return broker.reject("me", held.entry, death=death, max_length=None, ttl=None, message=message(1))

    first = reject(DEATH)
    of_another = reject(b'{"reason":"other"}')
    again = reject(DEATH)

    assert again == first
    assert list(redis_state(broker.client)[STREAM + ":dead"].entries) == [one.decode() for one in (first, of_another)]


def test_dead_letters_are_bounded_by_length_and_the_oldest_go(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", *[message(number) for number in range(5)])

    for one in held:
        broker.reject("me", one.entry, death=DEATH, max_length=3, ttl=None)

    bodies = [entry["body"] for entry in redis_state(broker.client)[STREAM + ":dead"].entries.values()]
    assert bodies == [message(number).body for number in (2, 3, 4)]


def test_dead_letters_are_bounded_by_age_on_redis_clock(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "me", *[message(number) for number in range(2)])
    now = redis_now_ms(broker.client)
    for age in (100, 50):
        broker.client.call("XADD", STREAM + ":dead", f"{now - age * 1000}-0", "death", "{}")

    first = broker.reject("me", held[0].entry, death=DEATH, max_length=None, ttl=75.0)
    after_75 = list(redis_state(broker.client)[STREAM + ":dead"].entries)
    second = broker.reject("me", held[1].entry, death=DEATH, max_length=None, ttl=10.0)
    after_10 = list(redis_state(broker.client)[STREAM + ":dead"].entries)

    assert first is not None
    assert second is not None
    assert after_75 == [f"{now - 50_000}-0", first.decode()]
    assert after_10 == [first.decode(), second.decode()]


def test_dead_letter_is_kept_when_its_time_is_longer_than_the_epoch(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))

    dead = broker.reject("me", held.entry, death=DEATH, max_length=None, ttl=1e10)

    assert dead is not None
    assert list(redis_state(broker.client)[STREAM + ":dead"].entries) == [dead.decode()]


def test_two_entries_with_one_id_are_both_kept_when_they_are_put_back_for_later(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    for step, number in ((0, 1), (1, 2)):
        broker.client.call("XADD", broker.queue_keys("q").streams[step], "5-0", *message(number).as_fields())
    held = read_all(broker, ["q"], "me")
    assert [one.entry_id for one in held] == [b"5-0", b"5-0"]

    for one in held:
        broker.requeue("me", one.entry, history={"first": "5-0"}, delay_ms=60_000)

    assert len(redis_state(broker.client)[STREAM + ":delayed:messages"]) == 2


def test_entry_that_is_no_message_goes_back_at_once_with_its_fields(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    broker.client.call("XADD", STREAM, "*", "junk", "1")
    (held,) = broker.read(broker.streams(["q"]), "me", count=1)

    broker.requeue("me", held.entry, history={"crashes": 1}, delay_ms=60_000)

    (again,) = broker.read(broker.streams(["q"]), "me", count=1)
    assert again.fields == (b"junk", b"1", b"history", b'{"crashes":1}')


def test_fetch_reads_an_entry_again_and_none_when_it_is_gone(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))

    found = broker.fetch(held.entry)
    broker.ack("me", [held.entry])

    assert found is not None
    assert found.message == Message(message(1).headers, message(1).properties, message(1).body)
    assert broker.fetch(held.entry) is None


@pytest.mark.parametrize("verb", ["ack", "extend", "put_back", "requeue", "reject"])
def test_missing_permission_is_not_taken_for_the_loss_of_an_entry(
    broker: StreamBroker, redis_url: str, verb: str
) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    broker.client.call("ACL", "SETUSER", "poor", "on", ">pw", "~*", "&*", "+@all", "-xpending")
    poor = StreamBroker(RedisClient(redis_url.replace("redis://", "redis://poor:pw@")))
    acts: dict[str, Any] = {
        "ack": lambda: poor.ack("me", [held.entry]),
        "extend": lambda: poor.extend([("me", held.entry)]),
        "put_back": lambda: poor.put_back("me", [held.entry]),
        "requeue": lambda: poor.requeue("me", held.entry, history={}),
        "reject": lambda: poor.reject("me", held.entry, death=b"{}", max_length=None, ttl=None),
    }
    before = redis_state(broker.client)

    try:
        with pytest.raises(BrokerError):
            acts[verb]()
    finally:
        broker.client.call("ACL", "DELUSER", "poor")

    assert redis_state(broker.client) == before

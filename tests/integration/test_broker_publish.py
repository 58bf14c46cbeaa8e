"""Publishing, now and later: what is stored, in which order it comes out, and when it is refused."""

from __future__ import annotations

import threading
import uuid

import pytest

from celery_streams import keys
from celery_streams.broker import Promotion, StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.exceptions import BrokerError, QueueFull
from celery_streams.message import Message, pack
from celery_streams.reads import receive_blocking_read, send_blocking_read
from celery_streams.revocations import revoke, revoke_stamps, revoked, revoked_stamps
from tests.support.redis_state import StreamState, delivered, message, number_of, read_all, redis_now_ms, redis_state

ODD_NAMES = ["a b", "Ü", "q:9", "tags{x}", "*", "a" * 300]


def test_published_message_is_one_entry_and_nothing_else(broker: StreamBroker) -> None:
    entry_id = broker.publish("q", message(1)).decode()

    assert redis_state(broker.client) == {
        "celery-streams:queues": {"q"},
        "celery-streams:{q}": StreamState(
            {entry_id: {"headers": message(1).headers, "properties": message(1).properties, "body": message(1).body}},
            {},
            {},
        ),
    }


def test_bounded_publish_stores_the_same_entry(broker: StreamBroker) -> None:
    plain, bounded = broker.publish("a", message(1)), broker.publish("b", message(1), max_length=10)

    state = redis_state(broker.client)
    assert state["celery-streams:{a}"].entries[plain.decode()] == state["celery-streams:{b}"].entries[bounded.decode()]


@pytest.mark.parametrize("queue", ODD_NAMES)
def test_queue_with_an_odd_name_is_a_queue(broker: StreamBroker, queue: str) -> None:
    found = delivered(broker, queue, "w", message(1))

    assert [number_of(one) for one in found] == [1]
    assert broker.ack("w", [found[0].entry]) == []
    assert redis_state(broker.client)["celery-streams:queues"] == {queue}


def test_messages_come_out_by_priority_and_then_in_order(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    for number, step in [(1, 3), (2, 0), (3, 1), (4, 0), (5, 2), (6, 1)]:
        broker.publish("q", message(number, step=step))

    found = read_all(broker, ["q"], "w")

    assert [number_of(one) for one in found] == [2, 4, 3, 6, 5, 1]
    assert [one.stream.step for one in found] == [0, 0, 1, 1, 2, 3]


@pytest.mark.one_server("its queues lie apart, and are asked slot by slot")
def test_priority_counts_before_the_order_of_queues(broker: StreamBroker) -> None:
    broker.ensure_groups(["a", "b"])
    broker.publish("a", message(1, step=1))
    broker.publish("b", message(2, step=0))

    found = read_all(broker, ["a", "b"], "w")

    assert [number_of(one) for one in found] == [2, 1]


@pytest.mark.one_server("its queues lie apart, and are asked slot by slot")
def test_read_takes_no_more_than_asked_over_all_streams(broker: StreamBroker) -> None:
    broker.ensure_groups(["a", "b"])
    for number in range(4):
        broker.publish("ab"[number % 2], message(number))

    first = broker.read(broker.streams(["a", "b"]), "w", count=3)
    second = broker.read(broker.streams(["a", "b"]), "w", count=3)

    assert [number_of(one) for one in (*first, *second)] == [0, 2, 1, 3]
    assert [len(first), len(second)] == [3, 1]


@pytest.mark.one_server("its queues lie apart, and are asked slot by slot")
def test_read_takes_one_priority_only_so_that_no_other_consumer_overtakes(broker: StreamBroker) -> None:
    broker.ensure_groups(["a", "b"])
    for number, (queue, step) in enumerate([("a", 1), ("b", 1), ("b", 0), ("a", 2)]):
        broker.publish(queue, message(number, step=step))

    reads = [broker.read(broker.streams(["a", "b"]), name, count=9) for name in ("v", "w", "x", "y")]

    assert [[number_of(one) for one in found] for found in reads] == [[2], [0, 1], [3], []]


def test_message_published_before_the_group_exists_is_delivered(broker: StreamBroker) -> None:
    broker.publish("q", message(1))

    created = broker.ensure_groups(["q"])

    assert created == len(keys.DEFAULT_STEPS)
    assert [number_of(one) for one in broker.read(broker.streams(["q"]), "w", count=5)] == [1]


def test_ensuring_groups_again_changes_nothing(broker: StreamBroker) -> None:
    delivered(broker, "q", "w", message(1))
    before = redis_state(broker.client)

    created = broker.ensure_groups(["q"])

    assert created == 0
    assert redis_state(broker.client) == before


def test_key_of_another_type_is_an_error_that_is_not_swallowed(broker: StreamBroker) -> None:
    broker.client.call("SET", broker.queue_keys("q").streams[1], "not a stream")

    with pytest.raises(BrokerError, match="WRONGTYPE"):
        broker.ensure_groups(["q"])


def test_read_of_a_missing_group_says_nogroup(broker: StreamBroker) -> None:
    with pytest.raises(BrokerError, match="NOGROUP"):
        broker.read(broker.streams(["q"]), "w", count=1)


def test_entry_that_is_no_message_is_delivered_with_its_fields_and_the_reason(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    broker.client.call("XADD", broker.queue_keys("q").streams[0], "*", "junk", "1")

    (found,) = broker.read(broker.streams(["q"]), "w", count=1)

    assert found.message is None
    assert found.fields == (b"junk", b"1")
    assert "no field headers" in found.error


# -- blocking reads ---------------------------------------------------------------------------------------------------


def test_blocked_read_ends_with_the_first_message(broker: StreamBroker, redis_url: str) -> None:
    broker.ensure_groups(["q"])
    streams = broker.streams(["q"])
    connection = broker.client.open()
    send_blocking_read(connection, streams, "w", block_ms=5_000)
    assert not connection.ready()

    broker.publish("q", message(1, step=2))
    found = receive_blocking_read(connection, streams, timeout=5)

    connection.close()
    assert [(number_of(one), one.stream.step) for one in found] == [(1, 2)]


def test_blocked_read_comes_back_empty_when_its_time_is_up(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    streams = broker.streams(["q"])
    connection = broker.client.open()

    send_blocking_read(connection, streams, "w", block_ms=20)
    found = receive_blocking_read(connection, streams, timeout=5)

    connection.close()
    assert found == []


def test_blocked_read_gives_the_highest_priority_first(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    streams = broker.streams(["q"])
    for number, step in [(1, 3), (2, 0)]:
        broker.publish("q", message(number, step=step))
    connection = broker.client.open()

    send_blocking_read(connection, list(reversed(streams)), "w", block_ms=1_000)
    found = receive_blocking_read(connection, streams, timeout=5)

    connection.close()
    assert [number_of(one) for one in found] == [2, 1]


def test_blocked_read_of_a_stream_that_is_deleted_raises_our_error(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    streams = broker.streams(["q"])
    connection = broker.client.open()
    send_blocking_read(connection, streams, "w", block_ms=5_000)

    broker.client.call("DEL", streams[0].key)
    broker.publish("q", message(1))  # Redis 6.2 tells blocked clients only now

    with pytest.raises(BrokerError, match=r"NOGROUP|UNBLOCKED"):
        receive_blocking_read(connection, streams, timeout=5)
    connection.close()


# -- backpressure -----------------------------------------------------------------------------------------------------


def test_full_queue_refuses_and_stores_nothing(broker: StreamBroker) -> None:
    broker.publish("q", message(1, step=0), max_length=3)
    broker.publish("q", message(2, step=2), max_length=3)
    broker.delay("q", message(3), due_ms=2**45, member="m", max_length=3)
    before = redis_state(broker.client)

    with pytest.raises(QueueFull, match="'q' holds 3 messages"):
        broker.publish("q", message(4, step=1), max_length=3)
    with pytest.raises(QueueFull, match="'q' holds 3 messages"):
        broker.delay("q", message(5), due_ms=2**45, member="other", max_length=3)

    assert redis_state(broker.client) == before


def test_pending_messages_count_towards_the_bound(broker: StreamBroker) -> None:
    delivered(broker, "q", "w", message(1))

    with pytest.raises(QueueFull):
        broker.publish("q", message(2), max_length=1)


def test_message_delayed_again_under_the_same_member_is_no_further_message(broker: StreamBroker) -> None:
    broker.delay("q", message(1), due_ms=2**45, member="m", max_length=1)

    broker.delay("q", message(1), due_ms=2**45 + 1, member="m", max_length=1)

    assert redis_state(broker.client)["celery-streams:{q}:delayed"] == {"m": 2**45 + 1}


@pytest.mark.one_server("it asks one server what it was asked, or has a user or a client there alone")
def test_bound_is_exact_under_concurrent_publishers(broker: StreamBroker, redis_url: str) -> None:
    stored: list[bytes] = []
    refused: list[str] = []
    start = threading.Barrier(8)

    def publish_many() -> None:
        own = StreamBroker(RedisClient(redis_url))
        start.wait(10)
        for number in range(25):
            try:
                stored.append(own.publish("q", message(number, step=number % 4), max_length=50))
            except QueueFull as exc:
                refused.append(str(exc))
        own.client.close()

    publishers = [threading.Thread(target=publish_many) for _ in range(8)]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join(30)

    assert (len(stored), len(refused)) == (50, 150)
    lengths = [broker.client.call("XLEN", key) for key in broker.queue_keys("q").streams]
    assert sum(lengths) == 50


# -- later ------------------------------------------------------------------------------------------------------------


def test_delayed_message_is_stored_with_its_due_time(broker: StreamBroker) -> None:
    broker.delay("q", message(1, step=2), due_ms=2**45, member="m")

    state = redis_state(broker.client)
    assert state["celery-streams:{q}:delayed"] == {"m": 2**45}
    assert state["celery-streams:{q}:delayed:messages"] == {"m": pack(message(1, step=2))}
    assert "celery-streams:{q}" not in state


def test_only_an_earlier_due_time_wakes_the_promoters(broker: StreamBroker) -> None:
    def wake() -> list[bytes]:
        return [entry["due"] for entry in redis_state(broker.client)["celery-streams:{q}:wake"].entries.values()]

    broker.delay("q", message(1), due_ms=2**45, member="first")
    after_first = wake()
    broker.delay("q", message(2), due_ms=2**45 + 5, member="later")
    after_later = wake()
    broker.delay("q", message(3), due_ms=2**45 - 5, member="earlier")
    after_earlier = wake()

    assert after_first == after_later == [b"%d" % 2**45]
    assert after_earlier == [b"%d" % (2**45 - 5)]


def test_due_messages_move_to_the_streams_of_their_priority_and_others_stay(broker: StreamBroker) -> None:
    now = redis_now_ms(broker.client)
    with_history = message(3, history=b'{"first":"1-0","crashes":2}')
    broker.delay("q", message(1, step=2), due_ms=now - 10, member="one")
    broker.delay("q", message(2), due_ms=now - 20, member="two")
    broker.delay("q", with_history, due_ms=now - 5, member="three")
    broker.delay("q", message(4), due_ms=now + 60_000, member="four")
    broker.ensure_groups(["q"])

    promotion = broker.promote(["q"])

    state = redis_state(broker.client)
    found = read_all(broker, ["q"], "w")
    assert (promotion.moved, promotion.missing) == (3, 0)
    assert 59_000 < (promotion.next_due_ms or 0) <= 60_000
    assert state["celery-streams:{q}:delayed"] == {"four": now + 60_000}
    assert list(state["celery-streams:{q}:delayed:messages"]) == ["four"]
    assert [one.message for one in found] == [message(2), with_history, message(1, step=2)]


def test_promoting_nothing_says_so(broker: StreamBroker) -> None:
    assert broker.promote([]) == Promotion(0, 0, None)
    assert broker.promote(["q"]) == Promotion(0, 0, None)
    assert redis_state(broker.client) == {}


@pytest.mark.one_server("its queues lie apart, and are asked slot by slot")
def test_promotion_stops_at_its_limit_over_all_queues_and_asks_to_be_called_again(broker: StreamBroker) -> None:
    now = redis_now_ms(broker.client)
    for number in range(6):
        broker.delay("ab"[number % 2], message(number), due_ms=now - 10, member=str(number))

    first = broker.promote(["a", "b"], limit=4)
    second = broker.promote(["a", "b"], limit=4)

    assert (first.moved, first.next_due_ms) == (4, 0)
    assert (second.moved, second.next_due_ms) == (2, None)


def test_member_without_a_message_is_counted_and_removed(broker: StreamBroker) -> None:
    broker.delay("q", message(1), due_ms=1, member="gone")
    broker.delay("q", message(2), due_ms=1, member="here")
    broker.client.call("HDEL", broker.queue_keys("q").delayed_messages, "gone")

    promotion = broker.promote(["q"])

    assert (promotion.moved, promotion.missing, promotion.next_due_ms) == (1, 1, None)
    assert "celery-streams:{q}:delayed" not in redis_state(broker.client)


def test_value_that_is_no_packed_message_does_not_hold_up_the_others(broker: StreamBroker) -> None:
    broker.delay("q", message(1), due_ms=1, member="a-bad")
    broker.delay("q", message(2), due_ms=2, member="good")
    broker.client.call("HSET", broker.queue_keys("q").delayed_messages, "a-bad", "junk")
    broker.ensure_groups(["q"])

    broker.promote(["q"])
    broker.promote(["q"])

    found = broker.read(broker.streams(["q"]), "w", count=10)
    assert 2 in [number_of(one) for one in found if one.message is not None]
    assert any(b"junk" in field for one in found if one.message is None for field in one.fields), (
        "what cannot be promoted must reach a worker, which dead-letters it"
    )


def test_steps_beyond_those_of_this_broker_go_to_the_lowest_priority(broker: StreamBroker) -> None:
    two_steps = StreamBroker(broker.client, steps=(0, 5))
    broker.delay("q", message(1, step=3), due_ms=1, member="m")
    two_steps.ensure_groups(["q"])

    two_steps.promote(["q"])

    found = two_steps.read(two_steps.streams(["q"]), "w", count=1)
    assert [one.stream.key for one in found] == ["celery-streams:{q}:5"]


def test_revoked_ids_are_remembered_until_they_expire(broker: StreamBroker) -> None:
    revoke(broker, ["old"], seconds=-1.0)
    before = redis_now_ms(broker.client) / 1000
    revoke(broker, ["a", "b"], seconds=1e6)
    revoke(broker, [], seconds=1e6)

    assert sorted(revoked(broker)) == ["a", "b"]
    (kept,) = redis_state(broker.client).values()
    assert sorted(kept) == ["a", "b"]
    assert all(before + 1e6 <= expires <= before + 1e6 + 60 for expires in kept.values())


def test_revoked_stamps_are_remembered_until_they_expire(broker: StreamBroker) -> None:
    whole = uuid.uuid4()
    revoke_stamps(broker, [("tenant", "old")], seconds=-1.0)
    revoke_stamps(broker, [("tenant", "acme"), ("tenant", 5), ("batch", whole)], seconds=1e6)
    revoke_stamps(broker, [], seconds=1e6)

    assert sorted(revoked_stamps(broker), key=repr) == [("batch", whole), ("tenant", "acme"), ("tenant", 5)]
    assert revoked(broker) == []
    assert list(redis_state(broker.client)) == ["celery-streams:revoked:stamps"]


def test_large_message_comes_back_whole(broker: StreamBroker) -> None:
    big = Message(b"{}", b"{}", bytes(range(256)) * 20_000)
    broker.delay("q", big, due_ms=1, member="m")
    broker.ensure_groups(["q"])

    broker.promote(["q"])

    (found,) = broker.read(broker.streams(["q"]), "w", count=1)
    assert found.message == big


def test_queue_names_made_of_data_are_not_kept_for_ever_by_a_publisher(
    broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_streams.broker._MOST_INTRODUCED", 10)

    for number in range(35):
        broker.publish(f"tenant-{number}", Message(b"{}", b"{}", b""))
        broker.delay(f"later-{number}", Message(b"{}", b"{}", b""), due_ms=2**41, member="one")

    assert len(broker._introduced) <= 10
    assert broker.client.call("SCARD", "celery-streams:queues") == 70

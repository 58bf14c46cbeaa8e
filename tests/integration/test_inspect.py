"""Inspection: figures that are exact, looks that change nothing, and the two verbs that change something."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from celery_streams import inspect, keys
from celery_streams.broker import StreamBroker
from celery_streams.dead_letters import dead_letter, dead_letters, purge_dead, replay
from celery_streams.delayed_messages import delayed_messages
from celery_streams.entries import StreamRef
from celery_streams.exceptions import MessageError
from celery_streams.inspect import QueueStatus
from celery_streams.message import Message
from celery_streams.pauses import pause_queue
from tests.support.redis_state import StreamState, delivered, make_idle, message, number_of, redis_now_ms, redis_state

STREAM = "celery-streams:{q}"


def bury(broker: StreamBroker, number: int, *, reason: str = "failed", queue: str = "q", step: int = 0) -> str:
    (held,) = delivered(broker, queue, "w", message(number, step=step))
    death = {
        "reason": reason,
        "task": "t",
        "task_id": str(number),
        "exception": "ValueError('no')",
        "traceback": "Traceback ...",
        "worker": "w@host",
        "crashes": 2,
        "entry_id": held.entry_id.decode(),
        "queue": queue,
    }
    dead = broker.reject("w", held.entry, death=json.dumps(death).encode(), max_length=None, ttl=None)
    assert dead is not None
    return dead.decode()


def bury_at(broker: StreamBroker, at: float, number: int) -> str:
    """Write a dead letter that died at ``at`` seconds since the epoch; call it in the order of time."""
    fields = [*message(number).as_fields(), b"death", b'{"reason":"failed"}']
    return str(broker.client.call("XADD", STREAM + ":dead", f"{int(at * 1000)}-0", *fields).decode())


# -- status -----------------------------------------------------------------------------------------------------------


def test_queue_that_was_never_used_is_all_zeros(broker: StreamBroker) -> None:
    assert inspect.queue_status(broker, "q") == QueueStatus("q", 0, 0, 0, 0, 0, None, 0.0)
    assert redis_state(broker.client) == {}


def test_status_counts_every_place_of_a_message(broker: StreamBroker) -> None:
    delivered(broker, "q", "w1", message(1), message(2, step=2))
    delivered(broker, "q", "w2", message(3))
    bury(broker, 9)
    for number in range(4):
        broker.publish("q", message(number, step=number))
    broker.delay("q", message(5), due_ms=2**45, member="m")
    before = redis_state(broker.client)

    status = inspect.queue_status(broker, "q")

    assert (status.waiting, status.pending, status.delayed, status.dead) == (4, 3, 1, 1)
    assert status.consumers == 3
    assert (status.length, status.lag) == (7, 4)
    assert status.overdue == 0.0
    assert redis_state(broker.client) == before


def test_status_of_a_stream_without_a_group_counts_what_waits(broker: StreamBroker) -> None:
    broker.publish("q", message(1))

    status = inspect.queue_status(broker, "q")

    assert (status.waiting, status.pending, status.consumers) == (1, 0, 0)
    assert status.oldest_waiting is not None


def test_age_is_that_of_the_oldest_message_that_waits(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    now = redis_now_ms(broker.client)
    streams = broker.queue_keys("q").streams
    broker.client.call("XADD", streams[0], f"{now - 900_000}-0", *message(1).as_fields())
    broker.read(broker.streams(["q"]), "w", count=1)
    broker.client.call("XADD", streams[0], f"{now - 5_000}-0", *message(2).as_fields())
    broker.client.call("XADD", streams[1], f"{now - 60_000}-0", *message(3).as_fields())

    status = inspect.queue_status(broker, "q")

    assert status.oldest_waiting == pytest.approx(60, abs=5)


def test_age_of_a_message_that_was_put_back_counts_from_its_publish(broker: StreamBroker) -> None:
    published = redis_now_ms(broker.client) - 120_000
    broker.publish("q", message(1, history=b'{"first":"%d-0"}' % published))

    status = inspect.queue_status(broker, "q")

    assert status.oldest_waiting == pytest.approx(120, abs=5)


def test_overdue_is_how_late_the_earliest_delayed_message_is(broker: StreamBroker) -> None:
    broker.delay("q", message(1), due_ms=redis_now_ms(broker.client) - 30_000, member="m")

    assert inspect.queue_status(broker, "q").overdue == pytest.approx(30, abs=5)


def test_status_names_a_key_of_another_type_and_counts_the_rest(broker: StreamBroker) -> None:
    broker.delay("q", message(1), due_ms=2**45, member="m")
    broker.client.call("SET", STREAM, "x")

    found = inspect.queue_status(broker, "q")

    assert (found.odd_keys, found.length, found.delayed) == ((STREAM,), 0, 1)


def test_known_queues_are_all_that_were_used(broker: StreamBroker) -> None:
    broker.publish("b", message(1))
    broker.delay("a", message(1), due_ms=2**45, member="m")
    broker.ensure_groups(["c"])

    assert inspect.known_queues(broker) == ["a", "b", "c"]


def test_consumers_are_one_for_each_name_over_all_priorities(broker: StreamBroker) -> None:
    held = delivered(broker, "q", "w1", message(1), message(2, step=1))
    delivered(broker, "q", "w2", message(3))
    make_idle(broker, held[0].stream, "w1", held[0].entry_id, idle_ms=1)

    found = inspect.consumers(broker, "q")

    assert [(one.name, one.pending) for one in found] == [("w1", 2), ("w2", 1)]
    assert all(0 <= one.idle < 10 for one in found)
    assert inspect.consumers(broker, "never used") == []


def test_delayed_messages_come_the_earliest_first_and_limited(broker: StreamBroker) -> None:
    for number, due in ((1, 3_000), (2, 1_000), (3, 2_000)):
        broker.delay("q", message(number), due_ms=2**45 + due, member=str(number))
    broker.client.call("HDEL", STREAM + ":delayed:messages", "2")

    found = delayed_messages(broker, "q", limit=2)

    assert [(one.member, one.due, one.message) for one in found] == [
        ("2", (2**45 + 1_000) / 1000, None),
        ("3", (2**45 + 2_000) / 1000, message(3)),
    ]
    assert delayed_messages(broker, "never used") == []


def test_delayed_value_that_is_no_message_does_not_hide_the_others(broker: StreamBroker) -> None:
    broker.delay("q", message(1), due_ms=2**45, member="bad")
    broker.delay("q", message(2), due_ms=2**45 + 1, member="good")
    broker.client.call("HSET", STREAM + ":delayed:messages", "bad", "junk")

    found = delayed_messages(broker, "q")

    assert [(one.member, one.message) for one in found] == [("bad", None), ("good", message(2))]


# -- dead letters -----------------------------------------------------------------------------------------------------


def test_dead_letter_tells_all_it_knows(broker: StreamBroker) -> None:
    dead = bury(broker, 7)

    letter = dead_letter(broker, "q", dead)

    assert letter is not None
    assert (letter.queue, letter.entry_id, letter.reason, letter.task, letter.task_id) == (
        "q",
        dead,
        "failed",
        "t",
        "7",
    )
    assert (letter.exception, letter.traceback, letter.worker) == ("ValueError('no')", "Traceback ...", "w@host")
    assert letter.crashes == 2
    assert letter.message == message(7)
    assert letter.died == pytest.approx(redis_now_ms(broker.client) / 1000, abs=5)
    assert letter.published == pytest.approx(letter.died, abs=5)
    assert dead_letter(broker, "q", "1-1") is None


@pytest.mark.parametrize("entry_id", ["", "abc", "1-2-3", "-", "+", "(5", "1-99999999999999999999"])
def test_id_that_is_none_is_no_dead_letter(broker: StreamBroker, entry_id: str) -> None:
    bury(broker, 1)

    assert dead_letter(broker, "q", entry_id) is None


def test_dead_letters_page_through_all_in_order(broker: StreamBroker) -> None:
    for number in range(250):
        bury_at(broker, 1_000 + number, number)

    found = list(dead_letters(broker, "q"))

    assert [letter.task_id for letter in found] == [str(number) for number in range(250)]


def test_dead_letter_whose_task_is_no_text_does_not_break_the_filters(broker: StreamBroker) -> None:
    odd = ["headers", '{"task": [1], "id": {}}', "properties", "{}", "body", "", "death", '{"reason": "malformed"}']
    broker.client.call("XADD", broker.queue_keys("q").dead, "*", *odd)

    found = [(one.task, one.task_id) for one in dead_letters(broker, "q", reason="malformed")]

    assert found == [(None, None)]
    assert list(dead_letters(broker, "q", task="t*")) == []
    assert list(dead_letters(broker, "q", ids={"one"})) == []


def test_dead_letters_are_filtered_by_task_reason_and_age(broker: StreamBroker) -> None:
    for at, number in ((100.0, 1), (200.0, 2), (300.0, 3)):
        bury_at(broker, at, number)
    bury(broker, 4, reason="crashed")

    def ids(**filters: object) -> list[str | None]:
        return [letter.task_id for letter in dead_letters(broker, "q", **filters)]  # type: ignore[arg-type]

    assert ids(reason="crashed") == ["4"]
    assert ids(reason="failed") == ["1", "2", "3"]
    assert ids(task="t") == ["1", "2", "3", "4"]
    assert ids(task="other") == []
    assert ids(older_than=50.0, now=300.0) == ["1", "2"]
    assert ids(newer_than=150.0, now=300.0) == ["2", "3", "4"]
    assert ids(older_than=50.0, newer_than=150.0, now=300.0) == ["2"]


def test_letter_that_died_within_the_last_millisecond_of_the_limit_is_older(broker: StreamBroker) -> None:
    broker.client.call("XADD", STREAM + ":dead", "250000-7", "death", b"{}")

    found = list(dead_letters(broker, "q", older_than=50.0, now=300.0))

    assert [letter.entry_id for letter in found] == ["250000-7"]


@pytest.mark.parametrize(
    "fields",
    [
        [b"junk", b"1"],
        [b"headers", b"not json", b"properties", b"{}", b"body", b"", b"death", b"not json"],
        [b"headers", b"[]", b"properties", b"{}", b"body", b"", b"death", b"[]"],
        [b"headers", b"{}", b"properties", b"{}", b"body", b"", b"death", b'{"crashes":"many"}', b"history", b"\xff"],
        [b"headers", b"{}", b"properties", b"{}", b"body", b"", b"death", b"{}", b"history", b'{"crashes":{}}'],
    ],
)
def test_dead_letter_of_any_content_can_be_listed(broker: StreamBroker, fields: list[bytes]) -> None:
    entry_id = broker.client.call("XADD", STREAM + ":dead", "*", *fields).decode()

    (letter,) = dead_letters(broker, "q")

    assert letter.entry_id == entry_id
    assert letter.crashes == 0


def test_replay_puts_the_message_back_as_new_and_only_once(broker: StreamBroker) -> None:
    dead = bury(broker, 1)
    letter = dead_letter(broker, "q", dead)
    assert letter is not None

    first, second = replay(broker, letter), replay(broker, letter)

    (again,) = broker.read(broker.streams(["q"]), "w", count=5)
    assert first == again.entry_id.decode()
    assert second is None
    assert again.message == message(1)
    assert redis_state(broker.client)[STREAM + ":dead"] == StreamState({}, {}, {})


def test_replay_goes_to_the_stream_of_the_messages_priority(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    low = Message(b"{}", b'{"priority":6}', b"")
    entry_id = broker.client.call("XADD", STREAM + ":dead", "*", *low.as_fields(), "death", "{}").decode()
    letter = dead_letter(broker, "q", entry_id)
    assert letter is not None

    replay(broker, letter)

    (again,) = broker.read(broker.streams(["q"]), "w", count=5)
    assert again.stream == StreamRef("q", 2, STREAM + ":6")


def test_replay_may_go_to_another_queue_which_becomes_known(broker: StreamBroker) -> None:
    letter = dead_letter(broker, "q", bury(broker, 1))
    assert letter is not None

    replay(broker, letter, queue="other")

    known = inspect.known_queues(broker)
    broker.ensure_groups(["other"])
    assert known == ["other", "q"]
    assert [number_of(one) for one in broker.read(broker.streams(["other"]), "w", count=5)] == [1]


@pytest.mark.parametrize(
    "fields",
    [
        [b"junk", b"1"],
        [b"headers", b"{}", b"properties", b"not json", b"body", b""],
    ],
)
def test_replay_of_what_is_no_message_is_refused_and_changes_nothing(broker: StreamBroker, fields: list[bytes]) -> None:
    entry_id = broker.client.call("XADD", STREAM + ":dead", "*", *fields, "death", "{}").decode()
    letter = dead_letter(broker, "q", entry_id)
    assert letter is not None
    before = redis_state(broker.client)

    with pytest.raises(MessageError):
        replay(broker, letter)

    assert redis_state(broker.client) == before


def test_purged_dead_letters_are_gone_and_others_stay(broker: StreamBroker) -> None:
    first, second, third = (bury(broker, number) for number in range(3))

    count = purge_dead(broker, "q", [first, third, "1-1", "abc"])

    assert count == 2
    assert list(redis_state(broker.client)[STREAM + ":dead"].entries) == [second]
    assert purge_dead(broker, "q", []) == 0


# -- purge ------------------------------------------------------------------------------------------------------------


def test_purge_discards_what_waits_and_is_delayed_and_nothing_else(broker: StreamBroker) -> None:
    (running,) = delivered(broker, "q", "w", message(1))
    dead = bury(broker, 2)
    for number in range(6):
        broker.publish("q", message(number, step=number % 3))
    broker.delay("q", message(8), due_ms=2**45, member="m")
    broker.publish("other", message(9))

    count = inspect.purge(broker, "q")

    state = redis_state(broker.client)
    assert count == 7
    assert list(state[STREAM].entries) == [running.entry_id.decode()]
    assert state[STREAM].pending[keys.GROUP] == {running.entry_id.decode(): ("w", 1)}
    assert list(state[STREAM + ":dead"].entries) == [dead]
    assert len(state["celery-streams:{other}"].entries) == 1
    assert STREAM + ":delayed" not in state
    assert STREAM + ":delayed:messages" not in state


def test_purge_of_more_than_one_step_discards_all(broker: StreamBroker) -> None:
    broker.client.pipeline([("XADD", STREAM, "*", *message(n).as_fields()) for n in range(2_500)])

    assert inspect.purge(broker, "q") == 2_500
    assert redis_state(broker.client)[STREAM].entries == {}


def test_purge_of_a_queue_that_was_never_used_is_nothing(broker: StreamBroker) -> None:
    assert inspect.purge(broker, "q") == 0
    assert redis_state(broker.client) == {}


# -- for scalers -------------------------------------------------------------------------------------------------------


def test_backlog_counts_what_waits_runs_and_is_due_soon(broker: StreamBroker) -> None:
    for number in range(3):
        broker.publish("q", message(number))
    delivered(broker, "q", "w", message(9, step=2))
    now = redis_now_ms(broker.client)
    for member, due in (("late", now - 5_000), ("soon", now + 30_000), ("tomorrow", now + 86_400_000)):
        broker.delay("q", message(4), due_ms=due, member=member)

    state = inspect.queue_status(broker, "q")

    assert (state.waiting, state.pending, state.due_soon, state.backlog) == (3, 1, 2, 6)
    assert state.due_in_seconds == 0.0


def test_backlog_of_a_paused_queue_is_what_runs(broker: StreamBroker) -> None:
    broker.publish("q", message(1))
    delivered(broker, "q", "w", message(9, step=2))
    pause_queue(broker, "q")

    assert inspect.queue_status(broker, "q").backlog == 1


def test_what_limits_hold_back_keeps_one_worker_and_needs_no_more(broker: StreamBroker) -> None:
    state = replace(inspect.queue_status(broker, "q"), held=70_000)

    assert state.backlog == 1
    assert replace(state, waiting=2, pending=3).backlog == 5
    assert replace(state, paused=1.0).backlog == 0


def test_nothing_delayed_is_due_at_no_time(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    state = inspect.queue_status(broker, "q")
    broker.delay("q", message(1), due_ms=redis_now_ms(broker.client) + 600_000, member="1")
    later = inspect.queue_status(broker, "q")

    assert (state.due_in_seconds, state.due_soon, state.backlog) == (None, 0, 0)
    assert later.due_in_seconds == pytest.approx(600, abs=30)
    assert (later.due_soon, later.backlog) == (0, 0)

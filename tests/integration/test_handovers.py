"""Handovers: an entry goes to a worker that knows its task, and is started once, whoever dies on the way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from celery_streams import keys, presence, recovery
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.exceptions import BrokerUnavailable
from celery_streams.handovers import hand_over, receiver, take_over
from celery_streams.presence import WorkerPresence, task_mark
from celery_streams.worker.handed_over import HandedOver
from celery_streams.worker.outcome import crash_pauses_ms
from tests.support.redis_state import delivered, make_idle, message, number_of, read_all, redis_state

STREAM = "celery-streams:{q}"
TO = receiver("new@host/0.aa")


def pending(broker: StreamBroker) -> dict[str, tuple[str, int]]:
    return redis_state(broker.client)[STREAM].pending[keys.GROUP]


def test_entry_is_handed_over_as_it_is_and_taken_over_by_the_one_reader_that_asks_first(broker: StreamBroker) -> None:
    first, second = delivered(broker, "q", "old", message(1), message(2))
    before = pending(broker)

    assert hand_over(broker, "old", TO, [first.entry]) == 1
    assert hand_over(broker, "old", TO, [first.entry]) == 0, "it is no longer its own"
    taken = take_over(broker, TO, "child", broker.streams(["q"]), count=5)
    nothing = take_over(broker, TO, "other", broker.streams(["q"]), count=5)

    assert [(number_of(one), one.handed, one.entry) for one in taken] == [(1, True, first.entry)]
    assert nothing == []
    id_1, id_2 = first.entry_id.decode(), second.entry_id.decode()
    assert pending(broker) == {id_1: ("child", before[id_1][1]), id_2: ("old", before[id_2][1])}


def test_entry_that_was_deleted_on_the_way_is_not_taken_over(broker: StreamBroker) -> None:
    (one,) = delivered(broker, "q", "old", message(1))
    hand_over(broker, "old", TO, [one.entry])
    broker.client.call("XDEL", STREAM, one.entry_id)

    assert take_over(broker, TO, "child", broker.streams(["q"]), count=5) == []
    assert pending(broker) == {}


def test_what_was_handed_over_to_a_worker_that_died_comes_back_with_no_crash_counted(broker: StreamBroker) -> None:
    (one,) = delivered(broker, "q", "old", message(1, history=b'{"first":"1-0","crashes":4}'))
    hand_over(broker, "old", TO, [one.entry])
    make_idle(broker, one.stream, TO, one.entry_id, idle_ms=60_000)

    found = recovery.recover(broker, "q", "claimer", idle_ms=15_000, turn_ms=1, pauses_ms=crash_pauses_ms(5))

    assert (found.moved, found.exhausted) == (1, ())
    (again,) = read_all(broker, ["q"], "child")
    assert again.message is not None
    assert again.message.decode_history() == {"first": "1-0", "crashes": 4}


def worker(name: str, *tasks: str, queues: tuple[str, ...] = ("q",)) -> WorkerPresence:
    return WorkerPresence(
        f"{name}@host/0.aa", f"{name}@host", 1, "0", 60.0, queues, (), tasks="".join(map(task_mark, tasks))
    )


def watch(broker: StreamBroker, found: list[Sequence[str]]) -> HandedOver:
    return HandedOver(
        broker, "new@host/0.aa", queues=lambda: ["q", "r"], tasks=lambda: ["one", "two"], on_found=found.append
    )


@pytest.mark.parametrize(
    ("others", "takes"),
    [
        ([], False),
        ([worker("same", "one", "two", "three")], False),
        ([worker("elsewhere", "one", queues=("z",))], False),
        ([worker("old", "one")], True),
        ([worker("old", "one"), worker("same", "one", "two")], True),
    ],
)
def test_worker_takes_messages_while_one_that_reads_the_same_queue_knows_fewer_tasks(
    broker: StreamBroker, others: list[WorkerPresence], takes: bool
) -> None:
    for one in (*others, worker("new", "one", "two")):
        presence.beat(broker, one, forget=False)
    handed = watch(broker, [])

    handed.run_once()

    assert handed.takes is takes


def test_what_waits_to_be_taken_over_is_told_and_keeps_its_heartbeat(broker: StreamBroker) -> None:
    presence.beat(broker, worker("old", "one"), forget=False)
    (one,) = delivered(broker, "q", "old", message(1))
    hand_over(broker, "old", TO, [one.entry])
    make_idle(broker, one.stream, TO, one.entry_id, idle_ms=60_000)
    found: list[Sequence[str]] = []

    assert watch(broker, found).run_once() == 1

    assert found == [["q"]]
    ((_, holder, idle_ms, _),) = broker.client.call("XPENDING", STREAM, keys.GROUP, "-", "+", 5)
    assert (holder.decode(), idle_ms < 30_000) == (TO, True)


def test_worker_that_cannot_ask_for_the_others_asks_again_at_each_look() -> None:
    handed = watch(StreamBroker(RedisClient("redis://127.0.0.1:1/0")), [])

    for _ in range(3):
        with pytest.raises(BrokerUnavailable):
            handed.run_once()

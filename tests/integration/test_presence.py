"""Which workers live: what they say of themselves in Redis, and what monitors make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_streams import keys, presence, streams_of
from celery_streams.broker import StreamBroker
from celery_streams.consumers import touch_consumers
from celery_streams.exceptions import BrokerUnavailable
from celery_streams.inspect import queue_status
from celery_streams.monitoring.status import collect
from celery_streams.monitoring.worlds import check_worlds
from celery_streams.presence import ConsumerPresence, WorkerPresence
from celery_streams.worker.presence import Presence
from tests.support.redis_state import message, redis_now_ms

MakeApp = Callable[..., Celery]


def about(
    node: str = "one@host", *, queues: tuple[str, ...] = ("jobs",), consumers: Any = None, timeout: float = 15.0
) -> WorkerPresence:
    """Return what a worker with one child says of itself."""
    held = (ConsumerPresence(f"{node}/1.aa", None, 0.0),) if consumers is None else consumers
    return WorkerPresence(f"{node}/0.aa", node, 4711, "0.1.0", timeout, queues, tuple(held))


def age(broker: StreamBroker, worker: str, seconds: float) -> None:
    """Make the last beat of ``worker`` so much older."""
    key = keys.workers(broker.prefix)
    at, _, said = broker.client.call("HGET", key, worker).partition(b" ")
    broker.client.call("HSET", key, worker, b"%d %s" % (int(at) - int(seconds * 1000), said))


def test_worker_that_beats_lives_and_is_told_with_all_it_said(broker: StreamBroker) -> None:
    said = about(consumers=[ConsumerPresence("a", ("jobs",), 1.5), ConsumerPresence("b", None, None)])

    presence.beat(broker, said, forget=False)

    [found] = presence.workers(broker)
    assert found.is_alive
    assert (found.worker, found.node, found.pid, found.version) == (said.worker, said.node, 4711, "0.1.0")
    assert (found.queues, found.consumers) == (said.queues, said.consumers)


@pytest.mark.parametrize(
    ("timeout", "silent", "alive"), [(15.0, 14.0, True), (15.0, 15.5, False), (60.0, 30.0, True), (2.0, 3.0, False)]
)
def test_worker_that_did_not_beat_for_its_own_visibility_timeout_is_dead(
    broker: StreamBroker, timeout: float, silent: float, alive: bool
) -> None:
    presence.beat(broker, about(timeout=timeout), forget=False)
    age(broker, "one@host/0.aa", silent)

    [found] = presence.workers(broker)

    assert found.is_alive == alive


def test_dead_worker_does_not_come_to_life_when_the_clock_is_set_back(broker: StreamBroker) -> None:
    presence.beat(broker, about(), forget=False)
    age(broker, "one@host/0.aa", -300.0)

    [found] = presence.workers(broker)

    assert not found.is_alive


def test_consumers_that_a_dead_worker_left_in_the_group_are_not_counted(app: MakeApp, broker: StreamBroker) -> None:
    broker.ensure_groups(["jobs"])
    touch_consumers(broker, ["jobs"], ["one@host/1.aa", "one@host/2.aa"])
    presence.beat(broker, about(consumers=[ConsumerPresence("one@host/1.aa", None, 0.0)]), forget=False)
    living = queue_status(broker, "jobs")
    age(broker, "one@host/0.aa", 16.0)

    dead = queue_status(broker, "jobs")

    assert (living.consumers, living.workers, living.dead_workers) == (1, 1, ())
    assert (dead.consumers, dead.workers, dead.dead_workers) == (0, 0, ("one@host",))


def test_children_count_for_the_queues_that_they_read(broker: StreamBroker) -> None:
    split = [
        ConsumerPresence(f"one@host/{number}.aa", ("jobs",) if number < 3 else ("mails",), 0.0) for number in range(5)
    ]
    presence.beat(broker, about(queues=("jobs", "mails"), consumers=split), forget=False)
    for queue in ("jobs", "mails"):
        broker.ensure_groups([queue])
        touch_consumers(broker, [queue], [one.name for one in split])

    assert queue_status(broker, "jobs", workers=presence.workers(broker)).consumers == 3
    assert queue_status(broker, "mails", workers=presence.workers(broker)).consumers == 2


def test_killed_worker_is_an_alert_also_while_nothing_waits(app: MakeApp, broker: StreamBroker) -> None:
    presence.beat(broker, about(), forget=False)
    presence.beat(broker, about("two@host", queues=("jobs", "mails")), forget=False)
    for worker in ("one@host/0.aa", "two@host/0.aa"):
        age(broker, worker, 20.0)

    streams = streams_of(app(streams_queues=["jobs", "mails", "other"]))
    found = collect(streams)

    assert [(alert.queue, alert.name, alert.value) for alert in found.alerts] == [
        ("jobs", "dead_worker", 2),
        ("mails", "dead_worker", 1),
    ]
    assert found.level == "warning"


def test_messages_that_only_a_dead_worker_holds_are_a_critical_alert(app: MakeApp, broker: StreamBroker) -> None:
    broker.ensure_groups(["jobs"])
    broker.publish("jobs", message(1))
    presence.beat(broker, about(), forget=False)
    broker.read(broker.streams(["jobs"]), "one@host/1.aa", count=1)
    age(broker, "one@host/0.aa", 20.0)

    found = collect(streams_of(app(streams_queues=["jobs"])))

    assert ("jobs", "no_consumer", "critical") in [(one.queue, one.name, one.level) for one in found.alerts]
    assert [one.what for one in check_worlds("jobs", found.queues[0].state, listed=0, share=1.0, workers=None)] == [
        "1 message waits and no worker consumes the stream; one@host died"
    ]


def test_dead_worker_beside_a_living_one_of_the_same_name_is_no_alert(app: MakeApp, broker: StreamBroker) -> None:
    presence.beat(broker, about(), forget=False)
    broker.client.call("HSET", keys.workers(broker.prefix), "one@host/0.old", b"1 " + _said(broker))

    found = collect(streams_of(app(streams_queues=["jobs"])))

    assert found.alerts == ()
    assert found.queues[0].state.workers == 1


def test_queue_whose_worker_stopped_in_peace_is_no_alert(app: MakeApp, broker: StreamBroker) -> None:
    presence.beat(broker, about(), forget=False)
    presence.depart(broker, "one@host/0.aa")

    assert presence.workers(broker) == []
    assert collect(streams_of(app(streams_queues=["jobs"]))).alerts == ()


def test_worker_that_is_dead_for_an_hour_is_forgotten_by_the_others(broker: StreamBroker) -> None:
    presence.beat(broker, about("dead@host"), forget=False)
    presence.beat(broker, about("late@host"), forget=False)
    age(broker, "dead@host/0.aa", 3_700.0)
    age(broker, "late@host/0.aa", 3_500.0)

    presence.beat(broker, about(), forget=True)

    assert [one.node for one in presence.workers(broker)] == ["late@host", "one@host"]


def test_what_another_version_says_of_itself_hides_nobody(broker: StreamBroker) -> None:
    presence.beat(broker, about(), forget=False)
    key = keys.workers(broker.prefix)
    now = redis_now_ms(broker.client)
    for number, said in enumerate((b"", b"soon {}", b"%d [1]" % now, b"%d {}" % now, b"\xff \xff")):
        broker.client.call("HSET", key, f"{number}", said)

    assert [one.node for one in presence.workers(broker)] == ["one@host"]


def test_queue_is_unread_when_all_its_idle_consumers_stopped_reading(broker: StreamBroker) -> None:
    said = about(
        queues=("jobs", "mails", "calls"),
        consumers=[
            ConsumerPresence("a", ("jobs",), 99.0),
            ConsumerPresence("b", ("mails",), 99.0),
            ConsumerPresence("c", ("mails",), None),
        ],
    )

    assert said.unread_queues() == ["jobs", "calls"]


def _said(broker: StreamBroker) -> bytes:
    raw = broker.client.call("HGET", keys.workers(broker.prefix), "one@host/0.aa").partition(b" ")[2]
    assert json.loads(raw)["node"] == "one@host"
    return bytes(raw)


def test_worker_that_is_idle_beats_at_every_other_round_and_says_at_once_what_changes(broker: StreamBroker) -> None:
    readers = [ConsumerPresence("a", None, 0.5)]
    queues = ["jobs"]
    beating = Presence(broker, "w", "w@host", readers=lambda: readers, queues=lambda: queues, visibility_timeout=15.0)
    beats = 0

    def rounds(count: int) -> int:
        nonlocal beats
        before = beats
        for _ in range(count):
            broker.client.call("DEL", keys.workers(broker.prefix))
            beating.run_once()
            beats += broker.client.call("EXISTS", keys.workers(broker.prefix))
        return beats - before

    first, idle = rounds(1), rounds(10)
    queues.append("mails")
    changed = rounds(1)
    readers[0] = ConsumerPresence("a", None, None)

    assert (first, idle, changed, rounds(10)) == (1, 5, 1, 10)


@pytest.mark.parametrize("rounds_before", [1, 2, 3, 4])
def test_idle_worker_says_in_each_round_that_redis_takes_no_beat_until_it_does(
    broker: StreamBroker, rounds_before: int
) -> None:
    idle = [ConsumerPresence("one@host/1.aa", None, 0.0)]
    mine = Presence(
        broker,
        "one@host/0.aa",
        "one@host",
        readers=lambda: idle,
        queues=lambda: ("jobs",),
        visibility_timeout=15.0,
    )
    for _ in range(rounds_before):
        mine.run_once()
    broker.client.call("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(BrokerUnavailable):
            for _ in range(2):  # every other round says nothing while nothing changes
                mine.run_once()
        for _ in range(4):
            with pytest.raises(BrokerUnavailable):
                mine.run_once()
    finally:
        broker.client.call("REPLICAOF", "NO", "ONE")
    age(broker, "one@host/0.aa", 12.0)

    mine.run_once()

    [found] = presence.workers(broker)
    assert found.is_alive
    age(broker, "one@host/0.aa", 10.0)
    assert presence.workers(broker)[0].is_alive  # it beat, and was not only not dead yet

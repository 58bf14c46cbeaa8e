"""A fleet whose workers have different visibility timeouts, and consumers that workers leave behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest
from celery import Celery

from celery_streams import keys, presence
from celery_streams.app import streams_of
from celery_streams.broker import StreamBroker
from celery_streams.consumers import touch_consumers
from celery_streams.presence import ConsumerPresence
from celery_streams.worker.access import QueueAccess
from celery_streams.worker.claimer import Claimer
from celery_streams.worker.services import Services
from tests.integration.test_presence import about
from tests.support.eventually import eventually
from tests.support.redis_state import delivered, make_idle, message, redis_state
from tests.support.threads import own_threads


class Looks:
    """A claimer with its own clock, whose turn is always free."""

    def __init__(
        self,
        broker: StreamBroker,
        timeout: float,
        queues: Sequence[str] = ("jobs",),
        readers: Callable[[], Sequence[ConsumerPresence]] = lambda: (),
    ) -> None:
        self.now, self.broker, self.queues = 1_000.0, broker, queues
        self.claimer = Claimer(
            broker,
            "claimer@host/0.00",
            lambda: queues,
            visibility_timeout=timeout,
            delivery_limit=5,
            on_exhausted=lambda delivery, holder: None,
            readers=readers,
        )
        self.settle_in()

    def settle_in(self) -> None:
        for _ in range(20):
            self.look()

    def look(self) -> int:
        self.now += self.claimer.interval
        for queue in self.queues:
            self.broker.client.call("DEL", self.broker.queue_keys(queue).claims)
        return self.claimer.run_once(now=self.now)


@pytest.mark.parametrize(
    ("ours", "theirs", "silent", "claimed"),
    [
        (15.0, 60.0, 20.0, False),
        (15.0, 60.0, 60.0, True),
        (15.0, 600.0, 300.0, False),
        (60.0, 15.0, 16.0, True),
        (60.0, 15.0, 8.0, False),
        (15.0, 15.0, 15.0, True),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_entry_is_claimed_by_the_timeout_of_its_holder(
    broker: StreamBroker, ours: float, theirs: float, silent: float, claimed: bool, named: bool
) -> None:
    holder = "one@host/1.aa" if named else "one@host/7.ff"  # a child that no beat has named yet
    presence.beat(broker, about(timeout=theirs), forget=False)
    [held] = delivered(broker, "jobs", holder, message(1))
    looks = Looks(broker, ours)
    make_idle(broker, held.stream, holder, held.entry_id, idle_ms=int(silent * 1000))

    assert looks.look() == int(claimed)


def test_dead_holders_entries_are_found_behind_those_of_holders_with_more_time(broker: StreamBroker) -> None:
    presence.beat(broker, about("slow@host", timeout=600.0), forget=False)
    for one in delivered(broker, "jobs", "slow@host/1.aa", *(message(number) for number in range(600))):
        make_idle(broker, one.stream, "slow@host/1.aa", one.entry_id, idle_ms=100_000)
    looks = Looks(broker, 15.0)
    dead = delivered(broker, "jobs", "dead@host/1.aa", *(message(number) for number in range(3)))
    for one in dead:
        make_idle(broker, one.stream, "dead@host/1.aa", one.entry_id, idle_ms=15_000)

    assert looks.look() == 3
    assert len(redis_state(broker.client)["celery-streams:{jobs}"].pending[keys.GROUP]) == 600


def test_holder_with_a_long_timeout_has_a_round_of_its_own_after_a_pause(broker: StreamBroker) -> None:
    presence.beat(broker, about(timeout=60.0), forget=False)
    [held] = delivered(broker, "jobs", "one@host/1.aa", message(1))
    looks = Looks(broker, 15.0)
    looks.now += 600.0  # everything stood still
    looks.look()
    make_idle(broker, held.stream, "one@host/1.aa", held.entry_id, idle_ms=600_000)
    paused_at = looks.now

    moved_at = None
    while moved_at is None and looks.now < paused_at + 60:
        if looks.look():
            moved_at = looks.now

    assert moved_at is not None
    assert 18.0 <= moved_at - paused_at <= 18.0 + 2 * looks.claimer.interval


def test_holder_is_remembered_when_a_clock_ahead_made_all_others_forget_it(broker: StreamBroker) -> None:
    presence.beat(broker, about(timeout=60.0), forget=False)
    looks = Looks(broker, 15.0)
    broker.client.call("DEL", keys.workers(broker.prefix))
    [held] = delivered(broker, "jobs", "one@host/1.aa", message(1))
    make_idle(broker, held.stream, "one@host/1.aa", held.entry_id, idle_ms=20_000)

    assert looks.look() == 0


# -- consumers that workers leave behind


def consumers_of(broker: StreamBroker, queue: str = "jobs") -> set[str]:
    return set(redis_state(broker.client)[f"celery-streams:{{{queue}}}"].consumers[keys.GROUP])


def test_consumers_do_not_grow_while_no_worker_lives_a_minute(broker: StreamBroker) -> None:
    broker.ensure_groups(["jobs"])
    for life in range(12):
        names = [f"one@host/{child}.{life:02}" for child in range(4)]
        touch_consumers(broker, ["jobs"], names)
        readers = tuple(ConsumerPresence(name, None, 0.0) for name in names)
        said = presence.WorkerPresence(f"one@host/0.{life:02}", "one@host", 1, "0", 0.2, ("jobs",), readers)
        presence.beat(broker, said, forget=False)
        Looks(broker, 0.2, readers=lambda readers=readers: readers)  # type: ignore[misc]
        time.sleep(0.25)  # killed, and silent for its visibility timeout

    assert consumers_of(broker) == {f"one@host/{child}.{life:02}" for child in range(4)}


def test_consumers_of_living_and_of_unknown_workers_are_kept(broker: StreamBroker) -> None:
    broker.ensure_groups(["jobs"])
    touch_consumers(broker, ["jobs"], ["one@host/1.aa", "older@host/1.bb"])
    presence.beat(broker, about(timeout=0.001), forget=False)
    presence.beat(broker, about("two@host"), forget=False)
    touch_consumers(broker, ["jobs"], ["two@host/1.aa", "two@host/9.ff"])

    Looks(broker, 15.0)

    assert consumers_of(broker) >= {"two@host/1.aa", "older@host/1.bb", "two@host/9.ff"}


def test_consumer_is_said_to_live_only_where_it_reads(broker: StreamBroker) -> None:
    broker.ensure_groups(["jobs", "mail"])
    readers = [
        *(ConsumerPresence(f"w@host/{number}.a", ("jobs",), 0.0) for number in range(3)),
        *(ConsumerPresence(f"w@host/{number}.a", ("mail",), 0.0) for number in range(3, 5)),
        ConsumerPresence("w@host/9.a", None, 0.0),
    ]

    Looks(broker, 15.0, queues=("jobs", "mail"), readers=lambda: readers)

    assert consumers_of(broker, "jobs") == {f"w@host/{number}.a" for number in (0, 1, 2, 9)}
    assert consumers_of(broker, "mail") == {f"w@host/{number}.a" for number in (3, 4, 9)}


# -- heartbeats of their own


def services(app: Celery) -> Services:
    streams = streams_of(app)
    broker = streams.new_broker()
    return Services(
        streams,
        "w@host/0.00",
        node="w@host",
        readers=lambda: (),
        holders=lambda: (),
        limited=lambda: (),
        handed_back=lambda: (),
        queues=lambda: ["jobs"],
        on_soft=lambda holder, shot: None,
        on_hard=lambda exceeded: None,
        delivery_limit=5,
        on_exhausted=lambda delivery, holder: None,
        on_limits=lambda limits: None,
        on_pauses=lambda say: say(),
        broker=broker,
        access=QueueAccess(broker, lambda: ["jobs"], lambda: None),
        on_away=lambda: None,
        on_handed=lambda queues: None,
        on_front=lambda: None,
    )


def test_services_that_were_stopped_leave_no_thread(app: Callable[..., Celery]) -> None:
    before = own_threads()
    made = services(app())
    made.start()
    begun = own_threads() - before

    made.stop()

    assert len(begun) >= 3
    eventually(lambda: not own_threads() - before)


def test_worker_that_is_shutting_down_releases_nothing_more(app: Callable[..., Celery]) -> None:
    made = services(app())
    made.start()
    try:
        made.stop_due()

        eventually(lambda: not made.held._thread.is_alive() and not made.promoter._thread.is_alive())
    finally:
        made.stop()


@pytest.mark.parametrize("duty", ["limits", "claimer", "handback"])
def test_heartbeats_go_on_while_another_duty_takes_long(
    app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch, duty: str
) -> None:
    made = services(app(streams_visibility_timeout=1.0))
    hangs, beats = threading.Event(), []
    release = threading.Event()

    def stuck() -> None:
        hangs.set()
        release.wait(20)

    for thread in made._threads:
        for one in thread._duties:
            if one.run == getattr(made, duty).run_once:
                one.run = stuck
            elif one.run == made.heartbeat.run_once:
                one.run = lambda: beats.append(time.monotonic())
    made.start()
    try:
        assert hangs.wait(10)
        eventually(lambda: len(beats) >= 5, timeout=10)
    finally:
        release.set()
        made.stop()


def test_look_of_a_claimer_ends_though_dead_workers_left_more(broker: StreamBroker) -> None:
    looks = Looks(broker, 15.0, queues=("jobs", "mail"))
    for queue in looks.queues:
        for one in delivered(broker, queue, "dead@host/1.aa", *(message(number) for number in range(500))):
            make_idle(broker, one.stream, "dead@host/1.aa", one.entry_id, idle_ms=60_000)
    went = iter(range(10_000))
    looks.claimer._monotonic = lambda: next(went) * 0.4

    found = [looks.look() for _ in range(10)]

    assert sum(found) == 1_000
    assert max(found) <= 300
    assert len([moved for moved in found if moved]) >= 4

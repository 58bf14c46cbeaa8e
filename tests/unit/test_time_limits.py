"""TimeLimits and Handback: what long tasks lead to, with holders and clocks that the test sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from celery_streams.entries import Entry, StreamRef
from celery_streams.exceptions import BrokerUnavailable
from celery_streams.worker.hand_back import HOLD, Handback
from celery_streams.worker.heartbeat import Holder
from celery_streams.worker.slots import Snapshot
from celery_streams.worker.time_limits import TimeLimits, without_effect

STREAM = StreamRef("q", 0, "celery-streams:{q}")
NOTHING = Snapshot(
    pid=10, batch=1, finished=(), running=None, waiting=(), started_at=0.0, soft=None, hard=None,
    acked_early=False, exited=False, done=0,
)  # fmt: skip


def held(*numbers: int) -> tuple[Entry, ...]:
    return tuple(Entry(STREAM, b"%d-0" % number) for number in numbers)


def running(number: int = 1, *, since: float = 100.0, soft: float | None = None, hard: float | None = None) -> Snapshot:
    return replace(NOTHING, running=held(number)[0], started_at=since, soft=soft, hard=hard)


@dataclass
class StandIn:
    """A holder that shows what the test wants."""

    shot: Snapshot
    consumer: str = "c"
    restricted: int = 0
    returned_batches: list[int] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        return self.shot

    def mark_lost(self, batch: int) -> None:
        raise AssertionError("limits have nothing to say about ownership")

    def restrict(self) -> Snapshot:
        self.restricted += 1
        return self.shot

    def returned(self, batch: int) -> None:
        self.returned_batches.append(batch)
        self.shot = replace(self.shot, finished=(), waiting=())


class Told:
    """Time limits of some holders, and what was done about them."""

    def __init__(self, *holders: StandIn) -> None:
        self.did: list[tuple[str, str, bytes]] = []
        self.limits = TimeLimits(
            lambda: holders,
            on_soft=lambda holder, shot: self._note("soft", holder, shot),
            on_hard=self._note_hard,
        )

    def _note(self, what: str, holder: object, shot: Snapshot) -> None:
        assert isinstance(holder, StandIn)
        assert shot.running is not None
        self.did.append((what, holder.consumer, shot.running.id))

    def _note_hard(self, exceeded: list[tuple[Holder, Snapshot]]) -> None:
        for holder, shot in exceeded:
            self._note("hard", holder, shot)

    def at(self, *moments: float) -> list[str]:
        """Look at these moments; returns what was done then."""
        del self.did[:]
        for now in moments:
            self.limits.run_once(now=now)
        return [what for what, _, _ in self.did]


@pytest.mark.parametrize(
    ("soft", "hard", "moments", "expected"),
    [
        (None, None, (100, 1e9), []),
        (5, None, (104.9,), []),
        (5, None, (105.0,), ["soft"]),
        (5, None, (105, 106, 200), ["soft"]),
        (None, 5, (104.9,), []),
        (None, 5, (105.0,), ["hard"]),
        (None, 5, (105, 106, 200), ["hard"]),
        (5, 7, (105, 106, 107, 108), ["soft", "hard"]),
        (5, 7, (200,), ["hard"]),
        (5, 5, (105,), ["hard"]),
        (7, 5, (105, 107), ["hard"]),
    ],
)
def test_each_limit_is_enforced_once_when_it_is_over(
    soft: float | None, hard: float | None, moments: tuple[float, ...], expected: list[str]
) -> None:
    told = Told(StandIn(running(soft=soft, hard=hard)))

    assert told.at(*moments) == expected


@pytest.mark.parametrize(
    ("soft", "hard", "now", "left"),
    [
        (None, None, 100, None),
        (5, None, 101, 4),
        (5, None, 106, None),
        (None, 7, 101, 6),
        (5, 7, 101, 4),
        (5, 7, 106, 1),
        (5, 7, 108, None),
    ],
)
def test_time_until_the_next_limit_is_told(
    soft: float | None, hard: float | None, now: float, left: float | None
) -> None:
    told = Told(StandIn(running(soft=soft, hard=hard)))

    assert told.limits.run_once(now=now) == left


def test_nearest_limit_of_all_holders_is_told() -> None:
    told = Told(StandIn(running(hard=9), "a"), StandIn(running(soft=3), "b"), StandIn(NOTHING, "c"))

    assert told.limits.run_once(now=101) == 2


def test_next_task_of_a_child_has_limits_of_its_own() -> None:
    holder = StandIn(running(1, soft=5, hard=7))
    told = Told(holder)
    told.at(105, 107)

    holder.shot = running(2, since=107.0, soft=5, hard=7)

    assert told.at(112, 114) == ["soft", "hard"]


def test_same_entry_that_another_process_runs_has_limits_of_its_own() -> None:
    holder = StandIn(running(1, hard=5))
    told = Told(holder)
    told.at(105)

    holder.shot = replace(running(1, since=200.0, hard=5), pid=11)

    assert told.at(205) == ["hard"]


def test_child_that_died_for_a_limit_is_forgotten() -> None:
    holder = StandIn(running(1, hard=5))
    told = Told(holder)
    told.at(105)
    holder.shot = replace(NOTHING, pid=11)
    told.at(106)

    holder.shot = running(1, since=200.0, hard=5)  # the system gave the number away again

    assert told.at(205) == ["hard"]


def test_task_that_ended_is_left_alone() -> None:
    holder = StandIn(running(soft=5, hard=7))
    told = Told(holder)

    holder.shot = replace(NOTHING, soft=5, hard=7, started_at=100.0)

    assert told.at(200) == []


def test_holders_are_told_apart() -> None:
    told = Told(StandIn(running(1, soft=5), "a"), StandIn(running(1, soft=6), "b"))

    told.at(105.5, 105.6, 106.5)

    assert told.did == [("soft", "a", b"1-0"), ("soft", "b", b"1-0")]


def test_holders_of_one_consumer_are_told_apart() -> None:
    told = Told(StandIn(replace(running(1, hard=5), pid=1)), StandIn(replace(NOTHING, pid=2)))

    assert told.at(105, 106, 107) == ["hard"]


@pytest.mark.parametrize(
    ("enforced", "expected"),
    [
        (
            (),
            ["task_soft_time_limit", "task_time_limit", "soft_time_limit of a", "time_limit of a", "time_limit of b"],
        ),
        (("time_limit",), ["task_soft_time_limit", "soft_time_limit of a"]),
        (("soft_time_limit", "time_limit"), []),
    ],
)
def test_limits_that_a_pool_does_not_enforce_are_named(enforced: tuple[str, ...], expected: list[str]) -> None:
    tasks = [
        SimpleNamespace(name="c", soft_time_limit=None, time_limit=None),
        SimpleNamespace(name="b", soft_time_limit=None, time_limit=7),
        SimpleNamespace(name="a", soft_time_limit=5, time_limit=7),
    ]

    assert without_effect(tasks, soft=1.0, hard=2.0, enforced=enforced) == expected
    assert without_effect(tasks[:1], soft=None, hard=None, enforced=enforced) == []


@pytest.mark.parametrize(
    ("enforced", "expected"),
    [
        # What the worker's limit says already, and Celery's own tasks, which nobody wrote: fifty names otherwise.
        ((), ["task_soft_time_limit", "task_time_limit", "time_limit of own"]),
        (("soft_time_limit",), ["task_time_limit", "time_limit of own", "soft_time_limit of sync"]),
        (("time_limit",), ["task_soft_time_limit", "time_limit of sync"]),
        (("soft_time_limit", "time_limit"), ["soft_time_limit of sync", "time_limit of sync"]),
    ],
)
def test_limit_that_a_task_takes_over_from_the_settings_is_named_once(
    enforced: tuple[str, ...], expected: list[str]
) -> None:
    tasks = [
        SimpleNamespace(name="celery.chunks", soft_time_limit=5, time_limit=7),
        SimpleNamespace(name="own", soft_time_limit=5, time_limit=8),
        SimpleNamespace(name="sync", soft_time_limit=5, time_limit=7),
    ]

    found = without_effect(
        tasks,
        soft=5,
        hard=7,
        enforced=enforced,
        reaches=lambda task: task.name == "own",
        inherited={"soft_time_limit": 5, "time_limit": 7},
    )

    assert found == expected


# -- handing back


class Store:
    """What the settlers of all consumers were asked; it may be away."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, list[bytes]]] = []
        self.away = False

    def note(self, what: str, consumer: str, entries: Sequence[Entry]) -> int:
        if self.away:
            raise BrokerUnavailable
        ids = [entry_id for _, entry_id in entries]
        if ids:
            self.asked.append((what, consumer, ids))
        return len(ids)


@dataclass
class Settling:
    """In the place of a consumer's settler."""

    consumer: str
    store: Store

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        self.store.note("ack", self.consumer, entries)

    def put_back(self, entries: Sequence[Entry], *, insist: bool) -> int:
        assert not insist
        return self.store.note("put_back", self.consumer, entries)


def handback(*holders: StandIn) -> tuple[Handback, Store]:
    store = Store()

    return Handback(lambda consumer: Settling(consumer, store), lambda: holders), store  # type: ignore[arg-type,return-value]


def test_entries_behind_a_long_task_go_back_and_finished_ones_are_acknowledged() -> None:
    holder = StandIn(replace(running(3), finished=held(1, 2), waiting=held(4, 5)))
    hands, store = handback(holder)

    assert hands.run_once(now=100 + HOLD * 1.1) == 2
    assert store.asked == [("ack", "c", [b"1-0", b"2-0"]), ("put_back", "c", [b"4-0", b"5-0"])]
    assert (holder.restricted, holder.returned_batches, hands.put_back) == (1, [1], 2)


def test_entries_behind_a_short_task_stay() -> None:
    holder = StandIn(replace(running(3), finished=held(1, 2), waiting=held(4, 5)))
    hands, store = handback(holder)

    assert hands.run_once(now=100 + HOLD * 0.9) == 0
    assert (holder.restricted, store.asked) == (0, [])


def test_long_task_with_nothing_behind_it_costs_no_command() -> None:
    holder = StandIn(running(3))
    hands, store = handback(holder)

    assert hands.run_once(now=1_000) == 0
    assert (holder.restricted, store.asked) == (0, [])


def test_entries_are_handed_back_once_however_long_the_task() -> None:
    hands, store = handback(StandIn(replace(running(3), waiting=held(4, 5))))

    counts = [hands.run_once(now=101 + second) for second in range(3)]

    assert (counts, hands.put_back) == ([2, 0, 0], 2)
    assert store.asked == [("put_back", "c", [b"4-0", b"5-0"])]


def test_batch_of_which_nothing_was_started_is_left_to_its_child() -> None:
    hands, store = handback(StandIn(replace(NOTHING, waiting=held(1, 2))))

    assert hands.run_once(now=1_000) == 0
    assert store.asked == []


def test_everything_that_was_not_started_can_be_asked_back() -> None:
    hands, store = handback(
        StandIn(replace(NOTHING, waiting=held(1, 2)), "a"), StandIn(replace(running(3), waiting=held(4)), "b")
    )

    assert hands.run_once(now=100, everything=True) == 3
    assert store.asked == [("put_back", "a", [b"1-0", b"2-0"]), ("put_back", "b", [b"4-0"])]


def test_what_was_restricted_while_redis_was_away_goes_back_later() -> None:
    holder = StandIn(replace(running(3), waiting=held(4)))
    hands, store = handback(holder)
    store.away = True
    with pytest.raises(BrokerUnavailable):
        hands.run_once(now=101)

    store.away = False

    assert (holder.restricted, holder.returned_batches) == (1, [])
    assert hands.run_once(now=102) == 1

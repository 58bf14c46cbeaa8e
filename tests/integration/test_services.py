"""Heartbeat, Claimer, Promoter and Handback: one round each on a seeded Redis, and all of Redis before and after."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.conf import StreamsConf
from celery_streams.connection import RedisClient
from celery_streams.entries import Delivery, Entry
from celery_streams.exceptions import BrokerError, BrokerUnavailable
from celery_streams.worker.claimer import Claimer
from celery_streams.worker.delayed import Promoter
from celery_streams.worker.hand_back import Handback
from celery_streams.worker.heartbeat import Heartbeat
from celery_streams.worker.settle import Settler
from celery_streams.worker.slots import Slot, SlotTable, Snapshot
from tests.support.eventually import eventually
from tests.support.redis_state import delivered, make_idle, message, number_of, read_all, redis_now_ms, redis_state

STREAM = "celery-streams:{q}"
TIMEOUT = 15.0
SHOT = Snapshot(
    pid=10, batch=1, finished=(), running=None, waiting=(), started_at=0.0, soft=None, hard=None,
    acked_early=False, exited=False, done=0,
)  # fmt: skip


def held(*deliveries: Delivery) -> tuple[Entry, ...]:
    return tuple(one.entry for one in deliveries)


@dataclass
class StandIn:
    """A holder that shows what the test wants."""

    shot: Snapshot
    consumer: str = "child"
    lost: list[int] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        return self.shot

    def mark_lost(self, batch: int) -> None:
        self.lost.append(batch)


def idle_ms(broker: StreamBroker) -> dict[str, int]:
    return {
        entry_id.decode(): idle
        for entry_id, _, idle, _ in broker.client.call("XPENDING", STREAM, keys.GROUP, "-", "+", 1_000)
    }


# -- heartbeat


def beat(broker: StreamBroker, *holders: StandIn) -> Heartbeat:
    return Heartbeat(broker, lambda: holders, visibility_timeout=TIMEOUT)


def test_everything_that_is_held_looks_busy_after_a_heartbeat_and_nothing_else_changes(broker: StreamBroker) -> None:
    found = delivered(broker, "q", "child", *(message(number) for number in range(4)))
    for one in found:
        make_idle(broker, one.stream, "child", one.entry_id, idle_ms=10_000)
    before = redis_state(broker.client)
    holder = StandIn(replace(SHOT, finished=held(found[0]), running=held(found[1])[0], waiting=held(found[2])))

    count = beat(broker, holder).run_once()

    assert count == 3
    assert redis_state(broker.client) == before
    idle = list(idle_ms(broker).values())
    assert [busy < 5_000 for busy in idle] == [True, True, True, False]


def test_heartbeat_comes_five_times_in_a_visibility_timeout(broker: StreamBroker) -> None:
    assert beat(broker).interval == TIMEOUT / 5


def test_heartbeat_of_nothing_costs_no_command(redis_url: str) -> None:
    nowhere = StreamBroker(RedisClient("redis://127.0.0.1:1/0"))

    assert beat(nowhere, StandIn(SHOT)).run_once() == 0


def test_holder_is_told_that_its_running_entry_was_claimed(broker: StreamBroker) -> None:
    (one,) = delivered(broker, "q", "child", message(1))
    broker.client.call("XCLAIM", STREAM, keys.GROUP, "other", 0, one.entry_id)
    before = redis_state(broker.client)
    holder = StandIn(replace(SHOT, batch=7, running=held(one)[0]))
    heartbeat = beat(broker, holder)

    heartbeat.run_once()

    assert (holder.lost, heartbeat.lost) == ([7], 1)
    assert redis_state(broker.client) == before


@pytest.mark.parametrize("queues", [("q",), ("q", "r"), ("q", "r", "s")])
def test_entries_that_were_claimed_are_said_and_counted_once_however_long_their_tasks_run_on(
    broker: StreamBroker, caplog: pytest.LogCaptureFixture, queues: tuple[str, ...]
) -> None:
    holders = []
    for queue in queues:
        (one,) = delivered(broker, queue, "child", message(1))
        broker.client.call("XCLAIM", one.stream.key, keys.GROUP, "other", 0, one.entry_id)
        holders.append(StandIn(replace(SHOT, batch=7, running=one.entry)))
    heartbeat = beat(broker, *holders)

    for _ in range(4):
        heartbeat.run_once()

    assert heartbeat.lost == len(queues)
    assert [record.getMessage() for record in caplog.records if "no longer held" in record.getMessage()] == [
        f"Entry {holder.shot.running} is no longer held by child: it was claimed, or deleted, while its task runs. "
        "It may run twice."
        for holder in holders
    ]
    assert {tuple(holder.lost) for holder in holders} == {(7,) * 4}


def test_entry_that_was_settled_meanwhile_was_not_lost(broker: StreamBroker) -> None:
    (one,) = delivered(broker, "q", "child", message(1))
    broker.ack("child", [one.entry])

    class Settles(StandIn):
        def snapshot(self) -> Snapshot:
            shot, self.shot = self.shot, replace(SHOT, batch=2)
            return shot

    holder = Settles(replace(SHOT, running=held(one)[0]))

    beat(broker, holder).run_once()

    assert holder.lost == []


def test_entry_that_is_gone_while_its_outcome_is_being_settled_was_not_lost(
    broker: StreamBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis was silent: what settles it was carried out, its reply was lost, and the child sends it again."""
    (one,) = delivered(broker, "q", "child", message(1))
    broker.ack("child", [one.entry])
    holder = StandIn(replace(SHOT, running=held(one)[0], settling=True))
    heartbeat = beat(broker, holder)

    heartbeat.run_once()

    assert (holder.lost, heartbeat.lost, caplog.records) == ([], 0, [])


def test_message_that_was_acknowledged_before_it_ran_is_not_missed(broker: StreamBroker) -> None:
    (one,) = delivered(broker, "q", "child", message(1))
    broker.ack("child", [one.entry])
    holder = StandIn(replace(SHOT, running=held(one)[0], acked_early=True))

    assert beat(broker, holder).run_once() == 0
    assert holder.lost == []


def test_long_task_does_not_lose_its_entry_when_those_behind_it_are_handed_back(broker: StreamBroker) -> None:
    found = delivered(broker, "q", "child", *(message(number) for number in range(4)))
    table = SlotTable()
    table.streams[:] = broker.streams(["q"])
    child, parent = table.slot(0), table.slot(0)
    child.attach(1)
    child.load([(0, one.entry_id) for one in found])
    assert child.begin(0)
    child.finish(0)
    assert child.begin(1)
    holder = SlotHolder(parent)

    def settler(name: str) -> Settler:
        return Settler(broker, name, conf=StreamsConf(), hostname="h", insist=False)

    put_back = Handback(settler, lambda: [holder]).run_once(now=time.monotonic() + 60)
    Heartbeat(broker, lambda: [holder], visibility_timeout=TIMEOUT).run_once()

    assert put_back == 2
    assert not child.lost()
    state = redis_state(broker.client)[STREAM]
    assert list(state.pending[keys.GROUP]) == [found[1].entry_id.decode()]
    assert len(state.entries) == 3


class SlotHolder:
    """A child's slot as the services see it."""

    consumer = "child"

    def __init__(self, slot: Slot) -> None:
        self.snapshot, self.restrict = slot.snapshot, slot.restrict
        self.returned, self.mark_lost = slot.returned, slot.mark_lost


# -- claimer


class Claims:
    """A claimer with its clock, and what it found exhausted."""

    def __init__(self, broker: StreamBroker, *, limit: int = 5, queues: Sequence[str] = ("q",)) -> None:
        self.broker = broker
        self.exhausted: list[tuple[int, str]] = []
        self.now = 1_000.0
        self.claimer = Claimer(
            broker,
            "claimer",
            lambda: queues,
            visibility_timeout=TIMEOUT,
            delivery_limit=limit,
            on_exhausted=lambda delivery, holder: self.exhausted.append((number_of(delivery), holder)),
        )

    def look(self, *, after: float | None = None) -> int:
        """Look after so many seconds, when the turn of the last look is over."""
        self.now += self.claimer.interval if after is None else after
        self.broker.client.call("DEL", self.broker.queue_keys("q").claims)
        return self.claimer.run_once(now=self.now)

    def settled_in(self) -> Claims:
        for _ in range(4):
            self.look()
        return self


def held_by_the_dead(broker: StreamBroker, number: int, *, idle: float = TIMEOUT, crashes: int = 0) -> Delivery:
    history = json.dumps({"first": "1-0", "crashes": crashes}).encode() if crashes else b""
    (one,) = delivered(broker, "q", "dead", message(number, history=history))
    make_idle(broker, one.stream, "dead", one.entry_id, idle_ms=int(idle * 1000))
    return one


def test_entry_without_a_heartbeat_for_the_visibility_timeout_is_put_back(broker: StreamBroker) -> None:
    claims = Claims(broker).settled_in()
    held_by_the_dead(broker, 1)
    held_by_the_dead(broker, 2, idle=TIMEOUT * 0.6)

    moved = claims.look()

    assert (moved, claims.claimer.moved) == (1, 1)
    (again,) = broker.read(broker.streams(["q"]), "alive", count=5)
    assert number_of(again) == 1
    assert again.message is not None
    assert again.message.decode_history()["crashes"] == 1


def test_claimer_that_finds_nothing_changes_nothing(broker: StreamBroker) -> None:
    claims = Claims(broker).settled_in()
    delivered(broker, "q", "alive", message(1))
    claims.look()
    broker.client.call("DEL", broker.queue_keys("q").claims)
    before = redis_state(broker.client)

    claims.look()

    after = redis_state(broker.client)
    after.pop(broker.queue_keys("q").claims, None)
    assert after == before


def test_first_look_of_a_worker_claims_nothing(broker: StreamBroker) -> None:
    held_by_the_dead(broker, 1)

    assert Claims(broker).look() == 0


def test_after_a_pause_living_owners_speak_first(broker: StreamBroker) -> None:
    claims = Claims(broker).settled_in()
    held_by_the_dead(broker, 1)

    quiet = claims.look(after=60.0)
    moved = [claims.look() for _ in range(3)]

    assert quiet == 0
    assert sum(moved) == 1


def test_after_redis_was_away_living_owners_speak_first(broker: StreamBroker) -> None:
    class Away(RedisClient):
        away = False

        def pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
            if self.away:
                raise BrokerUnavailable
            return super().pipeline(commands)

    unreliable = Away(broker.client.url)
    claims = Claims(StreamBroker(unreliable)).settled_in()
    held_by_the_dead(broker, 1)
    unreliable.away = True
    for _ in range(3):
        with pytest.raises(BrokerUnavailable):
            # The outage shorter than a round between two looks is the one that is easily overlooked.
            for _ in range(4):
                claims.look()
    unreliable.away = False

    first = claims.look()
    later = [claims.look() for _ in range(4)]
    unreliable.close()

    assert (first, sum(later)) == (0, 1)


def test_queue_that_is_refused_does_not_keep_the_claimer_from_others(broker: StreamBroker) -> None:
    claims = Claims(broker, limit=9, queues=("bad", "q")).settled_in()
    (stuck,) = delivered(broker, "bad", "dead", message(1, history=b'{"crashes":6}'))
    make_idle(broker, stuck.stream, "dead", stuck.entry_id, idle_ms=int(TIMEOUT * 1000))
    broker.client.call("SET", broker.queue_keys("bad").delayed, "of another type")

    for number in (2, 3):
        held_by_the_dead(broker, number)
        broker.client.call("DEL", broker.queue_keys("bad").claims)  # the turn of the look before
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            claims.look()

    assert claims.claimer.moved == 2
    assert len(redis_state(broker.client)["celery-streams:{bad}"].entries) == 1


def test_everything_that_a_dead_worker_held_is_put_back_in_one_look(broker: StreamBroker) -> None:
    claims = Claims(broker).settled_in()
    for one in delivered(broker, "q", "dead", *[message(number) for number in range(250)]):
        make_idle(broker, one.stream, "dead", one.entry_id, idle_ms=int(TIMEOUT * 1000))

    assert claims.look() == 250


def test_entry_that_reached_the_limit_is_handed_over_with_the_name_of_its_last_holder(broker: StreamBroker) -> None:
    claims = Claims(broker, limit=3).settled_in()
    exhausted = held_by_the_dead(broker, 1, crashes=2)

    claims.look()

    assert claims.exhausted == [(1, "dead")]
    state = redis_state(broker.client)[STREAM]
    assert state.pending[keys.GROUP][exhausted.entry_id.decode()][0] == "claimer"


def test_pending_entries_that_somebody_deleted_are_cleared_and_counted(broker: StreamBroker) -> None:
    claims = Claims(broker).settled_in()
    gone = held_by_the_dead(broker, 1)
    broker.client.call("XDEL", STREAM, gone.entry_id)

    claims.look()

    assert claims.claimer.vanished == 1
    assert redis_state(broker.client)[STREAM].pending == {keys.GROUP: {}}


# -- promoter


@pytest.fixture
def promoter(redis_url: str) -> Iterator[Promoter]:
    made = Promoter(StreamBroker(RedisClient(redis_url)), lambda: ["q"])
    yield made
    made.stop()


def test_due_messages_are_promoted_and_the_next_due_time_told(broker: StreamBroker, promoter: Promoter) -> None:
    now = redis_now_ms(broker.client)
    broker.ensure_groups(["q"])
    broker.delay("q", message(1), due_ms=now - 5, member="a")
    broker.delay("q", message(2, step=2), due_ms=now - 5, member="b")
    broker.delay("q", message(3), due_ms=now + 60_000, member="c")

    left = promoter.run_once()

    assert left is not None
    assert 55_000 < left <= 60_000
    assert promoter.moved == 2
    found = read_all(broker, ["q"], "c")
    assert [(number_of(one), one.stream.step) for one in found] == [(1, 0), (2, 2)]
    assert list(redis_state(broker.client)[f"{STREAM}:delayed"]) == ["c"]


def test_nothing_delayed_is_nothing_to_promote(broker: StreamBroker, promoter: Promoter) -> None:
    broker.ensure_groups(["q"])
    before = redis_state(broker.client)

    assert promoter.run_once() is None
    state = redis_state(broker.client)
    assert state.pop(f"{STREAM}:turns"), "somebody watches"
    assert state == before


def test_due_messages_that_are_refused_are_tried_again_each_second_and_logged_once(
    broker: StreamBroker, promoter: Promoter, caplog: pytest.LogCaptureFixture
) -> None:
    broker.delay("q", message(1), due_ms=1, member="m")
    broker.client.call("SET", "celery-streams:{q}", "of another type")

    pauses = [promoter.run_once(), promoter.run_once()]
    broker.client.call("DEL", "celery-streams:{q}")
    promoter.run_once()

    assert pauses == pytest.approx([1_000, 1_000], abs=100)
    assert len([record for record in caplog.records if "WRONGTYPE" in record.getMessage()]) == 1
    assert promoter.moved == 1


def test_more_than_one_step_of_due_messages_is_promoted_at_once(broker: StreamBroker, promoter: Promoter) -> None:
    now = redis_now_ms(broker.client)
    for number in range(1_100):
        broker.delay("q", message(number), due_ms=now - 5, member=str(number))

    promoter.run_once()

    assert promoter.moved == 1_100
    assert broker.client.call("XLEN", STREAM) == 1_100


def test_promoter_that_sleeps_wakes_for_an_earlier_message(broker: StreamBroker, promoter: Promoter) -> None:
    broker.delay("q", message(1), due_ms=redis_now_ms(broker.client) + 3_600_000, member="late")
    promoter.start()
    eventually(lambda: b"cmd=xread " in broker.client.call("CLIENT", "LIST"))

    due = redis_now_ms(broker.client) + 300
    broker.delay("q", message(2), due_ms=due, member="soon")
    eventually(lambda: broker.client.call("XLEN", STREAM) == 1, interval=0.005)

    assert -1 <= redis_now_ms(broker.client) - due < 500


def test_promoter_goes_on_after_its_connection_was_killed(broker: StreamBroker, promoter: Promoter) -> None:
    promoter.start()
    eventually(lambda: b"cmd=xread " in broker.client.call("CLIENT", "LIST"))
    broker.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    broker.delay("q", message(1), due_ms=redis_now_ms(broker.client) - 1, member="a")

    eventually(lambda: broker.client.call("XLEN", STREAM) == 1)

"""Places, by chance: whatever ends or moves an entry gives its places back in the same script; nobody else looks.

The model knows what it admitted. All else it reads: each place must be of an entry that is there, what counts for a
limit must be the places, and nobody may wait while there is room.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from celery import Celery
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from celery_streams import inspect as streams_inspect
from celery_streams import streams_of
from celery_streams.broker import StreamBroker
from celery_streams.dead_letters import dead_letters, replay
from celery_streams.entries import Delivery, Entry, delivery
from celery_streams.handovers import hand_over, receiver, take_over
from celery_streams.lanes import Lane, let_go, place_of, release
from celery_streams.limits import Limits, lane_of
from celery_streams.message import Message
from celery_streams.migration import Migration
from celery_streams.recovery import recover
from celery_streams.running_task import HeldRetry
from celery_streams.worker.outcome import Action, Outcome, Reason
from celery_streams.worker.settle import Settler
from celery_streams.worker.shards import is_one_place
from tests.support.redis_state import flush

QUEUES = ("celery", "other")
CONSUMERS = ("a/1", "b/1")
LIMITS = {
    "narrow": Limits(concurrency=2),
    "keyed": Limits(concurrency=2, concurrency_key="key", concurrency_per_key=1),
    "rated": Limits(rate=1 / 3600, concurrency_key="key", concurrency_per_key=1),
    "free": Limits(),
}
KINDS = st.sampled_from([("narrow", ""), ("keyed", "x"), ("keyed", "y"), ("rated", "x"), ("rated", "y"), ("free", "")])
NOW, LATER = 0, 4_000_000_000_000

#: What becomes of a message when its task has ended.
OUTCOMES = {
    "done": Outcome(Action.ACK),
    "retried": Outcome(Action.RETRY),
    "retried later": Outcome(Action.RETRY),
    "requeued": Outcome(Action.REQUEUE),
    "requeued behind": Outcome(Action.REQUEUE, behind=True),
    "crashed": Outcome(Action.REQUEUE, crash=True, delay=3600, waits_for="crash"),
    "dead": Outcome(Action.DEAD, reason=Reason.FAILED),
    "replayed": Outcome(Action.DEAD, reason=Reason.FAILED),
}
EXITS_OF_ONE = [*OUTCOMES, "limited", "put back", "handed over", "recovered as it was handed over", "vanished"]

#: Pauses after crashes: at once, later, and too often.
PAUSES = {"recovered at once": [NOW] * 9, "recovered later": [3_600_000] * 9, "recovered exhausted": []}
TO_LISTS = ["to lists", "to lists, the dead too"]
EXITS_OF_MANY = [*PAUSES, "put all back", "purged", *TO_LISTS]


def made(number: int, task: str, key: str, step: int) -> Message:
    headers = json.dumps({"id": str(number), "task": task, "key": key}).encode()
    return Message(headers, b'{"priority":0}', b"[[],{},{}]", b"", step)


def task_of(found: Delivery) -> tuple[str, Limits, Lane]:
    assert found.message is not None
    headers = found.message.decode_headers()
    limits = LIMITS[headers["task"]]
    return headers["task"], limits, lane_of(headers["task"], limits, (None, headers["key"]), node="")


class Places(RuleBasedStateMachine):
    app: ClassVar[Celery]
    broker: ClassVar[StreamBroker]

    def __init__(self) -> None:
        super().__init__()
        flush(self.broker.client)
        self.broker.ensure_groups(QUEUES)
        for queue in QUEUES:
            self.broker.introduced(queue)
        conf = streams_of(self.app).conf
        self.settlers = {name: Settler(self.broker, name, conf=conf, hostname=name) for name in CONSUMERS}
        #: Entries that run, by consumer.
        self.running: dict[str, set[Entry]] = {name: set() for name in CONSUMERS}
        self.numbers = 0
        for kind in (("narrow", ""), ("keyed", "x"), ("keyed", "x"), ("keyed", "y")):
            for _ in range(2):
                self.publish(kind, QUEUES[0], self.numbers % 4)
        self.look()

    # -- looking

    def look(self) -> None:
        self.pending = []
        for name in CONSUMERS:
            held = self.broker.held_by(name, self.broker.streams(QUEUES))
            self.running[name] &= set(held)
            for ref, entry_id in held:
                for _, fields in self.broker.client.call("XRANGE", ref.key, entry_id, entry_id):
                    self.pending.append((name, delivery(ref, entry_id, fields)))
        places = {(queue, place) for queue in QUEUES for place in self.places(queue)}
        where = [(one, found, (found.stream.queue, place_of(self.broker, found.entry))) for one, found in self.pending]
        #: What is read, and has a place; and the queues on which what waits has one.
        self.placed = [(one, found) for one, found, place in where if place in places]
        self.waiting = {queue for queue, _ in places - {place for *_, place in where}}

    def places(self, queue: str) -> dict[str, list[Any]]:
        flat = self.broker.client.call("HGETALL", self.broker.queue_keys(queue).shelf[5])
        return {name.decode(): json.loads(said) for name, said in zip(flat[::2], flat[1::2], strict=True)}

    def counted(self, queue: str) -> Counter[str]:
        members = self.broker.client.call("ZRANGE", self.broker.queue_keys(queue).shelf[6], 0, -1)
        return Counter(member.decode().partition("\0")[0] for member in members)

    # -- on the way

    @rule(kind=KINDS, queue=st.sampled_from(QUEUES), step=st.integers(0, 3))
    def publish(self, kind: tuple[str, str], queue: str, step: int) -> None:
        self.numbers += 1
        self.broker.publish(queue, made(self.numbers, *kind, step))

    @rule(name=st.sampled_from(CONSUMERS), count=st.integers(1, 4), asks=st.booleans())
    def read(self, name: str, count: int, asks: bool) -> None:
        for found in self.broker.read(self.broker.streams(QUEUES), name, count=count):
            if asks:
                self.start(self.settlers[name], found)

    @precondition(lambda self: bool(self.pending))
    @rule(data=st.data())
    def ask(self, data: Any) -> None:
        name, found = data.draw(st.sampled_from(self.pending))
        self.start(self.settlers[name], found)

    def start(self, settler: Settler, found: Delivery) -> None:
        task, limits, lane = task_of(found)
        assert found.message is not None
        history = found.message.decode_history()
        if not limits:
            return
        first = str(history.get("first") or "")
        admission = settler.admit(found, lane, task, limits, ahead=bool(history), published=first)
        if admission is not None and admission.admitted:
            self.running[settler.consumer].add(found.entry)

    @rule(everything=st.booleans())
    def release(self, everything: bool) -> None:
        for queue in QUEUES:
            names = self.broker.queue_keys(queue)
            self.broker.client.call("DEL", names.shelf[4])
            for lane in self.broker.client.call("ZRANGEBYSCORE", names.shelf[2], "-inf", "(9e15"):
                self.broker.client.call("ZADD", names.shelf[2], 1, lane)
        release(self.broker, QUEUES, {}, everything=everything)

    @rule()
    def promote_everything(self) -> None:
        for queue in QUEUES:
            key = self.broker.queue_keys(queue).delayed
            for member in self.broker.client.call("ZRANGE", key, 0, -1):
                self.broker.client.call("ZADD", key, 1, member)
        self.broker.promote(QUEUES)

    def fill(self, name: str) -> None:
        """Have something there that has a place, that waits with one, and that waits for one."""
        settler = self.settlers[name]
        if not self.placed:
            self.release(everything=False)  # what was limited waits for its time
            for kind in (
                ("narrow", ""),
                ("keyed", "x"),
                ("keyed", "x"),
                ("narrow", ""),
                ("narrow", ""),
                ("narrow", ""),
            ):
                self.publish(kind, QUEUES[self.numbers % 2], self.numbers % 4)
            while found := self.broker.read(self.broker.streams(QUEUES), name, count=9):
                for one in found:
                    self.start(settler, one)
            self.look()
        if not self.waiting and len(self.placed) > 1:
            consumer, ended = self.placed[0]
            self.settlers[consumer].vacate_with(ended.entry, *task_of(ended)[:2])
            self.settlers[consumer].settle(ended, Outcome(Action.ACK))
            self.look()

    # -- endings: one rule each for what ends one message, and what ends many, so that none leaves little for the others

    @rule(data=st.data(), how=st.sampled_from(EXITS_OF_ONE), to=st.sampled_from(CONSUMERS))
    def leave(self, data: Any, how: str, to: str) -> None:
        self.fill(to)
        name, found = data.draw(st.sampled_from(self.placed))
        self.end(name, found, how, queue=data.draw(st.sampled_from(QUEUES)), to=to)

    def end(self, name: str, found: Delivery, how: str, *, queue: str, to: str) -> None:
        settler, entry = self.settlers[name], found.entry
        task, limits, lane = task_of(found)
        self.numbers += 1
        if how == "put back":
            settler.put_back([entry])
        elif how.endswith("handed over"):
            hand_over(self.broker, name, receiver(to), [entry])
            if how == "handed over":
                take_over(self.broker, receiver(to), to, self.broker.streams(QUEUES), count=9)
            else:
                self.recover([NOW] * 9, of=receiver(to))
        elif how == "vanished":
            self.broker.client.call("XDEL", entry.stream.key, entry.id)
            self.recover([NOW] * 9, of=name)
        elif how == "limited":
            settler.settle(found, Outcome(Action.HOLD, delay=3600), lane=lane)
        else:
            if entry not in self.running[name]:  # it was released, and revoked before it started
                settler.vacate_with(entry, task, limits)
            retry = HeldRetry(queue, made(self.numbers, "free", "", 0), LATER if how == "retried later" else NOW, "m")
            settler.settle(found, OUTCOMES[how], held=retry if how.startswith("retried") else None)
            settler.flush()
            if how == "replayed":
                for letter in dead_letters(self.broker, entry.stream.queue):
                    replay(self.broker, letter, queue=queue)

    def recover(self, pauses: list[int], *, of: str) -> None:
        for queue in QUEUES:
            self.broker.client.call("DEL", self.broker.queue_keys(queue).claims)
            recover(
                self.broker,
                queue,
                "b/1",
                idle_ms=0,
                turn_ms=1000,
                pauses_ms=pauses,
                patience={of.encode(): 0, **{name.encode(): None for name in CONSUMERS if name != of}},
            )
        self.running.get(of, set()).clear()

    @rule(how=st.sampled_from(EXITS_OF_MANY), name=st.sampled_from(CONSUMERS), queue=st.sampled_from(QUEUES))
    def leave_together(self, how: str, name: str, queue: str) -> None:
        self.fill(name)
        if is_one_place(self.broker) or how not in TO_LISTS:
            self.end_many(how, name=name, queue=queue)

    def end_many(self, how: str, *, name: str, queue: str) -> None:
        if how == "put all back":
            self.settlers[name].put_all_back(self.broker.streams(QUEUES))
        elif how.startswith("recovered"):
            self.recover(PAUSES[how], of=name)
        elif how == "purged":
            streams_inspect.purge(self.broker, queue)
        else:
            timeout = 0.0 if "dead" in how else 3600.0
            Migration(self.broker, self.broker.client, options={}, visibility_timeout=timeout).to_lists(queue)
            self.broker.client.call("DEL", *QUEUES, *(f"{one}\x06\x16{step}" for one in QUEUES for step in (3, 6, 9)))

    @rule(queue=st.sampled_from(QUEUES))
    def let_go(self, queue: str) -> None:
        let_go(self.broker, queue)

    # -- what always holds

    @invariant()
    def each_place_is_that_of_an_entry_which_is_there_and_nobody_waits_in_vain(self) -> None:
        self.look()
        call = self.broker.client.call
        for queue in QUEUES:
            names = self.broker.queue_keys(queue)
            streams = (*names.streams, *names.fronts)
            places, counted = self.places(queue), self.counted(queue)
            for place in places:
                where, _, entry_id = place.partition(":")
                assert call("XRANGE", streams[int(where)], entry_id, entry_id), f"{place} is gone, and has its place"
            running = {member.decode() for member in call("ZRANGE", names.shelf[6], 0, -1)}
            assert running == {f"{limit}\0{place}" for place, said in places.items() for limit in said[0]}
            assert counted["Tnarrow"] <= 2
            assert counted["Tkeyed"] <= 2
            assert all(counted[f"K{task} {key}"] <= 1 for task in ("keyed", "rated") for key in "xy")
            rates = call("ZRANGE", names.shelf[4], 0, -1)
            flat = call("HGETALL", names.shelf[1])
            for lane, said in zip(flat[::2], flat[1::2], strict=True):
                known = json.loads(said) if lane else {}
                barred = {f"!{name}".encode() for name in (known.get("rate"), known.get("key")) if name}
                if known.get("interval"):
                    barred.add(known["rate"].encode())
                if known and barred.isdisjoint(rates):
                    full = "limit" in known and counted[f"T{known['task']}"] >= known["limit"]
                    full = full or (bool(known.get("key")) and counted[f"K{known['key']}"] >= known["key_limit"])
                    assert full, f"{lane} waits, and there is room"
        for name, entries in self.running.items():
            for entry in entries:
                assert place_of(self.broker, entry) in self.places(entry.stream.queue), f"{entry} runs on {name}"


@pytest.fixture
def machine(app: Callable[..., Celery]) -> type[Places]:
    project = app()
    return type("Machine", (Places,), {"app": project, "broker": streams_of(project).broker})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", EXITS_OF_ONE)
def test_exit_of_an_entry_gives_its_places_back_in_its_own_script(machine: type[Places], how: str, seed: int) -> None:
    chance = random.Random(f"{how} {seed}")
    one = machine()
    for _ in range(5):
        to = chance.choice(CONSUMERS)
        one.fill(to)
        name, found = chance.choice(one.placed)
        was = place_of(one.broker, found.entry)

        one.end(name, found, how, queue=chance.choice(QUEUES), to=to)

        assert (was in one.places(found.stream.queue)) is (how == "handed over")
        one.each_place_is_that_of_an_entry_which_is_there_and_nobody_waits_in_vain()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=[pytest.mark.one_server("a cluster holds no lists")] if how in TO_LISTS else [])
        for how in EXITS_OF_MANY
    ],
)
def test_exit_of_many_entries_gives_their_places_back_in_its_own_script(
    machine: type[Places], how: str, seed: int
) -> None:
    chance = random.Random(f"{how} {seed}")
    one = machine()
    for _ in range(5):
        name = chance.choice(CONSUMERS)
        one.fill(name)
        queue = chance.choice(QUEUES)
        before = one.places(queue)
        its = {place_of(one.broker, found.entry) for consumer, found in one.placed if consumer == name}

        one.end_many(how, name=name, queue=queue)

        names, left = one.broker.queue_keys(queue), one.places(queue)
        for place in before:
            index, _, entry_id = place.partition(":")
            there = one.broker.client.call("XRANGE", (*names.streams, *names.fronts)[int(index)], entry_id, entry_id)
            # What is exhausted is there still, for whoever dead-letters it.
            assert (place in left) is (bool(there) and not (how == "recovered exhausted" and place in its))
        if how == "purged":
            status = streams_inspect.queue_status(one.broker, queue)
            assert (status.waiting, status.delayed, status.held) == (0, 0, 0)
        one.each_place_is_that_of_an_entry_which_is_there_and_nobody_waits_in_vain()


def test_no_place_is_left_taken_or_lost_in_any_schedule(machine: type[Places]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

"""One runs, and exactly one more after it with the newest arguments: by chance, whatever happens to messages meanwhile.

A task that is unique until it starts, whose newest arguments count, with one place for each key. The model knows what
was published and what started; what is there it reads.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable

import pytest
from celery import Celery

from celery_streams import bulk, streams_of
from celery_streams.entries import Delivery
from celery_streams.limits import lane_of, limits_of
from celery_streams.message import Message, unpack
from celery_streams.recovery import recover
from celery_streams.worker.outcome import Action, Outcome
from celery_streams.worker.settle import Settler
from tests.support.bench import QUEUE

CONSUMERS = ("a/1", "b/1", "c/1")
KEYS = ("x", "y")


def key_of(found: Delivery) -> tuple[str, int]:
    assert found.message is not None
    key, version = json.loads(found.message.body)[0]
    return key, version


class Fleet:
    """Consumers that read, ask for a place, start, end, and die."""

    def __init__(self, app: Celery) -> None:
        self.streams = streams_of(app)
        self.app, self.broker = app, self.streams.broker
        self.broker.ensure_groups([QUEUE])
        self.task = app.tasks["newest"]
        self.limits = limits_of(self.task, {})
        self.settlers = {name: Settler(self.broker, name, conf=self.streams.conf, hostname=name) for name in CONSUMERS}
        self.had: dict[str, list[Delivery]] = {name: [] for name in CONSUMERS}
        self.runs: dict[str, list[Delivery]] = {name: [] for name in CONSUMERS}
        self.published: dict[str, int] = {}
        self.started: dict[str, list[int]] = {key: [] for key in KEYS}
        #: How often what had started goes back, without the lock that it had before.
        self.again: Counter[str] = Counter()
        self.versions = 0

    # -- what happens

    def publish(self, key: str, *, bulky: bool = False, priority: int = 0) -> None:
        self.versions += 1
        options = {"priority": priority}
        if bulky:
            with bulk(self.app):
                self.task.apply_async((key, self.versions), **options)
                self.versions += 1
                self.task.apply_async((key, self.versions), **options)
        else:
            self.task.apply_async((key, self.versions), **options)
        self.published[key] = self.versions

    def read(self, name: str, count: int) -> None:
        self.had[name] += self.broker.read(self.broker.streams([QUEUE]), name, count=count)

    def ask(self, name: str, chance: random.Random, *, replaced: bool = False) -> None:
        """Do what an executor does before a task starts; ``replaced``: somebody publishes in the middle of it."""
        if not self.had[name]:
            return
        found = self.had[name].pop(chance.randrange(len(self.had[name])))
        settler, (key, version) = self.settlers[name], key_of(found)
        assert found.message is not None
        lane = lane_of("newest", self.limits, (None, key), node="")
        history = found.message.decode_history()
        first = str(history.get("first") or "")
        admission = settler.admit(found, lane, "newest", self.limits, ahead=bool(history), published=first)
        if admission is None or not admission.admitted:
            return
        if replaced:
            self.publish(key)
        if not settler.starts(found):
            settler.settle(found, Outcome(Action.LEAVE))
            return
        assert not [one for runs in self.runs.values() for one in runs if key_of(one)[0] == key], "two of a key run"
        self.runs[name].append(found)
        self.started[key].append(version)

    def end(self, name: str) -> None:
        if self.runs[name]:
            self.settlers[name].settle(self.runs[name].pop(), Outcome(Action.ACK))
            self.settlers[name].flush()

    def put_back(self, name: str) -> None:
        self.settlers[name].put_back([one.entry for one in self.had[name]])
        self.had[name].clear()

    def die(self, name: str) -> None:
        self.again.update(key_of(one)[0] for one in self.runs[name])
        self.runs[name].clear()
        self.had[name].clear()
        self.broker.client.call("DEL", self.broker.queue_keys(QUEUE).claims)
        patience = {one.encode(): 0 if one == name else None for one in CONSUMERS}
        recover(self.broker, QUEUE, "claimer", idle_ms=0, turn_ms=1, pauses_ms=[0] * 99, patience=patience)

    # -- what is there

    def there(self) -> Counter[str]:
        """Count the messages of each key, wherever they are."""
        names = self.broker.queue_keys(QUEUE)
        found: Counter[str] = Counter()
        for stream in (*names.streams, *names.fronts):
            entries = self.broker.client.call("XRANGE", stream, "-", "+")
            found.update(json.loads(Message.from_fields(flat).body)[0][0] for _, flat in entries)
        held = self.broker.client.call("HVALS", names.shelf[0])
        found.update(json.loads(unpack(packed).body)[0][0] for packed in held)
        return found

    def check(self) -> None:
        there = self.there()
        for key in KEYS:
            running = sum(key_of(one)[0] == key for runs in self.runs.values() for one in runs)
            assert there[key] <= running + 1 + self.again[key], f"more than one more of {key}"

    def drain(self, chance: random.Random) -> None:
        for _ in range(200):
            for name in CONSUMERS:
                self.read(name, 3)
                while self.had[name]:
                    self.ask(name, chance)
                while self.runs[name]:
                    self.end(name)
            if not self.there():
                return
        raise AssertionError(f"{self.there()} is left")


@pytest.fixture
def project(app: Callable[..., Celery]) -> Celery:
    made = app(result_backend="cache+memory://", broker_transport_options={"priority_steps": [0, 3]})

    @made.task(
        name="newest",
        shared=False,
        ignore_result=True,
        streams_unique=True,
        streams_unique_key="key",
        streams_unique_until="start",
        streams_unique_replace=True,
        streams_concurrency_key="key",
        streams_concurrency_per_key=1,
    )
    def newest(key: str, version: int) -> None: ...

    return made


@pytest.mark.parametrize("seed", range(20))
def test_one_runs_and_one_more_and_the_newest_is_never_missed_in_any_schedule(project: Celery, seed: int) -> None:
    chance = random.Random(seed)
    fleet = Fleet(project)
    for _ in range(80):
        name, key = chance.choice(CONSUMERS), chance.choice(KEYS)
        what = chance.choice(("publish", "publish", "bulk", "read", "read", "ask", "ask", "race", "end", "back", "die"))
        if what in ("publish", "bulk"):
            fleet.publish(key, bulky=what == "bulk", priority=chance.choice((0, 3)))
        elif what == "read":
            fleet.read(name, chance.randint(1, 3))
        elif what in ("ask", "race"):
            fleet.ask(name, chance, replaced=what == "race")
        elif what == "end":
            fleet.end(name)
        elif what == "back":
            fleet.put_back(name)
        else:
            fleet.die(name)
        fleet.check()

    fleet.drain(chance)

    for key, version in fleet.published.items():
        assert version in fleet.started[key], f"the newest of {key} did not run"
    left = {key.decode() for key in fleet.broker.client.call("KEYS", "*:held*")}
    assert left == set(), "all are given back"
    assert not fleet.broker.client.call("HLEN", fleet.broker.queue_keys(QUEUE).unique)


@pytest.mark.parametrize("times", [1, 7])
def test_deferred_publishes_that_are_duplicates_replace_what_waits_and_all_answer_for_it(
    project: Celery, times: int
) -> None:
    fleet, chance = Fleet(project), random.Random(0)
    fleet.publish("x")
    fleet.read("a/1", 1)
    fleet.ask("a/1", chance)
    waits = fleet.task.delay("x", 100)
    fleet.read("b/1", 1)
    fleet.ask("b/1", chance)  # held, for the first one runs

    with bulk(project):
        deferred = [fleet.task.delay("x", 101 + number) for number in range(times)]

    assert {one.id for one in deferred} == {waits.id}
    assert fleet.there() == {"x": 2}
    fleet.end("a/1")
    fleet.drain(chance)
    assert fleet.started["x"] == [1, 100 + times]

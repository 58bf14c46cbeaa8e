"""Unique tasks, by chance: whatever happens to messages, in whatever order, no lock is stale and none has two holders.

The model knows one thing only: which messages Redis holds, and whether each of them is the one that the lock of its key
must name. It is told by looking at every place where a message may be, not by what the code says of itself.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from celery import Celery, group
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from celery_streams import bulk, streams_of
from celery_streams import inspect as streams_inspect
from celery_streams.broker import StreamBroker
from celery_streams.connection import pairs
from celery_streams.dead_letters import dead_letters, replay
from celery_streams.entries import Delivery, delivery
from celery_streams.exceptions import CannotRun, DuplicateTask
from celery_streams.kombu_lists import list_keys
from celery_streams.lanes import Lane, admit, let_go, release
from celery_streams.locks import sweep
from celery_streams.message import Message, encode, unpack
from celery_streams.migration import Migration
from celery_streams.recovery import recover
from celery_streams.removal import forget_queue
from celery_streams.revocations import revoke
from celery_streams.running_task import HeldRetry
from celery_streams.transfers import are_apart
from celery_streams.worker.outcome import Action, Outcome, Reason
from celery_streams.worker.settle import Settler
from celery_streams.worker.shards import is_one_place
from tests.support.bench import QUEUE
from tests.support.redis_state import flush

OTHER = "other"
QUEUES = (QUEUE, OTHER)
CONSUMERS = ("a/1", "b/1")
#: From NEWEST on they are of the task that is unique until it starts, and whose newest arguments count; BRIEF is of one
#: whose lock ends after a time.
BRIEF, NEWEST = 5, 10
KEYS = st.sampled_from([0, 1, 2, BRIEF, NEWEST, NEWEST + 1])
LANE = Lane("sync", json.dumps({"task": "sync", "rate": "sync", "interval": 3600000.0}), lasting=False)


class Endings(RuleBasedStateMachine):
    app: Celery
    broker: StreamBroker
    #: What runs, and who runs it.
    runs: list[tuple[Settler, Delivery]]
    there: set[str]
    on_lists: bool

    def __init__(self) -> None:
        super().__init__()
        flush(self.broker.client)
        self.broker.ensure_groups(QUEUES)
        self.broker.introduced(QUEUE)
        self.settlers = {
            name: Settler(self.broker, name, conf=streams_of(self.app).conf, hostname=name) for name in CONSUMERS
        }
        self.sync = self.app.tasks["sync"]
        #: Tasks whose lock ended when they started.
        self.started: set[str] = set()
        #: Revoked tasks, and those whose messages are delayed or held.
        self.revoked: set[str] = set()
        self.later: set[str] = set()
        self.bodies: dict[str, Any] = {}
        self.versions = 0
        #: Queue and key -> task id whose message holds the lock as long as it is there, and the queue to which it was
        #: retried, if it was.
        self.locks: dict[tuple[str, int], tuple[str, str | None]] = {}
        self.look()

    # -- what is known

    def holder(self, queue: str, key: int) -> str | None:
        """Return the task id of the message that holds a lock."""
        task_id, goes = self.locks.get((queue, key), (None, None))
        if goes is None:
            return task_id
        return task_id if self.locks.get((goes, key)) == (task_id, None) else None

    def binding(self, queue: str, key: int) -> str | None:
        """Return the holder of a lock for whoever stores a message; one that was revoked, and waits, makes way."""
        found = self.holder(queue, key)
        if found is not None and not self.binds(found, key):
            # It is freed where its message is.
            self.locks.pop((self.locks[queue, key][1] or queue, key))
            return None
        return found

    def held(self) -> list[str]:
        """Return the tasks that hold a lock."""
        return sorted({task_id for task_id, goes in self.locks.values() if goes is None})

    def task_of(self, key: int) -> Any:
        return self.app.tasks["newest" if key >= NEWEST else "brief" if key >= BRIEF else "sync"]

    # -- looking

    def places(self) -> dict[str, list[str]]:
        """Return task id -> queues, of all messages that wait, run, are delayed or held."""
        names = [self.broker.queue_keys(queue) for queue in QUEUES]
        commands: list[tuple[Any, ...]] = []
        for one in names:
            commands += [("XRANGE", key, "-", "+") for key in (*one.streams, *one.fronts)]
            commands += [("HVALS", one.delayed_messages), ("HVALS", one.shelf[0])]
        replies = iter(self.broker.client.pipeline(commands))
        found: dict[str, list[str]] = {}
        self.bodies, self.later = {}, set()
        for one in names:
            there = [Message.from_fields(flat) for _ in (*one.streams, *one.fronts) for _, flat in next(replies)]
            later = [unpack(packed) for _ in range(2) for packed in next(replies)]
            for message in (*there, *later):
                task_id = json.loads(message.headers)["id"]
                if message in later:
                    self.later.add(task_id)
                found.setdefault(task_id, []).append(one.queue)
                self.bodies[task_id] = json.loads(message.body)[0]
        return found

    def binds(self, task_id: str, key: int) -> bool:
        """Return whether a message that holds its lock binds others: not where it was revoked before it started."""
        return task_id not in self.revoked or (task_id not in self.later and key < NEWEST)

    def pending(self, consumer: str) -> list[Delivery]:
        found = []
        for ref, entry_id in self.broker.held_by(consumer, self.broker.streams(QUEUES)):
            # One that was deleted by hand is pending still.
            for _, fields in self.broker.client.call("XRANGE", ref.key, entry_id, entry_id):
                found.append(delivery(ref, entry_id, fields))
        return found

    def look(self) -> None:
        """Look once after each step at what the preconditions of all rules ask for."""
        self.runs = [(self.settlers[consumer], one) for consumer in CONSUMERS for one in self.pending(consumer)]
        self.on_lists = any(self.broker.client.exist(list_keys(queue, {}).lists) for queue in QUEUES)
        self.there = {
            suffix
            for suffix in ("dead", "delayed", "held")
            if self.broker.client.exist([f"celery-streams:{{{queue}}}:{suffix}" for queue in QUEUES])
        }

    def pick(self, data: Any) -> tuple[Settler, Delivery]:
        """Return one of the messages that run, and the settler of its consumer."""
        return self.runs[data.draw(st.integers(0, len(self.runs) - 1))]

    # -- publishing

    @initialize()
    def publish_some(self) -> None:
        for key in (0, 1, BRIEF, NEWEST):
            self.publish(key, delayed=False, bulky=key == 1)
        self.read("a/1", 3)

    @rule(key=KEYS, delayed=st.booleans(), bulky=st.booleans(), priority=st.sampled_from([0, 5, 9]))
    def publish(self, key: int, delayed: bool, bulky: bool, priority: int = 0) -> None:
        before = self.places()
        holder = self.binding(QUEUE, key)
        task_id = str(uuid.UUID(int=self.versions))  # what is drawn among tasks is the same in each run
        options = {"task_id": task_id, "countdown": 3600 if delayed else None, "priority": priority}
        task, self.versions = self.task_of(key), self.versions + 1
        args = (key, self.versions) if key >= NEWEST else (key,)
        with bulk(self.app) if bulky else nullcontext():
            result = task.apply_async(args, **options)
        if holder is None:
            assert result.id == task_id, "a stale lock: nothing was stored, and nobody holds it"
            assert task_id in self.places()
            self.locks[QUEUE, key] = (task_id, None)
        else:
            assert result.id == holder, "a second holder"
            assert self.places() == before
        if key >= NEWEST:
            assert self.bodies[result.id] == [key, self.versions]

    @precondition(lambda self: bool(self.locks))
    @rule(data=st.data())
    def revoke(self, data: Any) -> None:
        task_id = data.draw(st.sampled_from(self.held() or ["nobody"]))
        revoke(self.broker, [task_id], seconds=3600)
        self.revoked.add(task_id)

    @rule(key=st.integers(0, 2))
    def publish_a_pair_in_a_group(self, key: int) -> None:
        before = self.places()
        self.binding(QUEUE, key)  # asked whether it binds, whatever becomes of the group
        with pytest.raises(DuplicateTask):
            group(self.sync.s(key), self.sync.s(key)).apply_async()
        assert self.places() == before

    # -- on the way

    @precondition(lambda self: bool(self.locks))
    @rule(consumer=st.sampled_from(CONSUMERS), count=st.integers(1, 3))
    def read(self, consumer: str, count: int) -> None:
        self.broker.read(self.broker.streams(QUEUES), consumer, count=count)

    @precondition(lambda self: bool(self.runs))
    @rule(data=st.data(), behind=st.booleans(), later=st.booleans())
    def requeue(self, data: Any, behind: bool, later: bool) -> None:
        settler, one = self.pick(data)
        settler.settle(one, Outcome(Action.REQUEUE, behind=behind, delay=3600 if later else 0))

    @precondition(lambda self: bool(self.runs))
    @rule(data=st.data())
    def start(self, data: Any) -> None:
        settler, one = self.pick(data)
        assert one.message is not None
        key, task_id = json.loads(one.message.body)[0][0], json.loads(one.message.headers)["id"]
        if key >= NEWEST and task_id not in self.started:
            assert settler.starts(one)
            if self.holder(one.entry.stream.queue, key) == task_id:
                del self.locks[one.entry.stream.queue, key]
            self.started.add(task_id)

    @precondition(lambda self: bool(self.runs))
    @rule(data=st.data(), queue=st.sampled_from(QUEUES), later=st.booleans())
    def retry(self, data: Any, queue: str, later: bool) -> None:
        settler, one = self.pick(data)
        message = one.message
        assert message is not None
        headers, properties = message.decode()
        key = json.loads(message.body)[0][0]
        task_id, source = headers["id"], one.entry.stream.queue
        self.places()
        if key >= NEWEST or queue != source:
            before_it = self.binding(queue, key)
            holds = self.locks.get((source, key)) == (task_id, None)
            if holds and queue != source:
                self.locks[source, key] = (task_id, queue)
                if are_apart(self.broker, queue, source):
                    del self.locks[source, key]  # no script sees from one queue where the message of the lock went
            if before_it in (None, task_id) and (holds or key >= NEWEST):
                self.locks[queue, key] = (task_id, None)
                self.started.discard(task_id)
        headers["retries"] = (headers.get("retries") or 0) + 1
        held = HeldRetry(
            queue,
            encode(headers, properties, message.body),
            4_000_000_000_000 if later else 0,
            f"{headers['id']}:{headers['retries']}:{uuid.uuid4().hex}",
        )
        settler.settle(one, Outcome(Action.RETRY), held=held)

    @precondition(lambda self: bool(self.runs))
    @rule(consumer=st.sampled_from(CONSUMERS))
    def put_back(self, consumer: str) -> None:
        self.broker.put_back_all(self.broker.streams(QUEUES), consumer)

    @precondition(lambda self: bool(self.runs))
    @rule(crashes=st.sampled_from([[0, 0, 0], [3_600_000] * 3, []]))
    def recover_what_a_dead_worker_held(self, crashes: list[int]) -> None:
        for queue in QUEUES:
            self.broker.client.call("DEL", self.broker.queue_keys(queue).claims)
            recover(self.broker, queue, "b/1", idle_ms=0, turn_ms=1000, pauses_ms=crashes)

    @precondition(lambda self: "delayed" in self.there)
    @rule()
    def promote_everything(self) -> None:
        for queue in QUEUES:
            key = self.broker.queue_keys(queue).delayed
            for member in self.broker.client.call("ZRANGE", key, 0, -1):
                self.broker.client.call("ZADD", key, 1, member)
        self.broker.promote(QUEUES)

    @precondition(lambda self: bool(self.runs))
    @rule(data=st.data())
    def hold(self, data: Any) -> None:
        settler, one = self.pick(data)
        admit(self.broker, settler.consumer, one.entry, LANE, ahead=True, penalty_ms=3_600_000)

    @precondition(lambda self: "held" in self.there)
    @rule(everything=st.booleans())
    def release(self, everything: bool) -> None:
        for queue in QUEUES:
            if everything:
                let_go(self.broker, queue)
            else:
                self.broker.client.call("DEL", self.broker.queue_keys(queue).shelf[4])
                release(self.broker, [queue], {}, everything=True)

    # -- endings

    @precondition(lambda self: bool(self.runs))
    @rule(data=st.data())
    def done(self, data: Any) -> None:
        settler, one = self.pick(data)
        settler.settle(one, Outcome(Action.ACK))

    @precondition(lambda self: bool(self.runs))
    @rule(data=st.data())
    def acknowledged_by_the_parent_of_a_dead_child(self, data: Any) -> None:
        settler, one = self.pick(data)
        settler.acknowledge([one.entry])

    @precondition(lambda self: bool(self.runs))
    @rule(data=st.data())
    def dead_lettered(self, data: Any) -> None:
        settler, one = self.pick(data)
        settler.settle(one, Outcome(Action.DEAD, reason=Reason.FAILED))

    @precondition(lambda self: "dead" in self.there)
    @rule(data=st.data(), queue=st.sampled_from(QUEUES))
    def replay_a_dead_letter(self, data: Any, queue: str) -> None:
        letters = [letter for queue in QUEUES for letter in dead_letters(self.broker, queue)]
        if not letters:
            return
        letter = data.draw(st.sampled_from(letters))
        assert letter.message is not None
        key, task_id = json.loads(letter.message.body)[0][0], str(letter.task_id)
        before = self.places()
        if task_id in self.revoked:
            with pytest.raises(CannotRun):
                replay(self.broker, letter, queue=queue)
        elif self.binding(queue, key):
            with pytest.raises(CannotRun):
                replay(self.broker, letter, queue=queue)
            assert self.places() == before
        else:
            assert replay(self.broker, letter, queue=queue) is not None
            self.locks[queue, key] = (task_id, None)
            self.started.discard(task_id)

    @precondition(lambda self: bool(self.locks))
    @rule()
    def time_of_a_lock_is_over(self) -> None:
        for queue in QUEUES:
            names = self.broker.queue_keys(queue)
            for lock, said in pairs(self.broker.client.call("HGETALL", names.unique)).items():
                if json.loads(said).get("till"):
                    self.broker.client.call("HSET", names.unique, lock, json.dumps({**json.loads(said), "till": 1}))
            self.locks.pop((queue, BRIEF), None)

    @precondition(lambda self: self.on_lists)
    @rule(queue=st.sampled_from(QUEUES))
    def come_back_from_lists(self, queue: str) -> None:
        """What was moved to a list has no lock any more, and gets none."""
        Migration(self.broker, self.broker.client, options={}, visibility_timeout=3600).to_streams(queue)

    @precondition(lambda self: bool(self.locks))
    @rule(
        data=st.data(),
        queue=st.sampled_from(QUEUES),
        how=st.sampled_from(["purge", "lists", "all to lists", "forget", "lose"]),
    )
    def lose(self, data: Any, queue: str, how: str) -> None:
        """What becomes of many messages at once is one rule: as several it would hardly leave any for the others."""
        names = self.broker.queue_keys(queue)
        call = self.broker.client.call
        if how == "purge":
            streams_inspect.purge(self.broker, queue)
        elif how == "forget":
            forget_queue(self.broker, queue, with_messages=True)
            self.locks = {place: lock for place, lock in self.locks.items() if place[0] != queue}
            self.broker.ensure_groups(QUEUES)
        elif how != "lose":
            if not is_one_place(self.broker):
                return  # a cluster holds no lists
            timeout = 0.0 if how == "all to lists" else 3600.0
            Migration(self.broker, self.broker.client, options={}, visibility_timeout=timeout).to_lists(queue)
        else:
            gone = {
                "streams": [*names.streams, *names.fronts],
                "delayed": [names.delayed, names.delayed_messages],
                "held": list(names.shelf[:7]),
                "locks": [self.broker.queue_keys(queue).unique for queue in QUEUES],
                "everything": [key for node in self.broker.client.nodes for key in node.call("KEYS", "*")],
            }
            what = data.draw(st.sampled_from(sorted(gone)))
            for key in gone[what]:
                call("DEL", key)
            if what in ("locks", "everything"):
                self.locks.clear()  # what was published before is there without a lock
            self.broker.ensure_groups(QUEUES)

    @precondition(lambda self: bool(self.locks))
    @rule(data=st.data(), queue=st.sampled_from(QUEUES))
    def delete_by_hand(self, data: Any, queue: str) -> None:
        names = self.broker.queue_keys(queue)
        call = self.broker.client.call
        entries = [(key, one) for key in (*names.streams, *names.fronts) for one, _ in call("XRANGE", key, "-", "+")]
        if entries:
            call("XDEL", *data.draw(st.sampled_from(entries)))

    @precondition(lambda self: bool(self.locks))
    @rule(queue=st.sampled_from(QUEUES))
    def sweep(self, queue: str) -> None:
        self.broker.client.call("SCRIPT", "FLUSH")
        sweep(self.broker, queue)
        for place, (_, goes) in list(self.locks.items()):
            if place[0] == queue and goes and self.holder(*place) is None:
                del self.locks[place]

    # -- what always holds

    @invariant()
    def each_key_has_one_holder_at_most_and_it_is_found(self) -> None:
        there = self.places()
        assert all(len(queues) == 1 for queues in there.values())
        for place, (task_id, goes) in list(self.locks.items()):
            if goes is None and place[0] not in there.get(task_id, ()):
                del self.locks[place]
        for queue, key in self.locks:
            found = self.holder(queue, key)
            # A duplicate of those from NEWEST on replaces it.
            if key < NEWEST and found is not None and self.binds(found, key):
                assert self.task_of(key).apply_async((key,), queue=queue).id == found
        assert self.places() == there
        self.look()


def test_whatever_happens_no_lock_is_stale_and_none_has_two_holders(
    app: Callable[..., Celery],
) -> None:
    made = app(result_backend="cache+memory://", broker_transport_options={"priority_steps": [0, 3]})

    @made.task(name="sync", shared=False, streams_unique=True)
    def sync(key: int) -> None: ...

    @made.task(name="brief", shared=False, streams_unique=3600)
    def brief(key: int) -> None: ...

    @made.task(
        name="newest",
        shared=False,
        streams_unique=True,
        streams_unique_key="key",
        streams_unique_until="start",
        streams_unique_replace=True,
    )
    def newest(key: int, version: int) -> None: ...

    machine = type("Endings", (Endings,), {"app": made, "broker": streams_of(made).broker})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

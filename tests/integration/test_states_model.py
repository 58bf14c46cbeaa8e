"""States and attempts at each step of generated schedules, compared with what really happened to each message."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from celery import Celery
from celery.exceptions import Reject
from celery.worker import state as worker_state
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import celery_streams
from celery_streams import bulk
from celery_streams.attempts import MOST, of_history
from celery_streams.broker import StreamBroker
from celery_streams.dead_letters import dead_letters, purge_dead, replay
from celery_streams.delayed_messages import cancel, delayed_messages, run_now
from celery_streams.entries import Delivery
from celery_streams.message import Message
from celery_streams.pauses import pause_queue, resume_queue
from celery_streams.recovery import recover
from celery_streams.worker.executor import Executor
from celery_streams.worker.settle import Settler
from tests.support.bench import QUEUE, ActionError, Notes
from tests.support.redis_state import flush

#: What a message tells of a start with each body.
TOLD = {"error": "failed", "retry": "retried", "retry later": "retried", "requeue": "put back", "reject": "rejected"}

#: Bodies, and the states that they lead to.
BODIES = {
    "ok": "succeeded",
    "error": "dead",
    "retry": "retrying",
    "retry later": "retrying",
    "requeue": "queued",
    "reject": "dead",
}


@dataclass
class Known:
    """What really happened to a task."""

    task_id: str
    state: str
    retries: int = 0
    #: How its starts ended since it was published, or replayed.
    attempts: list[str] = field(default_factory=list)


class States(RuleBasedStateMachine):
    """One queue, two consumers, and a task that does what it is told."""

    app: ClassVar[Celery]
    broker: ClassVar[StreamBroker]
    #: Who the task asks what to do.
    now: ClassVar[States]
    #: What came about in any schedule.
    seen: ClassVar[set[str]]
    #: Most attempts of one message.
    most: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.client = type(self).broker.client
        flush(self.client)
        worker_state.reset_state()
        self.app.set_current()
        self.known: dict[str, Known] = {}
        self.paused = False
        self.body = "ok"
        self.numbers = itertools.count()
        streams = celery_streams.streams_of(self.app)
        streams.broker._introduced.clear()
        self.broker.ensure_groups([QUEUE])
        self.executors: dict[str, Executor] = {}
        for name in ("one", "two"):
            settler = Settler(self.broker, name, conf=streams.conf, hostname=name)
            self.executors[name] = Executor(self.app, name, streams, settler, Notes())
            self.executors[name].prepare()
        self.hands: dict[str, list[Delivery]] = {"one": [], "two": []}
        type(self).now = self

    # -- publish

    @rule(how=st.sampled_from(["now", "now", "bulk", "later", "bulk later"]))
    def publish(self, how: str) -> None:
        task_id = f"task-{next(self.numbers)}"
        options: dict[str, Any] = {"countdown": 3600} if how.endswith("later") else {}
        if how.startswith("bulk"):
            with bulk(self.app):
                self.app.tasks["told"].apply_async(task_id=task_id, **options)
        else:
            self.app.tasks["told"].apply_async(task_id=task_id, **options)
        self.known[task_id] = Known(task_id, "delayed" if options else "queued")

    # -- consumers

    @rule(name=st.sampled_from(["one", "two"]), count=st.integers(1, 3))
    def read(self, name: str, count: int) -> None:
        if self.paused:
            self.pause_or_resume()
        self.hands[name] += self.broker.read(self.broker.streams([QUEUE]), name, count=count)

    @rule(name=st.sampled_from(["one", "two"]), body=st.sampled_from(sorted(BODIES)))
    def run(self, name: str, body: str) -> None:
        if not self.hands[name]:
            self.read(name, 1)
        if not self.hands[name]:
            return
        delivery = self.hands[name].pop(0)
        known = self._of(delivery)
        self.body = body
        revoked = known.task_id in worker_state.revoked
        early = self._is_early(delivery)
        known.state = "running"
        self.seen.add("ran")
        self.executors[name].execute(delivery)
        if revoked:
            known.state = "revoked"
        elif early:
            known.state = "retrying" if known.retries else "delayed"
        else:
            known.state = BODIES[body]
            known.attempts += [TOLD[body]] if body in TOLD else []
            if body.startswith("retry"):
                known.retries += 1
        self.executors[name].around.settler.flush()

    @rule(name=st.sampled_from(["one", "two"]), started=st.booleans())
    def kill(self, name: str, started: bool) -> None:
        """A worker dies, and what it held goes back; what others hold, too, for nobody has the time to be idle."""
        if not self.hands[name]:
            self.read(name, 2)
        hands = self.hands[name]
        if not hands:
            return
        if started:
            known = self._of(hands[0])
            self.seen.add("killed")
            self.executors[name].around.settler.note_start(hands[0])
            assert celery_streams.state(self.app, known.task_id).state == "running"
        self.client.call("DEL", self.broker.queue_keys(QUEUE).claims)
        recover(self.broker, QUEUE, "claimer", idle_ms=0, turn_ms=1, pauses_ms=[0] * 1000, limit=1000)
        if started:
            known.state = "queued"
        for one in self.hands.values():
            for delivery in one:  # whether it was started nobody knows
                self._of(delivery).attempts.append("lost")
            one.clear()

    @rule(name=st.sampled_from(["one", "two"]))
    def put_back(self, name: str) -> None:
        self.executors[name].around.settler.put_back([one.entry for one in self.hands[name]])
        self.hands[name].clear()

    # -- people

    @rule(which=st.integers(0, 40))
    def revoke(self, which: int) -> None:
        waiting = [one for one in self.known.values() if one.state in ("queued", "delayed", "retrying")]
        if which < len(waiting):
            self.client.call("ZADD", f"{self.broker.prefix}:revoked", 9e9, waiting[which].task_id)
            worker_state.revoked.add(waiting[which].task_id)

    @rule()
    def cancel_all(self) -> None:
        for message in cancel(self.broker, QUEUE, [one.member for one in delayed_messages(self.broker, QUEUE)]):
            assert message is not None
            self.known[message.decode_headers()["id"]].state = "revoked"

    @rule()
    def run_all_now(self) -> None:
        for one in delayed_messages(self.broker, QUEUE):
            assert one.message is not None
            known = self.known[one.message.decode_headers()["id"]]
            if known.state == "delayed":
                known.state = "queued now"
        run_now(self.broker, QUEUE, [one.member for one in delayed_messages(self.broker, QUEUE)])

    @rule()
    def replay_all(self) -> None:
        for letter in list(dead_letters(self.broker, QUEUE)):
            known = self.known[str(letter.task_id)]
            if known.task_id not in worker_state.revoked:
                replay(self.broker, letter)
                known.state, known.attempts = "queued", []

    @rule()
    def purge_letters(self) -> None:
        if not list(dead_letters(self.broker, QUEUE)):
            self.publish("now")
            self.run("one", "error")
        letters = list(dead_letters(self.broker, QUEUE))
        purge_dead(self.broker, QUEUE, [one.entry_id for one in letters])
        for letter in letters:
            self.known[str(letter.task_id)].state = "failed"

    @rule()
    def pause_or_resume(self) -> None:
        self.paused = not self.paused
        if self.paused:
            pause_queue(self.broker, QUEUE)
        else:
            resume_queue(self.broker, QUEUE)

    # -- what is true

    @invariant()
    def state_is_what_happened(self) -> None:
        for known in self.known.values():
            self.check(known)

    @invariant()
    def attempts_are_what_happened(self) -> None:
        names = self.broker.queue_keys(QUEUE)
        found: list[tuple[Any, Any]] = []
        for key in (*names.streams, *names.fronts):
            for _, fields in self.client.call("XRANGE", key, "-", "+"):
                message = Message.from_fields(fields)
                found.append((message.decode_headers()["id"], of_history(message.decode_history())))
        for waiting in delayed_messages(self.broker, QUEUE):
            assert waiting.message is not None
            found.append((waiting.message.decode_headers()["id"], waiting.attempts))
        found += [(letter.task_id, letter.attempts) for letter in dead_letters(self.broker, QUEUE)]
        for task_id, attempts in found:
            happened = self.known[task_id].attempts
            assert [one.outcome for one in attempts] == happened[-MOST:], (self.known[task_id], attempts)
            assert [one.number for one in attempts] == list(range(1, len(happened) + 1))[-MOST:]
            type(self).most = max(type(self).most, len(happened))

    def check(self, known: Known) -> None:
        self.seen.add(known.state)
        found = celery_streams.state(self.app, known.task_id)
        expected = {known.state}
        if known.state in ("queued", "queued now", "delayed", "retrying"):
            if known.task_id in worker_state.revoked:
                expected = {"revoked"}
            elif self.paused and not found.until:
                expected = {"held"}
            elif known.state == "queued now":
                expected = {"queued"}
        assert found.state in expected, (known, found)
        if found.state == "retrying":
            assert found.attempt == known.retries + 1

    def _of(self, delivery: Delivery) -> Known:
        assert delivery.message is not None
        return self.known[delivery.message.decode_headers()["id"]]

    @staticmethod
    def _is_early(delivery: Delivery) -> bool:
        """Return whether it came before its eta, which lies far ahead in all schedules, and nobody asked for that."""
        assert delivery.message is not None
        return bool(delivery.message.decode_headers()["eta"]) and not delivery.message.decode_history().get("hurried")


def told(task: Any) -> None:
    """Do what the schedule says, and see that it runs."""
    machine = States.now
    assert celery_streams.state(machine.app, task.request.id).state == "running"
    assert celery_streams.state(machine.app, task.request.id).attempt == task.request.retries + 1
    if machine.body == "error":
        raise ActionError("no")
    if machine.body.startswith("retry"):
        raise task.retry(countdown=3600 if machine.body == "retry later" else 0)
    if machine.body in ("reject", "requeue"):
        raise Reject("no", requeue=machine.body == "requeue")


def test_states_are_what_happened_at_each_step_of_any_schedule(
    app: Callable[..., Celery], broker: StreamBroker
) -> None:
    States.app = app(streams_track=True, result_backend="cache+memory://")
    States.app.task(name="told", bind=True, shared=False, max_retries=None)(told)
    States.broker, States.seen, States.most = broker, set(), 0

    run_state_machine_as_test(
        States,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )

    # Schedules in which little happens would prove nothing.
    assert {"ran", "killed", "queued", "delayed", "retrying", "succeeded", "dead", "failed", "revoked"} <= States.seen
    assert States.most > 3

"""States of tracked tasks where they lie apart from their queue: a note that comes late says nothing that is past."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pytest
from celery import Celery

import celery_streams
from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.cluster import ClusterClient
from celery_streams.cluster_nodes import ClusterNodes
from celery_streams.dead_letters import dead_letters, replay
from celery_streams.entries import Delivery
from celery_streams.exceptions import BrokerUnavailable
from celery_streams.lanes import Lane, admit, release
from celery_streams.late_notes import LateNotes
from celery_streams.message import Message, encode
from celery_streams.notes import NOTE
from celery_streams.redis_url import ConnectionOptions
from celery_streams.scripts import Command, Script
from celery_streams.transfers import store_retry
from celery_streams.worker.outcome import Action, Event, Outcome, Reason
from celery_streams.worker.tracking import Tracking, noting
from tests.support.cluster import Cluster
from tests.support.eventually import eventually

TASK = "a-task"


class Behindhand:
    """A client whose scripts leave what they note behind for :meth:`arrive`: another process is faster meanwhile."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._late: list[Command] = []

    def run(self, script: Script, names: Sequence[Any], args: Sequence[Any]) -> Any:
        if script.apart is None:
            return self._client.run(script, names, args)
        first, behind = script.apart(names, args)
        reply = self._client.run(*first)
        self._late += behind(reply)
        return reply

    def attempt(self, commands: Sequence[Any]) -> list[Any]:
        """Publish a block: only what notes comes late."""
        return [self.run(*one) if isinstance(one[0], Script) else self._client.call(*one) for one in commands]

    def note(self, commands: Sequence[Command]) -> None:
        self._late += commands

    @property
    def late(self) -> Sequence[Command]:
        return self._late

    def arrive(self) -> None:
        assert self._late
        for command in self._late:
            self._client.run(*command)
        self._late.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@dataclass
class Scene:
    """One tracked task, two queues, consumers, and a broker whose notes come late."""

    app: Celery
    broker: StreamBroker
    late: StreamBroker
    queue: str
    other: str

    def message(self, *, retries: int = 0) -> Message:
        headers = {"id": TASK, "task": "t", "retries": retries, "streams_track": [3600, 4]}
        return encode(headers, {"priority": 0}, b"[]")

    def publish(self) -> None:
        self.broker.publish(self.queue, self.message())

    def read(self, consumer: str, queue: str = "") -> Delivery:
        (delivery,) = self.broker.read(self.broker.streams([queue or self.queue]), consumer, count=1)
        return delivery

    def start(self, consumer: str, queue: str = "") -> Delivery:
        delivery = self.read(consumer, queue)
        Tracking(self.broker, consumer).start(delivery)
        return delivery

    def noting(self, broker: StreamBroker, delivery: Delivery, outcome: Outcome, event: Event) -> StreamBroker:
        noted = Tracking(self.broker, "first").of_outcome(delivery, outcome, event, None, {})
        assert noted is not None
        return noting(broker, noted.when("0") if outcome.action is Action.ACK else noted)

    def succeed(self, consumer: str, delivery: Delivery) -> None:
        broker = self.noting(self.broker, delivery, Outcome(Action.ACK), Event.SUCCEEDED)
        assert broker.ack(consumer, [delivery.entry]) == []

    def die(self) -> None:
        self.publish()
        first = self.start("first")
        broker = self.noting(self.broker, first, Outcome(Action.DEAD, Reason.FAILED), Event.FAILED)
        assert broker.reject("first", first.entry, death=b'{"reason":"failed"}', max_length=None, ttl=None)

    def state(self) -> str:
        return celery_streams.state(self.app, TASK).state

    def arrive(self) -> None:
        client: Any = self.late.client
        client.arrive()


@pytest.fixture
def scene(nodes: Cluster, on_shards: StreamBroker) -> Iterator[Scene]:
    app = Celery("states", broker=nodes.url, set_as_current=False)
    app.conf.update(streams_url=nodes.url, streams_queues="*")
    celery_streams.install(app)
    # The state lies elsewhere, so that it is noted in a step of its own.
    queue, other = nodes.queues_apart(2)
    on_shards.ensure_groups([queue, other])
    late: Any = Behindhand(on_shards.client)
    yield Scene(app, on_shards, StreamBroker(late), queue, other)
    celery_streams.streams_of(app).reload()
    app.close()


def in_turn(scene: Scene) -> list[tuple[Command, str]]:
    """Have a task start twice; returns its notes, none of which was written, and what each says."""
    client: Any = scene.late.client
    published(scene)
    first = scene.read("first")
    Tracking(scene.late, "first").start(first)
    lost = scene.noting(scene.late, first, Outcome(Action.REQUEUE, crash=True), Event.LOST)
    assert lost.requeue("first", first.entry, history={})
    second = scene.read("second")
    Tracking(scene.late, "second").start(second)
    done = scene.noting(scene.late, second, Outcome(Action.ACK), Event.SUCCEEDED)
    assert done.ack("second", [second.entry]) == []
    return list(zip(client.late, ["queued", "running first", "queued", "running second", "succeeded"], strict=True))


def written(scene: Scene) -> str:
    said = json.loads(
        scene.broker.client.call("GET", keys.state("celery-streams", TASK)).split(b" ", 2)[2].split(b"\n")[0]
    )
    return " ".join(filter(None, (said["s"], said.get("w"))))


def published(scene: Scene) -> None:
    scene.late.publish(scene.queue, scene.message())


def published_with_a_bound(scene: Scene) -> None:
    scene.late.publish(scene.queue, scene.message(), max_length=10)


def delayed(scene: Scene) -> None:
    scene.late.delay(scene.queue, scene.message(), due_ms=1, member="m")
    scene.broker.promote([scene.queue])


def published_once_more(scene: Scene) -> None:
    scene.publish()
    scene.succeed("first", scene.start("first"))
    published(scene)


def delayed_once_more(scene: Scene) -> None:
    scene.publish()
    scene.succeed("first", scene.start("first"))
    delayed(scene)


def retried(scene: Scene) -> None:
    scene.publish()
    entry = scene.start("first").entry
    assert scene.late.retry("first", entry, scene.message(retries=1), queue=scene.queue)


def retried_for_later(scene: Scene) -> None:
    scene.publish()
    entry = scene.start("first").entry
    assert scene.late.retry("first", entry, scene.message(retries=1), queue=scene.queue, due_ms=1, member="m")
    scene.broker.promote([scene.queue])


def retried_elsewhere(scene: Scene) -> None:
    scene.publish()
    entry = scene.start("first").entry
    where: dict[str, Any] = {"queue": scene.other, "due_ms": 0, "member": "m"}
    assert store_retry(scene.late, "first", entry, scene.message(retries=1), **where)


def put_back(scene: Scene, delay_ms: int = 0) -> None:
    scene.publish()
    first = scene.start("first")
    broker = scene.noting(scene.late, first, Outcome(Action.REQUEUE, crash=True), Event.LOST)
    assert broker.requeue("first", first.entry, history={}, delay_ms=delay_ms)


def put_back_for_later(scene: Scene) -> None:
    put_back(scene, delay_ms=1)

    def promoted() -> bool:
        return scene.broker.promote([scene.queue]).moved == 1

    eventually(promoted)


def held(scene: Scene) -> None:
    scene.publish()
    first = scene.read("first")
    lane = Lane("t", '{"task":"t","rate":"t","interval":0,"limit":1}', lasting=True)
    noted = Tracking(scene.broker, "first").of_admission(first, lane)
    limits = {"t": {"interval": 0, "limit": 1}}
    asked: dict[str, Any] = {"ahead": False, "noted": noted, "penalty_ms": 1}
    assert not admit(scene.late, "first", first.entry, lane, **asked).admitted

    def released() -> bool:
        return release(scene.broker, [scene.queue], limits).count == 1

    eventually(released)


def replayed(scene: Scene) -> None:
    scene.die()
    (letter,) = dead_letters(scene.broker, scene.queue)
    assert replay(scene.late, letter)


def replayed_elsewhere(scene: Scene) -> None:
    scene.die()
    (letter,) = dead_letters(scene.broker, scene.queue)
    assert replay(scene.late, letter, queue=scene.other) == ""


HERE = [
    published,
    published_with_a_bound,
    delayed,
    published_once_more,
    delayed_once_more,
    retried,
    retried_for_later,
    put_back,
    put_back_for_later,
    held,
    replayed,
]
ELSEWHERE = [retried_elsewhere, replayed_elsewhere]


@pytest.mark.parametrize("done", [False, True], ids=["running", "done"])
@pytest.mark.parametrize("store", [*HERE, *ELSEWHERE])
def test_note_that_comes_late_does_not_hide_what_became_of_the_task_meanwhile(
    scene: Scene, store: Callable[[Scene], None], done: bool
) -> None:
    store(scene)
    second = scene.start("second", scene.other if store in ELSEWHERE else scene.queue)
    if done:
        scene.succeed("second", second)
    assert scene.state() == ("succeeded" if done else "running")

    scene.arrive()

    assert scene.state() == ("succeeded" if done else "running")


@pytest.mark.parametrize("store", [*HERE, *ELSEWHERE])
def test_note_that_comes_late_is_taken_while_nobody_has_started_the_task(
    scene: Scene, store: Callable[[Scene], None]
) -> None:
    store(scene)
    scene.arrive()

    assert scene.state() in ("queued", "retrying")


@pytest.mark.parametrize("arrived", [False, True], ids=["all are kept", "the node had got the first"])
def test_notes_that_are_written_late_in_any_order_end_with_the_last(scene: Scene, arrived: bool) -> None:
    notes = in_turn(scene)
    began = time.monotonic()

    for count in range(1, len(notes) + 1):
        for order in permutations(range(count)):
            scene.broker.client.call("DEL", keys.state("celery-streams", TASK))
            for place, at in enumerate(order):
                script, names, (on, kept_ms, must, *rest) = notes[at][0]
                # One as long ago as the steps are apart, at least.
                ago = int((time.monotonic() - began) * 1000) + 10 * (len(notes) - at)
                late = must if arrived and place == 0 else f"~{ago} {must}"
                scene.broker.client.run(script, names, [on, kept_ms, late, *rest])

            assert written(scene) == notes[count - 1][1], order


@pytest.fixture
def impatient(nodes: Cluster) -> Iterator[Callable[[], StreamBroker]]:
    """Make brokers that wait for a node for a moment only."""
    made: list[ClusterClient] = []
    options = ConnectionOptions(transport={"socket_timeout": 0.2, "socket_connect_timeout": 0.2})

    def make() -> StreamBroker:
        made.append(ClusterClient(nodes.url, options))
        return StreamBroker(made[-1])

    yield make
    for one in made:
        one.close()


def test_states_that_their_node_did_not_take_are_noted_when_it_is_back(
    scene: Scene, nodes: Cluster, impatient: Callable[[], StreamBroker]
) -> None:
    stuck = nodes.owner(keys.state("celery-streams", TASK))
    queue = next(name for name in nodes.queues_apart(3) if nodes.owner(f"celery-streams:{{{name}}}") != stuck)
    publisher, worker = impatient(), impatient()
    for one in (publisher, worker):
        one.ensure_groups([queue])
        one.client.call("GET", keys.state("celery-streams", TASK))  # so that there are connections to all nodes

    nodes.clients[stuck].call("CLIENT", "PAUSE", 1_500, "ALL")
    publisher.publish(queue, scene.message())
    (delivery,) = worker.read(worker.streams([queue]), "w", count=1)
    Tracking(worker, "w").start(delivery)
    began = time.monotonic()
    assert scene.noting(worker, delivery, Outcome(Action.ACK), Event.SUCCEEDED).ack("w", [delivery.entry]) == []
    waited = time.monotonic() - began

    eventually(lambda: scene.state() == "succeeded")
    assert waited < 0.2, "only the first one waited for the node"


def test_notes_are_kept_in_bounded_number_and_for_a_bounded_time(
    nodes: Cluster, shards: ClusterClient, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []

    def refuse(commands: Sequence[Command]) -> list[Any]:
        tried.append(len(commands))
        return [BrokerUnavailable("away")] * len(commands)

    late = LateNotes(
        ClusterNodes([("127.0.0.1", nodes.servers[0].port)], shards._new_pool, ConnectionOptions(), shown=""),
        refuse,
        most=5,
        seconds=1.0,
    )
    for number in range(8):
        late.keep([(NOTE, [f"key-{number}"], ["0", 1_000, "", b"", "1"])], since=time.monotonic(), away=True)

    assert len(late) == 5
    assert [late.takes(f"key-{number}") for number in (3, 7)] == [True, True]

    eventually(lambda: len(late) == 0)
    assert tried
    assert sum(one.args[0] for one in caplog.records if "were not noted" in one.message) == 8  # type: ignore[index,misc]
    assert not late.takes("key-7")

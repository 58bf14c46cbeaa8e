"""Dead children: what becomes of everything that a child held when it died."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery, Task, signals

from celery_streams import inspect, streams_of
from celery_streams.attempts import parse
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.entries import Delivery, Entry
from celery_streams.lanes import place_of
from celery_streams.limits import lane_of
from celery_streams.worker.dead_children import Casualty, Cause, DeadChildren
from celery_streams.worker.lost_tasks import LostTasks
from celery_streams.worker.outcome import Event
from celery_streams.worker.slots import Snapshot
from celery_streams.worker.task_options import limits_in_force
from tests.support.eventually import eventually
from tests.support.redis_state import StreamState, read_all, redis_state
from tests.support.versions import needs_celery

QUEUE = "celery"
STREAM = "celery-streams:{celery}"
DEAD = "w@h/1.dead"
SHOT = Snapshot(
    pid=10, batch=1, finished=(), running=None, waiting=(), started_at=0.0, soft=None, hard=None,
    acked_early=False, exited=False, done=0,
)  # fmt: skip
KILLED = -9


class Clock:
    """A time that never comes to a pause."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


class Scene:
    """An app whose child died, with what it held."""

    def __init__(self, app: Celery, broker: StreamBroker) -> None:
        app.set_current()
        self.app = app
        self.broker = broker
        self.told: list[Any] = []
        self.lost = LostTasks(app, "w@h", streams_of(app), eventer=lambda: None)
        self.dead = DeadChildren(self.lost)
        broker.ensure_groups([QUEUE])

    def task(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        return lambda fun: self.app.task(name=fun.__name__, shared=False, **options)(fun)

    def held(self, count: int) -> list[Delivery]:
        found = read_all(self.broker, [QUEUE], DEAD, count=count)
        assert len(found) == count
        return found

    def died(
        self,
        *,
        running: Delivery | None = None,
        finished: list[Delivery] | None = None,
        waiting: list[Delivery] | None = None,
        cause: Cause | None = None,
        early: bool = False,
        exited: bool = False,
        clean: bool = False,
    ) -> None:
        """Let the child die; returns when everything is done about it."""
        shot = replace(
            SHOT,
            running=None if running is None else running.entry,
            finished=tuple(one.entry for one in finished or ()),
            waiting=tuple(one.entry for one in waiting or ()),
            acked_early=early,
            exited=exited,
        )
        kept = running.message if early and running is not None else None
        self.dead.take(
            Casualty(DEAD, shot, KILLED, cause or Cause(), kept=kept, streams=self.broker.streams([QUEUE]), clean=clean)
        )

    def finish(self) -> None:
        clock = Clock()
        eventually(lambda: self.dead.run_once(now=clock) == 0)

    def left(self) -> dict[str, Any]:
        status = inspect.queue_status(self.broker, QUEUE)
        return {
            "waiting": status.waiting,
            "pending": status.pending,
            "delayed": status.delayed,
            "dead": [death["reason"] for death in self.deaths()],
        }

    def stream(self) -> StreamState:
        found = redis_state(self.broker.client)[STREAM]
        assert isinstance(found, StreamState)
        return found

    def deaths(self) -> list[dict[str, Any]]:
        found = redis_state(self.broker.client).get(f"{STREAM}:dead")
        return [] if found is None else [json.loads(entry["death"]) for entry in found.entries.values()]

    def histories(self) -> list[dict[str, Any]]:
        return [json.loads(entry.get("history", b"{}")) for entry in self.stream().entries.values()]


NOTHING: dict[str, Any] = {"waiting": 0, "pending": 0, "delayed": 0, "dead": []}


def but(**more: Any) -> dict[str, Any]:
    return {**NOTHING, **more}


@pytest.fixture
def make(app: Callable[..., Celery], broker: StreamBroker) -> Callable[..., Scene]:
    return lambda **settings: Scene(app(**{"result_backend": "cache+memory://", **settings}), broker)


@pytest.fixture
def scene(make: Callable[..., Scene]) -> Scene:
    made = make()

    @made.task()
    def work(*args: Any) -> None:
        """Never runs here."""

    return made


def publish(scene: Scene, name: str = "work", **options: Any) -> Any:
    return scene.app.tasks[name].apply_async(**options)


def crashed_before(scene: Scene, times: int, name: str = "work") -> tuple[Any, Delivery]:
    """Publish a message, and deliver it as one that killed so many processes."""
    result = publish(scene, name)
    (first,) = scene.held(1)
    scene.broker.requeue(DEAD, first.entry, history={"crashes": times, "redelivered": 1})
    (delivery,) = scene.held(1)
    return result, delivery


# -- what was running


def test_running_task_of_a_killed_child_waits_again_at_once_with_its_crash_counted(scene: Scene) -> None:
    publish(scene)
    (running,) = scene.held(1)

    scene.died(running=running)

    assert scene.left() == but(waiting=1)
    (history,) = scene.histories()
    (attempt,) = parse(history.pop("attempts"))
    assert (attempt.number, attempt.outcome, attempt.detail, attempt.worker) == (
        1, "crashed", "signal 9 (SIGKILL)", DEAD,
    )  # fmt: skip
    assert history == {"first": running.entry_id.decode(), "crashes": 1, "redelivered": 1, "worker": "w@h"}
    assert scene.lost.crashes == 1


def test_second_crash_is_followed_by_a_pause(scene: Scene) -> None:
    _, running = crashed_before(scene, 1)

    scene.died(running=running)

    assert scene.left() == but(delayed=1)


def test_task_that_reached_the_limit_of_crashes_is_dead_and_failed_and_all_are_told(scene: Scene) -> None:
    told: list[Any] = []

    @scene.task()
    def errback(task_id: str) -> None:
        """Never runs here."""

    class Told(Task):
        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            told.append(("on_failure", type(exc).__name__, task_id))

    @scene.task(base=Told)
    def poison() -> None:
        """Never runs here."""

    def receiver(task_id: str, exception: Any, **_: Any) -> None:
        told.append(("signal", type(exception).__name__, task_id))

    result = publish(scene, "poison", link_error=errback.s())
    (first,) = scene.held(1)
    scene.broker.requeue(DEAD, first.entry, history={"crashes": 4})
    (running,) = scene.held(1)
    signals.task_failure.connect(receiver, weak=False)

    try:
        scene.died(running=running)
    finally:
        signals.task_failure.disconnect(receiver)

    (death,) = scene.deaths()
    assert (death["reason"], death["crashes"], death["task"], death["task_id"]) == ("crashed", 5, "poison", result.id)
    assert "signal 9" in death["exception"]
    assert type(result.result).__name__ == "WorkerLostError"
    assert result.state == "FAILURE"
    assert ("signal", "WorkerLostError", result.id) in told
    assert scene.left() == but(waiting=1, dead=["crashed"])  # the errback waits


def test_task_that_says_it_must_not_run_again_is_dead_at_its_first_crash(scene: Scene) -> None:
    @scene.task(reject_on_worker_lost=False)
    def once() -> None:
        """Never runs here."""

    result = once.delay()
    (running,) = scene.held(1)

    scene.died(running=running)

    assert (scene.left(), result.state) == (but(dead=["crashed"]), "FAILURE")


def test_task_that_exceeded_its_hard_limit_failed(scene: Scene) -> None:
    result = publish(scene)
    (running,) = scene.held(1)

    scene.died(running=running, cause=Cause(hard_limit=3, entry=running.entry))

    assert scene.left() == but(dead=["time-limit"])
    assert type(result.result).__name__ == "TimeLimitExceeded"


def test_hard_limit_of_another_task_is_no_reason(scene: Scene) -> None:
    publish(scene)
    (running,) = scene.held(1)

    scene.died(running=running, cause=Cause(hard_limit=3, entry=Entry(running.stream, b"1-1")))

    assert scene.left() == but(waiting=1)


def test_task_that_was_cancelled_by_a_cold_shutdown_waits_again_and_is_no_crash(scene: Scene) -> None:
    publish(scene)
    (running,) = scene.held(1)

    scene.died(running=running, cause=Cause(cancelled=True))

    assert scene.left() == but(waiting=1)
    (history,) = scene.histories()
    assert ("crashes" in history, history["redelivered"]) == (False, 1)


def test_task_that_was_revoked_while_it_ran_is_settled_already(scene: Scene) -> None:
    publish(scene)
    (running,) = scene.held(1)
    scene.broker.ack(DEAD, [running.entry])

    scene.died(running=running, cause=Cause(revoked=True))

    assert scene.left() == NOTHING


def test_task_whose_body_raised_system_exit_is_dead(scene: Scene) -> None:
    result = publish(scene)
    (running,) = scene.held(1)

    scene.died(running=running, exited=True)

    assert (scene.left(), result.state) == (but(dead=["crashed"]), "FAILURE")


@needs_celery((5, 7), "before, a success that was stored does not keep a lost task from running again")
def test_task_that_stored_its_success_before_its_process_died_is_acknowledged(scene: Scene) -> None:
    result = publish(scene)
    (running,) = scene.held(1)
    scene.app.backend.mark_as_done(result.id, 42)

    scene.died(running=running)

    assert (scene.left(), result.get(timeout=1)) == (NOTHING, 42)


def test_entry_that_another_worker_has_claimed_is_left_alone(scene: Scene) -> None:
    publish(scene)
    (running,) = scene.held(1)
    scene.broker.client.call("XCLAIM", STREAM, "celery-streams", "other", 0, running.entry_id)

    scene.died(running=running)

    assert (scene.left(), scene.lost.crashes) == (but(pending=1), 0)


def test_lost_task_that_was_acknowledged_early_is_dead_and_failed(scene: Scene) -> None:
    result = publish(scene)
    (running,) = scene.held(1)
    scene.broker.ack(DEAD, [running.entry])

    scene.died(running=running, early=True)

    assert (scene.left(), result.state) == (but(dead=["crashed"]), "FAILURE")


def test_task_whose_early_acknowledgement_never_reached_redis_runs_again(scene: Scene) -> None:
    publish(scene)
    (running,) = scene.held(1)

    scene.died(running=running, early=True)

    assert scene.left() == but(waiting=1)


def test_lost_entry_that_cannot_be_decoded_goes_its_way_all_the_same(scene: Scene) -> None:
    fields = ["headers", "{", "properties", "{}", "body", "x", "history", "nonsense"]
    scene.broker.client.call("XADD", STREAM, "*", *fields)
    (running,) = scene.held(1)

    scene.died(running=running)
    scene.finish()

    assert scene.left() == but(waiting=1)
    assert scene.dead.unfinished == 0


class NoBackend:
    """In the place of a result backend that is away."""

    max_retries = 1

    def as_uri(self) -> str:
        return "away://"

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("the result backend is away")


@pytest.mark.parametrize("hard_limit", [None, 3.0])
def test_lost_task_is_settled_while_the_result_backend_is_away(scene: Scene, hard_limit: float | None) -> None:
    _, running = crashed_before(scene, 4)
    scene.app.tasks["work"].backend = NoBackend()

    scene.died(running=running, cause=Cause(hard_limit=hard_limit, entry=running.entry))
    scene.finish()

    assert len(scene.deaths()) == 1
    assert {**scene.left(), "dead": []} == NOTHING


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, GeneratorExit, MemoryError])
@pytest.mark.parametrize("where", ["receiver", "hook", "backend"])
@pytest.mark.parametrize("hard_limit", [None, 3.0])
def test_lost_task_is_settled_whatever_those_raise_who_are_told(
    scene: Scene, hard_limit: float | None, where: str, error: type[BaseException]
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error("whoever is told")

    _, running = crashed_before(scene, 4)
    work = scene.app.tasks["work"]
    if where == "hook":
        work.on_failure = fail
    elif where == "backend":
        work.backend.mark_as_failure = fail
    else:
        signals.task_failure.connect(fail, weak=False)
    try:
        scene.died(running=running, cause=Cause(hard_limit=hard_limit, entry=running.entry))
        scene.finish()
    finally:
        signals.task_failure.disconnect(fail)

    assert len(scene.deaths()) == 1
    assert {**scene.left(), "dead": []} == NOTHING


# -- what was not running


def test_what_had_finished_is_acknowledged_and_what_had_not_started_goes_back(scene: Scene) -> None:
    for _ in range(3):
        publish(scene)
    done, running, waiting = scene.held(3)

    scene.died(finished=[done], running=running, waiting=[waiting])

    assert scene.left() == but(waiting=2)
    assert sorted(history.get("crashes", 0) for history in scene.histories()) == [0, 1]


def test_consumer_of_the_dead_child_is_forgotten(scene: Scene) -> None:
    publish(scene)
    (waiting,) = scene.held(1)

    scene.died(waiting=[waiting])

    assert scene.stream().consumers == {"celery-streams": []}


def test_entry_that_redis_gave_to_the_dead_connection_is_found_by_a_second_look(scene: Scene) -> None:
    scene.died()
    publish(scene)
    scene.held(1)
    before = scene.left()

    scene.finish()

    assert (before, scene.left()) == (but(pending=1), but(waiting=1))
    assert scene.stream().consumers == {"celery-streams": []}


def test_child_that_left_by_itself_needs_nothing(scene: Scene) -> None:
    publish(scene)
    before = redis_state(scene.broker.client)

    scene.died(clean=True)

    assert redis_state(scene.broker.client) == before
    assert scene.dead.unfinished == 0


def test_stream_that_was_deleted_does_not_keep_what_was_held_on_others(scene: Scene) -> None:
    publish(scene, priority=0)
    publish(scene, priority=3)
    held = scene.held(2)
    scene.broker.client.call("DEL", STREAM)

    scene.died(finished=[held[0]], waiting=[held[1]])
    scene.broker.ensure_groups([QUEUE])
    scene.finish()

    assert scene.left() == but(waiting=1)


# -- Redis away


def test_work_goes_on_where_it_was_when_redis_is_back(app: Callable[..., Celery]) -> None:
    with EmbeddedRedis(appendonly=True) as server:
        client = RedisClient(server.url)
        scene = Scene(app(broker_url=server.url, result_backend="cache+memory://"), StreamBroker(client))

        @scene.task()
        def work() -> None:
            """Never runs here."""

        for _ in range(3):
            publish(scene)
        done, running, waiting = scene.held(3)
        server.kill()

        scene.died(finished=[done], running=running, waiting=[waiting])
        unfinished = scene.dead.unfinished
        server.start()
        client.close()  # what it kept open is closed at the other end
        scene.finish()

        assert unfinished == 1
        assert (scene.left(), scene.lost.crashes) == (but(waiting=2), 1)
        client.close()


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["crashed", "timed out", "interrupted", "exited", "exhausted", "revoked", "early"])
@pytest.mark.parametrize("priority", [0, 9])
def test_places_of_what_a_dead_child_ran_are_given_back_in_the_step_that_settles_it(
    make: Callable[..., Scene], how: str, priority: int
) -> None:
    scene = make(streams_delivery_limit=1 if how == "exhausted" else 5)

    @scene.task(streams_concurrency=1, streams_acks_late=how != "early")
    def narrow() -> None:
        """Never runs here."""

    for _ in range(3):
        narrow.apply_async(priority=priority)
    running, *others = scene.held(3)
    settler = scene.lost.settler(DEAD)
    limits = limits_in_force(narrow, scene.lost.streams)
    for one in (running, *others):
        settler.admit(one, lane_of("narrow", limits, (None, None), node=""), "narrow", limits, ahead=False)
    if how == "early":
        settler.ack_now(running)

    if how == "revoked":
        scene.lost.settler(DEAD).acknowledge([running.entry], event=Event.REVOKED)
    cause = Cause(
        hard_limit=1.0 if how == "timed out" else None,
        entry=running.entry,
        cancelled=how == "interrupted",
        revoked=how == "revoked",
    )
    scene.died(running=running, cause=cause, exited=how == "exited", early=how == "early")

    places = scene.broker.client.call("HKEYS", scene.broker.queue_keys(QUEUE).shelf[5])
    assert len(places) == 1
    assert place_of(scene.broker, running.entry).encode() not in places
    assert inspect.queue_status(scene.broker, QUEUE).held == 1

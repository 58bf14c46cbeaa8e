"""The child's way through a batch, while the parent takes back what it has not started."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import billiard
import pytest
from celery import Celery
from celery.exceptions import Reject

from celery_streams import inspect, streams_of
from celery_streams.broker import StreamBroker
from celery_streams.conf import StreamsConf
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.message import Message, encode, encode_history
from celery_streams.worker.child import ChildLoop, ChildOptions
from celery_streams.worker.outcome import Circumstances, Event, decide
from celery_streams.worker.settle import Settler
from celery_streams.worker.slots import SlotTable
from tests.support.redis_state import delivered

ME = "w@h/1"


def message(task: str, number: int, *, crashes: int = 0) -> Message:
    properties = {"content_type": "application/json", "content_encoding": "utf-8", "priority": 0}
    plain = encode({"task": task, "id": f"{task}-{number}"}, properties, json.dumps([[number], {}, {}]))
    history = encode_history({"crashes": crashes}) if crashes else b""
    return Message(plain.headers, plain.properties, plain.body, history)


@pytest.fixture
def table() -> Iterator[SlotTable]:
    made = SlotTable()
    yield made
    made.close()


def run_batch(
    project: Celery,
    broker: StreamBroker,
    table: SlotTable,
    messages: Sequence[Message],
    *,
    loops: list[ChildLoop] | None = None,
    options: ChildOptions = ChildOptions(),  # noqa: B008  (frozen)
) -> None:
    """Publish the messages and let the child of slot 0 read and run them as one batch."""
    broker.ensure_groups(["celery"])
    for one in messages:
        broker.publish("celery", one)
    streams = broker.streams(["celery"])
    table.streams[:] = streams
    ours, theirs = billiard.Pipe(duplex=True)
    loop = ChildLoop(project, "w@h", ME, table.slot(0), theirs, options=options)
    if loops is not None:
        loops.append(loop)
    loop._on_consume(streams, range(len(streams)))
    loop.executor.prepare()
    loop._run_batch(broker.read(streams, ME, count=len(messages)))
    loop.settler.flush()
    ours.close()


def test_suspect_that_the_parent_took_back_meanwhile_is_not_run(
    app: Callable[..., Celery], broker: StreamBroker, table: SlotTable
) -> None:
    project = app(result_backend="cache+memory://")
    project.set_current()
    ran: list[Any] = []
    slot = table.slot(0)

    @project.task(name="long", shared=False, ignore_result=True)
    def long(number: int) -> None:
        shot = slot.restrict()  # what the parent does when a task turns out long
        broker.put_back(ME, shot.waiting)
        ran.append("long")

    @project.task(name="suspect", shared=False, ignore_result=True)
    def suspect(number: int) -> None:
        ran.append(f"suspect {number}")

    run_batch(project, broker, table, [message("long", 1), message("suspect", 2, crashes=1), message("suspect", 3)])

    status = inspect.queue_status(streams_of(project).broker, "celery")
    assert ran == ["long"]
    assert (status.waiting, status.pending) == (2, 0)


def test_suspect_is_run_while_nothing_else_is_held(
    app: Callable[..., Celery], broker: StreamBroker, table: SlotTable
) -> None:
    project = app(result_backend="cache+memory://")
    project.set_current()
    slot = table.slot(0)
    held: list[tuple[int, int]] = []

    @project.task(name="suspect", shared=False, ignore_result=True)
    def suspect(number: int) -> None:
        pending = inspect.queue_status(streams_of(project).broker, "celery").pending
        held.append((pending, len(slot.snapshot().waiting)))

    run_batch(project, broker, table, [message("suspect", 1, crashes=1), message("suspect", 2), message("suspect", 3)])

    assert held == [(1, 0)]
    assert inspect.queue_status(streams_of(project).broker, "celery").waiting == 2


def test_child_that_outgrows_its_memory_in_a_batch_gives_the_rest_of_it_back(
    app: Callable[..., Celery], broker: StreamBroker, table: SlotTable
) -> None:
    project = app(result_backend="cache+memory://")
    project.set_current()
    ran: list[int] = []

    @project.task(name="note", shared=False, ignore_result=True)
    def note(number: int) -> None:
        ran.append(number)

    run_batch(project, broker, table, [message("note", n) for n in range(3)], options=ChildOptions(max_memory=1))

    status = inspect.queue_status(streams_of(project).broker, "celery")
    assert ran == [0]
    assert (status.waiting, status.pending) == (2, 0)


@pytest.mark.parametrize("outcome", ["held back", "retried", "dead", "done"])
def test_parent_does_not_beat_for_a_batch_that_is_settled(
    app: Callable[..., Celery], broker: StreamBroker, table: SlotTable, outcome: str
) -> None:
    project = app(result_backend="cache+memory://")
    project.set_current()
    rate_limit = "1/h" if outcome == "held back" else None

    @project.task(name="t", shared=False, ignore_result=True, bind=True, rate_limit=rate_limit)
    def t(self: Any, number: int) -> None:
        if outcome == "retried":
            raise self.retry(countdown=600)
        if outcome == "dead":
            raise Reject("no use", requeue=False)

    run_batch(project, broker, table, [message("t", 0)])
    run_batch(project, broker, table, [message("t", number) for number in (1, 2)])

    shot = table.slot(0).snapshot()
    assert (shot.finished, shot.running, shot.waiting) == ((), None, ())


def test_task_whose_outcome_was_not_stored_is_not_told_as_finished(
    app: Callable[..., Celery], table: SlotTable
) -> None:
    with EmbeddedRedis() as server:
        project = app(broker_url=server.url, result_backend="cache+memory://")
        project.set_current()
        slot = table.slot(0)
        loops: list[ChildLoop] = []

        @project.task(name="fail", shared=False, ignore_result=True)
        def fail(number: int) -> None:
            server.kill()
            loops[0].stopping = True
            raise ValueError(number)

        broker = StreamBroker(RedisClient(server.url))
        run_batch(project, broker, table, [message("fail", 1), message("fail", 2)], loops=loops)

    shot = slot.snapshot()
    assert (shot.finished, shot.running is not None) == ((), True)


def test_acknowledgements_that_were_given_up_are_kept_for_the_parent(app: Callable[..., Celery]) -> None:
    with EmbeddedRedis() as server:
        broker = StreamBroker(RedisClient(server.url))
        (held,) = delivered(broker, "celery", ME, message("t", 1))
        settler = Settler(broker, ME, conf=StreamsConf(), hostname="w@h", give_up=lambda: True)
        confirmed: list[bool] = []
        settler.on_confirmed = lambda: confirmed.append(True)
        settler.settle(held, decide(Event.SUCCEEDED, Circumstances()))
        server.kill()

        settler.flush()

    assert (settler.gave_up, settler.waiting, confirmed) == (True, 1, [])

"""Other kinds of messages and tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from celery import Celery, Task, chord, current_task, signals
from celery.exceptions import Reject
from celery.worker import state as worker_state
from celery.worker.request import Request

from celery_streams.broker import StreamBroker
from tests.support.bench import ME, NOTHING, QUEUE, Bench, but
from tests.support.versions import needs_celery


def test_message_of_protocol_1_runs(bench: Bench) -> None:
    @bench.task()
    def add(x: int, y: int) -> int:
        return x + y

    bench.publish({}, {"task": "add", "id": "one", "args": [1], "kwargs": {"y": 2}, "retries": 0, "eta": None})

    bench.run()

    assert bench.left() == NOTHING
    assert bench.app.AsyncResult("one").get(timeout=1) == 3


def test_compressed_body_runs(bench: Bench) -> None:
    @bench.task()
    def note(text: str) -> None:
        bench.ran.append(text)

    note.apply_async(("x" * 10_000,), compression="zlib")

    bench.run()

    assert (bench.ran, bench.left()) == (["x" * 10_000], NOTHING)


class OddError(BaseException):
    """What is no Exception."""


class CountingRequest(Request):
    accepted: ClassVar[list[str]] = []

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        self.accepted.append(self.id)
        super().on_accepted(pid, time_accepted)


class WithRequest(Task):
    Request = CountingRequest


def test_request_class_of_a_task_is_used(bench: Bench) -> None:
    @bench.task(base=WithRequest)
    def note() -> None:
        bench.ran.append("ran")

    result = note.delay()

    bench.run()

    assert (bench.ran, bench.left(), CountingRequest.accepted[-1:]) == (["ran"], NOTHING, [result.id])


def test_receivers_of_task_received_are_told(bench: Bench) -> None:
    @bench.task()
    def note() -> None:
        bench.ran.append("ran")

    def receiver(request: Any, **_: Any) -> None:
        bench.ran.append(("received", request.id))

    result = note.delay()
    signals.task_received.connect(receiver, weak=False)
    try:
        bench.run()
    finally:
        signals.task_received.disconnect(receiver)

    assert bench.ran == [("received", result.id), "ran"]


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, OddError])
@pytest.mark.parametrize("where", ["receiver", "request", "strategy"])
def test_message_is_settled_though_code_around_its_task_raises_what_is_no_exception(
    bench: Bench, where: str, error: type[BaseException]
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise error("around")

    request = type("OddRequest", (Request,), {"__init__": fail})
    bases: dict[str, dict[str, Any]] = {
        "receiver": {}, "request": {"Request": request}, "strategy": {"Strategy": fail}
    }  # fmt: skip

    @bench.task(base=type("Odd", (Task,), bases[where]))
    def note() -> None:
        bench.ran.append("ran")

    note.delay()
    if where == "receiver":
        signals.task_received.connect(fail, weak=False)
    try:
        bench.run()
    finally:
        signals.task_received.disconnect(fail)

    assert (bench.ran, bench.left()) == ([], but(dead=["invalid"]))


def test_request_says_where_the_message_came_from(both: Bench) -> None:
    @both.task(bind=True)
    def note(self: Task) -> None:
        both.ran.append((self.request.delivery_info, self.request.hostname.split("@")[0], self.request.is_eager))

    note.apply_async(priority=3)

    both.run()

    ((info, _, eager),) = both.ran
    assert info == {"exchange": "", "routing_key": QUEUE, "priority": 3, "redelivered": False}
    assert eager is False


def test_second_delivery_is_marked_as_redelivered(both: Bench) -> None:
    @both.task(bind=True)
    def note(self: Task) -> None:
        both.ran.append(self.request.delivery_info["redelivered"])
        if len(both.ran) == 1:
            raise Reject("again", requeue=True)

    note.delay()

    both.run()
    both.run()

    assert both.ran == [False, True]


def test_task_keeps_its_request_when_the_tasks_are_read_again_while_it_runs(both: Bench) -> None:
    @both.task(bind=True)
    def note(self: Task) -> None:
        both.executor.prepare()
        thread = threading.Thread(target=lambda: both.ran.append((self.request.id, bool(current_task))))
        thread.start()
        thread.join()
        both.ran.append((self.request.id, current_task.name))

    result = note.delay()

    both.run()

    assert both.ran == [(None, False), (result.id, "note")]


def test_task_that_succeeded_before_is_not_run_again_where_that_is_asked_for(
    app: Callable[..., Celery], broker: StreamBroker
) -> None:
    bench = Bench(app(worker_deduplicate_successful_tasks=True), broker)

    @bench.task()
    def note() -> None:
        bench.ran.append("ran")

    result = note.delay()
    delivery = bench.read()
    bench.executor.prepare()
    bench.executor.execute(delivery)
    worker_state.successful_requests.clear()
    bench.broker.requeue(ME, delivery.entry, history={"redelivered": 1})
    del bench.settler._collected.entries[:]

    bench.run()

    assert (bench.ran, bench.left(), result.state) == (["ran"], NOTHING, "SUCCESS")


@needs_celery((5, 7), "before, nobody claims the dispatch of a chord's body")
def test_part_of_a_chord_that_ran_before_waits_while_its_body_is_claimed(
    make_both: Callable[..., Bench], redis_url: str
) -> None:
    bench = make_both(result_backend=redis_url.rpartition("/")[0] + "/1")

    @bench.task()
    def part(number: int) -> int:
        bench.ran.append(number)
        return number

    @bench.task()
    def total(numbers: list[int]) -> None:
        bench.ran.append(sum(numbers))

    chord([part.s(1), part.s(2)], app=bench.app)(total.s())
    bench.run()
    delivery = bench.read()
    assert delivery.message is not None
    claim = part.backend.get_key_for_group(delivery.message.decode_headers()["group"], ".c")
    part.backend.client.set(claim, "of a process that is dead", ex=60)
    bench.broker.requeue(ME, delivery.entry, history={"redelivered": 1})

    bench.run()

    ((due_ms, waiting),) = bench.delayed()
    assert bench.ran == [1]
    assert bench.left() == but(delayed=1)
    assert due_ms == pytest.approx(time.time() * 1000 + 60_000, abs=5_000)

    part.backend.client.delete(claim)
    bench.broker.publish(QUEUE, waiting)
    bench.run()
    bench.run()

    assert bench.ran == [1, 2, 3]

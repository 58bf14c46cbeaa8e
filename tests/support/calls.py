"""Calls: one task on both sides in this process: stock's Consumer with its solo pool on a Redis list, and our executor
on a stream.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.worker import state as worker_state
from kombu.asynchronous.timer import Timer
from kombu.common import QoS

from tests.support.bench import Bench
from tests.support.versions import CELERY

#: Fields of a request that only say how Redis lists carry a message, or when it was due.
_LEFT_OUT = {"properties", "delivery_info", "eta", "expires", "hostname", "_children", "errbacks", "callbacks"}

Outcome = dict[str, Any]


class Calls:
    """The task of one side, and what its runs saw."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.runs: list[Any] = []

        def probe(task: Any, *args: Any, **kwargs: Any) -> None:
            seen = {name: value for name, value in vars(task.request).items() if name not in _LEFT_OUT}
            properties = (task.request.delivery_info or {}).get("priority"), task.request.reply_to
            self.runs.append((args, kwargs, seen, properties))

        self.task = app.task(name="probe", bind=True, shared=False)(probe)
        app.finalize()

    def outcome(self, publish: Any) -> Outcome:
        """Publish one call, let it run, and say what became of it."""
        self.app.set_current()
        self.runs.clear()
        worker_state.reset_state()
        try:
            publish(self.task)
        except Exception as exc:
            return {"refused by the publisher": type(exc).__name__}
        left = self.run_all()
        runs = [_without_chance(run) for run in self.runs]
        return {"runs": runs, "waits": left == "waits", "ran": len(runs)}

    def run_all(self) -> str:
        raise NotImplementedError


class OnLists(Calls):
    """Stock Celery."""

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        worker = app.WorkController(app=app, pool_cls="solo", hostname="w@h", use_eventloop=False, concurrency=1)
        worker.pool.start()
        self.consumer = worker.consumer
        self.consumer.timer = Timer()
        self.consumer.pool = worker.pool
        self.consumer.qos = QoS(lambda prefetch_count: None, 1)
        self.consumer.update_strategies()
        self.connection = app.connection_for_read()
        self.receiver = app.amqp.TaskConsumer(
            self.connection.default_channel,
            on_message=self.consumer.create_task_handler(),
            on_decode_error=self.consumer.on_decode_error,
        )

    def run_all(self) -> str:
        self.consumer.timer.clear()
        channel = self.connection.default_channel
        while (message := channel.basic_get("celery", no_ack=False)) is not None:
            try:
                self.receiver._receive_callback(message)
            except Exception:
                break  # the worker would lose its connection, and go on with the next message
        for _, entry in self.consumer.timer:
            if entry is None:
                break
            try:
                entry()
            except Exception:
                continue  # the worker's timer logs it
        if CELERY >= (5, 7):
            later = bool(worker_state.scheduled_requests - worker_state.reserved_requests)
        else:
            later = bool(self.consumer.timer.queue)  # nothing else knows of them
        return "waits" if later and not self.runs else ""

    def close(self) -> None:
        self.connection.close()


class OnStreams(Calls):
    """Streams."""

    def __init__(self, app: Celery, bench: Bench) -> None:
        super().__init__(app)
        self.bench = bench
        bench.executor.prepare()

    def run_all(self) -> str:
        while batch := self.bench.broker.read(self.bench.broker.streams(["celery"]), "me", count=1):
            for delivery in batch:
                self.bench.executor.execute(delivery)
                self.bench.settler.flush()
        return "waits" if self.bench.left()["delayed"] else ""


def _without_chance(run: Any) -> Any:
    """Take out what differs between any two runs."""
    args, kwargs, seen, properties = run
    return args, kwargs, sorted((name, repr(value)) for name, value in seen.items()), properties

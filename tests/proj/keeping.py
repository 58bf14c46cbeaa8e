"""Tasks with strategies of their own, which keep messages and run them later, as packages for batches do."""

from __future__ import annotations

import os

from celery import Task, shared_task
from celery.utils.imports import symbol_by_name
from celery.worker.request import Request, create_request_cls

from . import ledger

_SIZE = 3


class Kept(Task):
    """Collects requests; ``_work`` runs a batch when it is full, or when the timer says so."""

    abstract = True
    flush_interval = 1.0

    def Strategy(self, task, app, consumer):  # noqa: N802  (Celery's name)
        make = create_request_cls(
            symbol_by_name(task.Request) or Request, task, consumer.pool, consumer.hostname, consumer.event_dispatcher,
            app=app,
        )  # fmt: skip
        buffer, timer = [], []

        def flush():
            batch, buffer[:] = list(buffer), []
            if batch:
                self.run_batch(consumer, batch)

        def handle(message, body, ack, reject, callbacks, **options):
            request = make(
                message, on_ack=ack, on_reject=reject, app=app, hostname=consumer.hostname,
                eventer=consumer.event_dispatcher, task=task, body=message.body, headers=message.headers,
                decoded=False, utc=True, connection_errors=consumer.connection_errors,
            )  # fmt: skip
            ledger.write("kept", request.id)
            buffer.append(request)
            if not timer:
                timer.append(consumer.timer.call_repeatedly(self.flush_interval, flush))
            if len(buffer) >= _SIZE:
                flush()

        return handle


class Together(Kept):
    """Runs the batch as one call, and acknowledges all of it."""

    abstract = True

    def run_batch(self, consumer, batch):
        values = [request._payload[0][0] for request in batch]

        def done(result):
            for request in batch:
                request.acknowledge()

        consumer.pool.apply_async(_record, ([request.id for request in batch], values), callback=done)


class OneByOne(Kept):
    """Runs the requests later, each as Celery's own strategy would."""

    abstract = True

    def run_batch(self, consumer, batch):
        for request in batch:
            request.execute_using_pool(consumer.pool)


class Refusing(Kept):
    """Rejects what it kept, and puts every second message back once."""

    abstract = True

    def run_batch(self, consumer, batch):
        for request in batch:
            request.reject(requeue=ledger.count("kept", request.id) == 1)


def _record(ids, values):
    for task_id in ids:
        ledger.write("run", task_id, batch=values)
        if ledger.count("run", task_id) == 1 and "die" in values:
            os._exit(1)


@shared_task(base=Together)
def together(value):
    raise AssertionError("never called with one value")


class Never(Together):
    """Its timer never comes."""

    abstract = True
    flush_interval = 3600


@shared_task(base=Never)
def never(value):
    raise AssertionError("never called")


@shared_task(base=OneByOne, bind=True)
def one_by_one(self, value):
    ledger.write("run", self.request.id, value=value)
    if value == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0)
    if value == "fail":
        raise ValueError(value)
    return value


@shared_task(base=Refusing)
def refused(value):
    raise AssertionError("never called")

"""Task events with Celery's broker gone or silent, and the streams elsewhere: tasks take no notice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.events.receiver import EventReceiver
from kombu import Connection

from tests.faults.conftest import Stage
from tests.faults.proxy import Proxy
from tests.faults.workers import FaultWorker

#: Tasks of one round; each has three events.
TASKS = 1_000

#: How many times longer a round may take while the broker does not listen, on a machine that has other things to do.
#: Where events stood in a task's way it was a hundred times.
SLOWER = 3.0


@pytest.fixture
def proxy(stage: Stage) -> Iterator[Proxy]:
    """Between the workers and Celery's broker; the streams are elsewhere."""
    with Proxy(stage.books.port) as made:
        yield made


def seconds_for(stage: Stage, count: int) -> float:
    """Return how long it takes to publish and run so many tasks that do nothing."""
    before, began = stage.ledger.count("runs"), time.monotonic()
    for _ in range(count):
        stage.send("ok")
    stage.wait(lambda: stage.ledger.count("runs") >= before + count, timeout=90, message="the tasks run")
    stage.wait(stage.empty, timeout=30)
    return time.monotonic() - began


def kib_of(worker: FaultWorker) -> int:
    """Return the memory of a worker and its children."""
    lines = [
        line
        for pid in worker.group()
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("RssAnon")
    ]
    return sum(int(line.split()[1]) for line in lines)


def succeeded(stage: Stage, worker: FaultWorker, broker: str) -> bool:
    """Return whether the events of a task that is sent now arrive within seconds."""
    found: list[Any] = []
    with Connection(broker) as made:
        receiver = EventReceiver(made, handlers={"task-succeeded": found.append}, app=stage.app)
        with receiver.consumer_context() as (connection, _, _):
            sent = stage.send("ok")
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and not any(event["uuid"] == sent for event in found):
                try:
                    connection.drain_events(timeout=0.5)
                except TimeoutError:
                    continue
    return any(event["uuid"] == sent for event in found)


@pytest.mark.faults
@pytest.mark.parametrize("how", ["gone", "silent"])
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_tasks_run_at_full_rate_while_the_broker_takes_no_events_and_events_come_back(
    stage: Stage, proxy: Proxy, pool: str, how: str
) -> None:
    worker = stage.worker(
        url=f"redis://127.0.0.1:{proxy.port}/2",
        settings={"streams_url": stage.url},
        concurrency=2,
        pool=pool,
        options=("-E",),
        level="INFO",
    )
    seconds_for(stage, 200)  # what is made at the first use is made
    heard = seconds_for(stage, TASKS)

    if how == "gone":
        proxy.refuse_new = True
        proxy.reset()
    else:
        proxy.swallow_new = True
        proxy.black_hole()
    unheard = seconds_for(stage, TASKS)
    memory = kib_of(worker)
    more = seconds_for(stage, 2 * TASKS)
    grown = kib_of(worker) - memory

    assert unheard < SLOWER * heard
    assert more < 2 * SLOWER * heard
    # KiB: six thousand events of about a kilobyte and a half each, as objects, at most; they are bounded by number.
    assert grown < 30_000
    proxy.refuse_new = proxy.swallow_new = False
    proxy.reset()
    stage.wait(lambda: succeeded(stage, worker, stage.books.database_url(2)), timeout=60, message="events come back")

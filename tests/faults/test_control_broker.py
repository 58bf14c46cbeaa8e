"""Celery's broker gone or silent, and the streams elsewhere: tasks run, and the main thread does its other work."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from tests.faults.conftest import Stage
from tests.faults.proxy import Proxy
from tests.faults.workers import FaultWorker

#: Seconds within which a task starts whatever Celery's broker does: a second that the event loop waits, a second for a
#: child's death to be noticed, and what a busy machine adds. Where the main thread waited it was five at each try.
SOON = 4.5


#: Where nothing asks a connection that is silent: the green pools have no event loop, and hear when they ask again.
UNNOTICED = [("gevent", "silent"), ("eventlet", "silent")]


@pytest.fixture
def proxy(stage: Stage) -> Iterator[Proxy]:
    """Between the workers and Celery's broker; the streams are elsewhere."""
    with Proxy(stage.books.port) as made:
        yield made


def _worker(stage: Stage, proxy: Proxy, pool: str, **settings: Any) -> FaultWorker:
    return stage.worker(
        url=f"redis://127.0.0.1:{proxy.port}/2",
        settings={"streams_url": stage.url, **settings},
        concurrency=2,
        pool=pool,
        options=("-E",),
        level="INFO",
    )


def _take_away(proxy: Proxy, how: str) -> None:
    """Have Celery's broker refuse connections, or take them and be silent; those that exist end, or are silent too."""
    proxy.refuse_new = how == "gone"
    proxy.swallow_new = how != "gone"
    if how == "silent":
        proxy.black_hole()
    else:
        proxy.reset()


def _give_back(proxy: Proxy) -> None:
    proxy.refuse_new = proxy.swallow_new = False
    proxy.reset()


def _longest_wait(stage: Stage, *, seconds: float) -> float:
    """Publish a task ten times a second, and return the longest time from a publish to a start."""
    sent = {}
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        at = time.time()
        sent[stage.send("ok")] = at
        time.sleep(0.1)  # the pace of the publisher
    stage.wait(lambda: stage.ended(*sent), timeout=60, message="the tasks ran")
    return max(run.start - sent[run.id] for run in stage.runs() if run.id in sent)


def _until_again(stage: Stage, task_id: str) -> float:
    """Return the seconds between the two starts of a task that ended its process the first time."""
    first, again = sorted(stage.runs(task_id), key=lambda run: run.start)
    return again.start - first.start


@pytest.fixture
def asks(stage: Stage) -> Iterator[Callable[[FaultWorker], bool]]:
    """What asks a worker for a sign of life, straight at Celery's broker."""
    with Celery("asks", broker=stage.books.database_url(2), set_as_current=False) as app:
        yield lambda worker: bool(app.control.ping([worker.hostname], timeout=1.0))


@pytest.mark.faults
@pytest.mark.parametrize("how", ["gone", "lost, then silent", "silent"])
@pytest.mark.parametrize("pool", ["solo", "gevent", "eventlet"])
def test_tasks_of_pools_that_share_a_thread_start_at_once_while_celerys_broker_is_away(
    stage: Stage, proxy: Proxy, asks: Callable[[FaultWorker], bool], pool: str, how: str
) -> None:
    # kombu asks an idle connection for a sign of life after 25 seconds; here it takes no more than the test's time.
    worker = _worker(stage, proxy, pool, broker_transport_options={"health_check_interval": 1})
    stage.drained(stage.send("ok"))

    _take_away(proxy, how)
    longest = _longest_wait(stage, seconds=20)

    assert "Trying again" in worker.log or (pool, how) in UNNOTICED, "the worker did not notice"
    assert longest < SOON, stage.logs()
    _give_back(proxy)
    stage.wait(lambda: asks(worker), timeout=60, message="remote control is heard again")
    assert _longest_wait(stage, seconds=1) < SOON


@pytest.mark.faults
@pytest.mark.parametrize("how", ["gone", "lost, then silent"])
def test_a_child_that_dies_while_celerys_broker_is_away_is_replaced_and_its_task_runs_again(
    stage: Stage, proxy: Proxy, asks: Callable[[FaultWorker], bool], how: str
) -> None:
    worker = _worker(stage, proxy, "prefork")
    _take_away(proxy, how)
    stage.wait(lambda: "Trying again" in worker.log, timeout=30)

    crashed = [stage.send("crash", how="kill") for _ in range(4)]
    stage.drained(*crashed, timeout=30)

    assert max(_until_again(stage, task_id) for task_id in crashed) < SOON, stage.logs()
    assert len(worker.children()) == 2
    _give_back(proxy)
    stage.wait(lambda: asks(worker), timeout=60, message="remote control is heard again")


@pytest.mark.faults
def test_a_worker_whose_broker_is_silent_ends_at_once_when_it_is_told_to(stage: Stage, proxy: Proxy) -> None:
    worker = _worker(stage, proxy, "prefork")
    _take_away(proxy, "lost, then silent")
    stage.wait(lambda: "Connection to broker lost" in worker.log, timeout=30)

    worker.signal(signal.SIGTERM)

    assert worker.wait(15) == 0, stage.logs()
    assert worker.orphans_gone


@pytest.mark.faults
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_question_whose_answer_the_broker_does_not_take_holds_up_neither_tasks_nor_the_end(
    stage: Stage, proxy: Proxy, asks: Callable[[FaultWorker], bool], pool: str
) -> None:
    """The subscription lives, so that the question is heard; the connection for the answer is silent."""
    worker = _worker(stage, proxy, pool)
    stage.drained(stage.send("ok"))
    proxy.swallow_new = True

    assert not asks(worker)
    if pool == "prefork":
        crashed = stage.send("crash", how="kill")
        stage.drained(crashed, timeout=30)
        assert _until_again(stage, crashed) < SOON, stage.logs()
    assert _longest_wait(stage, seconds=3) < SOON, stage.logs()
    worker.signal(signal.SIGTERM)

    assert worker.wait(15) == 0, stage.logs()
    assert worker.orphans_gone


@pytest.mark.faults
def test_the_answer_to_a_question_is_sent_once_the_broker_takes_it(
    stage: Stage, proxy: Proxy, asks: Callable[[FaultWorker], bool]
) -> None:
    worker = _worker(stage, proxy, "prefork")
    proxy.swallow_new = True
    assert not asks(worker)

    proxy.swallow_new = False

    stage.wait(lambda: asks(worker), timeout=60, message="questions are answered again")
    assert "could not be sent" in worker.log

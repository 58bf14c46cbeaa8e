"""F13, F14: connections that are half open, reset or slow, and publishes whose reply never came."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_streams import BrokerUnavailable
from celery_streams.worker.reader import BLOCK_MS, GRACE
from tests.faults.conftest import Stage
from tests.faults.proxy import Proxy

#: Whoever learns of a node from the others goes there, and not through the proxy.
pytestmark = pytest.mark.one_server("a proxy stands before it")

#: Seconds from SIGTERM to the end of a worker that hears nothing: less than the ten that Docker waits, doubled for a
#: busy machine.
ENDS_WITHIN = 2 * 9.0


@pytest.fixture
def proxy(stage: Stage) -> Iterator[Proxy]:
    """Between the workers and Redis; the publisher goes straight."""
    with Proxy(stage.server.port) as made:
        yield made


def test_f13_a_worker_whose_connections_go_silent_goes_on_within_the_block_time_and_its_grace(
    stage: Stage, proxy: Proxy
) -> None:
    worker = stage.worker(url=proxy.url, concurrency=2)
    first = stage.send("ok")
    stage.drained(first)

    assert proxy.black_hole() > 0
    at = time.time()
    sent = [stage.send("ok") for _ in range(10)]

    stage.wait(lambda: stage.ended(*sent), timeout=BLOCK_MS / 1000 + GRACE + 8.0)
    assert min(run.start for run in stage.runs() if run.id in sent) - at < BLOCK_MS / 1000 + GRACE + 3.0
    stage.wait(stage.empty, timeout=20)
    assert worker.running


def test_f13_resets_in_the_middle_of_the_load_lose_nothing_and_run_nothing_twice(stage: Stage, proxy: Proxy) -> None:
    stage.worker(url=proxy.url, concurrency=2)
    sent = []
    for _ in range(8):
        sent += [stage.send("nap", seconds=0.01) for _ in range(25)]
        ran = stage.ledger.count("runs")
        stage.wait(lambda ran=ran: stage.ledger.count("runs") > ran)
        proxy.reset()

    stage.drained(*sent, timeout=20)
    assert len(stage.runs()) == len(sent)


@pytest.mark.faults
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_f13_replies_that_are_cut_in_their_middle_lose_nothing_and_run_nothing_twice(
    stage: Stage, proxy: Proxy, pool: str
) -> None:
    worker = stage.worker(url=proxy.url, concurrency=2, pool=pool)
    stage.drained(stage.send("ok"))
    proxy.cut_replies = 7
    naps = [stage.send("nap", seconds=0.01, priority=number % 7) for number in range(120)]
    later = [stage.send("ok", countdown=0.5) for _ in range(10)]
    retried = [stage.send("flaky", until=2, countdown=0.1) for _ in range(10)]
    stage.wait(lambda: proxy.cut >= 20, timeout=30)
    proxy.cut_replies = 0

    stage.drained(*naps, *later, *retried, timeout=30)

    counted = Counter(run.id for run in stage.runs())
    assert [counted[one] for one in (*naps, *later)] == [1] * 130
    assert [counted[one] for one in retried] == [3] * 10
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0


def test_f13_a_soft_time_limit_is_told_while_redis_is_silent(stage: Stage, proxy: Proxy) -> None:
    """Each reply is waited for longer than the test is; only the name of the task is not in the log then."""
    options = {"broker_transport_options": {"socket_timeout": 120.0}}
    stage.worker(url=proxy.url, concurrency=2, settings=options)
    limited = [stage.send("soft", seconds=60, soft_time_limit=2.0) for _ in range(2)]
    stage.wait(lambda: all(stage.started(one) for one in limited))

    proxy.swallow_new = True
    proxy.black_hole()

    stage.wait(lambda: {note["id"] for note in stage.ledger.notes()} == set(limited), timeout=25)


@pytest.mark.faults
def test_f13_a_network_with_latency_only_makes_it_slower(stage: Stage, proxy: Proxy) -> None:
    proxy.latency = 0.05
    stage.worker(url=proxy.url, concurrency=2)

    sent = [stage.send("ok") for _ in range(50)]

    stage.drained(*sent, timeout=20)
    assert len(stage.runs()) == 50


@pytest.mark.faults
def test_f13_a_worker_that_hears_nothing_ends_when_it_is_told_to(stage: Stage, proxy: Proxy) -> None:
    worker = stage.worker(url=proxy.url, concurrency=1, settings={"broker_transport_options": {"socket_timeout": 1.0}})
    proxy.swallow_new = True
    proxy.black_hole()

    worker.signal(signal.SIGTERM)

    worker.wait(ENDS_WITHIN)


@pytest.mark.parametrize(
    ("pool", "options"),
    [
        ("prefork", ()),
        pytest.param("prefork", ("-E",), marks=pytest.mark.faults),
        pytest.param("threads", ("-E",), marks=pytest.mark.faults),
        pytest.param("solo", (), marks=pytest.mark.faults),
        pytest.param("gevent", (), marks=pytest.mark.faults),
        pytest.param("eventlet", (), marks=pytest.mark.faults),
    ],
)
def test_f13_a_worker_whose_peer_was_silent_for_a_while_goes_on_answers_and_ends(
    stage: Stage, proxy: Proxy, pool: str, options: tuple[str, ...]
) -> None:
    worker = stage.worker(url=proxy.url, concurrency=2, pool=pool, options=options)
    first = stage.send("ok")
    stage.drained(first)
    proxy.swallow_new = True
    proxy.black_hole()
    time.sleep(8.0)  # the outage: longer than a heartbeat of Celery's and than a time-out
    proxy.swallow_new = False

    sent = [stage.send("ok") for _ in range(10)]

    stage.wait(lambda: stage.ended(*sent), timeout=BLOCK_MS / 1000 + GRACE + 12.0)
    control = stage.app.control.inspect([worker.hostname], timeout=1.0)
    stage.wait(control.ping, timeout=40, message="remote control is heard again")
    worker.signal(signal.SIGTERM)
    worker.wait(BLOCK_MS / 1000 + GRACE + 10.0)
    stage.wait(stage.empty)
    left = stage.send("ok")
    assert not stage.ended(left)


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        pytest.param("threads", marks=pytest.mark.faults),
        pytest.param("solo", marks=pytest.mark.faults),
        pytest.param("gevent", marks=pytest.mark.faults),
        pytest.param("eventlet", marks=pytest.mark.faults),
    ],
)
def test_f13_a_worker_whose_peer_stays_silent_ends_within_seconds(stage: Stage, proxy: Proxy, pool: str) -> None:
    worker = stage.worker(url=proxy.url, concurrency=2, pool=pool, options=("-E",))
    first = stage.send("ok")
    stage.drained(first)
    proxy.swallow_new = True
    proxy.black_hole()
    time.sleep(3.0)  # heartbeats of Celery's meet the silence

    worker.signal(signal.SIGTERM)

    worker.wait(ENDS_WITHIN)


@pytest.mark.parametrize("countdown", [None, 0.3])
def test_f14_a_publish_without_a_reply_is_a_typed_error_and_at_most_one_task(
    make_stage: Callable[..., Stage], countdown: float | None
) -> None:
    stage = make_stage(settings={"broker_transport_options": {"socket_timeout": 0.5}})
    with Proxy(stage.server.port) as proxy:
        direct, stage.url = stage.url, proxy.url
        options: dict[str, Any] = {} if countdown is None else {"countdown": countdown}
        first = stage.send("ok", **options)
        proxy.drop_replies = True

        with pytest.raises(BrokerUnavailable):
            stage.send("ok", task_id="unsure", **options)
        proxy.drop_replies = False
        proxy.reset()
        again = stage.send("ok", **options)

        stage.worker(url=direct, concurrency=1)
        stage.drained(first, again)
        assert len(stage.runs("unsure")) <= 1
        assert len(stage.runs()) <= 3


def test_f14_a_publish_that_is_repeated_after_a_lost_reply_runs_at_most_twice(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(settings={"broker_transport_options": {"socket_timeout": 0.5}})
    with Proxy(stage.server.port) as proxy:
        direct, stage.url = stage.url, proxy.url
        stage.send("ok", task_id="warm")
        proxy.drop_replies = True

        def restore() -> None:
            proxy.drop_replies = False
            proxy.reset()

        timer = threading.Timer(0.2, restore)
        timer.start()
        stage.send("ok", task_id="sure", retry=True, retry_policy={"max_retries": 3, "interval_step": 0.1})
        timer.join()

        stage.worker(url=direct, concurrency=1)
        stage.drained("warm", "sure")
        assert 1 <= len(stage.runs("sure")) <= 2

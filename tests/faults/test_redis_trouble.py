"""F10, F11, F12, F15: Redis dies, comes back empty, refuses, pauses, or is full."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_streams import BrokerError, BrokerFull, BrokerUnavailable, keys
from celery_streams.connection import RedisClient
from tests.faults.conftest import QUEUE, VISIBILITY_TIMEOUT, Stage
from tests.support.full import disk_full, memory_full
from tests.support.sentinel import NAME, watched

#: Seconds within which workers go on once Redis does.
BACK = 5.0


def _sent(stage: Stage, count: int, action: str = "ok", **options: Any) -> list[str]:
    """Publish; what raises was not stored."""
    done = []
    for _ in range(count):
        with contextlib.suppress(BrokerError):
            done.append(stage.send(action, **options))
    return done


# -- F10 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fsync", ["always", pytest.param("everysec", marks=pytest.mark.faults)])
def test_f10_what_was_published_before_redis_died_runs_and_workers_go_on_by_themselves(
    make_stage: Callable[..., Stage], fsync: str
) -> None:
    stage = make_stage(appendonly=True, args=("--appendfsync", fsync))
    worker = stage.worker()
    sent = _sent(stage, 30, "nap", seconds=0.02) + _sent(stage, 5, countdown=1.0)
    long = stage.send("nap", seconds=3.0)
    stage.wait(lambda: stage.started(long))
    if fsync == "everysec":
        time.sleep(1.5)  # what this mode promises: the last second may be lost

    stage.server.kill()
    time.sleep(1.0)  # the outage
    stage.server.start()
    back = time.time()
    after = stage.wait(lambda: _sent(stage, 1))

    stage.wait(lambda: stage.ended(*after), timeout=BACK)
    assert min(run.start for run in stage.runs() if run.start > back) - back < BACK
    stage.drained(*sent, long)
    assert worker.running
    assert len(stage.runs(long)) == 1, "a running task is not claimed from its living owner"
    assert len(stage.runs()) == len({run.id for run in stage.runs()}), "nothing ran twice"


def test_f10_a_task_that_ends_while_redis_is_away_is_acknowledged_later_and_does_not_run_again(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(appendonly=True)
    stage.worker(concurrency=1)
    sent = stage.send("nap", seconds=0.5)
    stage.wait(lambda: stage.started(sent))

    stage.server.kill()
    stage.wait(lambda: stage.ended(sent))
    time.sleep(VISIBILITY_TIMEOUT * 1.5)  # the entry is idle for longer than the visibility timeout meanwhile
    stage.server.start()

    stage.wait(stage.empty, timeout=10)
    assert len(stage.runs(sent)) == 1


# -- F11 --------------------------------------------------------------------------------------------------------------


def _flush(stage: Stage) -> None:
    stage.node.call("FLUSHALL")


def _delete_stream(stage: Stage) -> None:
    stage.client.call("DEL", stage.broker.queue_keys(QUEUE).streams[0])


def _destroy_group(stage: Stage) -> None:
    for name in stage.broker.queue_keys(QUEUE).streams:
        stage.client.call("XGROUP", "DESTROY", name, keys.GROUP)


def _restart_empty(stage: Stage) -> None:
    stage.client.close()
    stage.server.restart()


@pytest.mark.parametrize(
    "busy", [pytest.param(False, id="idle"), pytest.param(True, id="busy", marks=pytest.mark.faults)]
)
@pytest.mark.parametrize("harm", [_flush, _delete_stream, _destroy_group, _restart_empty])
def test_f11_groups_that_are_gone_are_made_again_and_new_messages_run(
    stage: Stage, harm: Callable[[Stage], None], busy: bool
) -> None:
    worker = stage.worker(concurrency=1)
    if busy:
        running = stage.send("nap", seconds=1.0)
        stage.wait(lambda: stage.started(running))
    else:
        first = stage.send("ok")
        stage.drained(first)

    harm(stage)
    sent = stage.wait(lambda: _sent(stage, 1))

    stage.wait(lambda: stage.ended(*sent), timeout=BACK + 2.0)
    stage.wait(stage.empty)
    assert worker.running
    # One group for each priority, and the harm may come to one after the other.
    assert worker.log.count("missing consumer groups") <= len(keys.DEFAULT_STEPS), "no hot loop"


def test_f11_a_stream_of_another_type_is_said_loudly_and_survived(stage: Stage) -> None:
    worker = stage.worker(concurrency=1)
    name = stage.broker.queue_keys(QUEUE).streams[0]
    stage.client.call("DEL", name)
    stage.client.call("SET", name, "mine")

    stage.wait(lambda: "WRONGTYPE" in worker.log, message="the log names the reason")
    before = len(worker.log.splitlines())
    time.sleep(1.5)  # how much is logged in such a time is what is tested
    lines = len(worker.log.splitlines()) - before
    stage.client.call("DEL", name)
    sent = stage.send("ok")

    stage.wait(lambda: stage.ended(sent), timeout=BACK + 2.0)
    assert lines < 40, "no hot loop"
    assert worker.running


# -- by hand ----------------------------------------------------------------------------------------------------------


def _delete_consumers(stage: Stage) -> None:
    """Delete all consumers with what they hold, as somebody may who cleans up."""
    names = stage.broker.queue_keys(QUEUE)
    for stream in (*names.streams, *names.fronts):
        if stage.client.call("EXISTS", stream):
            for flat in stage.client.call("XINFO", "CONSUMERS", stream, keys.GROUP):
                name = dict(zip(flat[::2], flat[1::2], strict=True))[b"name"]
                stage.client.call("XGROUP", "DELCONSUMER", stream, keys.GROUP, name)


#: Pools and whether each is tried in each run.
_HELD_BY = ["prefork", *(pytest.param(pool, marks=pytest.mark.faults) for pool in ("threads", "gevent", "solo"))]


@pytest.mark.parametrize("pool", _HELD_BY)
def test_what_a_dead_worker_held_runs_although_somebody_deleted_its_consumers(stage: Stage, pool: str) -> None:
    dead = stage.worker("dead", concurrency=1, pool=pool)
    long = stage.send("nap", seconds=1.0)
    stage.wait(lambda: stage.started(long))
    others = [stage.send("ok", priority=number % 7) for number in range(12)]
    dead.signal(signal.SIGKILL)
    dead.wait(10)

    _delete_consumers(stage)
    other = stage.worker("other", concurrency=1, pool=pool)

    stage.drained(long, *others)
    assert len(stage.runs(long)) == 2
    assert Counter(run.id for run in stage.runs() if run.id != long) == Counter(others)
    assert "somebody typed XGROUP or XACK" in other.log
    assert stage.letters() == []


@pytest.mark.parametrize("pool", _HELD_BY)
def test_what_a_living_worker_runs_runs_once_although_somebody_deleted_its_consumers(stage: Stage, pool: str) -> None:
    living = stage.worker("living", concurrency=1, pool=pool)
    long = stage.send("nap", seconds=VISIBILITY_TIMEOUT * 3)
    stage.wait(lambda: stage.started(long))
    others = [stage.send("ok", priority=number % 7) for number in range(12)]

    _delete_consumers(stage)
    stage.worker("other", concurrency=1, pool=pool)

    stage.drained(long, *others)
    assert Counter(run.id for run in stage.runs()) == Counter([long, *others])
    assert "no longer held" not in living.log


# -- F12 --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _commands(stage: Stage, begin: tuple[object, ...], end: tuple[object, ...]) -> Iterator[None]:
    stage.node.call(*begin)
    try:
        yield
    finally:
        stage.node.call(*end)


def _read_only(stage: Stage) -> contextlib.AbstractContextManager[None]:
    return _commands(stage, ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"))


@contextlib.contextmanager
def _master_down(stage: Stage) -> Iterator[None]:
    with (
        _commands(
            stage,
            ("CONFIG", "SET", "replica-serve-stale-data", "no"),
            ("CONFIG", "SET", "replica-serve-stale-data", "yes"),
        ),
        _read_only(stage),
    ):
        yield


def _misconf(stage: Stage) -> contextlib.AbstractContextManager[None]:
    return disk_full(stage.node)


@contextlib.contextmanager
def _busy_script(stage: Stage) -> Iterator[None]:
    stage.node.call("CONFIG", "SET", "lua-time-limit", "50")
    client = RedisClient(stage.server.url)

    def loop() -> None:
        with contextlib.suppress(BrokerError):
            client.call("EVAL", "while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()
    yield
    stage.node.call("SCRIPT", "KILL")
    thread.join(5)
    client.close()


@contextlib.contextmanager
def _paused(stage: Stage) -> Iterator[None]:
    stage.node.call("CLIENT", "PAUSE", 1500, "ALL")
    yield


@contextlib.contextmanager
def _clients_killed(stage: Stage) -> Iterator[None]:
    for _ in range(5):
        stage.node.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(0.1)  # clients connect again meanwhile
    yield


@contextlib.contextmanager
def _no_more_clients(stage: Stage) -> Iterator[None]:
    stage.node.call("CONFIG", "SET", "maxclients", 2)
    stage.node.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    yield
    stage.node.call("CONFIG", "SET", "maxclients", 1000)


@pytest.fixture(
    params=[
        "prefork",
        pytest.param("threads", marks=pytest.mark.faults),
        pytest.param("solo", marks=pytest.mark.faults),
    ]
)
def worked(stage: Stage, request: pytest.FixtureRequest) -> Stage:
    """A stage with a worker that has run something."""
    stage.worker(concurrency=1, pool=request.param)
    sent = stage.send("ok")
    stage.drained(sent)
    return stage


@pytest.mark.parametrize(
    "trouble",
    [
        *(
            pytest.param(one, marks=pytest.mark.one_server("REPLICAOF makes no replica of a master in a cluster"))
            for one in (_read_only, _master_down)
        ),
        *(_misconf, _busy_script, _paused, _clients_killed, _no_more_clients),
    ],
    ids=lambda trouble: trouble.__name__.strip("_"),
)
def test_f12_a_redis_that_refuses_for_a_while_is_outlasted_and_nothing_runs_twice(
    worked: Stage, trouble: Callable[[Stage], contextlib.AbstractContextManager[None]]
) -> None:
    before = worked.send("nap", seconds=0.3)
    delayed = worked.send("ok", countdown=0.5)
    worked.wait(lambda: worked.started(before))

    with trouble(worked):
        time.sleep(1.0)  # the trouble
    back = time.time()
    after = worked.wait(lambda: _sent(worked, 1), timeout=5)

    worked.wait(lambda: worked.ended(before, delayed, *after), timeout=BACK + 1.0)
    assert time.time() - back < BACK + 1.5
    worked.wait(worked.empty, timeout=BACK)
    assert len(worked.runs()) == 4, "each ran once"
    [worker] = worked.workers
    assert worker.running


@pytest.mark.one_server("Sentinels watch it")
def test_f12_a_sentinel_failover_is_followed_by_workers_and_publishers(
    make_stage: Callable[..., Stage], tmp_path: Path
) -> None:
    with watched(tmp_path) as servers:
        stage = make_stage(settings={"streams_url": f"{servers.url}?master_name={NAME}"})
        worker = stage.worker()
        before = stage.send("ok")
        stage.wait(lambda: stage.ended(before))

        servers.master.kill()
        patient = {"max_retries": 200, "interval_start": 0.1, "interval_step": 0}
        sent = [stage.send("ok", retry=True, retry_policy=patient) for _ in range(20)]

        stage.wait(lambda: stage.ended(*sent), timeout=30, message="they run on the new master")
        assert servers.master_port() == servers.replica.port
        assert worker.running
        worker.kill()


# -- F15 --------------------------------------------------------------------------------------------------------------


def test_f15_a_full_redis_refuses_publishers_and_lets_workers_drain_retry_and_bury(stage: Stage) -> None:
    flaky = [stage.send("flaky", until=1) for _ in range(3)]
    later = [stage.send("flaky", until=1, countdown=0.5) for _ in range(3)]
    bad = [stage.send("fail") for _ in range(3)]
    plain = [stage.send("ok") for _ in range(200)]
    stage.broker.ensure_groups([QUEUE])
    worker = stage.worker(concurrency=1, ready=False)
    stage.node.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    stage.node.call("CONFIG", "SET", "maxmemory", 1)

    with pytest.raises(BrokerFull, match=r"Cannot publish to queue 'stage': .* is full: .*raise maxmemory"):
        stage.send("ok")
    with pytest.raises(BrokerFull, match=r"Cannot publish to queue 'stage': .* is full: .*raise maxmemory"):
        stage.send("ok", countdown=5)

    stage.wait(lambda: stage.ended(*plain), timeout=20, message="the worker drains")
    stage.wait(lambda: len(stage.letters()) == 3)
    stage.wait(lambda: {run.id for run in stage.runs() if run.retries == 1} == {*flaky, *later}, timeout=10)
    stage.wait(stage.empty)
    assert {letter.task_id for letter in stage.letters()} == set(bad)
    assert worker.running

    stage.node.call("CONFIG", "SET", "maxmemory", 0)
    again = stage.send("ok")
    stage.drained(again)
    assert len(stage.runs()) == len(plain) + 2 * len([*flaky, *later]) + len(bad) + 1


@pytest.mark.one_server("kombu's transport writes when it connects, and that for a cluster does not")
def test_f15_a_solo_worker_started_on_a_full_redis_runs_tasks_while_it_cannot_connect(stage: Stage) -> None:
    """kombu's first write is refused, and tried again each second: the main thread does not sleep meanwhile."""
    sent = [stage.send("nap", seconds=0.01) for _ in range(200)]
    stage.broker.ensure_groups([QUEUE])
    with memory_full(stage.node):
        worker = stage.worker(concurrency=1, pool="solo", ready=False)

        stage.wait(lambda: stage.ended(*sent), timeout=60, message="the worker drains")
        tries = worker.log.count("Trying to reconnect")
        worker.signal(signal.SIGTERM)

        assert worker.wait(15) == 0, stage.logs()
    # A few a second were run where it slept.
    assert 0 < tries < len(sent) / 6, stage.logs()


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        pytest.param("threads", marks=pytest.mark.faults),
        pytest.param("asyncio", marks=pytest.mark.faults),
    ],
)
def test_f15_a_full_disk_is_outlasted_however_long_and_nothing_is_lost_or_runs_twice(stage: Stage, pool: str) -> None:
    first = stage.worker("first", concurrency=4, pool=pool)
    nap, bad = stage.send("nap", seconds=1.5), stage.send("fail", seconds=1.5)
    again = stage.send("flaky", until=1, seconds=1.5)
    later = stage.send("flaky", until=1, seconds=1.5, countdown=0.5)
    stage.wait(lambda: all(stage.started(one) for one in (nap, bad, again, later)))
    delayed = stage.send("ok", countdown=1.0)
    second = stage.worker("second", concurrency=1, pool=pool)

    with disk_full(stage.node):
        third = stage.worker("third", concurrency=1, pool=pool, ready=False)
        for options in ({}, {"countdown": 5}, {"retry": True}):
            with pytest.raises(BrokerUnavailable, match=r"Cannot publish to queue 'stage': .*make room on its disk"):
                stage.send("ok", **options)
        stage.wait(lambda: "make room on its disk" in first.log, message="the worker says why it waits")
        time.sleep(VISIBILITY_TIMEOUT * 1.5)  # longer than a worker that lives may say nothing
    after = stage.send("ok")

    third.wait_ready()
    stage.drained(nap, again, later, delayed, after)
    assert [letter.task_id for letter in stage.letters()] == [bad]
    assert Counter(run.id for run in stage.runs()) == {nap: 1, bad: 1, again: 2, later: 2, delayed: 1, after: 1}
    assert all(worker.running for worker in (first, second, third))

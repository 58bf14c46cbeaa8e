"""Limits under faults: Redis dies, fails over, forgets its scripts; workers die anywhere while messages are held.

Each time: never more at once than allowed among living workers, nothing stuck, nothing lost.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from celery_streams.connection import RedisClient
from celery_streams.exceptions import BrokerError, BrokerUnavailable
from tests.faults.conftest import VISIBILITY_TIMEOUT, Stage
from tests.faults.verdict import Run
from tests.support.sentinel import NAME, watched

TASK = "tests.faults.app.quiet"

#: How many may run at once.
MOST = 2

faults = pytest.mark.faults

EARLY = pytest.mark.parametrize("early", [False, pytest.param(True, marks=faults)], ids=["late", "early"])


def settings(*, early: bool = False, rate: str | None = None, **more: Any) -> dict[str, Any]:
    return {"streams_limits": {TASK: {"concurrency": MOST, "rate": rate}}, "streams_acks_late": not early, **more}


def most_at_once(runs: Sequence[Run], *, deaths: Sequence[tuple[float, frozenset[int]]] = ()) -> int:
    """Return how many ran at the same time at most; what has no end ended with its process, at one of ``deaths``."""
    moments: list[tuple[float, int]] = []
    for run in runs:
        end = run.end
        if end is None:
            end = min((at for at, pids in deaths if run.pid in pids and at >= run.start), default=time.time())
        moments += [(run.start, 1), (end, -1)]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def left(stage: Stage) -> list[str]:
    """Name what is left of limits and of messages."""
    status = stage.status()
    counts = [f"{name} {getattr(status, name)}" for name in ("waiting", "pending", "delayed", "held")]
    # Tokens are forgotten when the next one is taken.
    kept = [key.decode() for key in stage.node.call("KEYS", "*:held*") if not key.endswith(b":rates")]
    return [one for one in counts if not one.endswith(" 0")] + kept


def nothing_left(stage: Stage, *, timeout: float) -> None:
    def looks_so() -> bool:
        try:
            found = left(stage)
        except BrokerUnavailable:
            return False  # on a connection to the server that was killed
        assert found == []
        return True

    stage.wait(looks_so, timeout=timeout, message="nothing is left")


def done(stage: Stage, *task_ids: str, timeout: float = 40.0) -> None:
    """Wait until these ran to their end, and neither a message nor a place is left."""
    stage.wait(lambda: stage.ended(*task_ids), timeout=timeout, message="the tasks ran")
    nothing_left(stage, timeout=10.0)


def under_way(stage: Stage, count: int, *, seconds: float, long: float = 0.0) -> list[str]:
    """Publish so many; return when all but the first are held, for which somebody must be free to read them."""
    first = [stage.send("nap", seconds=long or seconds) for _ in range(MOST)]
    stage.wait(lambda: all(stage.started(one) for one in first))
    rest = [stage.send("nap", seconds=seconds) for _ in range(count - MOST)]
    stage.wait(lambda: stage.status().held == count - MOST, message="the others are held")
    return [*first, *rest]


# -- Redis -------------------------------------------------------------------------------------------------------------


@EARLY
def test_redis_that_was_restarted_gives_no_place_twice_and_releases_what_it_held(
    make_stage: Callable[..., Stage], early: bool
) -> None:
    stage = make_stage(appendonly=True, args=("--appendfsync", "always"), settings=settings(early=early))
    for name in ("w1", "w2"):
        stage.worker(name)
    sent = under_way(stage, 10, seconds=0.3, long=3.5 * VISIBILITY_TIMEOUT)

    stage.server.kill()
    time.sleep(1.5 * VISIBILITY_TIMEOUT)  # nobody's heartbeat is heard for longer than that
    stage.server.start()

    done(stage, *sent)
    assert most_at_once(stage.runs()) == MOST
    assert len(stage.runs()) == len(sent), "nothing ran twice"


def test_scripts_that_are_flushed_all_the_time_change_nothing(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(settings=settings())
    for name in ("w1", "w2"):
        stage.worker(name)
    client, stop = stage.node, threading.Event()

    def flush() -> None:
        while not stop.wait(0.01):
            client.call("SCRIPT", "FLUSH")

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        sent = under_way(stage, 30, seconds=0.05, long=3.0)
        done(stage, *sent)
    finally:
        stop.set()
        thread.join()
    assert most_at_once(stage.runs()) == MOST
    assert len(stage.runs()) == len(sent)


def test_redis_that_comes_back_empty_leaves_no_place_that_nobody_gives_back(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(settings=settings())
    stage.worker(concurrency=MOST + 1)
    under_way(stage, 6, seconds=0.2, long=4.0)

    stage.server.kill()
    stage.server.start()

    again: list[str] = []

    def published() -> bool:
        with contextlib.suppress(BrokerError):
            again.append(stage.send("nap", seconds=0.1))
        return len(again) == 8

    stage.wait(published)
    done(stage, *again)


@faults
@pytest.mark.one_server("Sentinels watch it")
@EARLY
def test_failover_keeps_places_and_what_is_held(make_stage: Callable[..., Stage], tmp_path: Path, early: bool) -> None:
    with watched(tmp_path) as servers:
        stage = make_stage(settings=settings(early=early, streams_url=f"{servers.url}?master_name={NAME}"))
        stage.server = servers.master
        workers = [stage.worker(name) for name in ("w1", "w2")]
        sent = under_way(stage, 10, seconds=0.3, long=12.0)
        assert stage.client.call("WAIT", 1, 5_000) == 1  # what was not replicated would be lost

        servers.master.kill()
        stage.wait(lambda: servers.master_port() == servers.replica.port, timeout=30, message="the failover")
        stage.server, stage._client = servers.replica, RedisClient(servers.replica.url)

        done(stage, *sent, timeout=60)
        assert most_at_once(stage.runs()) == MOST
        assert len(stage.runs()) == len(sent)
        assert all(worker.running for worker in workers)
        for worker in workers:
            worker.kill()
        stage._client.close()


# -- workers -----------------------------------------------------------------------------------------------------------


@EARLY
def test_kill_minus_nine_of_whole_workers_frees_their_places_and_no_others(
    make_stage: Callable[..., Stage], early: bool
) -> None:
    stage = make_stage(settings=settings(early=early))
    victim = stage.worker("w1", concurrency=1)
    first = stage.send("nap", seconds=60)
    stage.wait(lambda: stage.started(first))
    stage.worker("w2", concurrency=3)
    second = stage.send("nap", seconds=3 * VISIBILITY_TIMEOUT)
    stage.wait(lambda: stage.started(second))
    rest = [stage.send("nap", seconds=0.1) for _ in range(6)]
    stage.wait(lambda: stage.status().held == 6)

    pids = frozenset(victim.group())
    victim.kill()
    died = time.time()

    stage.wait(lambda: stage.ended(second, *rest), timeout=40)
    if not early:  # it runs again, elsewhere, and is held as the others are
        stage.wait(lambda: stage.started(first, 2), timeout=20)
    for worker in stage.workers:
        worker.kill()
    ended = time.time()
    everybody = frozenset(run.pid for run in stage.runs())
    assert most_at_once(stage.runs(), deaths=[(died, pids), (ended, everybody)]) == MOST
    assert len(stage.runs(first)) == (1 if early else 2)


#: Where a process dies, and whether messages are acknowledged early; some points are there only then.
POINTS = [("admit", False), ("admitted", False), ("admitted", True), ("kept_place", True), ("given_back", True),
          ("released", False), ("released", True)]  # fmt: skip


@pytest.mark.parametrize(
    ("point", "early"), [one if one == ("admitted", False) else pytest.param(*one, marks=faults) for one in POINTS]
)
def test_process_that_dies_around_a_place_strands_neither_it_nor_a_message(
    make_stage: Callable[..., Stage], point: str, early: bool
) -> None:
    # Only what waits for a time is released by a parent.
    stage = make_stage(settings=settings(early=early, rate="2/s" if point == "released" else None))
    stage.worker("w1", point=point)
    stage.worker("w2", point=point)  # whoever comes there first dies
    sent = [stage.send("nap", seconds=0.2) for _ in range(12)]

    stage.wait(lambda: stage.died_at(point), timeout=20, message="a process dies there")

    nothing_left(stage, timeout=40.0)
    runs = stage.runs()
    deaths = [(run.start, frozenset([run.pid])) for run in runs if run.end is None]
    assert most_at_once(runs, deaths=deaths) <= MOST
    # What was acknowledged early, and whose process died then, is lost or a dead letter: that is what it asked for.
    missing = set(sent) - {run.id for run in runs if run.end is not None}
    assert len(missing) <= (1 if early else 0)


@pytest.mark.parametrize(
    "pool", ["prefork", *(pytest.param(pool, marks=faults) for pool in ("threads", "gevent", "solo"))]
)
def test_whatever_ends_a_message_gives_its_places_back_though_nobody_compares_them(
    make_stage: Callable[..., Stage], pool: str
) -> None:
    stage = make_stage(settings=settings())
    workers = [stage.worker(name, concurrency=2, pool=pool, broken="lost-places") for name in ("w1", "w2")]
    sent: list[str] = []
    for priority in (0, 3, 9):
        sent += [
            stage.send("nap", seconds=0.5, priority=priority),
            stage.send("fail", priority=priority),
            stage.send("flaky", until=2, countdown=0.2, priority=priority),
            stage.send("unserialisable", priority=priority),
        ]
        if pool == "prefork":
            sent += [stage.send("crash", how=how, priority=priority) for how in ("exit", "kill")]
    stage.wait(lambda: len(stage.runs()) > 2)

    workers[0].kill()
    time.sleep(VISIBILITY_TIMEOUT / 2)  # it is missed while others run
    workers[0].start()
    workers[0].wait_ready()
    workers[1].stop()  # what it read and did not start goes back

    done(stage, *sent, timeout=60.0)


#: Keys whose texts scripts might take apart, or take for one.
ODD = ["", " ", "a|b", "a | b", "a\0b", "a\1b", "\u043a\u043b\u044e\u0447 \U0001f511", "'\"\\{}", "None"]


@pytest.mark.parametrize(
    "pool", ["prefork", *(pytest.param(pool, marks=faults) for pool in ("threads", "asyncio", "gevent"))]
)
def test_keys_of_any_text_keep_both_limits_while_a_worker_is_killed(
    make_stage: Callable[..., Stage], pool: str
) -> None:
    keyed = {"concurrency": MOST + 1, "concurrency_key": "key", "concurrency_per_key": 1}
    stage = make_stage(settings={"streams_limits": {"tests.faults.app.keyed": keyed}})
    first, _ = (stage.worker(name, concurrency=MOST + 1, pool=pool) for name in ("w1", "w2"))
    keys = {stage.send("nap", task="keyed", key=key, seconds=0.3): key for _ in range(3) for key in ODD}
    stage.wait(lambda: len(stage.runs()) > MOST)

    pids = frozenset(first.group())
    first.kill()
    died = time.time()

    done(stage, *keys, timeout=60.0)
    runs = stage.runs()
    assert most_at_once(runs, deaths=[(died, pids)]) <= MOST + 1
    for key in ODD:
        assert most_at_once([run for run in runs if keys[run.id] == key], deaths=[(died, pids)]) == 1, repr(key)


# -- builds that must fail ---------------------------------------------------------------------------------------------


@faults
def test_build_that_asks_for_no_places_fails_because_more_run_at_once_than_may(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(settings=settings())
    stage.worker(concurrency=MOST + 2, broken="no-limits")
    sent = [stage.send("nap", seconds=1.0) for _ in range(3 * MOST)]

    stage.wait(lambda: stage.ended(*sent), timeout=30.0)

    assert most_at_once(stage.runs()) > MOST


@faults
def test_build_that_compares_no_places_fails_because_those_of_a_killed_worker_stay_taken(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(settings=settings(early=True))
    victim = stage.worker("w1", broken="lost-places")
    first = [stage.send("nap", seconds=60) for _ in range(MOST)]
    stage.wait(lambda: all(stage.started(one) for one in first))
    stage.worker("w2", broken="lost-places")
    held = stage.send("nap", seconds=0.1)
    stage.wait(lambda: stage.status().held == 1)

    victim.kill()

    with pytest.raises(AssertionError):
        stage.wait(lambda: stage.ended(held), timeout=5 * VISIBILITY_TIMEOUT)

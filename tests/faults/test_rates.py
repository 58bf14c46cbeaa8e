"""Rates under faults: whatever is killed, restarted or forgotten, no key starts more often than it may, and all run.

Judged by the ledger alone, in a way that no stall can spoil: the nth start of a key is not before its nth token, which
is counted from the first publish. What is late is late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.faults.conftest import VISIBILITY_TIMEOUT, Stage
from tests.faults.test_limited import EARLY, done
from tests.faults.verdict import Run

faults = pytest.mark.faults

TASK = "tests.faults.app.keyed"

#: Seconds between two starts of a key.
INTERVAL = 0.25

#: Seconds by which a token may be taken early, each time: see ``lua/prelude/take_place``.
EARLIER = 0.006

#: Their texts tell them apart, and nothing else: 1 and "1" are one key, 1 and 1.0 are two.
KEYS: list[Any] = [1, 1.0, True, None, ["a", {"b": [None]}], {"b": 1}, "x" * 1000, "{}:{1}", "\u2028 \0\1", "2", 2]


def settings(*, early: bool = False, **more: Any) -> dict[str, Any]:
    limits = {"rate": f"{round(60 / INTERVAL)}/m", "rate_key": "key"}
    return {"streams_limits": {TASK: limits}, "streams_acks_late": not early, **more}


def too_early(runs: Sequence[Run], keys: dict[str, Any], since: float) -> list[str]:
    """Name each start of a key that was before its token."""
    found = []
    for key in {str(one) for one in keys.values()}:
        starts = sorted(run.start for run in runs if str(keys[run.id]) == key)
        found += [
            f"{key!r}: start {number} after {start - since:.3f} s"
            for number, start in enumerate(starts)
            if start < since + number * (INTERVAL - EARLIER) - 0.02
        ]
    return found


def publish(stage: Stage, keys: Sequence[Any], *, each: int) -> dict[str, Any]:
    # Again where it fails: a connection may be one to the server that was killed.
    sent = [
        (stage.send("nap", task="keyed", key=key, seconds=0.02, retry=True), key) for _ in range(each) for key in keys
    ]
    return dict(sent)


@EARLY
@pytest.mark.parametrize(
    "pool", ["prefork", *(pytest.param(pool, marks=faults) for pool in ("threads", "asyncio", "gevent"))]
)
def test_no_key_starts_more_often_than_it_may_though_workers_die_and_scripts_are_flushed(
    make_stage: Callable[..., Stage], pool: str, early: bool
) -> None:
    stage = make_stage(settings=settings(early=early))
    workers = [stage.worker(name, concurrency=3, pool=pool) for name in ("w1", "w2")]
    since = time.time()
    keys = publish(stage, KEYS, each=6)
    stage.wait(lambda: len(stage.runs()) > len(KEYS), timeout=30)

    for worker in workers:
        worker.kill()
        stage.client.call("SCRIPT", "FLUSH")
        time.sleep(VISIBILITY_TIMEOUT / 2)  # the others go on
        worker.start()
        worker.wait_ready()

    if early:  # what ran when its worker died is gone: that is what it asked for
        stage.wait(lambda: stage.empty() and stage.status().held == 0, timeout=60)
        assert len({run.id for run in stage.runs()}) >= len(keys) - 12
    else:
        done(stage, *keys, timeout=60)
    assert too_early(stage.runs(), keys, since) == []


@EARLY
def test_redis_that_was_restarted_gives_no_token_twice(make_stage: Callable[..., Stage], early: bool) -> None:
    stage = make_stage(appendonly=True, args=("--appendfsync", "always"), settings=settings(early=early))
    for name in ("w1", "w2"):
        stage.worker(name, concurrency=2)
    since = time.time()
    keys = publish(stage, KEYS[:4], each=12)
    stage.wait(lambda: len(stage.runs()) > 8, timeout=30)

    for pause in (0.1, 1.5 * VISIBILITY_TIMEOUT):
        stage.server.kill()
        time.sleep(pause)  # Redis is away for so long
        stage.server.start()
        time.sleep(1.0)  # they go on

    done(stage, *keys, timeout=60)
    assert too_early(stage.runs(), keys, since) == []
    assert len(stage.runs()) == len(keys), "nothing ran twice"


@pytest.mark.parametrize("limits", ["rate of a key", "number of a key"])
def test_redis_that_comes_back_older_strands_nothing_that_it_knows_of(
    make_stage: Callable[..., Stage], limits: str
) -> None:
    # Given a snapshot in which some run, some wait and some are held
    number = {"concurrency": 3, "concurrency_key": "key", "concurrency_per_key": 1}
    stage = make_stage(settings=settings() if limits == "rate of a key" else {"streams_limits": {TASK: number}})
    for name in ("w1", "w2"):
        stage.worker(name, concurrency=2)
    keys = publish(stage, KEYS[:3], each=10)
    stage.wait(lambda: len(stage.runs()) > 6 and stage.status().held, timeout=30)
    stage.client.call("SAVE")
    before = len(stage.runs())

    # When more is done, and Redis comes back as it was then
    stage.wait(lambda: len(stage.runs()) > before + 4, timeout=30)
    stage.server.kill()
    stage.server.start()

    # Then all run, some of them again, and neither a message nor a place is left
    done(stage, *keys, timeout=60)
    again = publish(stage, KEYS[:3], each=2)
    done(stage, *again, timeout=60)


@faults
def test_clock_of_redis_that_was_set_back_holds_no_key_for_longer(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(settings=settings())
    stage.worker("w1", concurrency=2)
    keys = publish(stage, KEYS[:3], each=10)
    stage.wait(lambda: len(stage.runs()) > 4, timeout=30)

    # What a clock that was an hour ahead would have left
    rates = stage.broker.queue_keys("stage").shelf[4]
    stage.client.call("EVAL", "redis.call('PERSIST', KEYS[1]) return 1", 1, rates)
    for name in stage.client.call("ZRANGE", rates, 0, -1):
        stage.client.call("ZADD", rates, (time.time() + 3_600) * 1000, name)

    done(stage, *keys, timeout=60)


def test_scripts_that_are_flushed_all_the_time_spare_no_token(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(settings=settings())
    for name in ("w1", "w2"):
        stage.worker(name, concurrency=2)
    client, stop = stage.other_client(), threading.Event()

    def flush() -> None:
        while not stop.wait(0.01):
            client.call("SCRIPT", "FLUSH")

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        since = time.time()
        keys = publish(stage, KEYS[:5], each=8)
        done(stage, *keys, timeout=60)
    finally:
        stop.set()
        thread.join()
    assert too_early(stage.runs(), keys, since) == []
    assert len(stage.runs()) == len(keys)


@faults
def test_build_that_asks_for_no_tokens_fails_because_keys_start_too_often(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(settings=settings())
    stage.worker(concurrency=4, broken="no-limits")

    since = time.time()
    keys = publish(stage, KEYS[:3], each=10)

    stage.wait(lambda: stage.ended(*keys), timeout=30)
    assert too_early(stage.runs(), keys, since) != []

"""Rate limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from celery_streams.message import Message
from tests.support.bench import NOTHING, QUEUE, STREAM, Bench, but
from tests.support.redis_state import redis_state


def limited(bench: Bench, rate: str) -> Any:
    """Register the task ``slow``, which notes the number that it is called with."""

    @bench.task(rate_limit=rate)
    def slow(number: int) -> None:
        bench.ran.append(number)

    return slow


@pytest.mark.parametrize(("scope", "key"), [("worker", f"{STREAM}:rate:slow:w@h"), ("global", f"{STREAM}:rate:slow")])
def test_task_beyond_its_rate_waits_for_its_turn(make: Callable[..., Bench], scope: str, key: str) -> None:
    bench = make(streams_rate_limit_scope=scope)

    slow = limited(bench, "1/m")
    slow.delay(1)
    slow.delay(2)

    bench.run()
    bench.run()

    assert (bench.ran, bench.left()) == ([1], but(delayed=1))
    assert key in redis_state(bench.broker.client)
    ((due, message),) = bench.delayed()
    assert "redelivered" not in message.decode_history()
    # A minute lies beyond the horizon: it asks again then, and has no token yet.
    assert "granted" not in message.decode_history()
    assert due - time.time() * 1000 < 11_000


def test_message_whose_turn_is_reserved_runs_without_asking_again(bench: Bench) -> None:
    slow = limited(bench, "1/s")
    slow.delay(1)
    slow.delay(2)
    bench.run()
    bench.run()
    ((_, message),) = bench.delayed()
    bench.broker.publish(QUEUE, message)
    waiting = Message(message.headers, message.properties, message.body, message.history)
    bench.broker.client.call("FLUSHDB")
    bench.broker.ensure_groups([QUEUE])
    bench.broker.client.call("XADD", STREAM, "*", *waiting.as_fields())

    bench.run()

    assert waiting.decode_history()["granted"] == 1
    assert (bench.ran, bench.left()) == ([1, 2], NOTHING)


def test_rate_limits_can_be_switched_off(make: Callable[..., Bench]) -> None:
    bench = make(worker_disable_rate_limits=True)

    slow = limited(bench, "1/h")
    slow.delay(1)
    slow.delay(2)

    bench.run()
    bench.run()

    assert bench.ran == [1, 2]

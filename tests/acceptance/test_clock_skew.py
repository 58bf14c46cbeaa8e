"""A worker whose host has another time than Redis: Redis' clock decides about eta and expires."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from tests.support.eventually import eventually
from tests.support.redis_state import redis_now_ms
from tests.support.stepping_redis import stepping_redis

pytestmark = pytest.mark.one_server("the clock of its server is set")

HOUR = 3_600.0
#: Longer than any host that runs these tests has been up: kombu's timers know no time before that.
YEARS = 20_000 * HOUR


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    """A server whose clock is an hour off."""
    with stepping_redis(tmp_path_factory.mktemp("clock")) as server:
        yield server


def redis_time(project):
    return datetime.fromtimestamp(redis_now_ms(project.broker.client) / 1000, timezone.utc)


def iso(at, *, naive):
    return at.replace(tzinfo=None) if naive else at


@pytest.mark.parametrize("events", [True, False])
@pytest.mark.parametrize("skew", [HOUR, -HOUR, -YEARS])
def test_task_runs_at_its_eta_by_the_clock_of_redis(redis_server, project, act, worker, skew, events):
    redis_server.set_clock(skew)
    worker(concurrency=1, options=["-E"] if events else [])
    eta = redis_time(project) + timedelta(seconds=1.5)

    result = act.apply_async(("ok", "on time"), eta=eta)

    assert result.get(timeout=15) == "on time"
    late = project.ledger.runs(result.id)[0]["at"] + skew - eta.timestamp()
    assert -0.1 <= late < 3


@pytest.mark.parametrize("skew", [HOUR, -HOUR])
@pytest.mark.parametrize(("left", "state"), [(60.0, "SUCCESS"), (-5.0, "REVOKED")])
@pytest.mark.parametrize("form", ["aware", "naive"])
def test_task_expires_by_the_clock_of_redis(redis_server, project, act, worker, skew, left, state, form):
    redis_server.set_clock(skew)
    worker(concurrency=1)
    expires = redis_time(project) + timedelta(seconds=left)

    result = act.apply_async(("ok", "ran"), expires=iso(expires, naive=form == "naive"))

    eventually(lambda: result.state == state, timeout=15)
    assert len(project.ledger.runs(result.id)) == (state == "SUCCESS")


def test_task_sees_the_expiry_that_its_message_says(redis_server, project, act, worker):
    redis_server.set_clock(-HOUR)
    worker(concurrency=1)
    expires = redis_time(project) + timedelta(seconds=60)

    seen = act.apply_async(("request",), expires=expires).get(timeout=15)

    assert datetime.fromisoformat(seen["expires"]) == expires


@pytest.mark.parametrize(("skew", "word"), [(HOUR, "behind"), (-HOUR, "ahead of"), (0, None)])
def test_worker_says_at_its_start_that_its_clock_is_off(redis_server, project, act, worker, skew, word):
    redis_server.set_clock(skew)

    running = worker(concurrency=1)

    act.delay("ok").get(timeout=15)
    if word is None:
        assert "The clock of this host" not in running.log
    else:
        eventually(lambda: f" s {word} Redis'" in running.log, timeout=10)

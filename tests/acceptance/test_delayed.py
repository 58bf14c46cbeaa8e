"""Delayed messages: never early, in order, hardly late, and none lost with a worker."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import time
from datetime import datetime, timedelta, timezone

import pytest

from celery_streams import presence
from tests.support.eventually import eventually


def test_delayed_messages_start_in_order_never_early_and_within_a_tenth_of_a_second(project, act, worker):
    worker(concurrency=2)
    act.delay("ok").get(timeout=10)
    start = datetime.now(timezone.utc) + timedelta(seconds=0.5)
    etas = [start + timedelta(seconds=0.05 * n) for n in range(25)]
    random.Random(7).shuffle(etas)

    results = {eta: act.apply_async(("ok",), eta=eta) for eta in etas}

    late, order = [], []
    for eta in sorted(results):
        results[eta].get(timeout=15)
        (run,) = project.ledger.runs(results[eta].id)
        late.append(run["at"] - eta.timestamp())
        order.append(run["at"])
    assert min(late) >= 0.0
    assert order == sorted(order)
    assert statistics.median(late) < 0.1
    assert max(late) < 1.0


def test_many_messages_of_one_instant_all_start(project, act, worker):
    worker(concurrency=2)
    eta = datetime.now(timezone.utc) + timedelta(seconds=1)

    results = [act.apply_async(("ok", n), eta=eta) for n in range(300)]

    assert [result.get(timeout=15) for result in results] == list(range(300))
    assert set(project.counted().values()) == {1}
    assert min(run["at"] for run in project.ledger.runs()) >= eta.timestamp()


def test_message_that_was_delayed_before_any_worker_ran_starts_when_it_is_due(project, act, worker):
    due = time.time() + 0.2
    result = act.apply_async(("ok", "kept"), countdown=0.2)

    worker(concurrency=1)

    assert result.get(timeout=10) == "kept"
    assert project.ledger.runs(result.id)[0]["at"] >= due


def test_earlier_message_overtakes_a_later_one_that_is_already_waited_for(project, act, worker):
    worker(concurrency=1)
    later = act.apply_async(("ok", "later"), countdown=30)

    sooner = act.apply_async(("ok", "sooner"), countdown=0.3)

    assert sooner.get(timeout=5) == "sooner"
    assert project.ledger.runs(later.id) == []
    assert project.status().delayed == 1


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_message_is_on_time_when_the_worker_that_watches_is_frozen_or_killed(project, act, worker, number):
    for index in range(3):
        worker(concurrency=1, name=f"w{index}")
    turns = project.broker.queue_keys("celery").turns
    eventually(lambda: len(json.loads(project.broker.client.call("GET", turns) or "[]")) == 2, timeout=15)
    leader = json.loads(project.broker.client.call("GET", turns))[0][0]
    (pid,) = [one.pid for one in presence.workers(project.broker) if one.worker == leader]
    eta = datetime.now(timezone.utc) + timedelta(seconds=1)

    result = act.apply_async(("ok", "kept"), eta=eta)
    os.kill(pid, number)
    try:
        assert result.get(timeout=10) == "kept"
    finally:
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)

    (run,) = project.ledger.runs(result.id)
    assert 0.0 <= run["at"] - eta.timestamp() < 1.8, "a deputy took over: the others look every two seconds"

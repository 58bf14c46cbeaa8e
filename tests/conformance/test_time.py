"""eta, countdown, expires, time limits, rate limits and revocation."""

from __future__ import annotations

import time
import uuid
from datetime import datetime, timedelta, timezone

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded, WorkerLostError

from tests.support.eventually import eventually
from tests.support.versions import CELERY

#: Seconds by which a delayed task may be late on a loaded machine; the promise on an idle one is 0.1.
LATE = 2.0


def started(side, result):
    """Return when the only execution of a task began, in seconds since the epoch."""
    (run,) = side.ledger.runs(result.id)
    return run["at"]


def test_countdown_is_waited_for(side):
    published = time.time()
    result = side.act.apply_async(("ok", "later"), countdown=0.5)

    assert side.value(result) == "later"
    assert 0.5 <= started(side, result) - published < 0.5 + LATE


def test_eta_is_waited_for(side):
    eta = datetime.now(timezone.utc) + timedelta(seconds=0.5)
    result = side.act.apply_async(("ok", "later"), eta=eta)

    side.value(result)

    assert eta.timestamp() <= started(side, result) < eta.timestamp() + LATE


def test_eta_in_another_timezone_is_the_same_instant(side):
    eta = (datetime.now(timezone.utc) + timedelta(seconds=0.4)).astimezone(timezone(timedelta(hours=9)))
    result = side.act.apply_async(("ok", 1), eta=eta)

    side.value(result)

    assert eta.timestamp() <= started(side, result) < eta.timestamp() + LATE


def test_eta_in_the_past_runs_at_once(side):
    result = side.act.apply_async(("ok", "late"), eta=datetime.now(timezone.utc) - timedelta(days=1))

    assert side.value(result) == "late"


def test_delayed_tasks_run_in_the_order_of_their_time(side, another_worker):
    # One child: two may start two tasks that became due together, on a machine that is late, in any order.
    name = uuid.uuid4().hex
    another_worker(side, name)
    # By one look at the clock, and late enough for the slowest publisher: what is due already goes in any order.
    now = datetime.now(timezone.utc)
    results = {
        delay: side.act.apply_async(("ok", delay), eta=now + timedelta(seconds=delay), queue=f"{side.queue}-{name}")
        for delay in (2.0, 1.4, 1.7)
    }

    for result in results.values():
        side.value(result)

    times = [started(side, results[delay]) for delay in sorted(results)]
    assert times == sorted(times)


def test_delayed_task_knows_its_eta(side):
    eta = datetime.now(timezone.utc) + timedelta(seconds=0.2)

    request = side.value(side.act.apply_async(("request",), eta=eta))

    assert datetime.fromisoformat(request["eta"]) == eta


def test_delayed_task_holds_nobody_up(side):
    delayed = side.act.apply_async(("ok", "later"), countdown=1.0)
    prompt = [side.act.delay("ok", n) for n in range(20)]

    assert [side.value(result) for result in prompt] == list(range(20))
    assert side.ledger.runs(delayed.id) == []
    assert side.value(delayed) == "later"


def test_task_that_expires_while_it_is_delayed_is_revoked(side):
    result = side.act.apply_async(("ok", 1), countdown=0.4, expires=0.2)

    side.state(result, "REVOKED")

    assert side.ledger.runs(result.id) == []


def test_soft_time_limit_is_raised_in_the_task(side):
    result = side.task("act").apply_async(("soft_limit",), soft_time_limit=0.3, time_limit=10)

    assert side.value(result) == "cleaned up"


def test_soft_time_limit_fails_a_task_that_does_not_catch_it(side):
    result = side.act.apply_async(("sleep",), {"seconds": 5}, soft_time_limit=0.3)

    with pytest.raises(SoftTimeLimitExceeded):
        side.value(result)


@pytest.mark.parametrize("expires", [None, 60])
def test_time_limits_that_are_true_are_of_one_second(side, expires):
    soft = side.act.apply_async(("soft_limit",), {"seconds": 10}, soft_time_limit=True, expires=expires)
    hard = side.act.apply_async(("sleep",), {"seconds": 30}, time_limit=True, expires=expires)

    assert side.value(soft) == "cleaned up"
    assert isinstance(side.error(hard), TimeLimitExceeded)


def test_soft_time_limit_of_the_task_itself_holds(side):
    result = side.task("act_soft_limited").delay("soft_limit")

    assert side.value(result) == "cleaned up"


def test_hard_time_limit_ends_the_task_and_the_worker_goes_on(side):
    result = side.act.apply_async(("sleep",), {"seconds": 30}, time_limit=0.5)

    with pytest.raises(TimeLimitExceeded):
        side.value(result)
    side.settled()

    assert result.state == "FAILURE"
    assert len(side.ledger.runs(result.id)) == 1


def test_hard_time_limit_ends_a_task_that_never_yields(plain):
    result = plain.act.apply_async(("spin",), {"seconds": 30}, time_limit=0.5)

    assert isinstance(plain.error(result), TimeLimitExceeded)


def test_task_within_its_limits_is_left_alone(side):
    result = side.act.apply_async(("sleep", "fine"), {"seconds": 0.2}, time_limit=20, soft_time_limit=10)

    assert side.value(result) == "fine"


def test_limits_of_the_message_reach_the_request(side):
    request = side.value(side.act.apply_async(("request",), time_limit=20, soft_time_limit=10))

    assert request["timelimit"] == [20, 10]


def test_revoked_task_does_not_run(side):
    result = side.act.apply_async(("ok", 1), countdown=0.6)

    side.control("revoke", result.id)
    marker = side.act.apply_async(("ok", "marker"), countdown=0.8)

    assert side.value(marker) == "marker"
    assert side.ledger.runs(result.id) == []
    with pytest.raises(TaskRevokedError):
        side.value(result)
    assert result.state == "REVOKED"


@pytest.mark.parametrize("kind", [str, uuid.UUID])
def test_task_revoked_before_it_was_published_does_not_run(side, new_id, kind):
    new_id = str(uuid.UUID(new_id))
    task_id = kind(new_id)
    side.app.control.revoke(task_id, destination=[side.worker.hostname])  # Celery cannot answer about a UUID
    eventually(lambda: new_id in map(str, side.inspect.revoked()[side.worker.hostname]))

    result = side.act.apply_async(("ok", 1), task_id=task_id)
    marker = side.act.delay("ok", "marker")

    assert side.value(marker) == "marker"
    side.state(side.app.AsyncResult(new_id), "REVOKED")
    assert side.ledger.runs(new_id) == []
    assert str(result.id) == new_id


def test_running_task_is_terminated(side):
    result = side.act.delay("sleep", seconds=30)
    (run,) = side.ran(result.id)

    side.control("revoke", result.id, terminate=True)

    with pytest.raises(TaskRevokedError, match="terminated"):
        side.value(result)
    side.settled()
    assert [line["pid"] for line in side.ledger.runs(result.id)] == [run["pid"]]


def test_tasks_are_revoked_by_their_stamps(side, new_id):
    sig = side.act.s("ok", 1).set(countdown=0.5)
    sig.stamp(tenant=new_id)

    result = sig.apply_async()
    side.app.control.revoke_by_stamped_headers({"tenant": [new_id]}, destination=[side.worker.hostname])

    side.state(result, "REVOKED")
    assert side.ledger.runs(result.id) == []


def test_rate_limit_spreads_the_tasks(side):
    results = [side.task("act_limited").delay("ok", n) for n in range(6)]

    assert sorted(side.value(result) for result in results) == list(range(6))
    times = [started(side, result) for result in results]

    # Ten a second: six tasks take half a second, less what the token bucket lets through at first.
    assert 0.35 <= max(times) - min(times) < 0.5 + LATE


def test_task_whose_process_is_killed_after_an_early_acknowledgement_is_lost(side):
    result = side.task("act_early").delay("kill", times=99)

    with pytest.raises(WorkerLostError):
        side.value(result)
    side.settled()

    assert len(side.ledger.runs(result.id)) == 1


def test_task_that_exits_after_an_early_acknowledgement_is_lost(side):
    if CELERY < (5, 7) and not side.on_streams:
        pytest.skip("before 5.7, a stock worker tells nobody of such a task")
    result = side.task("act_early").delay("exit")

    assert isinstance(side.error(result), WorkerLostError)
    side.settled()
    assert len(side.ledger.runs(result.id)) == 1


def test_task_that_rejects_when_its_worker_is_lost_runs_again(side):
    result = side.task("act_late").delay("kill", "survived", times=1)

    assert side.value(result) == "survived"
    assert [run["redelivered"] for run in side.ledger.runs(result.id)] == [False, True]

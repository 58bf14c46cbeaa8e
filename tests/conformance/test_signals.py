"""Signals, in their order, and the methods of a user's own Task class."""

from __future__ import annotations

import pytest
from celery.exceptions import WorkerLostError

from tests.support.eventually import eventually
from tests.support.versions import needs_celery


def seen(side, task_id, last):
    """Return the signals of one task, without task_received, once ``last`` is among them."""

    def names():
        found = side.ledger.signals(task_id)
        return found if last in found else []

    return [name for name in eventually(names) if name != "task_received"]


def test_signals_of_a_success(side):
    result = side.act.delay("ok", 3)

    assert seen(side, result.id, "task_postrun") == ["task_prerun", "task_success", "task_postrun"]
    prerun, success, postrun = [
        line for line in side.ledger.read("signal", result.id) if line["signal"] != "task_received"
    ]
    assert prerun["sender"] == success["sender"] == postrun["sender"] == "tests.proj.actions.act"
    assert prerun["args"] == ["ok", 3]
    assert success["result"] == 3
    assert (postrun["state"], postrun["retval"]) == ("SUCCESS", 3)


def test_signals_of_a_success_are_sent_where_the_task_runs(side):
    result = side.act.delay("ok", 3)

    seen(side, result.id, "task_postrun")
    (run,) = side.ledger.runs(result.id)

    assert {line["pid"] for line in side.ledger.read("signal", result.id) if line["signal"] != "task_received"} == {
        run["pid"]
    }


def test_signals_of_a_failure(side):
    result = side.act.delay("error", "for the signal")

    assert seen(side, result.id, "task_postrun") == ["task_prerun", "task_failure", "task_postrun"]
    failure, postrun = side.ledger.read("signal", result.id)[-2:]
    assert failure["exception"] == "ActionError('for the signal')"
    assert postrun["state"] == "FAILURE"


def test_signals_of_a_retry(side):
    result = side.act.delay("retry", "done", until=1, countdown=0.3)

    side.value(result)
    eventually(lambda: side.ledger.signals(result.id).count("task_postrun") == 2)
    assert seen(side, result.id, "task_success") == [
        *("task_prerun", "task_retry", "task_postrun"),
        *("task_prerun", "task_success", "task_postrun"),
    ]
    (retry,) = [line for line in side.ledger.read("signal", result.id) if line["signal"] == "task_retry"]
    assert "Retry in 0.3s" in retry["reason"]


def test_signals_of_an_ignored_task(side):
    result = side.act.delay("ignore")

    assert seen(side, result.id, "task_postrun") == ["task_prerun", "task_postrun"]


@needs_celery((5, 7), "before, a rejected task has not failed")
def test_signals_of_a_rejected_task(side):
    result = side.act.delay("reject", "no")

    assert sorted(seen(side, result.id, "task_failure")) == ["task_failure", "task_postrun", "task_prerun"]


@needs_celery((5, 7), "before, a rejected task has not failed")
def test_receivers_of_task_failure_are_shown_what_a_rejected_task_raised_and_not_its_wrapping(side):
    result = side.act.delay("reject", "no")

    seen(side, result.id, "task_failure")

    (failure,) = [line for line in side.ledger.read("signal", result.id) if line["signal"] == "task_failure"]
    assert (failure["exception"], failure["einfo"]) == ("reject requeue=False: no", "reject requeue=False: no")


def test_signals_of_an_expired_task(side):
    result = side.act.apply_async(("ok", 1), expires=-1)

    assert seen(side, result.id, "task_revoked") == ["task_revoked"]
    (revoked,) = side.ledger.read("signal", result.id)
    assert (revoked["expired"], revoked["terminated"]) == (True, False)


def test_signals_of_a_terminated_task(side):
    result = side.act.delay("sleep", seconds=30)
    side.ran(result.id)

    side.control("revoke", result.id, terminate=True, signal="SIGKILL")

    assert seen(side, result.id, "task_revoked") == ["task_prerun", "task_revoked"]
    revoked = side.ledger.read("signal", result.id)[-1]
    assert (revoked["expired"], revoked["terminated"]) == (False, True)


def test_signals_of_a_lost_task(side):
    result = side.task("act_early").delay("kill", times=99)

    assert isinstance(side.error(result), WorkerLostError)

    assert seen(side, result.id, "task_failure") == ["task_prerun", "task_failure"]


def test_signals_of_a_task_that_exceeds_its_hard_limit(side):
    result = side.act.apply_async(("sleep",), {"seconds": 30}, time_limit=1)

    side.state(result, "FAILURE")

    # Parent and child send them at the same time, and stock Celery sends task_failure twice.
    expected = {"task_prerun", "task_failure", "task_postrun"}
    eventually(lambda: set(side.ledger.signals(result.id)) - {"task_received"} == expected)
    failures = [line for line in side.ledger.read("signal", result.id) if line["signal"] == "task_failure"]
    assert {line["exception"] for line in failures} == {"TimeLimitExceeded(1)"}


def test_task_received_is_sent_first(watched):
    result = watched.act.delay("ok", 1)

    eventually(lambda: len(watched.ledger.signals(result.id)) >= 4)

    assert watched.ledger.signals(result.id) == ["task_received", "task_prerun", "task_success", "task_postrun"]


def test_delayed_task_is_received_and_run(watched):
    result = watched.act.apply_async(("ok", 1), countdown=0.2)

    eventually(lambda: "task_postrun" in watched.ledger.signals(result.id))

    assert watched.ledger.signals(result.id)[-4:] == ["task_received", "task_prerun", "task_success", "task_postrun"]


@pytest.mark.parametrize(
    ("action", "options", "hooks"),
    [
        ("ok", {}, ["before_start", "on_success", "after_return"]),
        ("error", {}, ["before_start", "on_failure", "after_return"]),
        ("ignore", {}, ["before_start"]),
        ("reject", {}, ["before_start"]),
        (
            "retry",
            {"until": 1, "countdown": 0.3},
            ["before_start", "on_retry", "before_start", "on_success", "after_return"],
        ),
    ],
)
def test_methods_of_the_task_class_are_called_in_order(side, action, options, hooks):
    result = side.act.delay(action, **options)

    eventually(lambda: len(side.ledger.hooks(result.id)) >= len(hooks))
    side.settled()

    assert side.ledger.hooks(result.id) == hooks


@needs_celery((5, 7), "before, a task class is not told of a hard limit")
def test_methods_of_the_task_class_are_called_for_a_task_that_exceeds_its_hard_limit(side):
    result = side.act.apply_async(("sleep",), {"seconds": 30}, time_limit=1)

    side.state(result, "FAILURE")
    eventually(lambda: "after_return" in side.ledger.hooks(result.id))

    assert side.ledger.hooks(result.id) == ["before_start", "on_failure", "after_return"]
    assert side.ledger.read("hook", result.id)[1]["exception"] == "TimeLimitExceeded(1)"


def test_methods_of_the_task_class_are_not_called_for_a_lost_task(side):
    result = side.task("act_early").delay("kill", times=99)

    assert isinstance(side.error(result), WorkerLostError)
    side.settled()

    assert side.ledger.hooks(result.id) == ["before_start"]


def test_signals_of_a_starting_worker_are_sent_in_order_by_the_parent(side):
    def names():
        lines = side.ledger.read("process", side.worker.name)
        found = [line["signal"] for line in lines if line["pid"] == side.worker.pid]
        # Children that are replaced later are announced too.
        return found[: found.index("worker_ready") + 1] if "worker_ready" in found else []

    assert eventually(names) == [
        *("import_modules", "celeryd_init", "worker_init", "celeryd_after_setup"),
        *("worker_before_create_process", "worker_before_create_process", "worker_ready"),
    ]


def test_heartbeats_of_the_parent_are_announced(watched):
    def beats():
        found = watched.ledger.read("heartbeat", watched.worker.name)
        return found if len(found) > 1 else []

    assert {beat["pid"] for beat in eventually(beats)} == {watched.worker.pid}


def test_every_child_announces_itself(side):
    def announced():
        lines = side.ledger.read("process", side.worker.name)
        return {line["pid"] for line in lines if line["signal"] == "worker_process_init"}

    def children():
        return set(side.inspect.stats()[side.worker.hostname]["pool"]["processes"])

    # A child that takes the place of another has yet to say so.
    assert eventually(lambda: children() <= announced())
    assert side.worker.pid not in announced()

"""Receivers of signals that raise: a task ends as it would without them, and so does the worker."""

from __future__ import annotations

import re
import signal

import pytest

from tests.proj.actions import ActionError

#: What each worker sends at least; a receiver that is not called would prove nothing.
SENT = {
    *("before_task_publish", "after_task_publish", "task_received", "task_prerun", "task_postrun", "task_success"),
    *("task_retry", "task_failure", "task_revoked", "worker_ready", "worker_shutting_down", "worker_shutdown"),
}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "asyncio", "gevent", "eventlet"])
def test_receivers_that_raise_change_no_outcome(side, another_worker, pool):
    if not side.on_streams and pool == "asyncio":
        pytest.skip("a pool of streams workers")
    worker = another_worker(side, f"raising-{pool}", pool=pool, imports=["tests.proj.raising"])
    act, queue = side.act, {"queue": worker.queue}

    done = [act.apply_async(("ok", number), **queue) for number in range(3)]
    failed = act.apply_async(("error", "no"), **queue)
    retried = act.apply_async(("retry", "done"), {"until": 2, "countdown": 0}, **queue)
    ignored = act.apply_async(("ignore",), **queue)
    expired = act.apply_async(("ok", 1), expires=-1, **queue)
    publishes = act.apply_async(("publish", "by a task"), **queue)
    side.app.send_task("nobody.knows", **queue)
    last = act.apply_async(("ok", "last"), **queue)

    assert [side.value(one) for one in done] == [0, 1, 2]
    assert isinstance(side.error(failed), ActionError)
    assert side.value(retried) == "done"
    assert side.state(expired, "REVOKED")
    assert side.value(side.app.AsyncResult(side.value(publishes))) == "by a task"
    assert side.value(last) == "last"
    assert side.ran(ignored.id)
    if pool == "prefork":
        limited = act.apply_async(("sleep",), {"seconds": 30}, time_limit=1, **queue)
        assert type(side.error(limited)).__name__ == "TimeLimitExceeded"
        lost = side.task("act_early").apply_async(("kill",), {"times": 99}, **queue)
        assert type(side.error(lost)).__name__ == "WorkerLostError"
        running = act.apply_async(("sleep",), {"seconds": 30}, **queue)
        side.ran(running.id)
        side.app.control.revoke(running.id, terminate=True, destination=[worker.hostname])
        assert side.state(running, "REVOKED")
        assert side.value(act.apply_async(("ok", "again"), **queue)) == "again"
    worker.signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert set(re.findall(r"RECEIVER (\w+)", worker.log)) >= SENT

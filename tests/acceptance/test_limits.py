"""Time limits, children that are replaced, and the size of the pool."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any

import pytest

from tests.support.control import asked
from tests.support.eventually import eventually
from tests.support.versions import needs_celery


def processes(act):
    """Return the process ids of the children, as ``inspect stats`` tells them."""
    # A worker that is busy with its start answers later than the broadcast waits.
    (stats,) = asked(act.app, "stats").values()
    return set(stats["pool"]["processes"])


def test_limits_of_the_command_line_end_tasks_and_those_of_the_message_come_first(project, act, worker):
    worker(options=("--soft-time-limit", "0.5", "--time-limit", "1.0"))

    cleaned = act.delay("soft_limit", seconds=10)
    ended = act.delay("spin", seconds=60)
    longer = act.apply_async(("sleep", "longer"), {"seconds": 1.5}, soft_time_limit=5, time_limit=6)

    assert cleaned.get(timeout=10) == "cleaned up"
    assert "SoftTimeLimitExceeded" in repr(ended.get(timeout=10, propagate=False))
    assert longer.get(timeout=10) == "longer"
    assert project.counted() == Counter([cleaned.id, ended.id, longer.id])


#: Ways to say 0.4 seconds as text, as environment variables give it: settings of the worker, options of the call.
WORDS: dict[str, Any] = {
    "setting": ({"task_time_limit": "0.4"}, {}),
    "setting, soft too": ({"task_time_limit": "0.4", "task_soft_time_limit": "60"}, {}),
    "annotation": ({"task_annotations": {"*": {"time_limit": "0.4", "soft_time_limit": ""}}}, {}),
    "message": ({}, {"time_limit": "0.4"}),
    "message, soft too": ({"task_time_limit": "60"}, {"time_limit": " 0.4", "soft_time_limit": "60"}),
}


@pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])
@pytest.mark.parametrize("how", WORDS)
def test_time_limits_that_are_text_are_enforced_and_kill_no_message(project, act, worker, how, watched):
    settings, options = WORDS[how]
    worker(concurrency=1, watched=watched, **settings)

    quick = act.apply_async(("ok", "quick"), **options)
    ended = act.apply_async(("sleep",), {"seconds": 60}, **options)

    assert quick.get(timeout=10) == "quick"
    assert "TimeLimitExceeded(0.4)" in repr(ended.get(timeout=10, propagate=False))
    assert eventually(lambda: [letter.reason for letter in project.dead_letters()]) == ["time-limit"]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "asyncio"])
def test_counts_and_limits_that_are_text_start_every_pool(project, act, worker, pool):
    words = {
        "task_time_limit": "30",
        "task_soft_time_limit": "20",
        "worker_max_tasks_per_child": "2",
        "worker_max_memory_per_child": "4000000",
        "worker_prefetch_multiplier": "1",
        "worker_soft_shutdown_timeout": "5",
        "streams_delivery_limit": "3",
        "task_annotations": {act.name: {"rate_limit": "1000/s", "time_limit": "25"}},
    }
    running = worker(pool=pool, concurrency=1, **words)

    assert [act.delay("ok", n).get(timeout=10) for n in range(5)] == list(range(5))
    assert "no effect:   worker_prefetch" not in running.log
    if pool == "prefork":
        assert max(Counter(run["pid"] for run in project.ledger.runs()).values()) == 2
    running.signal(signal.SIGQUIT)
    assert running.wait() == 0


def test_time_limit_that_remote_control_gives_as_text_is_enforced(project, act, worker):
    running = worker(concurrency=1)
    assert act.delay("ok", 1).get(timeout=10) == 1

    act.app.control.time_limit(act.name, hard="0.4", destination=[running.hostname], reply=True, timeout=5, limit=1)

    ended = act.delay("sleep", seconds=60)
    assert "TimeLimitExceeded(0.4)" in repr(ended.get(timeout=10, propagate=False))


@pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])
def test_message_whose_time_limit_means_nothing_is_a_dead_letter_that_says_so(project, act, worker, watched):
    worker(concurrency=1, watched=watched)

    odd = act.apply_async(("ok", 1), time_limit="soon")

    (letter,) = eventually(project.dead_letters)
    assert (letter.reason, letter.task_id) == ("invalid", odd.id)
    assert "'soon' is not a number of seconds" in letter.exception
    assert project.ledger.runs(odd.id) == []
    assert act.delay("ok", 2).get(timeout=10) == 2


@pytest.mark.parametrize(("acks_on_timeout", "starts"), [(True, 1), (False, 2)])
def test_task_over_its_hard_limit_runs_again_only_if_it_is_not_acknowledged(
    project, act, worker, acks_on_timeout, starts
):
    worker(concurrency=1, task_acks_on_failure_or_timeout=acks_on_timeout, streams_delivery_limit=2)

    result = act.apply_async(("sleep",), {"seconds": 60}, time_limit=0.3)

    letter = eventually(lambda: project.dead_letters(), timeout=15)[0]
    assert letter.reason == ("time-limit" if acks_on_timeout else "crashed")
    assert repr(result.get(timeout=5, propagate=False)) == "TimeLimitExceeded(0.3)"
    assert len(project.ledger.runs(result.id)) == starts


@pytest.mark.parametrize(
    ("pool", "named"),
    [
        ("prefork", None),
        ("threads", "task_time_limit, soft_time_limit of TASK, time_limit of TASK"),
        ("solo", "task_time_limit, soft_time_limit of TASK, time_limit of TASK"),
        ("asyncio", "soft_time_limit of TASK, time_limit of TASK"),
        ("gevent", None),
        ("eventlet", None),
    ],
)
def test_worker_says_which_time_limits_its_pool_does_not_enforce(worker, pool, named):
    running = worker(pool=pool, concurrency=1, options=("--time-limit", "20"))

    said = [line.partition("does not enforce: ")[2] for line in running.log.splitlines() if "not enforce" in line]

    assert said == ([named.replace("TASK", "tests.proj.actions.act_soft_limited")] if named else [])


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
@pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])
def test_green_pools_raise_the_soft_limit_in_the_task_that_is_over_it(project, act, worker, pool, watched):
    app = project.app(include=["tests.proj.waiting"])
    worker(pool=pool, concurrency=5, watched=watched, options=("-I", "tests.proj.waiting"))

    cleans_up = act.apply_async(("soft_limit",), {"seconds": 60}, soft_time_limit=0.3)
    waits_and_cleans_up = app.tasks["tests.proj.waiting.wait_and_clean_up"].apply_async(soft_time_limit=0.3)
    fails = act.apply_async(("sleep",), {"seconds": 60}, soft_time_limit=0.3)
    waits = app.tasks["tests.proj.waiting.wait_for"].apply_async((1,), {"seconds": 60}, soft_time_limit=0.3)
    beside = act.apply_async(("sleep", "beside"), {"seconds": 1.0}, soft_time_limit=20)

    assert cleans_up.get(timeout=15) == "cleaned up"
    assert waits_and_cleans_up.get(timeout=15) == "cleaned up"
    assert repr(fails.get(timeout=10, propagate=False)) == "SoftTimeLimitExceeded()"
    assert repr(waits.get(timeout=10, propagate=False)) == "SoftTimeLimitExceeded()"
    assert beside.get(timeout=10) == "beside"
    assert eventually(lambda: {letter.task_id for letter in project.dead_letters()}) == {fails.id, waits.id}
    assert [act.delay("ok", n).get(timeout=10) for n in range(4)] == list(range(4))


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
@pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])
def test_green_pools_end_a_task_over_its_hard_limit_and_go_on(project, act, worker, pool, watched):
    worker(pool=pool, concurrency=2, watched=watched)

    ended = act.apply_async(("sleep",), {"seconds": 60}, time_limit=0.3)
    beside = act.apply_async(("sleep", "beside"), {"seconds": 1.0}, time_limit=20)

    assert repr(ended.get(timeout=15, propagate=False)) == "TimeLimitExceeded(0.3)"
    assert beside.get(timeout=10) == "beside"
    together = [act.delay("meet", n, count=2) for n in range(2)]
    assert [result.get(timeout=10) for result in together] == [0, 1]
    (letter,) = eventually(project.dead_letters)
    assert (letter.reason, letter.task_id) == ("time-limit", ended.id)
    assert eventually(lambda: project.status().length == 0)
    assert set(project.counted().values()) == {1}


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
@pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])
def test_green_pools_end_a_task_that_is_terminated_and_no_other(project, act, worker, pool, watched):
    running = worker(pool=pool, concurrency=2, watched=watched)
    ended, beside = act.delay("sleep", seconds=60), act.delay("sleep", "beside", seconds=3.0)
    for result in (ended, beside):
        project.starts(result.id)

    act.app.control.revoke(ended.id, terminate=True, destination=[running.hostname])

    eventually(lambda: ended.state == "REVOKED")
    eventually(lambda: project.ledger.read("end", ended.id))
    assert beside.get(timeout=10) == "beside"
    together = [act.delay("meet", n, count=2) for n in range(2)]
    assert [result.get(timeout=10) for result in together] == [0, 1]
    assert eventually(lambda: project.status().length == 0)
    assert project.dead_letters() == []
    assert set(project.counted().values()) == {1}


@pytest.mark.parametrize(
    ("options", "most"), [(("--max-tasks-per-child", "5"), 5), (("--max-memory-per-child", "1"), 1)]
)
def test_children_are_replaced_after_their_share_and_nothing_is_lost(project, act, worker, options, most):
    worker(options=options)

    results = [act.delay("ok", n) for n in range(6 * most)]

    assert [result.get(timeout=30) for result in results] == list(range(6 * most))
    runs = project.ledger.runs()
    assert Counter(run["id"] for run in runs) == Counter(result.id for result in results)
    assert max(Counter(run["pid"] for run in runs).values()) <= most
    assert len({run["pid"] for run in runs}) >= 6
    assert project.dead_letters() == []
    assert eventually(lambda: project.status().length == 0)


def test_pool_grows_with_what_waits_and_shrinks_when_nothing_does(project, act, worker, monkeypatch):
    monkeypatch.setenv("AUTOSCALE_KEEPALIVE", "0.5")
    worker(concurrency=None, options=("--autoscale", "3,1"))
    assert len(processes(act)) == 1

    together = [act.delay("sleep", n, seconds=1.0) for n in range(6)]
    runs = [project.starts(result.id)[0] for result in together]

    assert len({run["pid"] for run in runs}) == 3
    assert [result.get(timeout=10) for result in together] == list(range(6))
    eventually(lambda: len(processes(act)) == 1)
    assert act.delay("ok", 1).get(timeout=10) == 1
    assert set(project.counted().values()) == {1}


def test_pool_is_grown_shrunk_and_restarted_by_remote_control(project, act, worker):
    running = worker(concurrency=1, worker_pool_restarts=True)
    control = act.app.control
    (first,) = processes(act)

    control.pool_grow(2, destination=[running.hostname], reply=True, timeout=5, limit=1)
    together = [act.delay("sleep", n, seconds=1) for n in range(3)]
    runs = [project.starts(result.id)[0] for result in together]
    control.pool_shrink(1, destination=[running.hostname], reply=True, timeout=5, limit=1)
    assert [result.get(timeout=10) for result in together] == [0, 1, 2]
    # A result is there a moment before its task is settled, and only idle children are stopped.
    eventually(lambda: asked(act.app, "active", running.hostname) == {running.hostname: []})
    control.pool_shrink(2, destination=[running.hostname], reply=True, timeout=5, limit=1)
    eventually(lambda: len(processes(act)) == 1)
    control.pool_restart(destination=[running.hostname], reply=True, timeout=5, limit=1)

    assert len({run["pid"] for run in runs}) == 3
    (last,) = eventually(lambda: {pid for pid in processes(act) if pid != first} or None)
    assert act.delay("ok", 1).get(timeout=10) == 1
    assert {run["pid"] for run in project.ledger.runs()} >= {last}


@pytest.mark.parametrize(
    ("rejects", "starts", "error"), [(True, 2, None), (None, 2, None), (False, 1, "WorkerLostError")]
)
def test_lost_task_runs_again_unless_it_says_no(project, act, worker, rejects, starts, error):
    worker(concurrency=1, task_reject_on_worker_lost=rejects)

    result = act.delay("kill", "done")

    value = result.get(timeout=15, propagate=False)
    assert len(project.ledger.runs(result.id)) == starts
    if error is None:
        assert value == "done"
        assert project.dead_letters() == []
    else:
        assert repr(value).startswith("WorkerLostError('Worker exited prematurely: signal 9 (SIGKILL)")
        # The result is stored before the message is settled.
        eventually(lambda: [letter.reason for letter in project.dead_letters()] == ["crashed"])


@needs_celery((5, 7), "before, there is no task_retry_on_worker_lost")
def test_lost_task_is_retried_as_celery_does_when_it_is_told_to(project, act, worker):
    annotations = {act.name: {"default_retry_delay": 0.2}}
    worker(concurrency=1, task_retry_on_worker_lost=True, task_annotations=annotations)

    result = act.delay("kill", "done")

    assert result.get(timeout=15) == "done"
    assert [run["retries"] for run in project.ledger.runs(result.id)] == [0, 1]
    assert eventually(lambda: project.status().length == 0)


def test_child_that_is_killed_while_idle_is_replaced(project, act, worker):
    worker(concurrency=1)
    (first,) = processes(act)

    os.kill(first, signal.SIGKILL)

    assert act.delay("ok", 1).get(timeout=10) == 1
    assert first not in processes(act)


def blocking_reads(project):
    """Return how many commands to read a stream the server has carried out."""
    lines = project.broker.client.call("INFO", "commandstats").decode().splitlines()
    (line,) = [line for line in lines if line.startswith("cmdstat_xreadgroup:")]
    return int(line.partition("calls=")[2].partition(",")[0])


def test_idle_child_over_its_memory_limit_stays_until_it_has_run_a_task(project, act, worker):
    running = worker(concurrency=2, options=("--max-memory-per-child", "1"))
    before, reads = processes(act), blocking_reads(project)

    # A child reads again when its blocking read has ended, after five seconds; it looked at its memory then.
    eventually(lambda: blocking_reads(project) >= reads + 4, timeout=15)

    assert processes(act) == before
    assert act.delay("ok", 1).get(timeout=10) == 1
    eventually(lambda: len(before - processes(act)) == 1)
    assert len([line for line in running.log.splitlines() if "exceeding memory limit" in line]) == 1


def test_terminated_short_tasks_do_not_take_the_next_ones_with_them(project, act, worker):
    running = worker(concurrency=1)
    results = [act.apply_async(("sleep", str(number)), {"seconds": 0.008}) for number in range(120)]
    seen = set()

    while not all(result.ready() for result in results):
        for told in (act.app.control.inspect([running.hostname], timeout=5, limit=1).active() or {}).values():
            for task in told:
                seen.add(task["id"])
                act.app.control.revoke(task["id"], terminate=True, destination=[running.hostname])

    assert seen
    others = [result for result in results if result.id not in seen]
    assert {result.state for result in others} == {"SUCCESS"}
    counted = project.counted()
    assert {counted[result.id] for result in others} == {1}

"""SIGKILL for a child, for a whole worker, and for every process that touches a message."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter

import pytest

from tests.support.control import asked
from tests.support.eventually import eventually
from tests.support.processes import alive


def test_task_of_a_killed_child_runs_again_at_once_on_the_same_worker(project, act, worker):
    running = worker()
    result = act.delay("sleep_first", "done", seconds=60)
    (first,) = project.starts(result.id)

    os.kill(first["pid"], signal.SIGKILL)
    _, second = project.starts(result.id, times=2)

    assert result.get(timeout=10) == "done"
    assert second["hostname"] == first["hostname"] == running.hostname
    assert second["pid"] != first["pid"]
    assert (first["redelivered"], second["redelivered"]) == (False, True)
    assert project.counted()[result.id] == 2


def test_killed_child_is_replaced_and_takes_nothing_with_it(project, act, worker):
    worker(concurrency=2)
    long = act.delay("sleep_first", "done", seconds=60)
    (first,) = project.starts(long.id)
    others = [act.delay("sleep", n, seconds=0.005) for n in range(100)]

    os.kill(first["pid"], signal.SIGKILL)

    assert [result.get(timeout=15) for result in others] == list(range(100))
    assert long.get(timeout=10) == "done"
    assert project.counted() == Counter({long.id: 2, **{result.id: 1 for result in others}})
    assert eventually(lambda: project.status().length == 0)


def test_second_execution_after_a_kill_comes_within_a_second(project, act, worker):
    # With one child a new process has to be started for it.
    worker(concurrency=1)
    act.delay("ok").get(timeout=10)

    result = act.delay("kill", "done", times=1)

    assert result.get(timeout=10) == "done"
    first, second = project.ledger.runs(result.id)
    assert second["at"] - first["at"] < 5.0, "the parent saw it: nobody waited for the visibility timeout"


@pytest.mark.faults  # it measures time, which a busy machine spoils
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="without pidfds the chores notice it within half a second")
def test_death_of_a_child_is_noticed_at_once_while_a_process_that_its_task_forked_lives_on(project, act, worker):
    worker(concurrency=2)

    def both_run():
        pair = [act.delay("sleep", seconds=0.1) for _ in range(2)]
        return len({project.starts(one.id)[0]["pid"] for one in pair}) == 2

    late = []
    for _ in range(6):
        eventually(both_run, timeout=30, message="both children run tasks")
        result = act.delay("fork_outlives", "done")
        assert result.get(timeout=20) == "done"
        (forked,) = project.ledger.read("forked", result.id)
        os.kill(forked["child"], signal.SIGKILL)
        first, second = project.ledger.runs(result.id)
        late.append(second["at"] - first["at"])

    # Of the chores, which look twice a second, one in five would be so fast.
    assert sorted(late)[2] < 0.1


@pytest.mark.slow
def test_tasks_of_a_killed_worker_run_on_another(project, act, worker):
    settings = {"streams_visibility_timeout": 3}
    victim = worker(name="victim", concurrency=2, **settings)
    running = [act.delay("sleep_first", n, seconds=60) for n in range(2)]
    started = [project.starts(result.id)[0] for result in running]
    rescuer = worker(name="rescuer", concurrency=2, **settings)
    waiting = [act.delay("ok", n) for n in range(20)]

    victim.signal(signal.SIGKILL)

    assert [result.get(timeout=15) for result in waiting] == list(range(20))
    assert [result.get(timeout=15) for result in running] == [0, 1]
    again = [project.starts(result.id, times=2)[1] for result in running]
    assert {run["hostname"] for run in started} == {victim.hostname}
    assert {run["hostname"] for run in again} == {rescuer.hostname}
    assert [run["redelivered"] for run in again] == [True, True]
    assert project.counted() == Counter({result.id: 2 for result in running} | {result.id: 1 for result in waiting})
    assert eventually(lambda: project.status().length == 0)


@pytest.mark.slow
def test_task_of_a_worker_killed_with_all_its_processes_runs_again_within_fifteen_seconds_by_default(
    project, act, worker
):
    victim = worker(name="victim", concurrency=1)
    result = act.delay("sleep_first", "done", seconds=60)
    project.starts(result.id)
    rescuer = worker(name="rescuer", concurrency=1)

    at = time.time()
    victim.kill()
    _, second = project.starts(result.id, times=2, timeout=30)

    # Claimable after the timeout less 1.2 looks (12 s), found at the next look (2.5 s) plus a tick (0.11 s): 14.6 s
    # after the last heartbeat at the latest, whatever came before the kill; the rest is for a busy machine.
    assert second["at"] - at < 18.0
    assert (second["hostname"], second["redelivered"]) == (rescuer.hostname, True)
    assert result.get(timeout=5) == "done"


def test_children_of_a_killed_worker_end_too(project, act, worker):
    victim = worker(concurrency=2)
    pids = asked(act.app, "stats", victim.hostname)[victim.hostname]["pool"]["processes"]

    victim.signal(signal.SIGKILL)
    victim.wait()

    assert len(pids) == 2
    eventually(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.slow
def test_poison_message_is_given_up_while_others_finish(project, act, worker):
    worker(concurrency=2, streams_delivery_limit=3)
    poison = [act.delay("kill", n, times=99) for n in range(3)]
    others = [act.delay("ok", n) for n in range(200)]

    assert [result.get(timeout=20) for result in others] == list(range(200))
    letters = eventually(lambda: found if len(found := project.dead_letters()) == 3 else None, timeout=20)

    assert {letter.task_id for letter in letters} == {result.id for result in poison}
    assert {letter.reason for letter in letters} == {"crashed"}
    assert {letter.crashes for letter in letters} == {3}
    assert [len(project.ledger.runs(result.id)) for result in poison] == [3, 3, 3]
    assert all(project.counted()[result.id] == 1 for result in others)
    assert eventually(lambda: project.status().length == 0)


@pytest.mark.parametrize(("own", "general", "runs"), [(1, 5, 1), (2, 1, 2)], ids=["smaller", "larger"])
def test_delivery_limit_of_a_task_holds_when_its_whole_worker_dies(project, act, worker, own, general, runs):
    settings = {
        "streams_visibility_timeout": 2,
        "streams_delivery_limit": general,
        "task_annotations": {act.name: {"streams_delivery_limit": own}},
    }
    first = worker(name="w0", pool="threads", concurrency=1, **settings)

    result = act.delay("kill", "never done", times=99)

    first.wait()
    for number in range(1, runs):
        worker(name=f"w{number}", pool="threads", concurrency=1, **settings).wait()
    worker(name="last", pool="threads", concurrency=1, **settings)
    (letter,) = eventually(project.dead_letters)
    assert (letter.task_id, letter.reason, letter.crashes) == (result.id, "crashed", own)
    assert len(project.ledger.runs(result.id)) == runs
    assert repr(result.get(timeout=5, propagate=False)).startswith("WorkerLostError(")


def test_message_that_crashed_a_few_times_leaves_no_trace_when_it_succeeds(project, act, worker):
    worker(concurrency=1)

    result = act.delay("kill", "at last", times=2)

    assert result.get(timeout=15) == "at last"
    assert len(project.ledger.runs(result.id)) == 3
    assert project.dead_letters() == []
    assert eventually(lambda: project.status().length == 0)


def test_segfault_of_a_child_is_survived_as_a_kill_is(project, act, worker):
    worker(concurrency=1)
    result = act.delay("sleep_first", "done", seconds=60)
    (first,) = project.starts(result.id)

    os.kill(first["pid"], signal.SIGSEGV)

    assert result.get(timeout=10) == "done"


@pytest.mark.parametrize("pool", ["threads", "solo", "asyncio", "gevent"])
@pytest.mark.parametrize("task", ["act", "act_early"])
def test_retry_that_was_asked_for_runs_once_though_a_worker_without_children_is_killed(
    project, app, worker, pool, task
):
    first = worker(name="first", pool=pool, concurrency=1, streams_visibility_timeout=2)
    result = app.tasks[f"tests.proj.actions.{task}"].delay("retry_then", "done", then="kill")
    assert first.wait() == -signal.SIGKILL

    worker(name="second", pool=pool, concurrency=1, streams_visibility_timeout=2)

    assert result.get(timeout=20) == "done"
    eventually(lambda: project.status().length == 0)
    assert [run["retries"] for run in project.ledger.runs(result.id)] == [0, 1]
    assert project.dead_letters() == []


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_task_that_took_its_whole_worker_along_is_known_by_its_name_to_whoever_hears_events(
    project, app, act, worker, pool
):
    seen, stop = [], threading.Event()

    def receive():
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": seen.append})
            with receiver.consumer_context(wakeup=False) as (own, _, _):
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        own.drain_events(timeout=0.1)

    listens = threading.Thread(target=receive, daemon=True)
    listens.start()
    options = {"options": ("-E",), "streams_delivery_limit": 1, "streams_visibility_timeout": 1.5}
    first = worker(name="first", concurrency=1, pool=pool, **options)
    eventually(lambda: any(one["hostname"] == first.hostname for one in seen))
    # Its events are collected for a moment, and die with it.
    result = act.delay("kill_worker", "a value", times=9)
    project.starts(result.id)
    worker(name="second", concurrency=1, **options)
    try:
        mine = eventually(
            lambda: (
                found
                if (found := [one for one in seen if one.get("uuid") == result.id])
                and found[-1]["type"] == "task-failed"
                else None
            ),
            timeout=30,
        )
    finally:
        stop.set()
        listens.join()

    assert [one["type"] for one in mine] == ["task-received", "task-started", "task-failed"]
    assert (mine[0]["name"], mine[0]["retries"]) == (act.name, 0)
    assert "a value" in mine[0]["args"]
    (letter,) = project.dead_letters()
    (attempt,) = letter.attempts
    assert (attempt.outcome, attempt.worker.partition("/")[0]) == ("crashed", first.hostname)


@pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])
@pytest.mark.parametrize("how", ["warnings", "descriptors", "sockets"])
def test_failure_that_a_child_cannot_report_is_reported_by_its_worker(project, act, worker, how, watched):
    """As Celery's pools do: what keeps a process from it may be its own, and whoever waits would wait for ever."""
    running = worker(concurrency=1, watched=watched)

    crippled = act.delay("cripple", "value", how=how)
    after = [act.delay("ok", "value") for _ in range(2)]

    failed = {result.id: result for result in (crippled, *after)}
    for result in failed.values():
        result.get(timeout=30, propagate=False)
    assert {result.state for result in failed.values()} == {"FAILURE"}
    # Three in a row: the child is replaced by one that can
    assert act.delay("ok", "value").get(timeout=30) == "value"
    eventually(lambda: {one.task_id for one in project.dead_letters()} == set(failed))
    assert project.counted().items() >= dict.fromkeys(failed, 1).items()
    assert "is not fit for more tasks: 3 failures in a row" in running.log
    running.signal(signal.SIGTERM)
    assert running.wait(15) == 0

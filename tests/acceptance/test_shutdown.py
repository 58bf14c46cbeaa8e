"""Warm and cold shutdown of a worker with work in hand."""

from __future__ import annotations

import signal
from collections import Counter

from tests.eventually import eventually


def test_warm_shutdown_finishes_what_runs_and_takes_nothing_new(project, act, worker):
    leaving = worker(concurrency=1)
    long = act.delay("sleep", "finished", seconds=1.5)
    project.starts(long.id)

    leaving.signal(signal.SIGTERM)
    waiting = [act.delay("ok", n) for n in range(10)]
    code = leaving.wait()

    assert code == 0
    assert long.get(timeout=5) == "finished"
    assert project.counted() == Counter({long.id: 1})
    assert project.status().waiting == len(waiting)
    assert project.status().pending == 0
    assert project.status().consumers == 0


def test_entries_that_were_not_started_run_elsewhere_at_once(project, act, worker):
    # All of them are there before the worker is, so that its only child reads them in one go.
    first = act.delay("sleep", "finished", seconds=4)
    others = [act.delay("ok", n) for n in range(30)]
    leaving = worker(name="leaving", concurrency=1)
    project.starts(first.id)
    staying = worker(name="staying", concurrency=1)

    leaving.signal(signal.SIGTERM)
    values = [result.get(timeout=10) for result in others]
    running = leaving.running
    code = leaving.wait()

    assert values == list(range(30))
    assert running, "the others waited for the long task"
    assert code == 0
    assert first.get(timeout=5) == "finished"
    assert project.counted() == Counter({result.id: 1 for result in [first, *others]})
    assert [project.ledger.runs(result.id)[0]["redelivered"] for result in others] == [False] * 30
    assert {project.ledger.runs(result.id)[0]["hostname"] for result in others} <= {staying.hostname, leaving.hostname}


def test_cold_shutdown_hands_the_running_task_to_another_worker(project, act, worker):
    leaving = worker(name="leaving", concurrency=1)
    result = act.delay("sleep_first", "done", seconds=60)
    (first,) = project.starts(result.id)
    staying = worker(name="staying", concurrency=1)

    leaving.signal(signal.SIGQUIT)
    leaving.wait()

    assert result.get(timeout=5) == "done"
    _, second = project.ledger.runs(result.id)
    assert (first["hostname"], second["hostname"]) == (leaving.hostname, staying.hostname)
    assert second["redelivered"] is True
    assert project.dead_letters() == []


def test_second_sigint_is_a_cold_shutdown(project, act, worker):
    leaving = worker(concurrency=1)
    result = act.delay("sleep_first", "done", seconds=60)
    project.starts(result.id)

    leaving.signal(signal.SIGINT)
    eventually(lambda: "Warm shutdown" in leaving.log)
    leaving.signal(signal.SIGINT)
    leaving.wait()

    assert eventually(lambda: project.status().waiting == 1)
    worker(name="next", concurrency=1)
    assert result.get(timeout=10) == "done"


def test_idle_worker_ends_at_once_and_leaves_no_consumer(project, act, worker):
    leaving = worker(concurrency=2)
    act.delay("ok").get(timeout=10)

    leaving.signal(signal.SIGTERM)

    assert leaving.wait(5) == 0
    assert project.status().consumers == 0
    assert project.status().length == 0


def test_signals_of_a_worker_that_ends(project, act, worker):
    leaving = worker(concurrency=2)
    act.delay("ok").get(timeout=10)

    leaving.signal(signal.SIGTERM)
    leaving.wait()

    lines = project.ledger.read("process", "worker")
    parents = [line["signal"] for line in lines if line["pid"] == leaving.pid]
    children = [line["signal"] for line in lines if line["pid"] != leaving.pid]
    assert parents[-2:] == ["worker_shutting_down", "worker_shutdown"]
    assert children == ["worker_process_init"] * 2 + ["worker_process_shutdown"] * 2


def test_shutdown_by_remote_control_is_a_warm_one(project, act, worker):
    leaving = worker(concurrency=1)
    long = act.delay("sleep", "finished", seconds=1)
    project.starts(long.id)

    act.app.control.shutdown(destination=[leaving.hostname])

    assert leaving.wait() == 0
    assert long.get(timeout=5) == "finished"

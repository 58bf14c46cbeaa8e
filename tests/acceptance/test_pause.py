"""Pauses, with real workers: nothing of a paused queue is started, everything else goes on, and the order stays."""

from __future__ import annotations

import time

import pytest

import celery_streams
from celery_streams.embedded import EmbeddedRedis
from tests.acceptance.conftest import Project
from tests.support.eventually import eventually

POOLS = ["prefork", "threads", "solo", "gevent", "asyncio"]


def started(project, results):
    """Return the results whose tasks were started, in the order of their starts."""
    runs = {run["id"]: run["at"] for run in project.ledger.runs()}
    return sorted((one.id for one in results if one.id in runs), key=runs.__getitem__)


@pytest.mark.parametrize("pool", POOLS)
def test_worker_of_each_pool_stops_starting_reads_its_other_queues_and_goes_on_in_order(project, act, worker, pool):
    # Given a worker that waits for two queues
    running = worker(pool=pool, queues="celery,other", concurrency=1, options=("-l", "INFO"))
    assert act.delay("ok", 0).get(timeout=15) == 0

    # When one is paused, and messages come for both
    celery_streams.pause(act.app, "celery")
    eventually(lambda: "Queue celery is paused" in running.log)
    # A read that was waiting for both when the first was paused ends with this one; each later one looks first.
    assert act.apply_async(("ok", 9), queue="other").get(timeout=10) == 9
    left = [act.delay("ok", number) for number in range(5)]
    left.append(act.apply_async(("ok", 5), countdown=0.2))
    beside = [act.apply_async(("ok", number), queue="other") for number in range(3)]

    # Then those of the other are run at once, and nothing of the paused one, though what is delayed becomes due
    assert [one.get(timeout=10) for one in beside] == [0, 1, 2]
    eventually(lambda: project.status().delayed == 0)
    assert started(project, left) == []
    assert project.status().waiting == 6

    # And when it is resumed all run: what had waited behind what became due later, each in its order
    celery_streams.resume(act.app, "celery")
    assert [one.get(timeout=10) for one in left] == [0, 1, 2, 3, 4, 5]
    assert [one for one in started(project, left) if one != left[5].id] == [one.id for one in left[:5]]
    assert "Queue celery is resumed" in eventually(lambda: running.log if "is resumed" in running.log else "")


def test_running_tasks_finish_and_what_was_read_behind_them_goes_back_to_its_place(project, act, worker):
    worker(concurrency=1)
    running = act.apply_async(("sleep", "ran"), {"seconds": 1.5})
    project.starts(running.id)
    waiting = [act.delay("ok", number) for number in range(20)]

    celery_streams.pause(act.app, "celery")

    assert running.get(timeout=10) == "ran"
    eventually(lambda: project.status().pending == 0)
    assert started(project, waiting) == []
    celery_streams.resume(act.app, "celery")
    assert [one.get(timeout=10) for one in waiting] == list(range(20))
    assert started(project, waiting) == [one.id for one in waiting]


@pytest.mark.faults
def test_pause_survives_the_restart_of_workers_and_of_redis(tmp_path):
    with EmbeddedRedis(appendonly=True) as server:
        project = Project(server, tmp_path)
        try:
            act = project.app().tasks["tests.proj.actions.act"]
            first = project.worker(name="first")
            celery_streams.pause(act.app, "celery")
            left = act.delay("ok", 1)

            first.kill()
            server.restart()
            second = project.worker(name="second", options=("-l", "INFO"))

            eventually(lambda: "Queue celery is paused" in second.log)
            assert project.ledger.runs(left.id) == []
            # A process of its own: connections of this one ended with the server.
            assert project.command("-A", "tests.proj", "resume", "celery").wait() == 0
            assert eventually(lambda: project.ledger.runs(left.id))
        finally:
            project.close()


def test_worker_without_remote_control_learns_of_it_by_itself(project, act, worker):
    running = worker(worker_enable_remote_control=False, visibility_timeout=5, options=("-l", "INFO"))
    assert act.delay("ok", 0).get(timeout=15) == 0

    celery_streams.pause(act.app, "celery")
    eventually(lambda: "Queue celery is paused" in running.log, timeout=5)
    left = act.delay("ok", 1)

    eventually(lambda: project.status().waiting == 1)
    time.sleep(0.5)  # nothing tells that nothing happens
    assert project.ledger.runs(left.id) == []
    celery_streams.resume(act.app, "celery")
    assert left.get(timeout=10) == 1


def test_command_line_pauses_and_says_so_in_the_status(project, act, worker):
    worker()
    act.delay("ok", 0).get(timeout=15)

    said = project.command("-A", "tests.proj", "pause", "celery", "--reason", "deploy").wait()
    shown = project.command("-A", "tests.proj", "status")
    shown.wait()

    assert said == 0
    assert "celery: for" in shown.log
    assert "(deploy); its tasks do not start" in shown.log
    assert project.command("-A", "tests.proj", "resume", "celery").wait() == 0
    assert project.status().paused is None

"""A new worker among old ones: a task that a living worker knows is never given up."""

from __future__ import annotations

import time

from celery_streams import presence
from celery_streams.presence import WorkerPresence, task_mark
from tests.support.eventually import eventually


def newer(*tasks):
    """Return what a worker says that knows these tasks."""
    marks = "".join(map(task_mark, tasks))
    return WorkerPresence("new@host/0.aa", "new@host", 1, "0", 60.0, ("celery",), (), tasks=marks)


def test_task_that_a_living_worker_knows_is_not_given_up_by_one_that_does_not(project, act, worker):
    broker = project.broker
    worker(concurrency=1, streams_unknown_task_ttl=0.5)
    presence.beat(broker, newer("tests.other", "tests.new"), forget=False)

    act.app.send_task("tests.new")
    time.sleep(3)  # several times the time to live
    kept = project.dead_letters()
    presence.depart(broker, "new@host/0.aa")

    assert kept == []
    eventually(lambda: [one.reason for one in project.dead_letters()] == ["unknown-task"], timeout=15)


def test_worker_says_which_tasks_it_knows(project, act, worker):
    worker(concurrency=1)

    [said] = eventually(lambda: presence.workers(project.broker), timeout=10)

    assert said.knows(act.name)
    assert not said.knows("tests.new")

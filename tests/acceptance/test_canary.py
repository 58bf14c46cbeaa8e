"""A new worker among old ones: a task that a living worker knows is never given up."""

from __future__ import annotations

import time

import pytest

from celery_streams import presence
from celery_streams.presence import WorkerPresence, task_mark
from tests.support.eventually import eventually


def newer(*tasks):
    """Return what a worker says that knows these tasks."""
    marks = "".join(map(task_mark, tasks))
    return WorkerPresence("new@host/0.aa", "new@host", 1, "0", 60.0, ("celery",), (), tasks=marks)


def test_task_that_a_living_worker_knows_is_not_given_up_by_one_that_does_not(project, act, worker):
    broker = project.broker
    old = worker(concurrency=1, streams_unknown_task_ttl=0.5)
    presence.beat(broker, newer("tests.other", "tests.new"), forget=False)

    act.app.send_task("tests.new")
    # Its pauses are a second long: several times the time to live.
    eventually(lambda: old.log.count("is not registered here") >= 3, timeout=15)
    kept = project.dead_letters()
    presence.depart(broker, "new@host/0.aa")

    assert kept == []
    eventually(lambda: [one.reason for one in project.dead_letters()] == ["unknown-task"], timeout=15)


def test_worker_says_which_tasks_it_knows(project, act, worker):
    worker(concurrency=1)

    [said] = eventually(lambda: presence.workers(project.broker), timeout=10)

    assert said.knows(act.name)
    assert not said.knows("tests.new")


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_tasks_that_one_new_worker_knows_among_nine_old_children_all_run_promptly(project, act, worker, pool):
    for name, children in (("a", 5), ("b", 4)):
        worker(concurrency=children, name=name, streams_unknown_task_ttl=2)
    worker(concurrency=1, name="new", pool=pool, imports=["tests.proj.newer"])
    eventually(lambda: any(one.takes for one in presence.workers(project.broker)), timeout=15)
    time.sleep(2.1)  # what old workers know of others is two seconds old at most

    began = time.monotonic()
    recent = [act.app.send_task("tests.proj.newer.recent", (number,)) for number in range(300)]
    known = [act.delay("ok", number) for number in range(100)]
    assert [one.get(timeout=20) for one in known] == list(range(100))
    known_done = time.monotonic() - began
    assert [one.get(timeout=20) for one in recent] == list(range(300))
    took = time.monotonic() - began

    assert project.dead_letters() == []
    assert known_done < 10, "tasks that all know wait for none that few know"
    assert took < 15
    assert set(project.counted().values()) == {1}
    eventually(lambda: project.status().pending == 0)

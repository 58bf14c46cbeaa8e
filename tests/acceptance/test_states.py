"""The states of tracked tasks, as somebody who polls them sees them, in whole workers."""

from __future__ import annotations

import os
import signal

import pytest

import celery_streams
from tests.support.eventually import eventually

POOLS = ["prefork", "threads", "solo", "asyncio", "gevent", "eventlet"]


@pytest.fixture
def tracked(project):
    """The action task of a publisher that tracks it."""
    return project.app(streams_track=True).tasks["tests.proj.actions.act"]


def state_of(task, result):
    return celery_streams.state(task.app, result.id)


def wait_for(task, result, *wanted, timeout=20):
    def found():
        state = state_of(task, result)
        return state if state.state in wanted else None

    return eventually(found, timeout=timeout, message=f"{result.id} is {' or '.join(wanted)}")


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_says_what_becomes_of_a_task(project, tracked, worker, pool):
    queued = tracked.delay("sleep", seconds=1.5)
    later = tracked.apply_async(("ok",), countdown=3600)
    gone = tracked.apply_async(("ok",), expires=-1)
    assert [state_of(tracked, one).state for one in (queued, later)] == ["queued", "delayed"]

    worker(pool=pool, concurrency=1, streams_track=True)
    running = wait_for(tracked, queued, "running")
    behind = tracked.delay("ok")
    failed = tracked.delay("error", "for good")
    again = tracked.delay("retry", "at last", until=1, countdown=3600)

    assert running.attempt == 1
    assert wait_for(tracked, queued, "succeeded").since >= running.since
    assert wait_for(tracked, behind, "succeeded")
    assert wait_for(tracked, failed, "dead").reason == "failed"
    waits = wait_for(tracked, again, "retrying")
    assert (waits.attempt, waits.of) == (2, 4)
    assert waits.until > waits.since + 3500
    assert wait_for(tracked, gone, "expired")
    assert state_of(tracked, later).state == "delayed"


def test_task_whose_worker_is_killed_is_unfinished_all_the_time_and_succeeds_in_the_end(project, tracked, worker):
    first = worker(streams_track=True, streams_visibility_timeout=2)
    result = tracked.delay("sleep_first", "done", seconds=60)
    project.starts(result.id)
    assert wait_for(tracked, result, "running")

    first.kill()
    seen = {state_of(tracked, result).state}
    worker(name="second", streams_track=True, streams_visibility_timeout=2)

    def ended():
        seen.add(state_of(tracked, result).state)
        return "succeeded" in seen

    assert eventually(ended, timeout=40)
    assert seen <= {"running", "queued", "succeeded"}
    assert project.counted()[result.id] == 2


def test_task_whose_child_is_killed_again_and_again_is_dead(project, tracked, worker):
    worker(concurrency=1, streams_track=True, streams_delivery_limit=2)
    result = tracked.delay("sleep", seconds=60)

    for times in (1, 2):
        (*_, last) = project.starts(result.id, times=times)
        assert wait_for(tracked, result, "running")
        os.kill(last["pid"], signal.SIGKILL)

    assert wait_for(tracked, result, "dead").reason == "crashed"
    assert len(project.dead_letters()) == 1


def test_task_that_is_terminated_is_revoked(project, tracked, worker):
    worker(concurrency=1, streams_track=True)
    running = tracked.delay("sleep", seconds=60)
    waits = tracked.delay("ok")
    project.starts(running.id)

    tracked.app.control.revoke(waits.id)
    tracked.app.control.revoke(running.id, terminate=True)

    assert wait_for(tracked, running, "revoked")
    assert wait_for(tracked, waits, "revoked")
    assert project.counted()[waits.id] == 0


def test_task_that_the_parent_acknowledges_for_a_child_that_died_succeeded(project, tracked, worker):
    worker(concurrency=1, streams_track=True)
    tracked.delay("ok").get(timeout=15)
    # Read together; the second kills its child before the acknowledgement of the first is sent.
    with celery_streams.bulk(tracked.app):
        first = tracked.delay("ok")
        second = tracked.delay("kill", "done", times=1)

    assert wait_for(tracked, second, "succeeded")
    assert wait_for(tracked, first, "succeeded")
    assert project.counted()[first.id] == 1

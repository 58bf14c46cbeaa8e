"""The asyncio pool ends coroutines: by time limits, remote control and shutdowns, whatever they do about it."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from tests.support.eventually import eventually

WATCHED = pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])

#: What a coroutine may do when it is cancelled; see the task.
THEN = ["swallow", "return", "raise", "retry", "sleep"]


@pytest.fixture
def waiting(project):
    app = project.app(include=["tests.proj.waiting"])
    return lambda name: app.tasks[f"tests.proj.waiting.{name}"]


@pytest.fixture
def loop(worker):
    """Start a worker with the asyncio pool."""
    return lambda **options: worker(pool="asyncio", options=("-I", "tests.proj.waiting"), **options)


@WATCHED
def test_soft_limit_is_raised_in_the_coroutine_that_is_over_it(project, waiting, loop, watched):
    running = loop(concurrency=4, watched=watched)

    cleans_up = waiting("wait_and_clean_up").apply_async(soft_time_limit=0.3)
    fails = waiting("wait_for").apply_async((1,), {"seconds": 60}, soft_time_limit=0.3)
    beside = waiting("wait_for").apply_async(("beside",), {"seconds": 1.0}, soft_time_limit=20)

    assert cleans_up.get(timeout=15) == "cleaned up"
    assert repr(fails.get(timeout=10, propagate=False)) == "SoftTimeLimitExceeded()"
    assert beside.get(timeout=10) == "beside"
    assert eventually(lambda: [letter.task_id for letter in project.dead_letters()]) == [fails.id]
    said = f"Soft time limit (0.3s) exceeded for {waiting('wait_for').name}[{fails.id}]"
    assert eventually(lambda: said in running.log)
    assert set(project.counted().values()) == {1}
    assert [waiting("wait_for").delay(n).get(timeout=10) for n in range(4)] == list(range(4))


@WATCHED
@pytest.mark.parametrize("then", THEN)
def test_task_over_its_hard_limit_fails_once_whatever_its_coroutine_does(project, waiting, loop, watched, then):
    loop(concurrency=2, watched=watched)

    ended = waiting("wait_stubbornly").apply_async((then,), time_limit=0.3)
    beside = waiting("wait_for").apply_async(("beside",), {"seconds": 1.0}, time_limit=20)

    assert repr(ended.get(timeout=20, propagate=False)) == "TimeLimitExceeded(0.3)"
    assert beside.get(timeout=10) == "beside"
    together = [waiting("meet").delay(n, count=2) for n in range(2)]
    assert [result.get(timeout=10) for result in together] == [0, 1]
    (letter,) = eventually(project.dead_letters)
    assert (letter.reason, letter.task_id) == ("time-limit", ended.id)
    assert eventually(lambda: project.status().length == 0)
    assert project.counted() == Counter([ended.id, beside.id, *(result.id for result in together)])
    assert ended.state == "FAILURE"


@WATCHED
@pytest.mark.parametrize("then", ["swallow", "return", "sleep"])
def test_terminated_coroutine_is_revoked_once_whatever_it_does(project, waiting, loop, watched, then):
    running = loop(concurrency=2, watched=watched)
    ended = waiting("wait_stubbornly").delay(then)
    beside = waiting("wait_for").delay("beside", seconds=3.0)
    for result in (ended, beside):
        project.starts(result.id)

    ended.app.control.revoke(ended.id, terminate=True, destination=[running.hostname])

    eventually(lambda: ended.state == "REVOKED")
    eventually(lambda: project.ledger.read("cancelled", ended.id))
    assert beside.get(timeout=10) == "beside"
    together = [waiting("meet").delay(n, count=2) for n in range(2)]
    assert [result.get(timeout=15) for result in together] == [0, 1]
    assert eventually(lambda: project.status().length == 0)
    assert project.dead_letters() == []
    assert ended.state == "REVOKED"
    assert set(project.counted().values()) == {1}


def test_plain_task_of_the_asyncio_pool_is_not_terminated_and_says_so(project, act, loop):
    running = loop(concurrency=1)
    result = act.delay("sleep", "finished", seconds=2.0)
    project.starts(result.id)

    (reply,) = act.app.control.revoke(result.id, terminate=True, destination=[running.hostname], reply=True, timeout=5)

    assert "this pool can end async def tasks only" in repr(reply)
    assert result.get(timeout=10) == "finished"


def test_warm_shutdown_waits_for_coroutines(project, waiting, loop):
    leaving = loop(concurrency=2)
    result = waiting("wait_for").delay("finished", seconds=1.0)
    project.starts(result.id)

    leaving.signal(signal.SIGTERM)

    assert leaving.wait() == 0
    assert result.get(timeout=5) == "finished"
    assert project.counted() == Counter([result.id])


@pytest.mark.parametrize("then", THEN)
def test_cold_shutdown_cancels_coroutines_and_hands_their_messages_on_at_once(project, waiting, loop, worker, then):
    leaving = loop(name="leaving", concurrency=2)
    result = waiting("wait_stubbornly").delay(then)
    project.starts(result.id)

    leaving.signal(signal.SIGQUIT)

    assert leaving.wait() == 0
    assert project.ledger.read("cancelled", result.id)
    assert project.status().pending == 0
    assert project.status().waiting == 1
    worker(name="next", pool="asyncio", concurrency=1, options=("-I", "tests.proj.waiting"))
    assert result.get(timeout=10) == "at last"
    assert [run["redelivered"] for run in project.ledger.runs(result.id)] == [False, True]
    assert project.dead_letters() == []

"""Tasks with a strategy of their own: what it keeps stays pending until it is acknowledged or rejected."""

from __future__ import annotations

import signal

import pytest

from tests.support.eventually import eventually

KEEPING = ("-I", "tests.proj.keeping")
POOLS = ["prefork", "solo"]


@pytest.fixture
def keeping(project):
    """The tasks by their short names."""
    app = project.app(include=["tests.proj.keeping"])
    return lambda name: app.tasks[f"tests.proj.keeping.{name}"]


@pytest.mark.parametrize("pool", [*POOLS, "threads"])
def test_batch_runs_when_it_is_full_or_when_the_timer_says_so(project, keeping, worker, pool):
    worker(pool=pool, concurrency=1, options=KEEPING)

    results = [keeping("together").delay(n) for n in range(4)]

    runs = [project.starts(result.id)[0] for result in results]
    assert [run["batch"] for run in runs] == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3]]
    assert eventually(lambda: project.status().length == 0)
    assert project.dead_letters() == []
    assert set(project.counted().values()) == {1}


@pytest.mark.parametrize("pool", POOLS)
def test_kept_messages_that_run_later_succeed_fail_and_retry_as_usual(project, keeping, worker, pool):
    worker(pool=pool, concurrency=1, options=KEEPING)

    fine, failed, retried = (keeping("one_by_one").delay(value) for value in ("ok", "fail", "retry"))

    assert fine.get(timeout=10) == "ok"
    assert isinstance(failed.get(timeout=10, propagate=False), ValueError)
    assert retried.get(timeout=10) == "retry"
    assert eventually(lambda: project.status().length == 0)
    assert [(letter.task_id, letter.reason) for letter in project.dead_letters()] == [(failed.id, "failed")]
    assert project.counted() == {fine.id: 1, failed.id: 1, retried.id: 2}


@pytest.mark.parametrize("pool", POOLS)
def test_kept_message_is_put_back_or_dead_as_its_strategy_rejects_it(project, keeping, worker, pool):
    worker(pool=pool, concurrency=1, options=KEEPING)

    result = keeping("refused").delay(1)

    (letter,) = eventually(project.dead_letters, timeout=15)
    assert (letter.task_id, letter.reason) == (result.id, "rejected")
    assert len(project.ledger.read("kept", result.id)) == 2


@pytest.mark.parametrize("pool", POOLS)
def test_kept_message_is_not_claimed_while_it_waits(project, keeping, worker, pool):
    settings = {"streams_visibility_timeout": 1}
    worker(name="keeper", pool=pool, concurrency=1, options=KEEPING, **settings)
    keeping("together").flush_interval = 1.0
    result = keeping("together").delay(1)
    eventually(lambda: project.ledger.read("kept", result.id))
    worker(name="other", pool=pool, concurrency=1, options=KEEPING, **settings)

    project.starts(result.id)

    assert eventually(lambda: project.status().length == 0)
    assert len(project.ledger.read("kept", result.id)) == 1


def test_kept_messages_of_a_child_that_dies_run_again(project, keeping, worker):
    worker(pool="prefork", concurrency=1, options=KEEPING)
    first, second = keeping("together").delay(1), keeping("together").delay("die")

    assert project.starts(first.id, times=2)[0]["batch"] == [1, "die"]
    project.starts(second.id)
    assert eventually(lambda: project.status().length == 0)


@pytest.mark.parametrize("pool", POOLS)
def test_kept_messages_go_back_when_the_worker_stops(project, keeping, worker, pool):
    running = worker(pool=pool, concurrency=1, options=KEEPING)
    result = keeping("never").delay(1)
    eventually(lambda: project.ledger.read("kept", result.id))

    running.process.send_signal(signal.SIGTERM)

    assert running.wait() == 0
    status = project.status()
    assert (status.waiting, status.pending, project.counted()) == (1, 0, {})

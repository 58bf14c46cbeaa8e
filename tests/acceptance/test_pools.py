"""Every pool runs the same tasks to the same end."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.eventually import eventually


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_every_pool_runs_retries_delays_and_gives_up(project, act, worker, pool):
    running = worker(pool=pool, concurrency=1 if pool == "solo" else 4)

    plain = [act.delay("ok", n) for n in range(50)]
    retried = act.delay("retry", "at last", until=2, countdown=0.1)
    delayed = act.apply_async(("ok", "later"), countdown=0.3)
    failed = act.delay("error", "for good")

    assert [result.get(timeout=15) for result in plain] == list(range(50))
    assert retried.get(timeout=15) == "at last"
    assert delayed.get(timeout=15) == "later"
    assert str(failed.get(timeout=15, propagate=False)) == "for good"
    assert [letter.task_id for letter in project.dead_letters()] == [failed.id]
    assert project.counted() == Counter(
        {result.id: 1 for result in plain} | {retried.id: 3, delayed.id: 1, failed.id: 1}
    )
    assert eventually(lambda: project.status().length == 0)
    running.process.terminate()
    assert running.wait() == 0

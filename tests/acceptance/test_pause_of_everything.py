"""A pause of a queue that has everything at once: partitions, a pattern that finds it, priorities, delayed messages."""

from __future__ import annotations

import celery_streams
from tests.support.eventually import eventually

ACT = "tests.proj.actions.act"
QUEUE = "chat.eu"
SETTINGS = {"streams_partitions": {QUEUE: 4}, "streams_visibility_timeout": 4}


def test_nothing_starts_in_a_pause_whatever_comes_and_whoever_starts_and_stops(project, worker):
    # Given a queue that two workers read, one by a pattern, and a pause
    act = project.app(**SETTINGS).tasks[ACT]
    named = worker(name="named", queues=f"{QUEUE},other", concurrency=1, **SETTINGS)
    act.apply_async(("ok", 0), queue=QUEUE).get(timeout=30)
    found = worker(name="found", queues="chat.*,other", concurrency=1, **SETTINGS)
    celery_streams.pause(act.app, QUEUE, reason="deploy")
    eventually(lambda: all(f"Queue {QUEUE} is paused" in one.log for one in (named, found)))

    # When messages come to all partitions, of all priorities, also later, while workers start and stop
    left = [act.apply_async(("ok", number), queue=QUEUE, priority=number % 10) for number in range(20)]
    left += [act.apply_async(("ok", 20 + number), queue=QUEUE, countdown=0.3) for number in range(8)]
    named.stop()
    again = worker(name="again", queues="chat.*,other", concurrency=2, **SETTINGS)
    found.kill()
    eventually(lambda: f"Queue {QUEUE} is paused" in again.log)
    beside = [act.apply_async(("ok", number), queue="other") for number in range(5)]

    # Then those of the other queue run, what is delayed becomes due, and nothing of the paused one starts
    assert [one.get(timeout=30) for one in beside] == list(range(5))
    eventually(lambda: project.status(QUEUE).delayed == 0, timeout=20)
    assert act.apply_async(("ok", 9), queue="other").get(timeout=15) == 9
    assert not {one.id for one in left} & set(project.counted())
    assert project.status(QUEUE).waiting == 28

    # And when it is resumed, each runs once
    celery_streams.resume(act.app, QUEUE)
    assert [one.get(timeout=30) for one in left] == list(range(28))
    assert {project.counted()[one.id] for one in left} == {1}

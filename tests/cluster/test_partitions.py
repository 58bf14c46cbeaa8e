"""One queue over all masters of a Redis Cluster: each does its share, and workers and tools see one queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from celery_streams.cluster_map import slot_of
from celery_streams.partitions import partitions
from tests.acceptance.conftest import Project
from tests.support.cluster import Cluster
from tests.support.eventually import eventually

QUEUE = "jobs"
EIGHT: dict[str, Any] = {"streams_partitions": {QUEUE: 8}}

#: Seconds; short, so that a killed worker's tasks are claimed soon.
VISIBILITY_TIMEOUT = 4.0


def masters_of(nodes: Cluster, queue: str = QUEUE, count: int = 8) -> Counter[int]:
    """Return how many partitions each master has."""
    return Counter(nodes.owner(f"celery-streams:{{{name}}}") for name in partitions(queue, count))


def drained(project: Project) -> bool:
    found = project.status(QUEUE)
    return (found.waiting, found.pending, found.delayed) == (0, 0, 0)


def test_all_masters_share_a_queue_and_its_worker_runs_all_of_it_once(project: Project, nodes: Cluster) -> None:
    # Given messages of all kinds on a queue that all masters share
    assert sorted(masters_of(nodes).values()) == [2, 3, 3]
    act = project.app(**EIGHT).tasks["tests.proj.actions.act"]
    waiting = [act.apply_async(("ok", n), queue=QUEUE) for n in range(60)]
    later = [act.apply_async(("ok", n), queue=QUEUE, countdown=0.3) for n in range(12)]
    again = [act.apply_async(("retry", n), {"countdown": 0}, queue=QUEUE) for n in range(8)]
    fails = [act.apply_async(("error", "on purpose"), queue=QUEUE) for _ in range(8)]
    held = [key for key in nodes.keys("celery-streams:{jobs*") if not key.endswith(":delayed:messages")]
    assert {nodes.owner(key) for key in held} == {0, 1, 2}

    # When one worker reads it
    project.worker(queues=QUEUE, **EIGHT)
    killed = act.apply_async(("kill", 7), queue=QUEUE)
    at_once = [act.apply_async(("ok", n), queue=QUEUE) for n in range(20)]

    # Then all of it runs, once, and the tools show one queue
    results = [one.get(timeout=30) for one in (*waiting, *later, *again, killed, *at_once)]
    assert results == [*range(60), *range(12), *range(8), 7, *range(20)]
    eventually(lambda: drained(project))
    counted = project.counted()
    assert {counted.pop(one.id) for one in (*again, killed)} == {2}
    assert set(counted.values()) == {1}
    letters = project.dead_letters(QUEUE)
    assert {letter.task_id for letter in letters} == {one.id for one in fails}
    assert len({slot_of(f"celery-streams:{{{name}}}") for name in project.broker.partitions(QUEUE)}) == 8

    assert nodes.keys("*:block:transfer:*") == []  # a retry is one step: it stays in its slot


@pytest.mark.cluster
def test_tasks_of_a_killed_worker_run_on_another_and_none_is_lost(
    make_project: Callable[..., Project], nodes: Cluster
) -> None:
    project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT, **EIGHT)
    act = project.app().tasks["tests.proj.actions.act"]
    first = project.worker(name="first", queues=QUEUE, concurrency=3)
    results = [act.apply_async(("sleep", n), {"seconds": 0.02}, queue=QUEUE) for n in range(200)]
    eventually(lambda: len(project.ledger.runs()) > 40)

    first.kill()
    project.worker(name="second", queues=QUEUE, concurrency=3)

    assert [one.get(timeout=10 * VISIBILITY_TIMEOUT) for one in results] == list(range(200))
    counted = project.counted()
    assert sum(counted.values()) - 200 <= 2 * 3
    assert set(counted.values()) <= {1, 2}
    eventually(lambda: drained(project))


@pytest.mark.cluster
def test_slot_of_a_partition_that_moves_under_load_loses_nothing(project: Project, nodes: Cluster) -> None:
    act = project.app(**EIGHT).tasks["tests.proj.actions.act"]
    project.worker(queues=QUEUE, **EIGHT)
    slot = slot_of(f"celery-streams:{{{partitions(QUEUE, 8)[3]}}}")
    source = nodes.owner(f"celery-streams:{{{partitions(QUEUE, 8)[3]}}}")
    target = (source + 1) % 3
    results = [act.apply_async(("sleep", n), {"seconds": 0.01}, queue=QUEUE) for n in range(100)]

    nodes.begin_move(slot, source, target)
    results += [act.apply_async(("ok", n), queue=QUEUE) for n in range(100, 140)]
    nodes.end_move(slot, source, target)
    results += [act.apply_async(("ok", n), queue=QUEUE) for n in range(140, 180)]

    assert [one.get(timeout=30) for one in results] == list(range(180))
    assert project.counted() == Counter(dict.fromkeys((one.id for one in results), 1))
    nodes.begin_move(slot, target, source)
    nodes.end_move(slot, target, source)

"""One queue over all masters of a Redis Cluster: each does its share, and workers and tools see one queue."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from celery_streams.cluster_map import slot_of
from celery_streams.exceptions import BrokerError
from celery_streams.partitions import partitions, place
from tests.acceptance.conftest import Project
from tests.support.cluster import Cluster, cluster
from tests.support.eventually import eventually

QUEUE = "jobs"
EIGHT: dict[str, Any] = {"streams_partitions": {QUEUE: 8}}

#: Seconds; short, so that a killed worker's tasks are claimed soon.
VISIBILITY_TIMEOUT = 4.0


def masters_of(nodes: Cluster, queue: str = QUEUE, count: int = 8) -> Counter[int]:
    """Return how many partitions each master has."""
    return Counter(nodes.owner(f"celery-streams:{{{name}}}") for name in partitions(queue, count))


class Load:
    """Publishes to a queue of eight partitions, and knows what is stored, and on which master."""

    def __init__(self, project: Project, nodes: Cluster) -> None:
        self.project = project
        self.stored: dict[int, list[str]] = {0: [], 1: [], 2: []}
        self._act = project.app().tasks["tests.proj.actions.act"]
        self._owners = {name: nodes.owner(f"celery-streams:{{{name}}}") for name in partitions(QUEUE, 8)}

    def publish(self, masters: Iterable[int] = (0, 1, 2)) -> None:
        """Publish a task to a partition of each of these masters; those that are away refuse it."""
        for master in masters:
            ids = iter(lambda: str(uuid.uuid4()), None)
            task_id = next(one for one in ids if self._owners[place(QUEUE, one, 8)] == master)
            try:
                self._act.apply_async(("sleep", 0), {"seconds": 0.002}, queue=QUEUE, retry=False, task_id=task_id)
            except BrokerError:
                continue
            self.stored[master].append(task_id)

    def publish_for(self, seconds: float, masters: Iterable[int] = (0, 1, 2)) -> None:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            self.publish(masters)

    def times(self, masters: Iterable[int] = (0, 1, 2)) -> set[int]:
        """Return how often what is stored on these masters was started, each number once."""
        counted = self.project.counted()
        return {counted[task_id] for master in masters for task_id in self.stored[master]}

    def all_ran(self, masters: Iterable[int] = (0, 1, 2)) -> bool:
        return 0 not in self.times(masters)


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


@pytest.mark.cluster
def test_other_partitions_go_on_while_a_master_is_dead_and_its_own_when_its_replica_has_taken_over(
    make_project: Callable[..., Project],
) -> None:
    with cluster(replicas=True, full_coverage=False) as nodes:
        project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT, **EIGHT)
        load = Load(project, nodes)
        project.worker(queues=QUEUE, concurrency=2)
        dead = nodes.owner(f"celery-streams:{{{partitions(QUEUE, 8)[1]}}}")
        others = [master for master in range(3) if master != dead]
        load.publish_for(1.0)
        # Replication is asynchronous: what is stored, and what is acknowledged, by now is to survive.
        eventually(load.all_ran)
        eventually(lambda: drained(project))
        for _ in range(20):
            load.publish([dead])
        assert nodes.clients[dead].call("WAIT", 1, 5_000) == 1

        nodes.servers[dead].kill()
        before = sum(map(len, load.stored.values()))
        load.publish_for(0.8, others)
        assert nodes.owner(f"celery-streams:{{{partitions(QUEUE, 8)[1]}}}") == dead, "it is not replaced yet"
        assert sum(map(len, load.stored.values())) >= before + 20
        eventually(lambda: load.all_ran(others), message="the others go on")

        def stored_again() -> bool:
            known = len(load.stored[dead])
            load.publish([dead])
            return len(load.stored[dead]) > known

        eventually(stored_again, timeout=20, message="the replica takes over")
        load.publish_for(0.5)
        eventually(load.all_ran, timeout=30)
        eventually(lambda: drained(project), timeout=30)
        assert load.times(others) == {1}
        # What was acknowledged in the last moment may not have reached the replica.
        counted = project.counted()
        assert sum(counted[task_id] - 1 for task_id in load.stored[dead]) <= 5


@pytest.mark.cluster
def test_partitions_of_a_dead_master_without_a_replica_wait_for_it_and_nothing_is_lost_or_doubled(
    make_project: Callable[..., Project],
) -> None:
    with cluster(full_coverage=False, appendonly=True) as nodes:
        project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT, **EIGHT)
        load = Load(project, nodes)
        project.worker(queues=QUEUE, concurrency=2)
        dead = nodes.owner(f"celery-streams:{{{partitions(QUEUE, 8)[1]}}}")
        others = [master for master in range(3) if master != dead]
        load.publish_for(1.0)
        # Some wait, and some run, while their master dies.
        for _ in range(100):
            load.publish([dead])

        nodes.servers[dead].kill()
        began = time.monotonic()
        while time.monotonic() - began < 2 * VISIBILITY_TIMEOUT:
            known = sum(len(load.stored[master]) for master in others)
            load.publish_for(0.2, others)
            assert sum(len(load.stored[master]) for master in others) > known
            eventually(lambda: load.all_ran(others), message="the others go on")
        load.publish([dead])
        assert not load.all_ran([dead])

        nodes.servers[dead].start()
        eventually(load.all_ran, timeout=30)
        eventually(lambda: drained(project), timeout=30)
        load.publish()
        eventually(load.all_ran, timeout=30)
        assert load.times() == {1}


@pytest.mark.cluster
def test_number_of_partitions_that_grows_under_load_loses_and_doubles_nothing(project: Project) -> None:
    for name in ("one", "two"):
        project.worker(name=name, queues=QUEUE, concurrency=1, streams_partitions={QUEUE: 2})
    results: list[Any] = []
    # Publishers are updated one after the other, and both write meanwhile.
    acts = [project.app(streams_partitions={QUEUE: count}).tasks["tests.proj.actions.act"] for count in (2, 8)]
    for wave, which in enumerate(((0,), (0, 1), (1,))):
        results += [
            acts[at].apply_async(("sleep", wave), {"seconds": 0.002}, queue=QUEUE) for _ in range(60) for at in which
        ]

    assert {one.get(timeout=60) for one in results} == {0, 1, 2}
    assert len(project.broker.partitions(QUEUE)) == 8
    assert set(project.counted().values()) == {1}
    assert len(project.counted()) == len(results) == 240
    eventually(lambda: drained(project))


@pytest.mark.cluster
def test_all_nodes_that_are_killed_and_restarted_under_load_lose_and_double_nothing(
    make_project: Callable[..., Project],
) -> None:
    with cluster(appendonly=True) as nodes:
        project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT, **EIGHT)
        load = Load(project, nodes)
        for name in ("one", "two"):
            project.worker(name=name, queues=QUEUE, concurrency=1)
        long = load._act.apply_async(("sleep", 0), {"seconds": 2 * VISIBILITY_TIMEOUT}, queue=QUEUE)
        project.starts(long.id)

        for _ in range(2):
            load.publish_for(0.7)
            nodes.restart()
            before = len(load.stored[0])

            def stored_again(known: int = before) -> bool:
                load.publish()
                return len(load.stored[0]) > known

            eventually(stored_again, timeout=30, message="the cluster serves again")

        load.publish_for(0.5)
        eventually(load.all_ran, timeout=60)
        eventually(lambda: drained(project), timeout=60)
        assert load.times() == {1}
        assert project.counted()[long.id] == 1

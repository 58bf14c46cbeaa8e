"""What happens to nodes and slots while a worker runs: nothing is lost, and what lives elsewhere goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celery_streams import inspect, keys, presence, state
from celery_streams.broker import StreamBroker
from celery_streams.cluster_map import slot_of
from celery_streams.exceptions import BrokerError
from tests.acceptance.conftest import Project
from tests.support.cluster import Cluster, cluster
from tests.support.eventually import eventually
from tests.support.processes import ROOT
from tests.support.redis_state import message

pytestmark = pytest.mark.cluster

#: Seconds; short, so that a moved slot stays open for longer.
VISIBILITY_TIMEOUT = 4.0


def stream(queue: str) -> str:
    return f"celery-streams:{{{queue}}}"


class Load:
    """Publishes tasks to several queues, and knows which of them are stored."""

    def __init__(self, project: Project, queues: list[str]) -> None:
        self.project, self.queues = project, queues
        self._act = project.app().tasks["tests.proj.actions.act"]
        self.stored: dict[str, list[str]] = {queue: [] for queue in queues}

    def publish(self, queue: str, **options: Any) -> bool:
        """Publish a task of some milliseconds; returns whether it is stored."""
        try:
            made = self._act.apply_async(("sleep", 0), {"seconds": 0.002}, queue=queue, retry=False, **options)
        except BrokerError:
            return False
        self.stored[queue].append(made.id)
        return True

    def ran(self, queue: str) -> Counter[str]:
        """Return how often each stored task of a queue was started."""
        counted = self.project.counted()
        return Counter({task_id: counted[task_id] for task_id in self.stored[queue]})

    def all_ran(self, queue: str) -> bool:
        return all(self.ran(queue)[task_id] for task_id in self.stored[queue])

    def left(self) -> int:
        return sum(
            one.length + one.delayed + one.dead
            for one in (inspect.queue_status(self.project.broker, queue) for queue in self.queues)
        )


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_others_are_read_on_while_a_shard_fails_over_and_it_is_read_again(
    make_project: Callable[..., Project], pool: str
) -> None:
    with cluster(replicas=True, full_coverage=False) as nodes:
        project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT)
        queues = nodes.queues_apart(3)
        load = Load(project, queues)
        running = project.worker(queues=",".join(queues), pool=pool)
        for n in range(60):
            assert load.publish(queues[n % 3], countdown=6 if n % 6 < 3 else None)
        for queue in queues:
            eventually(lambda queue=queue: len(load.ran(queue)) and sum(map(bool, load.ran(queue).values())) >= 10)
        # Replication is asynchronous: what is there by now is to survive.
        assert nodes.clients[nodes.owner(stream(queues[0]))].call("WAIT", 1, 5_000) == 1
        dead = nodes.owner(stream(queues[0]))

        nodes.servers[dead].kill()
        others = queues[1:]
        began, published = time.monotonic(), 0
        while time.monotonic() - began < 1.0:
            published += sum(load.publish(queue) for queue in others)
        # All while the shard is away: it takes a second before its node counts as dead.
        assert nodes.owner(stream(queues[0])) == dead or time.monotonic() - began > 1.0
        assert published >= 20
        for queue in others:
            eventually(lambda queue=queue: sum(map(bool, load.ran(queue).values())) >= len(load.stored[queue]) - 10)

        eventually(lambda: load.publish(queues[0]), timeout=20, message="the replica takes over")
        for _ in range(20):
            assert load.publish(queues[0])
        for queue in queues:
            eventually(lambda queue=queue: load.all_ran(queue), timeout=30, message=f"all of {queue} ran")
        eventually(lambda: load.left() == 0, timeout=30)
        for queue in others:
            assert set(load.ran(queue).values()) == {1}
        # What was acknowledged in the last moment may not have reached the replica.
        assert sum(load.ran(queues[0]).values()) <= len(load.stored[queues[0]]) + 5
        assert running.running


def test_all_wait_while_a_shard_is_away_where_full_coverage_is_required(make_project: Callable[..., Project]) -> None:
    with cluster(replicas=True, full_coverage=True) as nodes:
        project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT)
        queues = nodes.queues_apart(3)
        load = Load(project, queues)
        project.worker(queues=",".join(queues))
        long = (
            [load._act.apply_async(("sleep", 0), {"seconds": 2 * VISIBILITY_TIMEOUT}, queue=queue) for queue in others]
            if (others := queues[1:])
            else []
        )
        for one in long:
            project.starts(one.id)
        dead = nodes.owner(stream(queues[0]))

        nodes.servers[dead].kill()
        eventually(lambda: not load.publish(others[0]), timeout=20, message="the others refuse, too")
        for queue in queues:
            eventually(lambda queue=queue: load.publish(queue), timeout=30, message="the replica takes over")

        for queue in queues:
            eventually(lambda queue=queue: load.all_ran(queue), timeout=30)
        eventually(lambda: load.left() == 0, timeout=30)
        for queue in others:
            assert set(load.ran(queue).values()) == {1}
        # They ran for longer than the visibility timeout, and their heartbeats failed for a while.
        assert [project.counted()[one.id] for one in long] == [1, 1]


def test_node_that_hangs_does_not_hold_up_the_heartbeats_of_others(make_project: Callable[..., Project]) -> None:
    with cluster(full_coverage=False) as nodes:
        project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT)
        queues = nodes.queues_apart(3)
        act = project.app().tasks["tests.proj.actions.act"]
        first, hangs, last = queues  # on the first node there is more: which workers live
        others = [first, last]
        project.worker(name="one", queues=",".join(queues), concurrency=3)
        long = [act.apply_async(("sleep", 0), {"seconds": 5 * VISIBILITY_TIMEOUT}, queue=queue) for queue in others]
        held = act.apply_async(("sleep", 0), {"seconds": 5 * VISIBILITY_TIMEOUT}, queue=hangs)
        for one in (*long, held):
            project.starts(one.id)
        # It needs nothing of the node that hangs, and claims from whoever is silent.
        project.worker(name="two", queues=",".join(others), concurrency=3)
        server = nodes.servers[nodes.owner(stream(hangs))]

        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert [one.get(timeout=60) for one in long] == [0, 0]
        finally:
            os.kill(server.pid, signal.SIGCONT)

        assert [project.counted()[one.id] for one in long] == [1, 1]


@pytest.mark.parametrize("hangs", ["a queue", "who lives"])
def test_tasks_of_a_killed_worker_are_claimed_while_a_node_hangs_that_does_not_hold_them(
    make_project: Callable[..., Project], hangs: str
) -> None:
    with cluster(full_coverage=False) as nodes:
        project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT)
        workers = nodes.owner("celery-streams:workers")
        queues = nodes.queues_apart(9)
        stuck = workers if hangs == "who lives" else (workers + 1) % 3
        others = [queue for queue in queues if nodes.owner(stream(queue)) != stuck]
        act = project.app().tasks["tests.proj.actions.act"]
        first = project.worker(name="one", queues=",".join(queues), concurrency=2)
        held = act.apply_async(("sleep_first", "done"), {"seconds": 300}, queue=others[0])
        project.starts(held.id)
        project.worker(name="two", queues=",".join(queues), concurrency=2)
        # The second one has heard of the first.
        eventually(lambda: len(presence.workers(project.broker)) == 2)
        time.sleep(VISIBILITY_TIMEOUT)  # the second one claims of nobody whom it has not known for so long
        server = nodes.servers[stuck]

        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            first.kill()
            project.starts(held.id, times=2, timeout=60)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert held.get(timeout=60) == "done"
        assert project.counted()[held.id] == 2


@pytest.mark.parametrize("hangs", ["a queue", "who lives"])
def test_outage_of_a_node_is_said_once_by_each_service(make_project: Callable[..., Project], hangs: str) -> None:
    """It was said every 1.5 s that presence failed, and that it works again."""
    with cluster(full_coverage=False) as nodes:
        project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT)
        workers = nodes.owner("celery-streams:workers")
        queues = nodes.queues_apart(9)
        stuck = workers if hangs == "who lives" else (workers + 1) % 3
        worker = project.worker(queues=",".join(queues), concurrency=2, options=["-l", "INFO"])
        project.app()
        eventually(lambda: len(presence.workers(project.broker)) == 1)
        server = nodes.servers[stuck]

        def said(what: str) -> Counter[str]:
            return Counter(re.findall(rf"The service for ([\w -]+) {what}", worker.log))

        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            eventually(lambda: said("failed"), timeout=30)
            time.sleep(2 * VISIBILITY_TIMEOUT)  # it would be said again in this time
        finally:
            os.kill(server.pid, signal.SIGCONT)
        eventually(lambda: said("works again") == said("failed"), timeout=30)

        assert set(said("failed").values()) == {1}


@pytest.mark.parametrize("replicas", [False, True], ids=["hangs", "fails over"])
def test_states_are_right_again_when_the_shard_that_keeps_them_is_back(
    make_project: Callable[..., Project], replicas: bool
) -> None:
    """A state whose node was away when its task moved stayed as it was before."""
    with cluster(full_coverage=False, replicas=replicas) as nodes:
        tracked = {"streams_track": "*", "streams_visibility_timeout": VISIBILITY_TIMEOUT}
        project = make_project(nodes, **tracked)
        app = project.app()
        act = app.tasks["tests.proj.actions.act"]
        queue, _, other = nodes.queues_apart(3)
        project.worker(queues=f"{queue},{other}")
        before = [act.apply_async(("sleep", n), {"seconds": 3}, queue=other) for n in range(2)]
        for one in before:
            project.starts(one.id)
        away = (nodes.owner(stream(queue)) + 1) % 3
        assert away not in {nodes.owner(stream(queue)), nodes.owner(stream(other))}
        server = nodes.servers[away]

        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL if replicas else signal.SIGSTOP)
        try:
            during = [act.apply_async(("retry", n), {"countdown": 0}, queue=queue) for n in range(20)]
            fails = act.apply_async(("error", "on purpose"), queue=queue)
            assert [one.get(timeout=60) for one in (*before, *during)] == [0, 1, *range(20)]
            project.starts(fails.id)
        finally:
            if not replicas:
                os.kill(server.pid, signal.SIGCONT)

        wanted = {one.id: "succeeded" for one in (*before, *during)} | {fails.id: "dead"}
        assert away in {nodes.owner(keys.state("celery-streams", one)) for one in wanted} or replicas

        def wrong() -> dict[str, str]:
            found = {one: state(app, one).state for one in wanted}
            return {one: said for one, said in found.items() if said != wanted[one]}

        def none_is_wrong() -> bool:
            assert wrong() == {}
            return True

        eventually(none_is_wrong, timeout=30)


@pytest.mark.parametrize("countdown", [0, 1])
@pytest.mark.parametrize(
    ("point", "retries"), [("apart", [0, 0, 1]), ("stored_apart", [0, 0, 1]), ("acked_apart", [0, 1])]
)
def test_f5_retry_to_another_node_is_stored_once_wherever_the_child_dies(
    project: Project,
    nodes: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    retries: list[int],
    countdown: int,
) -> None:
    queues = nodes.queues_apart(2)
    act = project.app().tasks["tests.proj.actions.act"]
    died = tmp_path / "died"
    monkeypatch.setenv("FAULTS_POINT", point)
    monkeypatch.setenv("FAULTS_POINT_FILE", str(died))
    project.worker(queues=",".join(queues), concurrency=1, options=("-I", "tests.faults.points"))

    sent = act.apply_async(("retry", 7), {"queue": queues[1], "countdown": countdown}, queue=queues[0])

    project.starts(sent.id, times=len(retries), timeout=30)
    eventually(lambda: all(project.status(queue).length + project.status(queue).delayed == 0 for queue in queues))
    assert died.exists()
    assert sorted(run["retries"] for run in project.ledger.runs(sent.id)) == retries


_REPLAY = """
import sys
import tests.faults.points
from celery_streams.broker import StreamBroker
from celery_streams.cluster import connect
from celery_streams.dead_letters import dead_letters, replay

broker = StreamBroker(connect(sys.argv[1]))
for letter in list(dead_letters(broker, sys.argv[2])):
    replay(broker, letter, queue=sys.argv[3])
"""


def test_f34_replay_to_another_node_that_is_killed_between_its_steps_and_run_again_replays_each_once(
    on_shards: StreamBroker, nodes: Cluster, tmp_path: Path
) -> None:
    here, there = nodes.queues_apart(2)
    on_shards.ensure_groups([here, there])
    for number in range(4):
        on_shards.publish(here, message(number))
    for one in on_shards.read(on_shards.streams([here]), "me", count=4):
        assert on_shards.reject("me", one.entry, death=b"{}", max_length=None, ttl=None)
    command = [sys.executable, "-c", _REPLAY, nodes.url, here, there]
    environment = {**os.environ, "FAULTS_POINT": "replayed_apart", "FAULTS_POINT_FILE": str(tmp_path / "died")}

    killed, again = (subprocess.run(command, cwd=ROOT, env=environment, check=False) for _ in range(2))

    assert (killed.returncode, again.returncode) == (-signal.SIGKILL, 0)
    there_now = inspect.queue_status(on_shards, there)
    assert (there_now.waiting, inspect.queue_status(on_shards, here).dead) == (4, 0)


def test_slot_held_open_for_longer_than_the_visibility_timeout_is_claimed_by_nobody(
    make_project: Callable[..., Project], nodes: Cluster
) -> None:
    project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT)
    queues = nodes.queues_apart(2)
    load = Load(project, queues)
    for name in ("one", "two"):
        project.worker(name=name, queues=",".join(queues))
    slot, source = slot_of(stream(queues[0])), nodes.owner(stream(queues[0]))
    target = (source + 1) % 3
    long = load._act.apply_async(("sleep", 0), {"seconds": 2 * VISIBILITY_TIMEOUT}, queue=queues[0])
    project.starts(long.id)
    nodes.begin_move(slot, source, target)
    try:
        began = time.monotonic()
        while time.monotonic() - began < 1.5 * VISIBILITY_TIMEOUT:
            load.publish(queues[0])
            load.publish(queues[1])
            eventually(lambda: load.all_ran(queues[1]), message="the other queue is read on")
        nodes.end_move(slot, source, target)
        eventually(lambda: load.left() == 0, timeout=30)
        assert project.counted()[long.id] == 1
        for queue in queues:
            assert set(load.ran(queue).values()) == {1}
    finally:
        nodes.begin_move(slot, target, source)
        nodes.end_move(slot, target, source)


def test_slot_that_moves_to_a_new_node_is_followed(make_project: Callable[..., Project]) -> None:
    with cluster(spare=1) as nodes:
        project = make_project(nodes)
        queues = [queue for queue in nodes.queues_apart(12) if nodes.owner(stream(queue)) < 3][:3]
        load = Load(project, queues)
        project.worker(queues=",".join(queues))
        slot, source = slot_of(stream(queues[0])), nodes.owner(stream(queues[0]))
        for n in range(30):
            load.publish(queues[n % 3])
        nodes.begin_move(slot, source, 3)
        for n in range(30):
            assert load.publish(queues[n % 3])
        nodes.move_keys(slot, source, 3)
        for n in range(30):
            assert load.publish(queues[n % 3])
        nodes.end_move(slot, source, 3)
        for n in range(30):
            assert load.publish(queues[n % 3])

        eventually(lambda: load.left() == 0, timeout=30)

        assert nodes.owner(stream(queues[0])) == 3
        for queue in queues:
            assert set(load.ran(queue).values()) == {1}
            assert load.all_ran(queue)

"""What a task costs on a cluster beside one server, as commands: counted by the servers, whatever the machine does."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from tests.acceptance.conftest import Project
from tests.support.cluster import Cluster
from tests.support.eventually import eventually

pytestmark = pytest.mark.cluster

TASKS = 300

#: Commands that are sent now and then, however many tasks there are.
ASIDE = ("info", "cluster|slots", "hello", "select", "client|setinfo", "client|setname", "ping", "auth", "config|get")


def commands(clients: Sequence[RedisClient]) -> Counter[str]:
    """Return how often each command was called, also by scripts."""
    found: Counter[str] = Counter()
    for client in clients:
        for name, calls in re.findall(r"cmdstat_(\S+):calls=(\d+)", client.call("INFO", "commandstats").decode()):
            found[name] += int(calls)
    for name in ASIDE:
        found.pop(name, None)
    return found


def costs(project: Project, clients: Sequence[RedisClient], queues: Sequence[str], **options: Any) -> dict[str, Any]:
    """Return the commands that are called to publish, and to drain, tasks."""
    act = project.app(**options).tasks["tests.proj.actions.act"]
    for queue in queues:
        act.apply_async(("ok", 0), queue=queue)
    before = commands(clients)
    for n in range(TASKS):
        act.apply_async(("ok", n), queue=queues[n % len(queues)])
    published = commands(clients) - before
    before = commands(clients)
    worker = project.worker(queues=",".join(queues), concurrency=1, **options)
    eventually(lambda: len(project.ledger.runs()) >= TASKS + len(queues), timeout=60)
    eventually(lambda: all(project.status(queue).length == 0 for queue in queues), timeout=30)
    drained = commands(clients) - before
    worker.stop()
    return {"publish": published, "drain": drained}


#: Commands that a task may cost more on a cluster: its state lies apart from its queue there, so that each note of it
#: is a script of its own (EVALSHA), which looks first whether a later one is there (GET).
NOTE = 2.0

#: Of those that have to do with time and not with tasks: heartbeats, claimers and promoters are there for each slot.
SLACK = 0.5


@pytest.mark.parametrize(("tracked", "notes"), [(False, (0, 0)), (True, (1, 2))], ids=["plain", "tracked"])
@pytest.mark.parametrize("count", [1, 3])
def test_task_costs_no_more_commands_on_a_cluster_than_on_one_server_but_for_its_state(
    make_project: Callable[..., Project],
    nodes: Cluster,
    redis_server: EmbeddedRedis,
    tmp_path: Path,
    count: int,
    tracked: bool,
    notes: tuple[int, int],
) -> None:
    queues = nodes.queues_apart(count)
    options = {"streams_track": "*"} if tracked else {}
    on_cluster = costs(make_project(nodes), nodes.clients, queues, **options)
    with EmbeddedRedis() as server, contextlib.closing(RedisClient(server.url)) as client:
        alone = Project(redis_server, tmp_path, streams_url=server.url)
        alone.ledger.client.flushdb()
        with contextlib.closing(alone):
            on_one = costs(alone, [client], queues, **options)

    # How many tasks a read brings says how busy the machine is, and all but the notes is done once for each read.
    reads = on_cluster["drain"]["xreadgroup"] / on_one["drain"]["xreadgroup"]
    for what, noted, batches in (("publish", notes[0], 1.0), ("drain", notes[1], reads)):
        here, there = (found[what].total() / TASKS for found in (on_cluster, on_one))
        assert here <= there * batches + noted * NOTE + SLACK, table(on_cluster[what], on_one[what])


def table(on_cluster: Counter[str], on_one: Counter[str]) -> str:
    """Return what was called for each task."""
    rows = [f"{name:24} cluster {on_cluster[name] / TASKS:6.2f}   one server {on_one[name] / TASKS:6.2f}"
            for name in sorted(on_cluster | on_one)]  # fmt: skip
    return "\n".join(["commands for each task", *rows])

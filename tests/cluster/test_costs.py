"""What a task costs on a cluster beside one server, as commands: counted by the servers, whatever the machine does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from tests.acceptance.conftest import Project
from tests.support.cluster import Cluster
from tests.support.eventually import eventually

pytestmark = pytest.mark.cluster

TASKS = 600

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
    """Return the commands that are called to publish, and to drain, tasks, as a table."""
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


@pytest.mark.parametrize("tracked", [False, True], ids=["plain", "tracked"])
@pytest.mark.parametrize("count", [1, 3])
def test_task_costs_no_more_commands_on_a_cluster_than_on_one_server(
    make_project: Callable[..., Project],
    nodes: Cluster,
    redis_server: EmbeddedRedis,
    redis_url: str,
    tmp_path: Any,
    count: int,
    tracked: bool,
) -> None:
    queues = nodes.queues_apart(count)
    options = {"streams_track": "*"} if tracked else {}
    on_cluster = costs(make_project(nodes), nodes.clients, queues, **options)
    with EmbeddedRedis() as server:
        client = RedisClient(server.url)
        redis_url_of_ledger = RedisClient(redis_url)
        redis_url_of_ledger.call("FLUSHALL")
        redis_url_of_ledger.close()
        alone = Project(redis_server, tmp_path, streams_url=server.url)
        try:
            on_one = costs(alone, [client], queues, **options)
        finally:
            alone.close()
            client.close()

    for what in ("publish", "drain"):
        print(f"{what}, {count} queues, per task:")
        for name in sorted(on_cluster[what] | on_one[what]):
            a, b = on_cluster[what][name] / TASKS, on_one[what][name] / TASKS
            if max(a, b) >= 0.01:
                print(f"  {name:20} cluster {a:6.2f}   one server {b:6.2f}")
        here, there = on_cluster[what].total() / TASKS, on_one[what].total() / TASKS
        print(f"  {'all':20} cluster {here:6.2f}   one server {there:6.2f}")
    assert on_cluster["publish"].total() <= on_one["publish"].total() + 0.1 * TASKS
    assert on_cluster["drain"].total() <= on_one["drain"].total() + 1.0 * TASKS

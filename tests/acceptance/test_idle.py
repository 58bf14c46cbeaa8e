"""What a worker asks of Redis while it has nothing to do, counted on a Redis that serves nobody else."""

from __future__ import annotations

from collections import Counter

import pytest
import redis

from celery_streams.embedded import EmbeddedRedis
from tests.acceptance.conftest import Project
from tests.support.eventually import eventually

#: Celery's heartbeats, one every two seconds, are the clock: on a slow machine all goes slower alike.
HEARTBEATS = 5


@pytest.fixture
def server():
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def project(server, tmp_path):
    project = Project(server, tmp_path)
    yield project
    project.close()


def sent_between_heartbeats(client):
    """Return which commands reach Redis within some heartbeats, without these and what scripts send."""
    sent, beats = Counter(), 0
    with client.monitor() as monitor:
        for said in monitor.listen():
            name = said["command"].partition(" ")[0].upper()
            if name == "PUBLISH":
                beats += "worker.heartbeat" in said["command"]
                if beats > HEARTBEATS:
                    return sent
            elif beats and said["client_type"] != "lua":
                sent[name] += 1
    return sent


@pytest.mark.timeout(300)
def test_idle_worker_of_fifty_queues_with_two_children_asks_for_little_on_twelve_connections(project, server):
    project.worker(queues=",".join(f"q{number}" for number in range(50)))
    client = redis.Redis.from_url(server.database_url(0))

    def asks_for_little():
        sent = sent_between_heartbeats(client)
        # It has just begun, and looks every two seconds whose turn it is; nothing grows with the queues.
        assert sent.total() < 4 * HEARTBEATS, sent
        return True

    def has_few_connections():
        # Neither the test's own nor the ledger's, of which each thread of a process that wrote to it may have one.
        connections = [
            f"{one['cmd']}, idle {one['idle']} s"
            for one in client.client_list()
            if not one["cmd"].startswith(("client", "monitor")) and one["db"] != "3"
        ]
        assert len(connections) <= 12, connections
        return True

    eventually(asks_for_little, timeout=60)
    eventually(has_few_connections, timeout=120)
    client.close()

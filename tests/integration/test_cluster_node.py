"""A node of a Redis Cluster behind a plain URL: it is refused with one line, and its errors keep their meaning."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis, find_server
from celery_streams.exceptions import BrokerUnavailable, ClusterNode, ConfigurationError
from tests.support.eventually import eventually
from tests.support.processes import ROOT, project_environment


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    """The URL of one of two nodes; which has the lower half of the slots."""
    with contextlib.ExitStack() as stack:
        nodes: list[tuple[EmbeddedRedis, RedisClient, int]] = []
        for _ in range(2):
            bus = free_port()
            server = stack.enter_context(EmbeddedRedis(args=("--cluster-enabled", "yes", "--cluster-port", str(bus))))
            nodes.append((server, stack.enter_context(contextlib.closing(RedisClient(server.url))), bus))
        (first, node, _), (second, other, bus) = nodes
        node.call("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        other.call("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
        node.call("CLUSTER", "MEET", "127.0.0.1", second.port, bus)

        def at_work() -> bool:
            return all(b"cluster_state:ok" in client.call("CLUSTER", "INFO") for _, client, _ in nodes)

        eventually(at_work, timeout=30, message="both nodes serve")
        yield first.url


@pytest.fixture
def cluster_node(cluster_url: str) -> Iterator[RedisClient]:
    with contextlib.closing(RedisClient(cluster_url)) as node:
        yield node


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("SET", "a", 1), "MOVED 15495 127.0.0.1"),
        (("EVAL", "return redis.call('GET', KEYS[1])", 1, "a"), "MOVED 15495 127.0.0.1"),
        (("EVAL", "return redis.call('GET', 'a')", 0), "non local key"),
        (("EVAL", "return 1", 2, "a", "b"), "CROSSSLOT"),
        (("MGET", "a", "b"), "CROSSSLOT"),
    ],
)
def test_what_a_cluster_node_says_keeps_its_meaning(
    cluster_node: RedisClient, command: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(ClusterNode, match=rf"{said}.*redis\+cluster://"):
        cluster_node.call(*command)
    reply = cluster_node.pipeline([("PING",), command])[1]

    assert isinstance(reply, ClusterNode)
    assert isinstance(reply, ConfigurationError)


def test_slot_on_its_way_to_another_node_is_not_a_server_that_is_away(cluster_node: RedisClient) -> None:
    (other,) = (
        line.split()[0] for line in cluster_node.call("CLUSTER", "NODES").decode().splitlines() if "myself" not in line
    )
    cluster_node.call("CLUSTER", "SETSLOT", 3300, "MIGRATING", other)  # the slot of "b"
    try:
        with pytest.raises(ClusterNode, match=r"ASK 3300 127\.0\.0\.1"):
            cluster_node.call("GET", "b")
    finally:
        cluster_node.call("CLUSTER", "SETSLOT", 3300, "STABLE")


def test_cluster_node_is_noticed_at_the_first_contact(cluster_node: RedisClient) -> None:
    with pytest.raises(ClusterNode, match=r"redis\+cluster://"):
        cluster_node.greet()


def test_sentinel_behind_a_plain_url_is_noticed_at_the_first_contact(tmp_path: Path) -> None:
    config = tmp_path / "sentinel.conf"
    port = free_port()
    config.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n")
    process = subprocess.Popen([str(find_server()), str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    client = RedisClient(f"redis://127.0.0.1:{port}/0")

    def told() -> str:
        try:
            client.greet()
        except BrokerUnavailable:
            return ""
        except ConfigurationError as exc:
            return str(exc)
        raise AssertionError("a Sentinel is no server for streams")

    try:
        assert "use sentinel://" in eventually(told, message="the Sentinel answers")
    finally:
        client.close()
        process.kill()
        process.wait()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_worker_on_a_cluster_node_ends_with_one_line(cluster_url: str, redis_url: str, elsewhere: bool) -> None:
    url = redis_url if elsewhere else cluster_url
    environment = project_environment(broker=url, results=url, ledger=redis_url, enabled=True, streams_url=cluster_url)

    done = subprocess.run(
        [sys.executable, "-m", "celery_streams", "-A", "tests.proj", "worker", "-P", "solo", "-Q", "a,b"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 78, done.stdout + done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "Cluster" in line)
    assert line.startswith("Error: ")
    assert "Traceback" not in done.stderr

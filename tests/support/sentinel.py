"""A Redis with a replica and a Sentinel that watches them, all of this test's own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis, death_signal, find_server
from celery_streams.exceptions import BrokerError
from tests.support.eventually import eventually

#: The name under which the Sentinel knows the master.
NAME = "main"


@dataclass
class Watched:
    """The servers, and the URL to reach whichever is the master."""

    master: EmbeddedRedis
    replica: EmbeddedRedis
    url: str
    sentinel: RedisClient

    def master_port(self) -> int:
        """Return the port of the server that the Sentinel names as master."""
        return int(self.sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[Watched]:
    """Start the servers; a master that is gone for half a second is replaced by its replica."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(EmbeddedRedis())
        replica = stack.enter_context(EmbeddedRedis())
        follower = stack.enter_context(contextlib.closing(RedisClient(replica.url)))
        follower.call("REPLICAOF", "127.0.0.1", master.port)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        file = directory / "sentinel.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\nlogfile {directory}/sentinel.log\n"
            f"sentinel monitor {NAME} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {NAME} 500\nsentinel failover-timeout {NAME} 3000\n"
        )
        process = subprocess.Popen([str(find_server()), str(file), "--sentinel"], preexec_fn=death_signal())
        stack.callback(process.wait)
        stack.callback(process.kill)
        sentinel = stack.enter_context(contextlib.closing(RedisClient(f"redis://127.0.0.1:{port}/0")))

        def knows_the_replica() -> bool:
            try:
                found = sentinel.call("SENTINEL", "REPLICAS", NAME)
                return len(found) == 1 and follower.call("ROLE")[3] == b"connected"
            except BrokerError:
                return False

        eventually(knows_the_replica, message="the Sentinel knows the replica")
        yield Watched(master, replica, f"sentinel://127.0.0.1:{port}/0", sentinel)

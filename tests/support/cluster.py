"""A Redis Cluster of this test's own: masters, and if wished a replica of each; ready in about two seconds."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_streams.cluster import ClusterClient
from celery_streams.cluster_map import SLOTS, slot_of
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerError
from tests.support.eventually import eventually

#: Milliseconds after which a node that does not answer is taken for dead.
NODE_TIMEOUT_MS = 1_000


@dataclass
class Cluster:
    """The nodes, masters first, each with a client that asks it and nobody else."""

    servers: list[EmbeddedRedis]
    clients: list[RedisClient]
    masters: int
    #: The ports where the nodes speak TLS.
    tls_ports: Sequence[int] = ()
    ids: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The URL of the cluster: two of its nodes to start with."""
        hosts = [f"127.0.0.1:{server.port}" for server in self.servers[:2]]
        return f"redis+cluster://{';'.join(hosts)}"

    def secure_url(self, query: str, *, user: str = "") -> str:
        """Return the URL of the cluster with TLS; ``query`` names the certificates, ``user`` is ``name:password``."""
        first, second = (f"127.0.0.1:{port}" for port in self.tls_ports[:2])
        return f"rediss+cluster://{user and f'{user}@'}{first}/0?{query};{second}"

    def restart(self) -> None:
        """Kill all nodes, and start them again: what they kept in a file they still have."""
        for server in self.servers:
            server.kill()
        for server in self.servers:
            server.start()

    def owner(self, key: str) -> int:
        """Return the number of the node that serves a key, as a node that lives says."""
        for client in self.clients:
            try:
                said = client.call("CLUSTER", "SLOTS")
            except BrokerError:
                continue
            for first, last, master, *_ in said:
                if first <= slot_of(key) <= last:
                    return [server.port for server in self.servers].index(master[1])
        raise AssertionError("no node answers")

    def client(self) -> ClusterClient:
        """Return a client of the cluster."""
        return ClusterClient(self.url)

    def keys(self, pattern: str = "*") -> list[str]:
        """Return the keys of all masters."""
        found: list[str] = []
        for client in self.clients:
            with contextlib.suppress(BrokerError):
                if client.call("ROLE")[0] == b"master":
                    found += (key.decode() for key in client.call("KEYS", pattern))
        return sorted(found)

    def flush(self) -> None:
        """Delete everything."""
        for client in self.clients[: self.masters]:
            client.close()  # a test before may have had the node cut its connections
            client.call("FLUSHALL")

    def begin_move(self, slot: int, source: int, target: int) -> None:
        """Open a slot: it is on its way from one node to another from now on."""
        self.clients[target].call("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source])
        self.clients[source].call("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target])

    def move_keys(self, slot: int, source: int, target: int) -> int:
        """Move the keys of an open slot that are there; returns how many."""
        keys = self.clients[source].call("CLUSTER", "GETKEYSINSLOT", slot, 100)
        if keys:
            port = self.servers[target].port
            self.clients[source].call("MIGRATE", "127.0.0.1", port, "", 0, 10_000, "REPLACE", "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, source: int, target: int) -> None:
        """Move what is left, and close the slot."""
        while self.move_keys(slot, source, target):
            pass
        for index in (target, source, *range(self.masters)):
            self.clients[index].call("CLUSTER", "SETSLOT", slot, "NODE", self.ids[target])

        def all_agree() -> bool:
            # A node that took the slot next without knowing of this move could not make the others believe it.
            told = [client.call("CLUSTER", "INFO").decode() for client in self.clients[: self.masters]]
            return len({re.search(r"cluster_current_epoch:(\d+)", one)[1] for one in told}) == 1  # type: ignore[index]

        eventually(all_agree, timeout=20, message="the nodes agree")

    def queues_apart(self, count: int, *, prefix: str = "q") -> list[str]:
        """Return names of queues that lie on so many nodes, in turn, each in a slot of its own."""
        found: list[str] = []
        number = 0
        while len(found) < count:
            name = f"{prefix}{number}"
            share = SLOTS // self.masters + 1
            if slot_of(f"celery-streams:{{{name}}}") // share == len(found) % self.masters:
                found.append(name)
            number += 1
        return found

    def listened_at(self, channel: str) -> list[int]:
        """Return the numbers of the nodes that somebody listens to ``channel`` at."""
        found = []
        for number, client in enumerate(self.clients):
            with contextlib.suppress(BrokerError):  # it is away
                if client.call("PUBSUB", "NUMSUB", channel)[1]:
                    found.append(number)
        return found


def _free_port() -> int:
    """Return a port that is free, and whose bus port (10,000 above it) is, too."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if port + 10_000 > 65_535:
                continue
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


def _node(args: Sequence[str], **options: Any) -> EmbeddedRedis:
    server = EmbeddedRedis(args=args, **options)
    server.port = _free_port()
    return server


@contextlib.contextmanager
def cluster(
    *,
    masters: int = 3,
    replicas: bool = False,
    spare: int = 0,
    full_coverage: bool = True,
    tls: Sequence[str] = (),
    args: Sequence[str] = (),
    **options: Any,
) -> Iterator[Cluster]:
    """Start a cluster; all servers end with it.

    Args:
        replicas: each master has one, which takes its place when it dies.
        spare: masters without a slot, beside the others.
        full_coverage: while one master is away the others answer CLUSTERDOWN, as is the server's default.
        args: more options of redis.conf, for each node.
        options: of each node, see ``EmbeddedRedis``.
        tls: options of redis.conf that say with which certificates the nodes speak TLS, beside plain text, and with
            each other.
    """
    count = (2 * masters if replicas else masters) + spare
    args = (
        *args,
        *("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
        *("--repl-diskless-sync-delay", "0", "--cluster-require-full-coverage", "yes" if full_coverage else "no"),
    )
    with contextlib.ExitStack() as stack:
        tls_ports = [_free_port() for _ in range(count)] if tls else []
        own = [
            ("--tls-port", str(port), "--tls-cluster", "yes", "--tls-replication", "yes", *tls) for port in tls_ports
        ]
        servers = [stack.enter_context(_node((*args, *more), **options)) for more in own or [()] * count]
        clients = [stack.enter_context(contextlib.closing(RedisClient(server.url))) for server in servers]
        made = Cluster(servers, clients, masters + spare, tls_ports)
        for number, client in enumerate(clients):
            client.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port in (tls_ports or [server.port for server in servers])[1:]:
            clients[0].call("CLUSTER", "MEET", "127.0.0.1", port)
        share = SLOTS // masters + 1
        for number, client in enumerate(clients[:masters]):
            slots = range(number * share, min((number + 1) * share, SLOTS))
            client.call("CLUSTER", "ADDSLOTS", *slots)
        made.ids = [client.call("CLUSTER", "MYID").decode() for client in clients]

        def all_know_all() -> bool:
            return all(len(client.call("CLUSTER", "NODES").splitlines()) == count for client in clients)

        eventually(all_know_all, timeout=30, message="the nodes know each other")
        if replicas:
            for number in range(masters):
                clients[masters + spare + number].call("CLUSTER", "REPLICATE", made.ids[number])

        def at_work() -> bool:
            serving = all(b"cluster_state:ok" in client.call("CLUSTER", "INFO") for client in clients)
            followers = clients[masters + spare :]
            return serving and all(b"master_link_status:up" in one.call("INFO", "replication") for one in followers)

        eventually(at_work, timeout=30, message="the nodes serve")
        yield made

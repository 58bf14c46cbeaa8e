"""Nodes: what the doctor looks for on the nodes of a Redis Cluster; each is judged as a server is (``checks``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .. import probes
from ..cluster import ClusterClient
from ..connection import RedisClient
from ..probes import ServerInfo
from .checks import (
    LEVELS,
    Finding,
    check_clock,
    check_eviction,
    check_memory,
    check_persistence,
    check_role,
    check_version,
)

__all__ = ("check_clocks", "check_nodes")


def check_nodes(client: RedisClient) -> Iterator[Finding]:
    """Judge all masters; a finding names the node that is worst, and one that all is well counts them.

    Raises:
        BrokerError: a node is away, or refuses to tell.
    """
    nodes = client.nodes
    told = [(node, probes.server_info(node)) for node in nodes]
    for judge in (check_version, check_eviction, check_memory, check_persistence):
        yield _worst((node, judge(server)) for node, server in told)
    yield _worst((node, _check_role(server)) for node, server in told)
    if isinstance(client, ClusterClient):
        yield from _check_cluster(client)


def check_clocks(client: RedisClient) -> Finding:
    """Judge how far the clock of each master is off."""
    return _worst((node, check_clock(probes.clock_skew(node))) for node in client.nodes)


def _worst(found: Iterable[tuple[RedisClient, Finding]]) -> Finding:
    judged = list(found)
    node, worst = min(judged, key=lambda one: LEVELS.index(one[1].level))
    if len(judged) == 1:
        return worst
    where = node.shown.partition("://")[2].partition("/")[0]
    return replace(worst, what=f"{worst.what}, {f'each of {len(judged)} nodes' if worst.level == 'ok' else where}")


def _check_role(server: ServerInfo) -> Finding:
    if server.cluster and server.role == "master":
        return Finding("role", "ok", "A master of a Redis Cluster")
    return check_role(replace(server, cluster=False))


def _check_cluster(client: ClusterClient) -> Iterator[Finding]:
    """Every slot is served, and one dead shard is not the end of all."""
    unserved = client.unserved_slots()
    if unserved:
        yield Finding(
            "cluster",
            "critical",
            f"No node serves {unserved:,} of the slots",
            "Queues that lie there can be neither published to nor read.",
            "Bring the node that had them back, or give them to another one: redis-cli --cluster fix.",
        )
    said = {probes.full_coverage(node) for node in client.nodes}
    if None in said:
        yield Finding("cluster", "info", "cluster-require-full-coverage is not known", "The server keeps it to itself.")
    elif said == {"no"}:
        yield Finding("cluster", "ok", "cluster-require-full-coverage no: the others serve on while one shard is away")
    else:
        yield Finding(
            "cluster",
            "info",
            "cluster-require-full-coverage yes",
            "While a shard has no master all others refuse their queues, too: publishes fail and workers wait until it "
            "has one again. Nothing is lost by that, and nothing claimed.",
            "CONFIG SET cluster-require-full-coverage no on every node, if the others' queues shall go on.",
        )

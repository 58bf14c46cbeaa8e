"""Nodes: what the doctor looks for on the nodes of a Redis Cluster; each is judged as a server is (``checks``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .. import probes
from ..cluster import ClusterClient
from ..connection import RedisClient
from ..probes import ServerInfo
from ..said import Said, say
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
    if worst.level == "ok":
        return replace(worst, what=say("%(what)s, each of %(count)s nodes", what=worst.what, count=len(judged)))
    return replace(worst, what=say("%(what)s, %(node)s", what=worst.what, node=where))


def _check_role(server: ServerInfo) -> Finding:
    if server.cluster and server.role == "master":
        return Finding("role", "ok", say("A master of a Redis Cluster"))
    return check_role(replace(server, cluster=False))


def _check_cluster(client: ClusterClient) -> Iterator[Finding]:
    """Every slot is served, and one dead shard is not the end of all."""
    unserved = client.unserved_slots()
    if unserved:
        yield Finding(
            "cluster",
            "critical",
            say("No node serves %(count)s of the slots", count=unserved),
            say("Queues that lie there can be neither published to nor read."),
            say("Bring the node that had them back, or give them to another one: redis-cli --cluster fix."),
        )
    said = {probes.full_coverage(node) for node in client.nodes}
    if None in said:
        why = say("The server keeps it to itself.")
        yield Finding("cluster", "info", say("cluster-require-full-coverage is not known"), why)
    elif said == {"no"}:
        what = say("cluster-require-full-coverage no: the others serve on while one shard is away")
        yield Finding("cluster", "ok", what)
    else:
        yield Finding(
            "cluster",
            "info",
            Said("cluster-require-full-coverage yes"),
            say(
                "While a shard has no master all others refuse their queues, too: publishes fail and workers wait "
                "until it has one again. Nothing is lost by that, and nothing claimed."
            ),
            say("CONFIG SET cluster-require-full-coverage no on every node, if the others' queues shall go on."),
        )

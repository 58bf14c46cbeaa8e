"""Cluster nodes: the connections to each node of a Redis Cluster, and which of them serves a slot.

What a node says of where slots are (MOVED, ASK) becomes :class:`SlotElsewhere`, and is taken in by whoever gets it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

from .chance import chance
from .cluster_map import Address, slot_of, slot_owners
from .connection import RedisClient
from .exceptions import BrokerError, BrokerUnavailable, ClusterNode, ReplyLost, SlotElsewhere
from .redis_url import ConnectionOptions
from .said import Said, say
from .scripts import Script

__all__ = ("ClusterNodes", "NodeClient", "not_ready")

#: Seconds between two looks at which node serves what, however often something failed meanwhile.
_LOOK_AGAIN = 0.25

#: How often the time-out that a node has just cost goes by before it is asked again by who has others to look after.
_RESTS = 2.0

#: Seconds for which a node that was away is asked last where any node will do.
_AVOIDED = 10.0

#: What MOVED and ASK say behind their first word, which redis-py cuts off.
_ELSEWHERE = re.compile(r"^(?:MOVED |ASK )?([0-9]+) (\S*):([0-9]+)$")


def not_ready(shown: str, why: str = "") -> Said:
    """Return that a cluster does not serve, because it has no slot where nothing else is said."""
    return say("The cluster at %(server)s is not ready: %(error)s", server=shown, error=why or say("no slot is served"))


class NodeClient(RedisClient):
    """The connections to one node."""

    def __init__(self, address: Address, template: Callable[[], Any], options: ConnectionOptions) -> None:
        self.address = address
        #: When it was last away (monotonic seconds).
        self.away_at = float("-inf")
        self._template = template
        #: Until when it is not asked (monotonic seconds).
        self._rests_until = float("-inf")
        host, port = address
        super().__init__(f"redis://{f'[{host}]' if ':' in host else host}:{port}/0", options)

    def pool(self) -> Any:
        """Return a pool of redis-py's own for this node."""
        return self._new_pool()

    def _new_pool(self) -> Any:
        template = self._template()
        host, port = self.address
        options = {**template.connection_kwargs, "host": host, "port": port}
        # Its bound is no option of a connection; that of redis-py is a hundred connections in the life of a process.
        options["max_connections"] = template.max_connections
        return redis.ConnectionPool(connection_class=template.connection_class, **options)

    def _take(self) -> Any:
        if time.monotonic() < self._rests_until:
            raise BrokerUnavailable(
                say("Redis at %(server)s did not answer just now; it is asked again in a moment", server=self.shown)
            )
        return super()._take()

    def _translate(self, exc: Exception, sent: str | Script, key: str = "") -> BrokerError:
        text = str(exc)
        if self._options.rests and isinstance(exc, redis.TimeoutError):
            cost = self._pool.connection_kwargs.get("socket_timeout") or 0.0
            self._rests_until = time.monotonic() + _RESTS * cost
        if isinstance(exc, redis.exceptions.ClusterCrossSlotError) or text.startswith("CROSSSLOT "):
            command = sent.name if isinstance(sent, Script) else sent
            return ClusterNode(
                f"Redis at {self.shown} failed {command}: its keys lie in several slots of the cluster; the name of a "
                "queue must not begin with '}' there"
            )
        # redis-py 5 has these classes for its own client of a cluster only. MovedError is a kind of AskError.
        is_told = isinstance(exc, redis.exceptions.AskError) or text.startswith(("MOVED ", "ASK "))
        found = _ELSEWHERE.match(text) if is_told and isinstance(exc, redis.ResponseError) else None
        if found is None:
            return super()._translate(exc, sent, key)
        address = (found[2] or self.address[0], int(found[3]))
        return SlotElsewhere(
            f"Slot {found[1]} of the cluster is served by {address[0]}:{address[1]}",
            slot=int(found[1]),
            address=address,
            only_once=not (isinstance(exc, redis.exceptions.MovedError) or text.startswith("MOVED ")),
        )


class ClusterNodes:
    """All nodes that are known, and who serves what.

    Args:
        template: returns a pool that says how connections are made; host and port are those of each node.
    """

    def __init__(
        self, starts: Sequence[Address], template: Callable[[], Any], options: ConnectionOptions, *, shown: str
    ) -> None:
        self.starts = starts
        #: Whether the nodes end a blocking read by CLIENT UNBLOCK; None: that was not tried yet.
        self.calls_back: bool | None = None
        self._template = template
        self._options = options
        self._shown = shown
        self._nodes: dict[Address, NodeClient] = {}
        self._owners: list[Address | None] = []
        #: Something failed, or moved, since the owners were asked for.
        self._is_stale = True
        self._look_again_at = float("-inf")

    def all(self) -> list[NodeClient]:
        """Return the clients that there are."""
        return list(self._nodes.values())

    def masters(self) -> list[NodeClient]:
        """Return the clients of all masters that serve slots.

        Raises:
            BrokerUnavailable: no node of the cluster can be reached.
        """
        self._look()
        return [self.at(address) for address in dict.fromkeys(filter(None, self._owners))]

    def unserved(self) -> int:
        """Return how many slots no node serves; asks anew.

        Raises:
            BrokerUnavailable: no node of the cluster can be reached.
        """
        self.ask_anew()
        return self._owners.count(None)

    def ask_anew(self) -> None:
        """Ask which node serves what.

        Raises:
            BrokerUnavailable: no node can be reached, and nothing is known.
        """
        self._is_stale, self._look_again_at = True, float("-inf")
        self._look()

    def of(self, slot: int | None) -> NodeClient:
        """Return the client of the master that serves a slot, as far as is known; of any with None.

        Raises:
            BrokerUnavailable: none does, or no node of the cluster can be reached.
        """
        if self._is_stale:
            self._look()
        owner = next(filter(None, self._owners)) if slot is None else self._owners[slot]
        if owner is None:
            self._is_stale = True
            raise BrokerUnavailable(not_ready(self._shown, say("no node serves slot %(slot)s", slot=str(slot))))
        return self.at(owner)

    def at(self, address: Address) -> NodeClient:
        """Return the client of the node at an address."""
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes.setdefault(address, NodeClient(address, self._template, self._options))
        return node

    def by_trust(self) -> list[NodeClient]:
        """Return the clients of all masters in any order, but those last that were away just now.

        Raises:
            BrokerUnavailable: no node of the cluster can be reached.
        """
        found = self.masters()
        return _trusted_first(chance.sample(found, len(found)))

    def publish(self, channel: str, text: str | bytes) -> None:
        """Publish at the node of the channel's slot, so that what is published there is heard in its order.

        Where that one is away another node takes it, the same for all who publish. Those who listen hear it anyway.

        Raises:
            ReplyLost: it may have been published.
            BrokerError: it was not.
        """
        try:
            owner = self.of(slot_of(channel))
        except BrokerUnavailable:
            owner = None
        error: BrokerError | None = None
        for node in _trusted_first(sorted(self.masters(), key=lambda node: (node is not owner, node.address))):
            reply = node.attempt([("PUBLISH", channel, text)])[0]
            if not isinstance(reply, BrokerError):
                return
            if not isinstance(reply, BrokerUnavailable):
                raise reply
            self.doubt(node)
            if isinstance(reply, ReplyLost):
                raise reply
            error = error or reply
        raise error or BrokerUnavailable(not_ready(self._shown))

    def doubt(self, node: NodeClient) -> None:
        """Ask who serves what before the next command: ``node`` is away, or does not serve."""
        self._is_stale = True
        node.away_at = time.monotonic()

    def learn(self, found: SlotElsewhere) -> None:
        """Take in that a slot has moved."""
        if self._owners and not found.only_once:
            self._owners[found.slot] = found.address
            self._is_stale = True

    def _look(self) -> None:
        """Ask which node serves what, unless that was asked just now; what is known is kept when none answers."""
        now = time.monotonic()
        if self._owners and (not self._is_stale or now < self._look_again_at):
            return
        self._look_again_at = now + _LOOK_AGAIN
        error: BrokerError | None = None
        # Those first that were not away lately: each of the others may cost a time-out.
        known = dict.fromkeys([*filter(None, dict.fromkeys(self._owners)), *self.starts])
        for node in sorted(map(self.at, known), key=lambda one: one.away_at):
            try:
                owners = slot_owners(node.call("CLUSTER", "SLOTS"), asked=node.address)
            except BrokerUnavailable as exc:
                node.away_at = now
                error = error or exc
                continue
            if not any(owners):
                error = error or BrokerUnavailable(not_ready(self._shown))
                continue
            self._owners, self._is_stale = owners, False
            for address in self._nodes.keys() - set(owners) - set(self.starts):
                gone = self._nodes.pop(address, None)
                if gone is not None:
                    gone.close()
            return
        if error is not None and not self._owners:
            raise error


def _trusted_first(nodes: Sequence[NodeClient]) -> list[NodeClient]:
    """Return the clients in their order, but those last that were away just now."""
    recently = time.monotonic() - _AVOIDED
    return sorted(nodes, key=lambda node: max(node.away_at, recently))

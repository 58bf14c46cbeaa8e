"""Cluster listener: hears what is published anywhere in a Redis Cluster, and waits for the entries of a list.

What is published at one node is told to all. A subscription is at one of them, and goes to another one by itself when
that one is gone, is silent, or hears nothing any more: now and then it publishes something at the nodes that others
publish at, and must hear it. What is published while it is on its way is lost, as it is with pub/sub.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from .chance import chance
from .cluster_map import Address, slot_of
from .cluster_nodes import ClusterNodes, NodeClient
from .connection import BlockingConnection
from .exceptions import BrokerError, BrokerUnavailable, SlotElsewhere
from .redis_url import SOCKET_TIMEOUT

__all__ = ("CHECK_EVERY", "ListWait", "Subscription")

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether a subscription hears, and within which it must.
CHECK_EVERY = 10.0

#: Seconds that one wait for an entry takes at the node: a list that moves away meanwhile is looked for again then.
_TURN = 1


def _watched(connection: BlockingConnection | None) -> dict[int, object]:
    if connection is None or connection.link is None:
        return {}
    return {connection.fileno(): connection.link}


class Subscription:
    """Hears channels, and patterns of channels: names with a ``*``.

    Names that have the part up to their hash tag in common (``/{events}/worker.*``) are told in order.

    Args:
        check_every: seconds between two looks at whether it hears, and within which it must.
    """

    def __init__(self, cluster: ClusterNodes, *, check_every: float = CHECK_EVERY) -> None:
        self._cluster = cluster
        self._check_every = check_every
        self._names: frozenset[str] = frozenset()
        self._connection: BlockingConnection | None = None
        self._node: NodeClient | None = None
        #: Which link has heard of the names.
        self._link: object = None
        self._heard: deque[tuple[str, bytes]] = deque()
        #: Ends the channels that only this subscription publishes to.
        self._mark = f"?{chance.getrandbits(64):016x}"
        #: Those channels of which nothing was heard since it was published.
        self._unheard: set[str] = set()
        self._check_at = 0.0

    @property
    def watched(self) -> dict[int, object]:
        """The descriptor to watch, and what tells its link from another one with the same number; none while closed."""
        return _watched(self._connection)

    @property
    def has_heard(self) -> bool:
        """Whether :meth:`receive` has something that came while something else was waited for."""
        return bool(self._heard)

    def listen(self, names: Iterable[str]) -> None:
        """Hear these names, and no others, from the return on.

        Raises:
            BrokerUnavailable: no node can be listened at.
            BrokerError: it is not permitted.
        """
        wanted = frozenset(names)
        if wanted == self._names and (self._connection is not None or not wanted):
            return
        before, self._names = self._names, wanted
        if not wanted:
            self._close()
            return
        if self._connection is None:
            self._open()
            return
        try:
            self._tell(self._connection, self._channels(wanted), self._channels(before))
        except BrokerUnavailable as exc:
            self._move(exc)
        except BrokerError:
            self._close()
            raise

    def receive(self) -> list[tuple[str, bytes]]:
        """Take what was heard, without waiting: the name that it was heard by, and the text.

        Raises:
            BrokerUnavailable: the node is gone, and no other one can be listened at.
        """
        self._drain()
        heard, self._heard = list(self._heard), deque()
        return heard

    def check(self) -> None:
        """Find out whether it still hears; to be called every second or so, asks more rarely.

        Raises:
            BrokerUnavailable: it does not, and no other node can be listened at.
        """
        now = time.monotonic()
        if self._connection is None or now < self._check_at:
            return
        self._check_at = now + self._check_every
        # A process that did something else for a while has not read yet what came.
        self._drain()
        if self._unheard:
            self._move(BrokerUnavailable(f"it has not passed on what was published {self._check_every:g} seconds ago"))
            return
        try:
            self._tell(self._connection, self._channels(self._names), self._channels(self._names))
        except BrokerUnavailable as exc:
            self._move(exc)
        for channel in self._own_channels(self._names):
            try:
                self._cluster.publish(channel, b"")
            except BrokerError as exc:
                logger.debug("Whether the subscription hears %s cannot be known: %s", channel, exc)
            else:
                self._unheard.add(channel)

    def hasten(self, seconds: float) -> None:
        """Wait at most ``seconds`` for each answer from now on."""
        if self._connection is not None:
            self._connection.hasten(seconds)

    def close(self) -> None:
        """Close the connection; nothing is heard until the next :meth:`listen`."""
        self._names = frozenset()
        self._close()

    # -- one node after another

    def _open(self) -> None:
        error: BrokerError | None = None
        for node in self._cluster.by_trust():
            connection = node.open()
            connection.never_ping()
            try:
                self._tell(connection, self._channels(self._names), frozenset())
            except BrokerUnavailable as exc:
                connection.close()
                self._cluster.doubt(node)
                error = exc
                continue
            except BrokerError:
                connection.close()
                self._names = frozenset()
                raise
            self._connection, self._node = connection, node
            self._unheard.clear()
            self._check_at = time.monotonic() + self._check_every
            return
        raise error or BrokerUnavailable("The cluster is not ready: no slot is served")

    def _move(self, exc: BrokerError) -> None:
        assert self._node is not None
        logger.warning("Listening at another node of the cluster than %s: %s", self._node.shown, exc)
        self._cluster.doubt(self._node)
        self._close()
        self._open()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._node = self._link = None
        self._unheard.clear()

    def _tell(self, connection: BlockingConnection, wanted: frozenset[str], before: frozenset[str]) -> None:
        """Have the node send what comes by the names ``wanted``; by ``before`` it does so already.

        Returns when it has confirmed it.
        """
        connection.connect()
        if connection.link is not self._link:
            before = frozenset()
        waiting = 0
        for verb, names in (("SUBSCRIBE", wanted - before), ("UNSUBSCRIBE", before - wanted)):
            patterns = sorted(name for name in names if "*" in name)
            for command, some in ((verb, sorted(names.difference(patterns))), (f"P{verb}", patterns)):
                if some:
                    connection.send(command, *some)
                    waiting += len(some)
        while waiting:
            waiting -= self._take(connection.receive())
        self._link = connection.link

    # -- what it says

    def _drain(self) -> None:
        connection = self._connection
        try:
            while connection is not None and connection.ready():
                self._take(connection.receive())
        except BrokerUnavailable as exc:
            self._move(exc)

    def _take(self, said: Any) -> bool:
        """Take what the node says; returns whether it is no message."""
        kind = said[0]
        if kind not in (b"message", b"pmessage"):
            return True
        name = said[1].decode(errors="replace")
        if name.endswith(self._mark):
            self._unheard.discard(name)
        else:
            self._heard.append((name, said[-1]))
        return False

    def _channels(self, names: frozenset[str]) -> frozenset[str]:
        return names | self._own_channels(names)

    def _own_channels(self, names: frozenset[str]) -> frozenset[str]:
        """Return the channels of its own: one in each slot that is published to."""
        return frozenset(name[: name.find("}") + 1] + self._mark for name in names)


class ListWait:
    """Takes the oldest entry of a list, one after another, at whichever node has it: those that were pushed left."""

    def __init__(self, cluster: ClusterNodes, key: str) -> None:
        self._cluster = cluster
        self._key = key
        self._node: NodeClient | None = None
        self._connection: BlockingConnection | None = None
        #: When the node will have answered in any case (monotonic seconds); None while nothing is asked.
        self._answer_by: float | None = None
        #: Where the slot is on its way to.
        self._on_its_way: Address | None = None

    @property
    def watched(self) -> dict[int, object]:
        """The descriptor to watch, and what tells its link from another one with the same number; none while closed."""
        return _watched(self._connection)

    @property
    def is_asking(self) -> bool:
        """Whether an answer is under way."""
        return self._answer_by is not None

    def ask(self) -> None:
        """Ask for an entry, unless that is under way.

        Raises:
            BrokerError: the node is away, or refuses.
        """
        if self._answer_by is not None:
            return
        moving, self._on_its_way = self._on_its_way, None
        node = self._cluster.of(slot_of(self._key)) if moving is None else self._cluster.at(moving)
        if self._connection is None or node is not self._node:
            self.close()
            self._node, self._connection = node, node.open()
        try:
            if moving is not None:
                self._connection.send("ASKING")
                self._connection.receive()
            self._connection.send("BRPOP", self._key, _TURN)
        except BrokerError:
            self._give_up(node)
            raise
        self._answer_by = time.monotonic() + _TURN + SOCKET_TIMEOUT

    def take(self) -> bytes | None:
        """Return the entry that has come, if one has; without waiting.

        Raises:
            BrokerError: the node refuses. Where it is away, the next :meth:`ask` says so.
        """
        if self._answer_by is None or self._connection is None or self._node is None:
            return None
        if not self._connection.ready():
            if time.monotonic() >= self._answer_by:
                self._give_up(self._node)
            return None
        self._answer_by = None
        try:
            said = self._connection.receive()
        except SlotElsewhere as exc:
            if exc.only_once:
                self._on_its_way = exc.address
            self._cluster.learn(exc)
            return None
        except BrokerUnavailable as exc:
            logger.debug("Waiting for %s was interrupted: %s", self._key, exc)
            self._give_up(self._node)
            return None
        return said[1] if said else None

    def hasten(self, seconds: float) -> None:
        """Wait at most ``seconds`` for each answer from now on."""
        if self._connection is not None:
            self._connection.hasten(seconds)

    def close(self) -> None:
        """Wait no more. What the node has taken from the list by now and not yet handed over is lost."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._node = self._answer_by = None

    def _give_up(self, node: NodeClient) -> None:
        self._cluster.doubt(node)
        self.close()

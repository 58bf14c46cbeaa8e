"""Cluster reads: a read that blocks, over streams of several slots of a Redis Cluster.

Redis reads no two slots with one command, so that each has a connection of its own. They are watched together; when one
has something, the others are called back, so that no entry lies where nobody looks.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from .cluster_map import split
from .cluster_nodes import ClusterNodes, NodeClient
from .connection import BlockingConnection
from .exceptions import BrokerError, BrokerUnavailable, NotPermitted, SlotElsewhere

__all__ = ("ClusterReads",)

logger = logging.getLogger(__name__)

#: Milliseconds for which each of several reads blocks where none can be called back.
_SHORT_TURN_MS = 250


class _Read:
    """The connection for one slot, and the node that it leads to."""

    def __init__(self, node: NodeClient) -> None:
        self.node = node
        self.connection = node.open()
        #: What the node calls the connection, 0 where nobody may ask; and which link it was asked about.
        self._number = 0
        self._link: object = None

    def identify(self) -> None:
        """Have :meth:`call_back` work; one round trip for each link.

        Raises:
            BrokerUnavailable: the node is away.
        """
        if self.connection.link is self._link:
            return
        self.connection.send("CLIENT", "ID")
        try:
            self._number = int(self.connection.receive())
        except BrokerUnavailable:
            raise
        except BrokerError as exc:
            self._number = 0
            logger.debug("A blocking read cannot be ended early without CLIENT ID: %s", exc)
        self._link = self.connection.link

    def call_back(self) -> None:
        """End the read early; its reply must still be received.

        Raises:
            BrokerError: the node is away, or does not permit it.
        """
        if not self._number:
            raise NotPermitted("the id of the connection that blocks is not known")
        self.node.call("CLIENT", "UNBLOCK", self._number)


class ClusterReads(BlockingConnection):
    """A BlockingConnection of several, one for each slot."""

    calls_back = True

    def __init__(self, cluster: ClusterNodes) -> None:
        self._cluster = cluster
        self._reads: dict[int, _Read] = {}
        self._sent: list[_Read] = []
        #: Seconds that the next command takes, as :meth:`connect` was told.
        self._lasting = 0.0
        #: What failed while something else was received; said at the next occasion.
        self._trouble: BrokerUnavailable | None = None

    def connect(self, *, lasting: float = 0.0) -> None:
        """Have the next command go on connections that will not be too old within ``lasting`` seconds."""
        self._lasting = lasting

    def send(self, *command: Any, lasting: float = 0.0) -> None:
        """Send a command, in parts that each name one slot; the replies are taken with :meth:`receive`.

        Raises:
            BrokerError: none could be sent; or what failed when something else was received last.
        """
        self._sent = []
        self._raise_trouble()
        lasting, self._lasting = lasting or self._lasting, 0.0
        parts = split(command)
        for slot, words in parts.items():
            try:
                self._sent.append(self._send(slot, words, alone=len(parts) == 1, lasting=lasting))
            except BrokerUnavailable as exc:
                self._trouble = exc
        if not self._sent:
            self._raise_trouble()

    def _send(self, slot: int, words: tuple[Any, ...], *, alone: bool, lasting: float) -> _Read:
        node = self._cluster.of(slot)
        read = self._reads.get(slot)
        if read is None or read.node is not node:
            if read is not None:
                read.connection.close()
            read = self._reads[slot] = _Read(node)
        try:
            read.connection.connect(lasting=lasting)
            # Whoever listens alone, and takes nothing, does not call back.
            blocks = "BLOCK" in words and not (alone and words[0] == "XREAD")
            if blocks:
                read.identify()
            if blocks and not self._cluster.calls_back:
                at = words.index("BLOCK") + 1
                words = (*words[:at], min(words[at], _SHORT_TURN_MS), *words[at + 1 :])
            read.connection.send(*words)
        except BrokerUnavailable:
            self._cluster.doubt(node)
            raise
        return read

    def ready(self) -> bool:
        """Return whether (a part of) a reply has arrived, or a part could not be sent."""
        return self._trouble is not None or any(read.connection.ready() for read in self._sent)

    def call_back(self) -> bool:
        """End all reads that wait here early; returns whether they will end.

        Raises:
            BrokerUnavailable: a node is away.
        """
        ends = [self._call_back(read) for read in self._sent]
        return all(ends)

    def _call_back(self, read: _Read) -> bool:
        try:
            read.call_back()
        except BrokerUnavailable:
            raise
        except BrokerError as exc:
            logger.debug("A blocking read ends by itself: %s", exc)
            self._cluster.calls_back = False
        return self._cluster.calls_back

    def receive(self, *, timeout: float | None = None) -> Any:
        """Take the replies together; reads that have nothing are called back first.

        Raises:
            BrokerError: nothing was received, and one of them failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        sent, self._sent = self._sent, []
        waiting = [read for read in sent if not read.connection.ready()]
        if len(waiting) < len(sent) or self._trouble is not None:
            for read in waiting:
                try:
                    self._call_back(read)
                except BrokerUnavailable as exc:
                    # Its reply would not come either, and what the others brought would wait for it.
                    read.connection.close()
                    self._cluster.doubt(read.node)
                    self._trouble = exc
                    sent.remove(read)
        replies: list[Any] = []
        error: BrokerError | None = None
        for read in sent:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            try:
                replies.append(read.connection.receive(timeout=left))
            except SlotElsewhere as exc:
                if exc.only_once:
                    error = error or BrokerUnavailable(f"{exc}, where it is moving to")
                self._cluster.learn(exc)
            except BrokerUnavailable as exc:
                self._cluster.doubt(read.node)
                self._trouble = exc
            except BrokerError as exc:
                error = error or exc
        return self._together(replies, error)

    def _together(self, replies: list[Any], error: BrokerError | None) -> Any:
        found = [reply for reply in replies if reply]
        if not found:
            self._raise_trouble()
            if error is not None:
                raise error
            return replies[0] if replies else None
        if isinstance(found[0], int):
            return sum(found)
        return [entry for reply in found for entry in reply]

    def _raise_trouble(self) -> None:
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            raise trouble

    @property
    def descriptors(self) -> list[int]:
        """The descriptors to watch: one of them becomes readable when there is something to receive."""
        return [read.connection.fileno() for read in self._sent]

    @property
    def link(self) -> object:
        """What tells these very links from those after they were opened again; None while one is closed."""
        links = tuple(read.connection.link for read in self._reads.values())
        return None if None in links else links

    def fileno(self) -> int:
        """Return the descriptor of the only read; of several, see :attr:`descriptors`."""
        found = self.descriptors
        return found[0] if len(found) == 1 else -1

    def close(self) -> None:
        """Close all connections; the next :meth:`send` opens them again."""
        for read in self._reads.values():
            read.connection.close()
        self._reads.clear()
        self._sent, self._trouble = [], None

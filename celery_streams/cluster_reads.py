"""Cluster reads: a read that blocks, over streams of several slots of a Redis Cluster.

Redis reads no two slots with one command, so that each has a connection of its own. They are watched together; when one
has something, the others are called back, so that no entry lies where nobody looks. Each is called back with CLIENT
UNBLOCK or, where a node refuses that, with an entry in a stream of the consumer's own in that slot.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from .cluster_map import key_of, slot_of, split
from .cluster_nodes import ClusterNodes, NodeClient
from .connection import BlockingConnection
from .exceptions import BrokerError, BrokerUnavailable, SlotElsewhere
from .unblock_stream import UnblockStream, unblock_client

__all__ = ("ClusterReads",)

logger = logging.getLogger(__name__)

#: Milliseconds for which each of several reads blocks where none can be called back.
_SHORT_TURN_MS = 250

#: Seconds that a read which was called back has to end.
_GRACE = 3.0


class _Read:
    """The connection for one slot, and the node that it leads to."""

    def __init__(self, node: NodeClient) -> None:
        self.node = node
        self.connection = node.open()
        #: Whether the node knew nothing of the read that it was to end, and no reply to it was seen since.
        self.in_vain = False
        #: What the node calls the connection, -1 where nobody may ask; and which link it was asked about.
        self._number = -1
        self._link: object = None
        self._stream = UnblockStream()
        #: Whether the read that is under way watches the stream.
        self._watches = False
        #: A key beside those that it names, which nobody has.
        self._unused = ""

    def may_be_ended(self) -> bool:
        """Return whether the node ends reads by CLIENT UNBLOCK, and prepare that; one round trip for each link.

        Raises:
            BrokerUnavailable: the node is away.
        """
        if self.connection.link is not self._link:
            self._number = self._ask("CLIENT", "ID")
            self._link = self.connection.link
        return self._number >= 0

    def ends_nobody(self) -> bool:
        """Return whether CLIENT UNBLOCK is there: of a client that there is not, nothing is ended.

        Raises:
            BrokerUnavailable: the node is away.
        """
        return self._ask("CLIENT", "UNBLOCK", 0) == 0

    def _ask(self, *command: Any) -> int:
        self.connection.send(*command)
        try:
            return int(self.connection.receive())
        except BrokerUnavailable:
            raise
        except BrokerError as exc:
            logger.debug("A blocking read cannot be ended with CLIENT UNBLOCK: %s", exc)
            return -1

    def send(self, words: tuple[Any, ...], *, own: str = "") -> None:
        """Send a command; a read that watches the stream ``own`` besides can be called back by it.

        Raises:
            BrokerUnavailable: the node is away.
        """
        self.in_vain, self._watches, self._unused = False, bool(own), f"{key_of(words)}:unblock"
        self.connection.send(*(_watching(words, own) if own else words))

    def watch(self, own: str) -> bool:
        """Have a stream with this key; returns whether there is one.

        Raises:
            BrokerUnavailable: the node is away.
        """
        return self._stream.prepare(self.node, own)

    def call_back(self) -> None:
        """End the read early; its reply must still be received. It does nothing where it cannot.

        Raises:
            BrokerError: the node is away, or does not permit it.
        """
        if self._watches:
            self._stream.end(self.node)
        elif self._number >= 0:
            # Not there: its reply is on its way, or a proxy stands in between, which has clients of its own.
            self.in_vain = not unblock_client(self.node, self._number, self._unused)

    def receive(self, *, timeout: float | None) -> Any:
        """Take the reply, without what called the read back.

        Raises:
            BrokerError: the read was refused, or the node is away.
        """
        if self.in_vain:
            timeout = _GRACE if timeout is None else min(timeout, _GRACE)
        try:
            reply = self.connection.receive(timeout=timeout)
        except BrokerError:
            self._stream.doubt()
            raise
        self.in_vain = False
        if self._watches and reply:
            key = self._stream.key.encode(errors="surrogatepass")
            return [one for one in reply if one[0] != key] or None
        return reply


def _watching(words: tuple[Any, ...], own: str) -> tuple[Any, ...]:
    """Return the command of a read that watches one more stream, the last one."""
    start = words.index("STREAMS") + 1
    middle = start + (len(words) - start) // 2
    return (*words[:middle], own, *words[middle:], ">" if words[0] == "XREADGROUP" else "$")


class ClusterReads(BlockingConnection):
    """A BlockingConnection of several, one for each slot."""

    calls_back = True

    def __init__(self, cluster: ClusterNodes) -> None:
        self._cluster = cluster
        self._reads: dict[int, _Read] = {}
        self._sent: list[_Read] = []
        #: Slot -> the stream there by which a read is called back.
        self._own: dict[int, str] = {}
        #: Seconds that the next command takes, as :meth:`connect` was told.
        self._lasting = 0.0
        #: What failed while something else was received; said at the next occasion.
        self._trouble: BrokerUnavailable | None = None

    def end_by(self, names: Sequence[str]) -> None:
        """Say by which stream, one in each slot, reads are called back where CLIENT UNBLOCK is refused."""
        self._own = {slot_of(name): name for name in names}

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
            own = self._own.get(slot, "")
            # Whoever listens alone, takes nothing, and names no stream of its own does not call back.
            if "BLOCK" not in words or (alone and words[0] == "XREAD" and not own) or self._ends_by_client(read):
                read.send(words)
            elif own and read.watch(own):
                read.send(words, own=own)
            else:
                at = words.index("BLOCK") + 1
                read.send((*words[:at], min(words[at], _SHORT_TURN_MS), *words[at + 1 :]))
        except BrokerUnavailable:
            self._cluster.doubt(node)
            raise
        return read

    def _ends_by_client(self, read: _Read) -> bool:
        if self._cluster.calls_back is None:
            self._cluster.calls_back = read.may_be_ended() and read.ends_nobody()
        elif self._cluster.calls_back:
            self._cluster.calls_back = read.may_be_ended()
        return self._cluster.calls_back

    def ready(self) -> bool:
        """Return whether (a part of) a reply has arrived, or a part could not be sent."""
        return self._trouble is not None or any(read.connection.ready() for read in self._sent)

    def call_back(self) -> bool:
        """End all reads that wait here early; returns whether they will end soon.

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
            # It was permitted when this was prepared, or another node is not like the first.
            logger.debug("A blocking read ends by itself: %s", exc)
            self._cluster.calls_back = False
            return False
        return True

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
                replies.append(read.receive(timeout=left))
            except SlotElsewhere as exc:
                if exc.only_once:
                    error = error or BrokerUnavailable(f"{exc}, where it is moving to")
                self._cluster.learn(exc)
            except BrokerUnavailable as exc:
                if read.in_vain and self._cluster.calls_back:
                    logger.info("CLIENT UNBLOCK does not end reads at %s; streams of their own will.", read.node.shown)
                    self._cluster.calls_back = False
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

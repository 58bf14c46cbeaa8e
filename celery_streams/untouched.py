"""Untouched: whether anything lies on any stream of some queues that were found empty; it asks while nobody waits.

A claimer has to look at each stream, and with many queues that is most of what an idle worker asks of Redis. Where
nothing lies nothing can be pending. A read that blocks on all of the streams says when that is over: one command in
:data:`_BLOCK_MS`, whatever the number of streams. It takes nothing, and decides nothing about what it finds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .broker import StreamBroker
from .connection import BlockingConnection
from .exceptions import BrokerUnavailable

__all__ = ("Untouched",)

#: Milliseconds that a read waits.
_BLOCK_MS = 60_000

#: Seconds beyond that after which a connection that does not answer is taken for dead.
_GRACE = 3.0


class Untouched:
    """Listens to the streams and fronts of queues, on a connection of its own: a read that blocks keeps it busy."""

    def __init__(self, broker: StreamBroker, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._broker = broker
        self._monotonic = monotonic
        self._connection: BlockingConnection | None = None
        self._keys: list[str] = []
        #: When the reply must be there.
        self._deadline = 0.0

    @property
    def is_watching(self) -> bool:
        """Whether :meth:`so_far` can tell."""
        return bool(self._keys)

    def watch(self, queues: Sequence[str]) -> None:
        """Listen to ``queues`` from now on; what lies there already is heard at once.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        self.forget()
        self._keys = [key for one in map(self._broker.queue_keys, queues) for key in (*one.streams, *one.fronts)]
        self._listen()

    def so_far(self) -> bool:
        """Return whether nothing was put on what is watched, without waiting; if so it is watched on.

        Raises:
            BrokerError: Redis is away, or refused, or was away since: then nobody knows.
        """
        assert self._connection is not None
        if not self._connection.ready():
            if self._monotonic() < self._deadline:
                return True
            self.forget()
            raise BrokerUnavailable("Redis does not answer on the connection that listens to streams")
        keys, self._keys = self._keys, []
        if self._connection.receive(timeout=0.0):
            return False
        # In between nothing is missed: a stream that holds anything ends the next read at once.
        self._keys = keys
        self._listen()
        return True

    def forget(self) -> None:
        """Listen to nothing any more, and close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._keys = []

    def _listen(self) -> None:
        if not self._keys:
            return
        if self._connection is None:
            self._connection = self._broker.client.open()
        # Of each stream all entries are new, and so none of them may be there.
        first = ["0-0"] * len(self._keys)
        block_ms = self._broker.client.block_at_most(_BLOCK_MS)
        command = ("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *self._keys, *first)
        self._connection.send(*command, lasting=block_ms / 1000)
        self._deadline = self._monotonic() + block_ms / 1000 + _GRACE

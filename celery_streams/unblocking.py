"""Unblocker: ends a consumer's own blocking read early, so that it hears a command at once; it reads nothing.

1. With ``CLIENT UNBLOCK``, where Redis has it and permits it: that is tried once, before the first read.
2. Elsewhere (managed servers) with an entry in a stream of the consumer's own, which each of its reads watches besides.
   It has the hash tag of a queue that is read, so that it lies in the same slot and under the same ACL pattern, and
   expires, for nobody deletes it when its process is killed.

What reads several slots of a Redis Cluster ends its reads itself (``cluster_reads``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from . import keys
from .broker import StreamBroker
from .connection import BlockingConnection
from .entries import StreamRef
from .exceptions import BrokerError, BrokerUnavailable, GroupExists

__all__ = ("Unblocker",)

logger = logging.getLogger(__name__)

#: Milliseconds for which a stream of a consumer is kept, and seconds after which that is said anew: no read blocks for
#: longer than the difference.
_KEPT_MS, _RENEWED = 300_000, 120.0


class Unblocker:
    """Prepares reads of one consumer so that they can be ended, and ends them."""

    def __init__(self, broker: StreamBroker, consumer: str) -> None:
        #: The keys of streams that a read has to watch besides.
        self.watched: tuple[str, ...] = ()
        self._broker = broker
        self._consumer = consumer
        #: Whether Redis has and permits CLIENT UNBLOCK; None: that was not tried yet.
        self._by_client: bool | None = None
        #: The id of the connection that blocks, and of which link it is.
        self._client_id = 0
        self._link: object = None
        self._connection: BlockingConnection | None = None
        #: When the stream was made, and the ids of what was put there.
        self._made_at = 0.0
        self._entries: list[bytes] = []
        #: Whether Redis knew nothing of a read that it was to end, and no reply to it was seen since.
        self._in_vain = False

    def prepare(self, connection: BlockingConnection, streams: Sequence[StreamRef]) -> bool:
        """Prepare a read of ``streams`` on ``connection``, which is open; returns whether it can be ended.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        self._in_vain = False
        self._connection = connection
        if connection.calls_back:
            self.watched = ()
            return True
        if self._by_client is not False:
            if connection.link is not self._link:
                self._client_id = _ask_number(connection, "CLIENT", "ID")
                if self._by_client is None:
                    # Of a client that there is not, nothing is ended.
                    self._by_client = self._client_id >= 0 and _ask_number(connection, "CLIENT", "UNBLOCK", 0) == 0
                self._link = connection.link
            if self._by_client:
                return True
        return self._make_stream(streams)

    def unblock(self) -> bool:
        """End the read; returns whether it will end. It may end with an entry.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        if self._connection is not None and self._connection.calls_back:
            return self._connection.call_back()
        client = self._broker.client
        try:
            if self._by_client:
                # Not there: its reply is on its way, or a proxy stands in between, which has clients of its own.
                self._in_vain = client.call("CLIENT", "UNBLOCK", self._client_id) == 0
                return True
            if not self.watched:
                return False
            (key,) = self.watched
            put, _ = client.call_all([("XADD", key, "*", "read", "ended"), ("PEXPIRE", key, _KEPT_MS)])
        except BrokerUnavailable:
            raise
        except BrokerError as exc:
            logger.debug("Cannot end a blocking read early: %s", exc)
            self._by_client = False
            return False
        self._entries.append(put)
        return True

    def doubt(self) -> None:
        """Trust no more in what was prepared: a read failed."""
        if self._in_vain and self._by_client:
            logger.info("CLIENT UNBLOCK does not end the reads of %s; a stream of its own will.", self._consumer)
            self._by_client = False
        self.watched = ()

    def _make_stream(self, streams: Sequence[StreamRef]) -> bool:
        if not streams:
            self.watched = ()
            return False
        key = keys.unblock(self._broker.prefix, streams[0].queue, self._consumer)
        now = time.monotonic()
        commands: list[tuple[Any, ...]] = []
        if self.watched and self._entries:
            # What ended the last read, or was not needed for it.
            commands += [(verb, *self.watched, *more, *self._entries) for verb, more in _SETTLED]
        self._entries = []
        if self.watched != (key,) or now - self._made_at > _RENEWED:
            commands.append(("XGROUP", "CREATE", key, keys.GROUP, "0", "MKSTREAM"))
            commands.append(("PEXPIRE", key, _KEPT_MS))
        if not commands:
            return True
        refused = [
            reply
            for reply in self._broker.client.pipeline(commands)
            if isinstance(reply, BrokerError) and not isinstance(reply, GroupExists)
        ]
        if refused:
            logger.debug("Cannot make a stream that ends blocking reads: %s", refused[0])
        self.watched, self._made_at = (() if refused else (key,)), now
        return not refused


#: Commands that take entries out of the stream: the verb, and what stands between the key and the ids.
_SETTLED: tuple[tuple[str, tuple[str, ...]], ...] = (("XACK", (keys.GROUP,)), ("XDEL", ()))


def _ask_number(connection: BlockingConnection, *command: Any) -> int:
    """Return the reply to a command; -1 where Redis refuses it.

    Raises:
        BrokerUnavailable: Redis is away.
    """
    try:
        connection.send(*command)
        return int(connection.receive())
    except BrokerUnavailable:
        raise
    except BrokerError as exc:
        logger.debug("A blocking read cannot be ended with CLIENT UNBLOCK: %s", exc)
        return -1

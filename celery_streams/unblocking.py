"""Unblocker: ends a consumer's own blocking read early, so that it hears a command at once; it reads nothing.

1. With ``CLIENT UNBLOCK``, where Redis has it and permits it: that is tried once, before the first read.
2. Elsewhere (managed servers) with an entry in a stream of the consumer's own, which each of its reads watches besides
   (``unblock_stream``).

What reads several slots of a Redis Cluster ends its reads itself (``cluster_reads``), in the same two ways; it is told
here by which keys.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from . import keys
from .broker import StreamBroker
from .connection import BlockingConnection
from .entries import StreamRef
from .exceptions import BrokerError, BrokerUnavailable
from .unblock_stream import UnblockStream, unblock_client

__all__ = ("Unblocker",)

logger = logging.getLogger(__name__)


class Unblocker:
    """Prepares reads of one consumer so that they can be ended, and ends them."""

    def __init__(self, broker: StreamBroker, consumer: str) -> None:
        self._broker = broker
        self._consumer = consumer
        #: Whether Redis has and permits CLIENT UNBLOCK; None: that was not tried yet.
        self._by_client: bool | None = None
        #: The id of the connection that blocks, and of which link it is.
        self._client_id = 0
        self._link: object = None
        self._connection: BlockingConnection | None = None
        self._stream = UnblockStream()
        #: The streams for which a connection that calls back was told its keys.
        self._told: tuple[BlockingConnection, Sequence[StreamRef]] | None = None
        #: Whether Redis knew nothing of a read that it was to end, and no reply to it was seen since.
        self._in_vain = False
        #: A key beside the streams that nobody has.
        self._unused = ""

    @property
    def watched(self) -> tuple[str, ...]:
        """The keys of streams that a read has to watch besides."""
        return (self._stream.key,) if self._stream.key else ()

    def prepare(self, connection: BlockingConnection, streams: Sequence[StreamRef]) -> bool:
        """Prepare a read of ``streams`` on ``connection``, which is open; returns whether it can be ended.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        self._in_vain = False
        self._connection = connection
        if connection.calls_back:
            self._tell(connection, streams)
            return True
        if self._by_client is not False:
            if connection.link is not self._link:
                self._client_id = _ask_number(connection, "CLIENT", "ID")
                if self._by_client is None:
                    # Of a client that there is not, nothing is ended.
                    self._by_client = self._client_id >= 0 and _ask_number(connection, "CLIENT", "UNBLOCK", 0) == 0
                self._link = connection.link
            if self._by_client and streams:
                self._unused = f"{streams[0].key}:unblock"
            if self._by_client:
                return True
        if not streams:
            self._stream.doubt()
            return False
        return self._stream.prepare(self._broker.client, self._key(streams[0]))

    def _tell(self, connection: BlockingConnection, streams: Sequence[StreamRef]) -> None:
        if self._told is None or self._told[0] is not connection or self._told[1] is not streams:
            connection.end_by([self._key(part[0]) for part in self._broker.streams_by_slot(streams) if part])
            self._told = (connection, streams)

    def _key(self, stream: StreamRef) -> str:
        return keys.unblock(self._broker.prefix, stream.queue, self._consumer)

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
                self._in_vain = not unblock_client(client, self._client_id, self._unused)
                return True
            if not self._stream.key:
                return False
            self._stream.end(client)
        except BrokerUnavailable:
            raise
        except BrokerError as exc:
            logger.debug("Cannot end a blocking read early: %s", exc)
            self._by_client = False
            return False
        return True

    def doubt(self) -> None:
        """Trust no more in what was prepared: a read failed."""
        if self._in_vain and self._by_client:
            logger.info("CLIENT UNBLOCK does not end the reads of %s; a stream of its own will.", self._consumer)
            self._by_client = False
        self._stream.doubt()


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

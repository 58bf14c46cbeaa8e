"""Unblock stream: a small stream that a blocking read watches besides; an entry there ends the read. It reads nothing.

For servers without ``CLIENT UNBLOCK``. It lies in the slot of what is read and under the same ACL pattern, and expires,
for nobody deletes it when its process is killed.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from . import keys
from .connection import RedisClient
from .exceptions import BrokerError, GroupExists, NotPermitted

__all__ = ("UnblockStream", "unblock_client")

logger = logging.getLogger(__name__)


def unblock_client(client: RedisClient, number: int, key: str) -> bool:
    """End the blocking read of a connection with CLIENT UNBLOCK; returns whether it was blocked.

    Behind a write to ``key``, which nobody has: Redis 6.2 and 7.0 end themselves when they are to unblock what waits
    for the end of a CLIENT PAUSE (of a planned failover, say), and a write waits for that end, too.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    before = [("UNLINK", key)] if key else []
    replies = client.pipeline([*before, ("CLIENT", "UNBLOCK", number)])
    if isinstance(replies[-1], BrokerError):
        raise replies[-1]
    return bool(replies[-1])


#: Milliseconds for which it is kept, and seconds after which that is said anew: no read blocks for longer than the
#: difference.
_KEPT_MS, _RENEWED = 300_000, 120.0

#: Seconds after which it is tried again where Redis does not permit it.
_REFUSED = 30.0

#: Commands that take entries out of it: the verb, and what stands between the key and the ids.
_SETTLED: tuple[tuple[str, tuple[str, ...]], ...] = (("XACK", (keys.GROUP,)), ("XDEL", ()))


class UnblockStream:
    """The stream of one consumer, in one slot."""

    def __init__(self) -> None:
        #: Its key; '' while there is none.
        self.key = ""
        #: When it was made, and the ids of what was put there since the last read.
        self._made_at = 0.0
        self._entries: list[bytes] = []
        #: Until when nobody tries to make it (monotonic seconds).
        self._not_before = 0.0

    def prepare(self, client: RedisClient, key: str) -> bool:
        """Have a stream with this key, in which nothing lies; returns whether there is one.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        now = time.monotonic()
        if now < self._not_before:
            return False
        commands: list[tuple[Any, ...]] = []
        if self.key and self._entries:
            # What ended the last read, or was not needed for it.
            commands += [(verb, self.key, *more, *self._entries) for verb, more in _SETTLED]
        self._entries = []
        if self.key != key or now - self._made_at > _RENEWED:
            commands.append(("XGROUP", "CREATE", key, keys.GROUP, "0", "MKSTREAM"))
            commands.append(("PEXPIRE", key, _KEPT_MS))
        if not commands:
            return True
        refused = [
            reply
            for reply in client.pipeline(commands)
            if isinstance(reply, BrokerError) and not isinstance(reply, GroupExists)
        ]
        if refused:
            logger.debug("Cannot make a stream that ends blocking reads: %s", refused[0])
            if isinstance(refused[0], NotPermitted):
                self._not_before = now + _REFUSED
        self.key, self._made_at = ("" if refused else key), now
        return not refused

    def end(self, client: RedisClient) -> None:
        """End the read that watches it.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        put, _ = client.call_all([("XADD", self.key, "*", "read", "ended"), ("PEXPIRE", self.key, _KEPT_MS)])
        self._entries.append(put)

    def doubt(self) -> None:
        """Make it anew before the next read: it may be gone."""
        self.key = ""

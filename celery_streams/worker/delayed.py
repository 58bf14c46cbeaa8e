"""Promoter: moves delayed messages to their streams when they are due, within milliseconds.

1. It promotes what is due, in steps, then sleeps until the next due time.
2. The sleep is a blocking read of the queues' ``wake`` streams: whoever stores a message that is due before all
   others writes there, so an earlier one is never late, and nothing is polled.

It runs in a thread of its own in the parent: its waiting must not hold up heartbeats.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence

from ..broker import StreamBroker
from ..connection import BlockingConnection
from ..exceptions import BrokerError
from ..poll import readable

__all__ = ("Promoter",)

logger = logging.getLogger(__name__)

#: Milliseconds: longest sleep; only a bound for what a lost connection may cost.
_LONGEST_MS = 10_000

#: Seconds beyond that after which a connection that does not answer is taken for dead.
_GRACE = 3.0

#: Milliseconds: longest sleep while Redis refuses to move what is due on some queue.
_REFUSED_MS = 1_000

#: Messages moved in one step; a step of this size holds Redis up for a few milliseconds.
_STEP = 500


class Promoter:
    """Promotes the queues that ``queues`` names at each round."""

    def __init__(self, broker: StreamBroker, queues: Callable[[], Sequence[str]]) -> None:
        #: Messages moved so far.
        self.moved = 0
        self._broker = broker
        self._queues = queues
        self._refusal = ""
        self._last: dict[str, bytes] = {}
        #: When the reply to the blocking read must be there (monotonic seconds); 0.0 when none was sent.
        self._read_ends = 0.0
        self._reading: list[str] = []
        self._connection: BlockingConnection | None = None
        self._stop = threading.Event()
        self._poked, self._poke = os.pipe()
        os.set_blocking(self._poke, False)
        self._thread: threading.Thread | None = None

    def run_once(self) -> int | None:
        """Promote everything that is due; returns milliseconds until the next is due, None when nothing is delayed.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        while True:
            result = self._broker.promote(self._queues(), limit=_STEP)
            self.moved += result.moved
            if result.missing:
                logger.error("%d delayed messages had been deleted by someone else.", result.missing)
            if result.next_due_ms != 0:
                break
        if result.refusal and result.refusal != self._refusal:
            logger.error(
                "Delayed messages of a queue cannot be moved to their stream, and stay delayed until they can: %s",
                result.refusal,
            )
        self._refusal = result.refusal
        if not result.refusal:
            return result.next_due_ms
        return _REFUSED_MS if result.next_due_ms is None else min(result.next_due_ms, _REFUSED_MS)

    def wait(self, next_due_ms: int | None) -> None:
        """Sleep until ``next_due_ms`` is over or an earlier message was stored.

        The time is kept here: an idle Redis looks at the time-outs of its blocked clients only every 100 ms.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        queues = self._queues()
        if not queues:
            self._stop.wait(0.2)
            return
        if self._connection is None:
            self._connection = self._broker.client.open()
        now = time.monotonic()
        if self._read_ends and self._reading != queues:
            self._connection.close()
            self._read_ends = 0.0
        if not self._read_ends:
            self._reading = list(queues)
            keys = [self._broker.queue_keys(queue).wake for queue in queues]
            last = [self._last.get(key, b"0-0") for key in keys]
            self._connection.send("XREAD", "COUNT", 1, "BLOCK", _LONGEST_MS, "STREAMS", *keys, *last)
            self._read_ends = now + _LONGEST_MS / 1000 + _GRACE
        left = self._read_ends - now
        sleep = left if next_due_ms is None else min(max(next_due_ms, 1) / 1000, left)
        answer = self._connection.fileno()
        if not self._connection.ready():
            found = readable([answer, self._poked], timeout=sleep)
            if self._poked in found:
                os.read(self._poked, 4096)
            if answer not in found and (found or sleep < left):
                return
        self._read_ends = 0.0
        for key, entries in self._connection.receive(timeout=0.0) or ():
            self._last[key.decode()] = entries[-1][0]

    def poke(self) -> None:
        """End the sleep: the queues changed, or the thread shall end."""
        with contextlib.suppress(BlockingIOError):  # it was poked often enough
            os.write(self._poke, b".")

    def start(self) -> None:
        """Run in a thread until :meth:`stop`."""
        self._thread = threading.Thread(target=self._run, name="celery-streams-delayed", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop.set()
        self.poke()

    def _run(self) -> None:
        pause = 0.1
        while not self._stop.is_set():
            try:
                self.wait(self.run_once())
                pause = 0.1
            except BrokerError as exc:
                if pause == 0.1:
                    logger.error("Delayed messages wait while Redis is away: %s", exc)
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                self._read_ends = 0.0
                self._last.clear()
                self._stop.wait(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, 2.0)
            except Exception:
                # The boundary of the thread: without it delayed messages would stop for good.
                logger.exception("Moving delayed messages to their streams failed; trying again in a second.")
                self._stop.wait(1.0)
        if self._connection is not None:
            self._connection.close()

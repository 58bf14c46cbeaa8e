"""Claimer: puts back what dead workers held, on a timer of its own, whether or not anything else happens.

1. Every :attr:`Claimer.interval` it asks for entries without a heartbeat for the visibility timeout; the script puts
   them back, counts the crash, and lets only one worker look in each interval.
2. Entries at the delivery limit, the smallest of any task, are handed to ``on_exhausted`` (the parent's main thread
   decides about them by the limit of their own task).
3. After a pause, of Redis or of this worker, it waits a heartbeat round, so that living owners speak first.
4. Now and then it says that this worker's idle consumers (``alive``) live, and deletes consumers that hold nothing and
   were not heard of.

Called by the services thread of the parent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from ..broker import Delivery, Recovery, StreamBroker
from ..exceptions import BrokerError, BrokerUnavailable

__all__ = ("Claimer",)

logger = logging.getLogger(__name__)

#: Seconds: a consumer that holds nothing and was silent for so long is deleted.
_SILENT = 300.0

#: Entries put back in one step, so that Redis is never held up.
_STEP = 100

#: Most steps for one queue in one look, so that the other queues have their turn.
_STEPS = 50


class Claimer:
    """Looks after the queues that ``queues`` names at each call."""

    def __init__(
        self,
        broker: StreamBroker,
        consumer: str,
        queues: Callable[[], Sequence[str]],
        *,
        visibility_timeout: float,
        delivery_limit: int,
        on_exhausted: Callable[[Delivery, str], None],
        alive: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self.consumer = consumer
        #: Seconds between two looks.
        self.interval = max(visibility_timeout / 6, 0.1)
        #: Entries put back, and entries that somebody else had deleted while they were pending.
        self.moved = self.vanished = 0
        self._broker = broker
        self._queues = queues
        # A look earlier than the timeout, so that a dead worker's entries run again within it.
        self._idle_ms = int((visibility_timeout - 1.2 * self.interval) * 1000)
        self._round = visibility_timeout / 5
        self._delivery_limit = delivery_limit
        self._on_exhausted = on_exhausted
        self._alive = alive
        self._last_contact = float("-inf")
        self._quiet_until = float("-inf")
        self._next_sweep = 0.0

    def run_once(self, *, now: float | None = None) -> int:
        """Look once; returns the number of entries put back.

        Raises:
            BrokerError: Redis is away, or refused; the next look that succeeds is followed by a quiet round. Not so
                when it refused what stands in one queue: the others were looked after.
        """
        now = time.monotonic() if now is None else now
        # A heartbeat round beyond the plan: a busy machine is late by less, and must not put off claiming for ever.
        if now - self._last_contact > self.interval + self._round:
            self._broker.client.call("PING")
            self._quiet_until = now + self._round * 1.5
        self._last_contact = now
        try:
            moved, refusal = self._claim(now)
        except BrokerError:
            self._last_contact = float("-inf")
            raise
        if refusal is not None:
            raise refusal
        return moved

    def _claim(self, now: float) -> tuple[int, BrokerError | None]:
        """Return the number of entries put back, and what Redis said of the first queue that it refused."""
        if now < self._quiet_until:
            self._broker.client.call("PING")
            return 0, None
        moved = 0
        refusal: BrokerError | None = None
        for queue in self._broker.busy_queues(self._queues()):
            try:
                moved += self._look(queue)
            except BrokerUnavailable:
                raise
            except BrokerError as exc:
                refusal = refusal or exc
        if now >= self._next_sweep:
            if self._next_sweep:
                self._broker.touch_consumers(self._queues(), self._alive())
                self._broker.forget_idle_consumers(self._queues(), idle_ms=int(_SILENT * 1000))
            self._next_sweep = now + _SILENT / 5
        return moved, refusal

    def _look(self, queue: str) -> int:
        moved = 0
        for _ in range(_STEPS):
            recovery = self._step(queue)
            moved += recovery.moved
            if not recovery.more:
                break
        if moved:
            logger.warning("Put back %d entries of queue %s that a dead worker held.", moved, queue)
        return moved

    def _step(self, queue: str) -> Recovery:
        recovery = self._broker.recover(
            queue,
            self.consumer,
            idle_ms=self._idle_ms,
            turn_ms=max(int(self.interval * 1000) - 50, 50),
            delivery_limit=self._delivery_limit,
            limit=_STEP,
        )
        self.moved += recovery.moved
        if recovery.vanished:
            self.vanished += recovery.vanished
            logger.error(
                "%d pending entries of queue %s had been deleted by someone else; they cannot be run. "
                "Nobody but celery-streams may delete or trim its streams.",
                recovery.vanished,
                queue,
            )
        for delivery, holder in recovery.exhausted:
            self._on_exhausted(delivery, holder)
        return recovery

"""Claimer: puts back what dead workers held, on a timer of its own, whether or not anything else happens.

1. Every :attr:`Claimer.interval` it asks for entries without a heartbeat for the visibility timeout of their holder's
   worker (``holders``); the script puts them back, counts the crash, and lets only one worker look in each interval.
2. Entries at the delivery limit, the smallest of any task, are handed to ``on_exhausted`` (the parent's main thread
   decides about them by the limit of their own task).
3. After a pause, of Redis or of this worker, it waits a heartbeat round, so that living owners speak first. A clock of
   Redis that was set is a pause like any other; after one that was set back, idle times begin anew.
4. Now and then it says that the idle consumers of this worker (``readers``) live, and deletes consumers that hold
   nothing and whose worker is dead, or that were not heard of.

Called by a thread of the parent; one look takes a bounded time, whatever dead workers have left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from ..broker import Delivery, Recovery, StreamBroker
from ..clock import ClockWatch
from ..exceptions import BrokerError, BrokerUnavailable
from ..presence import ConsumerPresence
from .holders import HolderTimeouts
from .outcome import crash_pauses_ms

__all__ = ("Claimer",)

logger = logging.getLogger(__name__)

#: Seconds: a consumer that holds nothing and was silent for so long is deleted, whoever's it is.
_SILENT = 300.0

#: Seconds between two looks for consumers that nobody needs.
_SWEEP = 60.0

#: Entries put back in one step, so that Redis is never held up.
_STEP = 100

#: Seconds after which a look ends, with the rest left to the next one: the thread has other duties.
_LONGEST = 1.0

#: Queues whose consumers are looked at in one step, so that Redis is never held up.
_QUEUES = 25


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
        readers: Callable[[], Sequence[ConsumerPresence]] = lambda: (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.consumer = consumer
        #: Seconds between two looks.
        self.interval = max(visibility_timeout / 6, 0.1)
        #: Entries put back, and entries that somebody else had deleted while they were pending.
        self.moved = self.vanished = 0
        self._broker = broker
        self._queues = queues
        self._round = visibility_timeout / 5
        self._holders = HolderTimeouts(broker, visibility_timeout)
        # A living owner is silent for a round, and for this much more if the clock was set without being noticed.
        self._watch = ClockWatch(tolerance=max(self._round, 0.1), monotonic=monotonic)
        self._monotonic = monotonic
        self._pauses_ms = crash_pauses_ms(delivery_limit)
        self._on_exhausted = on_exhausted
        self._readers = readers
        self._last_contact = float("-inf")
        self._paused_at = float("-inf")
        self._next_sweep = 0.0
        self._first = 0

    def run_once(self, *, now: float | None = None) -> int:
        """Look once; returns the number of entries put back.

        Raises:
            BrokerError: Redis is away, or refused; the next look that succeeds is followed by a quiet round. Not so
                when it refused what stands in one queue: the others were looked after.
        """
        now = time.monotonic() if now is None else now
        # A heartbeat round beyond the plan: a busy machine is late by less, and must not put off claiming for ever.
        late = now - self._last_contact > self.interval + self._round
        away = self._last_contact == float("-inf")
        self._last_contact = now
        try:
            busy = self._broker.busy_queues(self._queues())
            self._look_at_clock(busy.clock_ms, now)
            if late:
                self._pause(now, anew=away)
            moved, refusal = self._claim(busy.queues, now)
        except BrokerError:
            self._last_contact = float("-inf")
            raise
        if refusal is not None:
            raise refusal
        return moved

    # -- pauses

    def _look_at_clock(self, clock_ms: int, now: float) -> None:
        jump = self._watch.observe(clock_ms)
        if jump:
            logger.warning(
                "The clock of Redis was set %s by %.1f s. Nothing is claimed before living workers have beaten again.",
                "forward" if jump > 0 else "back",
                abs(jump),
            )
            self._pause(now, anew=jump < 0)

    def _pause(self, now: float, *, anew: bool) -> None:
        """Let living owners speak first; with ``anew`` what was measured before may have been by another clock."""
        self._paused_at = now
        if not anew:
            return
        for queue in self._queues():
            try:
                self._broker.clock_was_set(queue)
            except BrokerUnavailable:
                raise
            except BrokerError as exc:
                # Whoever claims there is refused as well, and says so aloud.
                logger.debug("Cannot set right what was measured by another clock on queue %s: %s", queue, exc)

    def _is_quiet(self, now: float, timeout: float) -> bool:
        """Return whether a worker with this visibility timeout may not have beaten yet since the last pause."""
        return now < self._paused_at + timeout / 5 * 1.5

    def _patience(self, timeout: float) -> int:
        """Return for how many ms a worker may be silent: a look less than it promises, so that it holds within it."""
        return int((timeout - 1.2 * max(timeout / 6, 0.1)) * 1000)

    # -- claiming

    def _claim(self, busy: Sequence[str], now: float) -> tuple[int, BrokerError | None]:
        """Return the number of entries put back, and what Redis said of the first queue that it refused."""
        if self._is_quiet(now, self._holders.own):
            return 0, None
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP
            self._sweep()
        moved = 0
        refusal: BrokerError | None = None
        deadline = self._monotonic() + min(_LONGEST, max(self.interval / 2, 0.05))
        self._first += 1
        for index in range(len(busy)):
            # Another queue comes first each time: there may be no time for all of them.
            queue = busy[(self._first + index) % len(busy)]
            try:
                moved += self._look(queue, now, deadline)
            except BrokerUnavailable:
                raise
            except BrokerError as exc:
                refusal = refusal or exc
            if self._monotonic() > deadline:
                break
        return moved, refusal

    def _look(self, queue: str, now: float, deadline: float) -> int:
        moved = 0
        patience: dict[bytes, int | None] = {}
        while True:
            recovery = self._step(queue, patience)
            moved += recovery.moved
            if recovery.strangers:
                if not patience:
                    self._holders.refresh()
                for holder in recovery.strangers:
                    timeout = self._holders.of(holder.decode(errors="replace"))
                    patience[holder] = None if self._is_quiet(now, timeout) else self._patience(timeout)
            elif not recovery.more:
                break
            self._look_at_clock(recovery.clock_ms, now)
            if self._paused_at == now or self._monotonic() > deadline:
                break
        if moved:
            logger.warning("Put back %d entries of queue %s that a dead worker held.", moved, queue)
        return moved

    def _step(self, queue: str, patience: dict[bytes, int | None]) -> Recovery:
        recovery = self._broker.recover(
            queue,
            self.consumer,
            idle_ms=self._patience(self._holders.shortest),
            turn_ms=max(int(self.interval * 1000) - 50, 50),
            pauses_ms=self._pauses_ms,
            limit=_STEP,
            patience=patience,
            expected_ms=self._watch.expected_ms(),
            tolerance_ms=int(self._watch.tolerance * 1000),
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

    # -- consumers

    def _sweep(self) -> None:
        """Say that this worker's consumers live, each where it reads, and delete those of dead workers."""
        self._holders.refresh()
        readers = self._readers()
        shares: dict[tuple[str, ...] | None, list[str]] = {}
        for reader in readers:
            shares.setdefault(reader.queues, []).append(reader.name)
        for read, names in shares.items():
            for queues in _parted(self._queues() if read is None else read):
                self._broker.touch_consumers(queues, names)
        living = {one.name for worker in self._holders.workers if worker.is_alive for one in worker.consumers}
        living.update(reader.name for reader in readers)
        # A child that was just started stands in no beat yet, but will within a round.
        nodes = {worker.node: int(worker.visibility_timeout * 1000) for worker in self._holders.workers}
        for queues in _parted(self._queues()):
            self._broker.forget_idle_consumers(queues, idle_ms=int(_SILENT * 1000), living=sorted(living), nodes=nodes)


def _parted(queues: Sequence[str]) -> Iterator[list[str]]:
    items = iter(list(queues))
    while part := list(islice(items, _QUEUES)):
        yield part

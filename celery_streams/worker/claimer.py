"""Claimer: puts back what dead workers held, on a timer of its own, whether or not anything else happens.

1. Every :attr:`Claimer.interval` it asks for entries without a heartbeat for the visibility timeout of their holder's
   worker (``holders``); the script puts them back, counts the crash, and lets only one worker look in each interval.
2. Entries at the delivery limit, the smallest of any task, are handed to ``on_exhausted`` (the parent's main thread
   decides about them by the limit of their own task).
3. After a pause, of Redis or of this worker, it waits a heartbeat round, so that living owners speak first. A clock of
   Redis that was set is a pause like any other; after one that was set back, idle times begin anew.
4. While nothing lies on any of its streams it asks for nothing: it hears when somebody adds to one (``untouched``), and
   what is read from then on can be claimed no sooner.
5. What still waits at a front at the next look is told (``on_front``): a reader that waits does not listen there.
6. Now and then it says that the idle consumers of this worker (``readers``) live, deletes consumers that hold
   nothing and whose worker is dead, or that were not heard of, and looks for entries that somebody took from their
   consumers by hand: from then on they are held by somebody who never beats.

Called by a thread of the parent; one look takes a bounded time, whatever dead workers have left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from .. import keys
from ..broker import StreamBroker
from ..chance import chance
from ..clock import ClockWatch
from ..consumers import forget_idle_consumers, touch_consumers
from ..entries import Delivery
from ..exceptions import BrokerError, BrokerUnavailable, KeyOfOtherType
from ..partitions import queue_of
from ..presence import ConsumerPresence
from ..recovery import Recovery, busy_queues, clock_was_set, gather, recover
from ..untouched import Untouched
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

#: Seconds after which it is tried again to listen to what Redis refused.
_DEAF = 60.0

#: Seconds between two calls of ``on_front``: behind a backlog there may always be something.
_TOLD = 20.0

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
        on_recovered: Callable[[str, int], object] = lambda queue, count: None,
        readers: Callable[[], Sequence[ConsumerPresence]] = lambda: (),
        on_front: Callable[[], None] = lambda: None,
        limits: Callable[[], Mapping[str, Any]] = dict,
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
        self._on_recovered = on_recovered
        self._readers = readers
        self._on_front = on_front
        #: What is known of the limits of tasks, for those that wait for the places of what is put back.
        self._limits = limits
        #: Something waited at a front at the last look, and when that was told.
        self._front_waits = False
        self._told_at = float("-inf")
        self._untouched = Untouched(broker, monotonic=monotonic)
        self._watched: list[str] = []
        #: Nobody can read who lives.
        self._odd = False
        #: The last look found nothing on any stream.
        self._empty = False
        #: How often something came, or others were listened to.
        self._stirs = 0
        #: Until when nobody listens to streams that Redis refuses to read together.
        self._deaf_until = float("-inf")
        self._last_contact = float("-inf")
        self._paused_at = float("-inf")
        self._next_sweep = float("-inf")
        #: Queue -> when this worker began to look after it, or was permitted to again.
        self._since: dict[str, float] = {}
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
        queues = list(self._queues())
        self._since = {queue: self._since.get(queue, now) for queue in queues}
        try:
            if self._is_still(queues, now):
                return 0
            busy = busy_queues(self._broker, queues)
            self._found(busy.all_empty)
            self._tell_of_fronts(now, waits=busy.front_waits)
            self._look_at_clock(busy.clock_ms, now)
            if late:
                self._pause(now, anew=away)
            # Where the queue was forbidden, nobody's heartbeat was heard either: they speak first, too.
            settled = [queue for queue in busy.queues if now >= self._since[queue] + self._round * 1.5]
            moved, refusal = self._claim(settled, now)
        except BrokerError:
            self._last_contact = float("-inf")
            self._empty = False
            raise
        if refusal is not None:
            raise refusal
        return moved

    def close(self) -> None:
        """Close the connection that only it uses."""
        self._untouched.forget()

    @property
    def quiet(self) -> int | None:
        """A number while all streams are empty, another one when anything came meanwhile; None while nobody knows."""
        return self._stirs if self._empty and self._untouched.is_watching else None

    def doubt(self) -> None:
        """Look at everything next: what listens may have been lost without a sign."""
        self._empty = False

    # -- quiet

    def _is_still(self, queues: list[str], now: float) -> bool:
        """Return whether there is nothing to look for, since nothing lay on any stream and nobody added to one.

        Raises:
            BrokerError: Redis is away, or was away since it was asked last.
        """
        # Consumers are said to live, and those of dead workers deleted, also where all is quiet: in time, and no more.
        if not self._empty or now >= self._next_sweep + 0.6 * _SILENT - _SWEEP or now < self._deaf_until:
            return False
        try:
            if self._untouched.is_watching and self._watched == queues:
                self._empty = self._untouched.so_far()
                self._stirs += not self._empty
                return self._empty
            self._stirs += 1
            self._untouched.watch(queues)
            self._watched = queues
        except BrokerUnavailable:
            self._broker.client.close()  # what lies idle there is as dead
            raise
        except BrokerError as exc:
            logger.debug("Cannot listen to all streams at once, so each is read at every look: %s", exc)
            self._deaf_until = now + _DEAF
            self._untouched.forget()
        return False

    def _found(self, empty: bool) -> None:
        self._empty = empty
        if not empty:
            self._untouched.forget()

    def _tell_of_fronts(self, now: float, *, waits: bool) -> None:
        if waits and self._front_waits and now >= self._told_at + _TOLD:
            self._told_at = now
            self._on_front()
        self._front_waits = waits

    # -- pauses

    def _look_at_clock(self, clock_ms: int, now: float) -> None:
        jump = self._watch.observe(clock_ms)
        if jump:
            logger.warning(
                "The clock of Redis was set %s by %.1f s. Nothing is claimed until live workers have sent a heartbeat.",
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
                clock_was_set(self._broker, queue)
            except BrokerUnavailable:
                raise
            except BrokerError as exc:
                # Whoever claims there is refused as well, and says so aloud.
                logger.debug(
                    "Cannot adjust idle times and due times of queue %s to the clock of Redis, which was set: %s",
                    queue,
                    exc,
                )

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
        refusal = ""
        known_only = False
        while True:
            recovery = self._step(queue, patience)
            moved += recovery.moved
            refusal = refusal or recovery.refusal
            if recovery.strangers:
                if not patience:
                    known_only = not self._refreshed()
                for holder in recovery.strangers:
                    name = holder.decode(errors="replace")
                    timeout = self._holders.of(name)
                    waits = self._is_quiet(now, timeout) or (known_only and not self._holders.knows(name))
                    patience[holder] = None if waits else self._patience(timeout)
            elif not recovery.more:
                break
            self._look_at_clock(recovery.clock_ms, now)
            if self._paused_at == now or self._monotonic() > deadline:
                break
        if moved:
            logger.warning("Put back %d entries of queue %s that a dead worker held.", moved, queue)
        if refusal:
            raise BrokerError(f"Cannot put back all that dead workers held on queue {queue}: {refusal}")
        return moved

    def _refreshed(self) -> bool:
        """Ask for the workers; False: another node of a cluster knows them, and is away, or somebody put something else
        where they say so. So who was known is judged.

        Raises:
            BrokerError: Redis refused; or it is away.
        """
        try:
            self._holders.refresh()
            self._odd = False
        except KeyOfOtherType as exc:
            if not self._odd:
                logger.error("What workers held that were not heard of before stays pending when they die: %s", exc)
            self._odd = True
            return False
        except BrokerUnavailable as exc:
            if self._holders.is_here(self._queues()):
                raise
            logger.debug("Nobody says how long workers may be silent: %s", exc)
            return False
        return True

    def _step(self, queue: str, patience: dict[bytes, int | None]) -> Recovery:
        recovery = recover(
            self._broker,
            queue,
            self.consumer,
            idle_ms=self._patience(self._holders.shortest),
            turn_ms=max(int(self.interval * 1000) - 50, 50),
            pauses_ms=self._pauses_ms,
            limit=_STEP,
            patience=patience,
            expected_ms=self._watch.expected_ms(),
            tolerance_ms=int(self._watch.tolerance * 1000),
            limits=self._limits(),
        )
        self.moved += recovery.moved
        if recovery.moved or recovery.exhausted:
            self._on_recovered(queue, recovery.moved + len(recovery.exhausted))
        if recovery.vanished:
            self.vanished += recovery.vanished
            logger.error(
                "%d pending entries of queue %s had been deleted by someone else; they cannot be run. "
                "Nothing but celery-streams may delete or trim its streams.",
                recovery.vanished,
                queue,
            )
        for delivery, holder in recovery.exhausted:
            self._on_exhausted(delivery, holder)
        return recovery

    # -- consumers

    def _sweep(self) -> None:
        """Say that this worker's consumers live, each where it reads, and delete those of dead workers."""
        if not self._refreshed():
            return
        readers = self._readers()
        shares: dict[tuple[str, ...] | None, list[str]] = {}
        for reader in readers:
            shares.setdefault(reader.queues, []).append(reader.name)
        for read, names in shares.items():
            for queues in _parted([one for one in self._queues() if read is None or queue_of(one) in read]):
                touch_consumers(self._broker, queues, names)
        living = {one.name for worker in self._holders.workers if worker.is_alive for one in worker.consumers}
        living.update(reader.name for reader in readers)
        # A child that was just started stands in no beat yet, but will within a round.
        nodes = {worker.node: int(worker.visibility_timeout * 1000) for worker in self._holders.workers}
        for queues in _parted(self._queues()):
            forget_idle_consumers(self._broker, queues, idle_ms=int(_SILENT * 1000), living=sorted(living), nodes=nodes)
        # One worker is enough; nobody needs to be sure which.
        if chance.random() * sum(worker.is_alive for worker in self._holders.workers) < 1:
            self._gather()

    def _gather(self) -> None:
        """Find what was delivered and is in nobody's list."""
        deadline = self._monotonic() + _LONGEST
        for queues in _parted(self._queues()):
            found, refusal = gather(self._broker, queues, go_on=lambda: self._monotonic() < deadline)
            for queue, count in found.items():
                logger.warning(
                    "%d entries of queue %s had been delivered and were in nobody's list: somebody typed XGROUP or "
                    "XACK. Those that no living worker has are put back within %.0f s.",
                    count,
                    queue,
                    self._holders.of(keys.NOBODY),
                )
            if refusal:
                logger.debug("Cannot look for what nobody holds: %s", refusal)
            if self._monotonic() > deadline:
                break


def _parted(queues: Sequence[str]) -> Iterator[list[str]]:
    items = iter(list(queues))
    while part := list(islice(items, _QUEUES)):
        yield part

"""Dead children: what the parent does for a child that died: nothing that it held may depend on it.

1. What ran but was not acknowledged yet is acknowledged in its place.
2. What was not started goes back, with no delivery counted.
3. What was running, or kept by a strategy, is settled as ``lost``, ``timed_out`` or ``interrupted`` (``lost_tasks``).
4. The consumer is deleted from the group once nothing is pending for it; a second look a moment later catches an
   entry that Redis handed to the dead connection before it noticed.

It runs in the parent's main thread, where Celery runs such code too. While Redis is away it keeps what is left to do
and is called again; the entries stay pending meanwhile, so another worker's claimer may be faster, and then the
ownership checks make it do nothing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from billiard.common import human_status

from ..consumers import forget_consumer
from ..entries import Delivery, Entry, StreamRef
from ..exceptions import BrokerError, BrokerUnavailable, GroupMissing
from .lost_tasks import LostTasks
from .outcome import Event
from .settle import Settler
from .slots import Snapshot

__all__ = ("Casualty", "Cause", "DeadChildren")

logger = logging.getLogger(__name__)

#: Steps of the work for one casualty: acknowledge, put back, settle, forget, and forget again.
_STEPS = 4

#: Seconds after which the consumer of a dead child is looked at again.
_SECOND_LOOK = 1.0

#: Seconds: pause after an attempt that found Redis away.
_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a child died, as far as the parent had a hand in it."""

    #: The hard time limit that was exceeded, in seconds, and by which entry.
    hard_limit: float | None = None
    entry: Entry | None = None
    #: The task was revoked with terminate: it is settled already.
    revoked: bool = False
    #: The task was cancelled by a cold shutdown.
    cancelled: bool = False
    #: What was revoked or cancelled, where that is known.
    task: str | None = None


@dataclass(slots=True)
class Casualty:
    """One child that is gone, with what it held."""

    consumer: str
    snapshot: Snapshot
    exitcode: int | None
    cause: Cause
    #: The message of a task that was acknowledged before it ran.
    kept: Any = None
    streams: Sequence[StreamRef] = ()
    #: The child left by itself and settled what it held.
    clean: bool = False
    #: For how many seconds the body ran that it died in.
    ran_for: float | None = None
    #: Events of its last moments were lost with it.
    untold: bool = False
    #: How far the work is, so that it is not begun anew after Redis was away.
    step: int = 0
    due: float = 0.0


class DeadChildren:
    """See the module."""

    def __init__(self, lost: LostTasks) -> None:
        self._lost = lost
        self._open: deque[Casualty] = deque()
        #: Redis was away: nothing is asked of it until then (monotonic seconds), whatever child dies meanwhile.
        self._paused_until = 0.0

    @property
    def unfinished(self) -> int:
        """Children that died and are not fully taken care of."""
        return len(self._open)

    def take(self, casualty: Casualty) -> None:
        """Take care of a child that died, now if Redis answers."""
        self._open.append(casualty)
        self.run_once()

    def run_once(self, *, now: Callable[[], float] = time.monotonic) -> int:
        """Go on with what is open; returns how many children are left."""
        if now() < self._paused_until:
            return len(self._open)
        for _ in range(len(self._open)):
            casualty = self._open.popleft()
            if casualty.due > now():
                self._open.append(casualty)
                continue
            try:
                if not self._proceed(casualty, now()):
                    self._open.append(casualty)
            except BrokerUnavailable as exc:
                logger.warning(
                    "Redis is unreachable; the entries of dead child %s are settled when it is back: %s",
                    casualty.consumer,
                    exc,
                )
                casualty.due = self._paused_until = now() + _PAUSE
                self._open.append(casualty)
                break  # the main thread shall not wait for a time-out for each of them
            except BrokerError as exc:
                self._go_on(casualty, exc, now())
        return len(self._open)

    def _go_on(self, casualty: Casualty, exc: BrokerError, now: float) -> None:
        """Take the next step after one that Redis refuses: what it held on other queues must not wait for it."""
        if not isinstance(exc, GroupMissing):
            logger.error(
                "Redis refused to settle what dead child %s held; another worker claims what is left: %s",
                casualty.consumer,
                exc,
            )
        casualty.step += 1
        if casualty.step <= _STEPS:
            casualty.due = now
            self._open.append(casualty)

    def _proceed(self, casualty: Casualty, now: float) -> bool:
        shot = casualty.snapshot
        if casualty.clean:
            return True
        if casualty.step == 0:
            self._settler(casualty).acknowledge(shot.finished)
            casualty.step = 1
        if casualty.step == 1:
            self._settler(casualty).put_back(shot.waiting, insist=False)
            for queue, count in Counter(entry.stream.queue for entry in shot.waiting).items():
                self._lost.count_recovered(queue, count, of_child=True)
            casualty.step = 2
        if casualty.step == 2:
            if shot.running is not None and (casualty.cause.revoked or shot.retried):
                event = Event.RETRIED if shot.retried else Event.REVOKED
                self._lost.count_ended(shot.running, casualty.cause.task, event, casualty.ran_for)
            elif shot.running is not None:
                left = self._settle_running(casualty, shot.running)
                if left:
                    if not casualty.due:
                        logger.warning(
                            "%s may have claimed the body of a chord before it died; what it ran is settled in %.1f s.",
                            casualty.consumer,
                            left,
                        )
                    # Looked at again before the entry, which has no other heartbeat, is idle for too long.
                    casualty.due = now + min(left, self._lost.streams.conf.visibility_timeout / 3)
                    return False
            for entry in shot.kept:
                try:
                    self._settle_kept(casualty, entry)
                except BrokerUnavailable:
                    raise
                except BrokerError as exc:
                    # Those of other queues must not wait for it; what is left pending is claimed by somebody.
                    logger.error("Redis refused to settle what dead child %s kept: %s", casualty.consumer, exc)
            casualty.step = 3
        if casualty.step == 3:
            self._forget(casualty)
            casualty.step, casualty.due = 4, now + _SECOND_LOOK
            return False
        self._forget(casualty)
        return True

    def _forget(self, casualty: Casualty) -> None:
        self._settler(casualty).put_all_back(casualty.streams)
        forget_consumer(self._lost.broker, sorted({ref.queue for ref in casualty.streams}), casualty.consumer)

    def _settler(self, casualty: Casualty) -> Settler:
        return self._lost.settler(casualty.consumer)

    def _settle_kept(self, casualty: Casualty, entry: Entry) -> None:
        """Settle what a task's strategy kept: whether it was at work on it, nobody knows."""
        delivery = self._lost.broker.fetch(entry)
        if delivery is not None and self._lost.still_holds(casualty.consumer, entry):
            self._lost.settle_lost(delivery, casualty.consumer, exitcode=casualty.exitcode)

    # -- the task that was running

    def _settle_running(self, casualty: Casualty, running: Entry) -> float:
        """Settle what ran; returns the seconds after which to come back, when it must not be settled yet."""
        lost = self._lost
        early = casualty.snapshot.acked_early
        if early and lost.still_holds(casualty.consumer, running):
            early = False  # it died before the acknowledgement reached Redis, and has not started
        if early:
            delivery: Delivery | None = Delivery(running, casualty.kept)
        else:
            delivery = lost.broker.fetch(running)
            if delivery is None or not lost.still_holds(casualty.consumer, running):
                return 0.0  # settled, or claimed by another worker
        assert delivery is not None
        if casualty.cause.cancelled:
            if not early:
                lost.settle_interrupted(delivery, casualty.consumer, ran_for=casualty.ran_for)
            return 0.0
        left = lost.claim_left(delivery)
        if left:
            return left
        lost.crashes += 1
        lost.count_recovered(running.stream.queue, 1, of_child=True)
        shot = casualty.snapshot
        how = KeyboardInterrupt.__name__ if shot.by_keyboard else str(human_status(casualty.exitcode))
        lost.settle_lost(
            delivery,
            casualty.consumer,
            exitcode=casualty.exitcode,
            hard_limit=casualty.cause.hard_limit if casualty.cause.entry == running else None,
            early=early,
            exited=how if shot.exited else None,
            ran_for=casualty.ran_for,
            untold=casualty.untold,
        )
        return 0.0

"""Aftermath: what the parent does for a child that died, or is about to: nothing a child held may depend on it.

1. What ran but was not acknowledged yet is acknowledged in its place.
2. What was not started goes back, with no delivery counted.
3. What was running is decided as ``lost``, ``timed_out`` or ``interrupted``; the signals, errbacks and results of a
   task that will not run again are those of Celery's Request.
4. The consumer is deleted from the group once nothing is pending for it; a second look a moment later catches an
   entry that Redis handed to the dead connection before it noticed.

It runs in the parent's main thread, where Celery runs such code too. While Redis is away it keeps what is left to do
and is called again; the entries stay pending meanwhile, so another worker's claimer may be faster, and then the
ownership checks make it do nothing.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from billiard.common import human_status
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery import states

from ..app import Streams
from ..broker import Delivery, Entry, StreamBroker, StreamRef
from ..exceptions import BrokerError, BrokerUnavailable, GroupMissing, MessageError
from .chords import claim_left
from .outcome import Action, Circumstances, Event, Outcome, decide
from .requests import build_request
from .settle import Death, Settler
from .slots import Snapshot
from .task_errors import unwrapped
from .task_options import options_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Aftermath", "Casualty", "Cause")

logger = logging.getLogger(__name__)

#: Errbacks, signals, hooks and backends raise anything; the message must not stay pending for it.
_UNTOLD = "Telling of the lost task %s[%s] failed; it is settled all the same."

#: Steps of the work for one casualty: acknowledge, release, settle, forget, and forget again.
_STEPS = 4

#: Seconds after which the consumer of a dead child is looked at again.
_SECOND_LOOK = 1.0


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
    #: How far the work is, so that it is not begun anew after Redis was away.
    step: int = 0
    due: float = 0.0


class Aftermath:
    """See the module. ``eventer`` is asked for at each use: Celery makes a new one after a reconnect."""

    def __init__(self, app: Celery, hostname: str, streams: Streams, *, eventer: Callable[[], Any]) -> None:
        self.app = app
        self.hostname = hostname
        self.streams = streams
        #: Children that died with a task running.
        self.crashes = 0
        self._eventer = eventer
        self._broker: StreamBroker | None = None
        self._open: deque[Casualty] = deque()

    @property
    def broker(self) -> StreamBroker:
        """A broker of the main thread's own."""
        if self._broker is None:
            self._broker = self.streams.new_broker()
        return self._broker

    @property
    def unfinished(self) -> int:
        """Children that died and are not fully taken care of."""
        return len(self._open)

    def settler(self, consumer: str) -> Settler:
        """Return a settler that acts for ``consumer`` and does not insist."""
        return Settler(self.broker, consumer, conf=self.streams.conf, hostname=self.hostname, insist=False)

    def take(self, casualty: Casualty) -> None:
        """Take care of a child that died, now if Redis answers."""
        self._open.append(casualty)
        self.run_once()

    def run_once(self, *, now: Callable[[], float] = time.monotonic) -> int:
        """Go on with what is open; returns how many children are left."""
        for _ in range(len(self._open)):
            casualty = self._open.popleft()
            if casualty.due > now():
                self._open.append(casualty)
                continue
            try:
                if not self._proceed(casualty, now()):
                    self._open.append(casualty)
            except BrokerUnavailable as exc:
                logger.warning("Cannot take care of what %s held yet: %s", casualty.consumer, exc)
                casualty.due = now() + 0.5
                self._open.append(casualty)
                break  # the main thread shall not wait for a time-out for each of them
            except BrokerError as exc:
                self._go_on(casualty, exc, now())
        return len(self._open)

    def _go_on(self, casualty: Casualty, exc: BrokerError, now: float) -> None:
        """Take the next step after one that Redis refuses: what it held on other queues must not wait for it."""
        if not isinstance(exc, GroupMissing):
            logger.error("Cannot take care of what %s held: %s", casualty.consumer, exc)
        casualty.step += 1
        if casualty.step <= _STEPS:
            casualty.due = now
            self._open.append(casualty)

    def _proceed(self, casualty: Casualty, now: float) -> bool:
        shot = casualty.snapshot
        if casualty.clean:
            return True
        if casualty.step == 0:
            self._acknowledge(casualty.consumer, shot.finished)
            casualty.step = 1
        if casualty.step == 1:
            self.broker.release(casualty.consumer, shot.waiting)
            casualty.step = 2
        if casualty.step == 2:
            if shot.running is not None and not casualty.cause.revoked and not shot.retried:
                left = self._settle_running(casualty, shot.running)
                if left:
                    if not casualty.due:
                        logger.warning(
                            "%s may have claimed the body of a chord before it died; what it ran is settled in %.1f s.",
                            casualty.consumer,
                            left,
                        )
                    # Looked at again before the entry, which has no other heartbeat, is idle for too long.
                    casualty.due = now + min(left, self.streams.conf.visibility_timeout / 3)
                    return False
            for entry in shot.kept:
                self._settle_kept(casualty, entry)
            casualty.step = 3
        if casualty.step == 3:
            self._forget(casualty)
            casualty.step, casualty.due = 4, now + _SECOND_LOOK
            return False
        self._forget(casualty)
        return True

    def _forget(self, casualty: Casualty) -> None:
        self.broker.release_all(casualty.streams, casualty.consumer)
        self.broker.forget_consumer(sorted({ref.queue for ref in casualty.streams}), casualty.consumer)

    def _acknowledge(self, consumer: str, finished: Sequence[Entry]) -> None:
        if finished:
            self.broker.ack(consumer, finished)

    def _settle_kept(self, casualty: Casualty, entry: Entry) -> None:
        """Settle what a task's strategy kept: whether it was at work on it, nobody knows."""
        delivery = self.broker.fetch(entry)
        if delivery is not None and not self.broker.extend([(casualty.consumer, entry)]):
            self.settle_lost(delivery, casualty.consumer, exitcode=casualty.exitcode)

    # -- the task that was running

    def _settle_running(self, casualty: Casualty, running: Entry) -> float:
        """Settle what ran; returns the seconds after which to come back, when it must not be settled yet."""
        early = casualty.snapshot.acked_early
        if early and not self.broker.extend([(casualty.consumer, running)]):
            early = False  # it died before the acknowledgement reached Redis, and has not started
        if early:
            delivery: Delivery | None = Delivery(running, casualty.kept)
        else:
            delivery = self.broker.fetch(running)
            if delivery is None or self.broker.extend([(casualty.consumer, running)]):
                return 0.0  # settled, or claimed by another worker
        assert delivery is not None
        if casualty.cause.cancelled:
            if not early:
                history = _history(delivery)
                self.settler(casualty.consumer).settle(
                    delivery, decide(Event.INTERRUPTED, Circumstances()), history=history
                )
            return 0.0
        left = self.claim_left(delivery)
        if left:
            return left
        self.crashes += 1
        self.settle_lost(
            delivery,
            casualty.consumer,
            exitcode=casualty.exitcode,
            hard_limit=casualty.cause.hard_limit if casualty.cause.entry == running else None,
            early=early,
            exited=casualty.snapshot.exited,
        )
        return 0.0

    def claim_left(self, delivery: Delivery) -> float:
        """Return for how long the dead process may have claimed the body of its chord; see :mod:`.chords`."""
        try:
            headers = delivery.message.decode_headers() if delivery.message is not None else {}
            task = self.app.tasks.get(headers.get("task"))
            if task is None or not headers.get("group"):
                return 0.0
            return claim_left(task.backend, headers["group"])
        except Exception:
            # Any result backend's own errors; what follows is what Celery would do.
            logger.exception("Cannot ask whether a chord is being dispatched: entry %s.", delivery.entry_id.decode())
            return 0.0

    def settle_lost(
        self,
        delivery: Delivery,
        consumer: str,
        *,
        exitcode: int | None = None,
        hard_limit: float | None = None,
        early: bool = False,
        exited: bool = False,
        claimed: bool = False,
    ) -> None:
        """Settle a message whose process is gone.

        Args:
            hard_limit: the time limit in seconds for which it was killed; None when it died by itself.
            early: it was acknowledged before it ran.
            exited: the body raised SystemExit or KeyboardInterrupt.
            claimed: a claimer found it; whether the dead worker had started it, nobody knows.

        Raises:
            BrokerUnavailable: Redis is away; call again.
        """
        verdict: list[str] = []
        settler = self.settler(consumer)
        history = _history(delivery)
        try:
            request = build_request(
                self.app,
                delivery,
                hostname=self.hostname,
                eventer=self._eventer(),
                on_ack=lambda *_: verdict.append("ack"),
                on_reject=lambda *args: verdict.append("requeue" if args and args[-1] else "reject"),
            )
        except Exception as exc:
            # Decoding runs serializers and user codecs; whatever it raises, the message must not stay pending.
            logger.error("Cannot decode entry %s of a lost task: %r", delivery.entry_id.decode(), exc, exc_info=True)
            request = None
        if request is None:
            limit = self.streams.conf.delivery_limit
            event = Event.MALFORMED if delivery.message is None else Event.LOST
            outcome = decide(event, Circumstances(crashes=_crashes(history), delivery_limit=limit))
            settler.settle(delivery, outcome, death=Death(exception=_status(exitcode)), history=history)
            return
        plan = options_of(request.task, self.streams)
        event = Event.TIMED_OUT if hard_limit is not None else Event.EXITED if exited else Event.LOST
        given = replace(
            plan.given,
            acks_late=not early,
            reject_on_worker_lost=None if claimed else request.task.reject_on_worker_lost,
            crashes=_crashes(history),
        )
        outcome = decide(event, given)
        death = Death(request.task.name, request.id)
        if event is not Event.TIMED_OUT:
            einfo = _lost(exitcode)
            death = Death(request.task.name, request.id, repr(unwrapped(einfo.exception)), einfo.traceback)
            stored = getattr(request, "_success_was_stored", None)
            meta = stored() if stored is not None else None
            if meta:
                logger.warning("Task %s[%s] succeeded before its process was lost.", request.name, request.id)
                self._count_chord_part(request, meta)
                outcome = decide(Event.SUCCEEDED, given)
            elif outcome.action is not Action.REQUEUE or getattr(request.task, "retry_on_worker_lost", False):
                outcome = self._announce_lost(request, einfo, outcome, verdict, early=early)
            else:
                logger.warning(
                    "Task %s[%s] lost its process (%s); it runs again (crash %d, limit %d).",
                    request.name,
                    request.id,
                    _status(exitcode),
                    _crashes(history) + 1,
                    plan.given.delivery_limit,
                )
        else:
            try:
                request.on_timeout(False, hard_limit)
            except BrokerUnavailable:
                raise
            except Exception:
                logger.exception(_UNTOLD, request.name, request.id)
            death = Death(request.task.name, request.id, f"TimeLimitExceeded({hard_limit},)")
        settler.settle(delivery, outcome, death=death, history=history, acked_early=early)

    @staticmethod
    def _count_chord_part(request: Any, meta: Any) -> None:
        """Count the result for its chord: the process may have died between storing and counting.

        A result that was counted already is counted again under the same name, which changes nothing.
        """
        context = request._context
        if not context.chord or not isinstance(meta, dict):
            return
        try:
            request.task.backend.on_chord_part_return(context, states.SUCCESS, meta.get("result"))
        except BrokerUnavailable:
            raise
        except Exception:
            logger.exception(_UNTOLD, request.name, request.id)

    def _announce_lost(
        self, request: Any, einfo: ExceptionInfo, outcome: Outcome, verdict: list[str], *, early: bool
    ) -> Outcome:
        task = request.task
        rejects, late = task.reject_on_worker_lost, task.acks_late
        # Celery's Request asks the task whether the message goes back; on streams that is decided already.
        task.reject_on_worker_lost, task.acks_late = outcome.action is Action.REQUEUE, not early
        try:
            request.on_failure(einfo)
        except BrokerUnavailable:
            raise
        except Exception:
            logger.exception(_UNTOLD, request.name, request.id)
        finally:
            task.reject_on_worker_lost, task.acks_late = rejects, late
        if "ack" in verdict and outcome.action is Action.REQUEUE:
            return Outcome(Action.ACK)  # retry_on_worker_lost stored a new message
        return outcome


def _history(delivery: Delivery) -> dict[str, Any]:
    try:
        return delivery.message.decode_history() if delivery.message is not None else {}
    except MessageError:
        return {}  # whoever reads it next dead-letters it as malformed


def _crashes(history: dict[str, Any]) -> int:
    return int(history.get("crashes") or 0)


def _status(exitcode: int | None) -> str:
    return "its worker is gone" if exitcode is None else str(human_status(exitcode))


def _lost(exitcode: int | None) -> ExceptionInfo:
    try:
        raise WorkerLostError(f"Worker exited prematurely: {_status(exitcode)}.")
    except WorkerLostError:
        return ExceptionInfo(sys.exc_info())

"""Lost tasks: settles messages whose process is gone, and reports the tasks as lost, as Celery does.

The signals, errbacks and results of a task that will not run again are those of Celery's Request. In the parent's main
thread, where Celery runs such code too; called for children that died, for what a claimer found over its limit, and for
tasks that ended a thread.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from billiard.common import human_status
from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import VERSION as CELERY
from celery import signals, states
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state as worker_state

from .. import celery_private
from ..app import Streams
from ..broker import StreamBroker
from ..entries import Delivery, Entry
from ..exceptions import BrokerUnavailable, MessageError
from ..partitions import queue_of
from .attempted import TIME_LIMIT
from .burial import Death
from .chords import claim_left
from .counts import OTHER, Counts
from .outcome import Action, Circumstances, Event, Outcome, decide
from .requests import build_request
from .settle import Settler
from .task_errors import log_raised, unwrapped
from .task_options import limits_in_force, options_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("LostTasks",)

logger = logging.getLogger(__name__)

#: Raised while others are told of a lost task, these are no matter of theirs: Redis is away, or the worker shall end.
_PASSING_BY = (BrokerUnavailable, WorkerShutdown, WorkerTerminate, KeyboardInterrupt)


class LostTasks:
    """Settles what was lost with its process. ``eventer`` is asked for at each use: Celery makes a new one after a
    reconnect."""

    def __init__(
        self,
        app: Celery,
        hostname: str,
        streams: Streams,
        *,
        eventer: Callable[[], Any],
        counts: Counts | None = None,
    ) -> None:
        self.app = app
        self.hostname = hostname
        self.streams = streams
        #: Processes that died with a task running.
        self.crashes = 0
        self._eventer = eventer
        self._counts = counts
        self._broker: StreamBroker | None = None

    @property
    def broker(self) -> StreamBroker:
        """A broker of the main thread's own."""
        if self._broker is None:
            self._broker = self.streams.new_broker()
        return self._broker

    def settler(self, consumer: str) -> Settler:
        """Return a settler that acts for ``consumer`` and does not insist."""
        return Settler(self.broker, consumer, conf=self.streams.conf, hostname=self.hostname, insist=False)

    def still_holds(self, consumer: str, entry: Entry) -> bool:
        """Return whether ``entry`` is pending for ``consumer``; it is a heartbeat, too."""
        return not self.broker.extend([(consumer, entry)])

    def settle_exhausted(self, delivery: Delivery, consumer: str, holder: str = "") -> None:
        """Settle a message over its limit that a claimer took from ``holder`` for ``consumer``."""
        if not self.still_holds(consumer, delivery.entry) or self.claim_left(delivery):
            return  # another worker's by now; or a part of a chord that has to wait, and is found again
        self.crashes += 1
        # What its worker kept of its events for a moment died with it; told twice they say the same.
        self.settle_lost(delivery, consumer, claimed=True, holder=holder, untold=True)

    def settle_interrupted(self, delivery: Delivery, consumer: str, *, ran_for: float | None = None) -> None:
        """Put a message back whose task a cold shutdown ended, after it had run for so many seconds."""
        event, settler = Event.INTERRUPTED, self.settler(consumer)
        outcome = decide(event, Circumstances())
        self._free_places(settler, delivery.entry, self.task_of(delivery))
        if settler.settle(delivery, outcome, history=_history(delivery), event=event, ran_for=ran_for):
            self.count_ended(delivery.entry, self.task_of(delivery), Event.INTERRUPTED, ran_for)

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
            logger.exception(
                "Cannot ask the result backend whether the chord of entry %s was dispatched; it is settled at once.",
                delivery.entry_id.decode(),
            )
            return 0.0

    def settle_lost(
        self,
        delivery: Delivery,
        consumer: str,
        *,
        exitcode: int | None = None,
        hard_limit: float | None = None,
        early: bool = False,
        exited: str | None = None,
        claimed: bool = False,
        ran_for: float | None = None,
        untold: bool = False,
        holder: str = "",
    ) -> None:
        """Settle a message whose process is gone.

        Args:
            hard_limit: the time limit in seconds for which it was killed; None when it died by itself.
            early: it was acknowledged before it ran.
            exited: how the body ended its process, with SystemExit or KeyboardInterrupt; see ``ending_of``.
            claimed: a claimer found it; whether the dead worker had started it, nobody knows.
            ran_for: for how many seconds its body ran, as far as that is known.
            untold: the events of its start may have been lost with the process.
            holder: the consumer that had it, if not ``consumer``.

        Raises:
            BrokerUnavailable: Redis is away; call again.
        """
        verdict: list[str] = []
        #: What it is for a tracked task: a new message was stored, with a state of its own.
        noted: Event | None = None
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
            death = Death(exception=_status(exitcode), detail=_detail(exitcode))
            if settler.settle(
                delivery, outcome, death=death, history=history, event=event, ran_for=ran_for, holder=holder
            ):
                self.count_ended(delivery.entry, None, event, ran_for)
            return
        plan = options_of(request.task, self.streams)
        self._free_places(settler, delivery.entry, request.task.name)
        event = Event.TIMED_OUT if hard_limit is not None else Event.LOST if exited is None else Event.EXITED
        given = replace(
            plan.given,
            acks_late=not early,
            reject_on_worker_lost=None if claimed else request.task.reject_on_worker_lost,
            crashes=_crashes(history),
        )
        outcome = decide(event, given)
        death = Death(request.task.name, request.id)
        if event is not Event.TIMED_OUT:
            einfo = _lost(exited or _status(exitcode))
            said = repr(unwrapped(einfo.exception))
            death = Death(request.task.name, request.id, said, einfo.traceback, exited or _detail(exitcode))
            meta = celery_private.success_was_stored(request)
            if meta:
                logger.warning("Task %s[%s] succeeded before its process was lost.", request.name, request.id)
                self._count_chord_part(request, meta)
                event = Event.SUCCEEDED
                outcome = decide(event, given)
            elif outcome.action is not Action.REQUEUE or getattr(request.task, "retry_on_worker_lost", False):
                if untold:
                    self.tell_start(request)
                decided = outcome
                outcome = self._announce_lost(request, einfo, outcome, verdict, early=early)
                noted = event if outcome is decided else Event.RETRIED
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
            if untold:
                self.tell_start(request)
            with _telling(request):
                request.on_timeout(False, hard_limit)
                if CELERY < (5, 7):
                    _announce_timeout(request, hard_limit)
            death = Death(request.task.name, request.id, f"{TIME_LIMIT}({hard_limit},)", detail=TIME_LIMIT)
        if settler.settle(
            delivery,
            outcome,
            death=death,
            history=history,
            acked_early=early,
            event=noted or event,
            ran_for=ran_for,
            holder=holder,
        ):
            self.count_ended(delivery.entry, request.task.name, event, ran_for)

    def _free_places(self, settler: Settler, entry: Entry, name: str | None) -> None:
        """Have the places of a limited task given back in the step that settles its message."""
        task = None if name is None else celery_private.registered_task(self.app, name)
        limits = None if task is None else limits_in_force(task, self.streams)
        if limits and name is not None:
            settler.vacate_with(entry, name, limits)

    def tell_start(self, request: Any) -> None:
        """Send the events with which a task begins, of one whose process could not: only they say what it is.

        Their fields are those of Celery's strategy and Request.
        """
        context = celery_private.context_of(request)
        request.send_event(
            "task-received",
            name=request.name,
            args=request.argsrepr,
            kwargs=request.kwargsrepr,
            root_id=request.root_id,
            parent_id=request.parent_id,
            retries=context.retries or 0,
            eta=request.eta and request.eta.isoformat(),
            expires=request.expires and request.expires.isoformat(),
        )
        request.send_event("task-started")

    def count_ended(self, entry: Entry, task: str | None, event: Event, ran_for: float | None) -> None:
        """Count a delivery that nobody has to settle any more."""
        if self._counts is not None:
            known = task is not None and task in self.app.tasks
            self._counts.ended(queue_of(entry.stream.queue), str(task) if known else OTHER, event, ran_for)

    def count_recovered(self, queue: str, count: int, *, of_child: bool = False) -> None:
        """Count entries that were taken over."""
        if self._counts is not None:
            self._counts.recovered(queue_of(queue), count, of_child=of_child)

    @staticmethod
    def task_of(delivery: Delivery) -> str | None:
        """Return the name of its task, as far as the headers say it."""
        try:
            name = delivery.message.decode_headers().get("task") if delivery.message is not None else None
        except MessageError:
            return None
        return name if isinstance(name, str) else None

    @staticmethod
    def _count_chord_part(request: Any, meta: Any) -> None:
        """Count the result for its chord: the process may have died between storing and counting.

        A result that was counted already is counted again under the same name, which changes nothing.
        """
        context = celery_private.context_of(request)
        if not context.chord or not isinstance(meta, dict):
            return
        with _telling(request):
            request.task.backend.on_chord_part_return(context, states.SUCCESS, meta.get("result"))

    def _announce_lost(
        self, request: Any, einfo: ExceptionInfo, outcome: Outcome, verdict: list[str], *, early: bool
    ) -> Outcome:
        task = request.task
        rejects, late = task.reject_on_worker_lost, task.acks_late
        # Celery's Request asks the task whether the message goes back; on streams that is decided already.
        task.reject_on_worker_lost, task.acks_late = outcome.action is Action.REQUEUE, not early
        try:
            with _telling(request):
                request.on_failure(einfo)
        finally:
            task.reject_on_worker_lost, task.acks_late = rejects, late
        if "ack" in verdict and outcome.action is Action.REQUEUE:
            return Outcome(Action.ACK)  # retry_on_worker_lost stored a new message
        return outcome


@contextlib.contextmanager
def _telling(request: Any) -> Iterator[None]:
    """Guard what tells others of a lost task: whatever that raises, its message is settled."""
    try:
        yield
    except _PASSING_BY:
        raise
    except BaseException:  # noqa: BLE001
        # Errbacks, signals, hooks and backends raise anything, in this process, which must not end for it: whoever
        # gets the message next would end, too.
        log_raised(
            logger.error,
            "Cannot report the lost task %s[%s]; its message is settled all the same.",
            request.name,
            request.id,
        )


def _announce_timeout(request: Any, limit: float | None) -> None:
    """Send the signal and the event of a hard limit that ``Request.on_timeout`` sends by itself since Celery 5.7.

    Before, its pool sends them: it tells the Request of a failure, too.
    """
    if worker_state.should_terminate:
        return
    try:
        raise TimeLimitExceeded(limit)
    except TimeLimitExceeded as exc:
        einfo = ExceptionInfo(sys.exc_info())
        signals.task_failure.send(
            sender=request.task,
            task_id=request.id,
            exception=exc,
            args=request.args,
            kwargs=request.kwargs,
            traceback=exc.__traceback__,
            einfo=einfo,
        )
        request.send_event("task-failed", exception=repr(exc), traceback=einfo.traceback)


def _history(delivery: Delivery) -> dict[str, Any]:
    try:
        return delivery.message.decode_history() if delivery.message is not None else {}
    except MessageError:
        return {}  # whoever reads it next dead-letters it as malformed


def _crashes(history: dict[str, Any]) -> int:
    return int(history.get("crashes") or 0)


def _status(exitcode: int | None) -> str:
    return "its worker disappeared" if exitcode is None else str(human_status(exitcode))


def _detail(exitcode: int | None) -> str:
    return "" if exitcode is None else str(human_status(exitcode))


def _lost(status: str) -> ExceptionInfo:
    try:
        raise WorkerLostError(f"Worker exited prematurely: {status}.")
    except WorkerLostError as exc:
        info = sys.exc_info()
        try:
            return ExceptionInfo(info)
        except BaseException:  # noqa: BLE001
            # What a task of this process raised stands behind it, and may raise anything, SystemExit too, when it is
            # shown.
            exc.__context__ = None
            return ExceptionInfo(info)

"""Executor: the steps of one message in the process that runs it; it settles once, at the end, whatever happened.

1. Decode the entry; what cannot be decoded is an event like any other.
2. May it start now? (``admission``)
3. Run it: plain messages straight through the tracer (``fast_path``), all others through Celery's strategy and Request
   (``slow_path``). Both return what happened.
4. ``outcome.decide`` decides, and ``settle`` does it.

Called by the child's loop and by the pools that run tasks in the worker's own process, for one message at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.exceptions import InvalidTaskError
from kombu.exceptions import ContentDisallowed

from ..app import Streams
from ..entries import Delivery, Entry
from ..exceptions import MessageError
from ..limits import RateLimited
from ..notes import HEADER as TRACK_HEADER
from .admission import held_back, lane_for_penalty, started_elsewhere
from .burial import Death
from .execution import PASSING_BY, Execution, Progress, Report, Surroundings, is_plain_value, recognise_revoked
from .fast_path import is_plain, run_plain
from .kept_messages import KeptMessages
from .outcome import Action, Circumstances, Event, Outcome, decide
from .preparation import Preparation, prepare
from .requests import received_message
from .settle import Settler
from .slow_path import SlowPath
from .task_errors import let_go, log_raised, shown
from .task_options import TaskOptions

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Executor",)

logger = logging.getLogger(__name__)

#: Events of messages that cannot be executed at all.
_UNFIT = (Event.MALFORMED, Event.NAMELESS, Event.NOT_ACCEPTED, Event.INVALID)


def _nothing(name: str, shown: str) -> None:
    """Celery's Request counts what it runs in the worker's own process."""


class Executor:
    """Runs deliveries for one consumer, one at a time; see :class:`Surroundings` for the arguments."""

    def __init__(
        self,
        app: Celery,
        hostname: str,
        streams: Streams,
        settler: Settler,
        progress: Progress,
        *,
        soft_limit: float | None = None,
        hard_limit: float | None = None,
        count: Callable[[str, str], None] = lambda name, shown: None,
        in_parent: bool = False,
        on_kept: Callable[[Collection[Entry]], None] = lambda entries: None,
    ) -> None:
        self.around = Surroundings(
            app,
            hostname,
            streams,
            settler,
            progress,
            soft_limit=soft_limit,
            hard_limit=hard_limit,
            count=count,
            count_request=_nothing if in_parent else count,
            kept=KeptMessages(settler.another(), on_kept),
        )
        self._slow = SlowPath(self.around, later=self._settle_kept)
        self._logs_receipt = False

    def prepare(self, prepared: Preparation | None = None) -> None:
        """Use the options of all tasks as they are now; again after any of them changed.

        Args:
            prepared: what was read for all executors of the process; None reads it.
        """
        around = self.around
        if prepared is None:
            prepared = prepare(around.app, around.hostname, around.streams)
        around.options, around.accept, around.json_types = prepared.options, prepared.accept, prepared.json_types
        around.deduplicates = prepared.deduplicates
        self._logs_receipt = prepared.logs_receipt
        self._slow.forget_strategies()

    def use_events(self, dispatcher: Any) -> None:
        """Send task events through ``dispatcher`` from now on; None sends none."""
        self.around.dispatcher = dispatcher
        self._slow.forget_strategies()

    def use_timer(self, timer: Any) -> None:
        """Have strategies use ``timer``, that of the worker's event loop, which somebody else drives."""
        if timer is not None and timer is not self.around.timer:
            self.around.timer = timer
            self._slow.forget_strategies()

    def execute(self, delivery: Delivery) -> None:
        """Run and settle one delivery. SystemExit, and whatever else ends a process, passes with nothing settled."""
        execution = Execution(delivery, None, {}, {}, {})
        try:
            report = (
                self._decode(execution)
                or held_back(execution, self.around)
                or started_elsewhere(execution, self.around)
                or self._run(execution)
            )
        except PASSING_BY:
            raise
        except BaseException as exc:  # noqa: BLE001
            # Raised outside of the body, by headers and callbacks of odd types or by user code around the task. What is
            # no Exception would end this process, and each one that gets the message next.
            log_raised(logger.error, "Entry %s could not be executed.", delivery.entry)
            report = Report(Event.INVALID, error=exc)
        self.around.on_ended(report.error)
        self._settle(execution, report)

    def settle_later(self) -> None:
        """Send the acknowledgements of messages that strategies kept and are done with."""
        if self.around.kept.settler.waiting:
            self.around.kept.flush()

    def run_timers(self) -> float | None:
        """Do what strategies wanted done later and is due; returns seconds until the next, None when there is none.

        For a process that has no event loop of Celery's.
        """
        timer = self.around.timer
        if not timer:
            return None
        for delay, entry in timer:
            if entry is None:
                self.settle_later()
                return None if delay is None else float(delay)
            timer.apply_entry(entry)
        return None

    # -- the steps

    def _decode(self, execution: Execution) -> Report | None:
        """Fill in what the entry says; returns MALFORMED when it says nothing that can be understood."""
        delivery = execution.delivery
        message = delivery.message
        if message is None:
            return Report(Event.MALFORMED, error=MessageError(delivery.error))
        try:
            headers, execution.properties = message.decode()
            if message.history:
                execution.history = message.decode_history()
        except MessageError as exc:
            return Report(Event.MALFORMED, error=exc)
        if "task" in headers:
            # A name that is no text is one that nobody has registered, for Celery too.
            name = headers["task"]
            if "id" not in headers or not (is_plain_value(name) and is_plain_value(headers["id"])):
                wrong = MessageError(f"task {name!r} and id {headers.get('id')!r} must be one plain value each")
                return Report(Event.MALFORMED, error=wrong)
            if type(headers["id"]) is not str:
                recognise_revoked(headers["id"])
            execution.options = self.around.options.get(name)
        execution.headers = headers
        return None

    def _run(self, execution: Execution) -> Report:
        if is_plain(execution, self.around):
            report = run_plain(execution, self.around, logs_receipt=self._logs_receipt)
            if report is not None:
                return report
        return self._slow.run(execution)

    def _settle_kept(self, execution: Execution, report: Report) -> None:
        self._settle(execution, report, settler=self.around.kept.settler)

    def _settle(self, execution: Execution, report: Report, *, settler: Settler | None = None) -> None:
        """Decide what happens to the message, settle it, and send the signals that Celery sends."""
        delivery, settler = execution.delivery, settler or self.around.settler
        if report.event is Event.KEPT:
            return  # with its places, until its strategy is done with it
        outcome = self._decide(execution, report)
        event = report.event if TRACK_HEADER in execution.headers else None
        if outcome.action is Action.ACK:
            settler.settle(delivery, outcome, event=event)
            if report.error is not None:
                let_go(report.error)
            return
        death = report.death
        if report.event in _UNFIT and report.error is not None:
            headers = execution.headers
            name, task_id = headers.get("task"), headers.get("id")
            death = Death(
                None if name is None else str(name), None if task_id is None else str(task_id), shown(report.error)
            )
            logger.critical(
                "Entry %s cannot be executed: %s. It goes to the dead letters.", delivery.entry, shown(report.error)
            )
        elif report.event is Event.UNKNOWN and death is not None:
            self._say_unknown(death, outcome)
            if outcome.action is Action.DEAD and report.announce is not None:
                report.announce()
        history = {} if report.event in _UNFIT else execution.history
        if settler is self.around.settler:
            self.around.progress.settling()
        lane = lane_for_penalty(execution, self.around) if outcome.action is Action.HOLD else None
        settler.settle(
            delivery,
            outcome,
            death=death,
            history=history,
            acked_early=report.settled,
            lane=lane,
            event=event,
            # Of what a strategy kept nobody knows when it began.
            ran_for=self.around.progress.took() if settler is self.around.settler else None,
        )
        if report.event is Event.NAMELESS:
            self._announce_unfit(delivery, None)
        elif report.event in _UNFIT and isinstance(report.error, (InvalidTaskError, ContentDisallowed)):
            # As Celery's Consumer: on_invalid_task and on_unknown_message send it, and on_decode_error does not.
            self._announce_unfit(delivery, report.error)
        let_go(report.error)

    def _decide(self, execution: Execution, report: Report) -> Outcome:
        options = report.options or execution.options
        if report.event is Event.SUCCEEDED and not report.settled and options is not None:
            return options.succeeded
        return decide(report.event, self._circumstances(options, execution, report))

    def _circumstances(self, options: TaskOptions | None, execution: Execution, report: Report) -> Circumstances:
        if options is None or report.event in _UNFIT:
            ttl = self.around.streams.conf.unknown_task_ttl
            return Circumstances(unknown_for=report.unknown_for, unknown_task_ttl=ttl, taker=report.taker)
        return replace(
            options.given,
            acks_late=not report.settled,
            crashes=int(execution.history.get("crashes") or 0),
            early_by=report.error.seconds if isinstance(report.error, RateLimited) else report.early_by,
        )

    @staticmethod
    def _say_unknown(death: Death, outcome: Outcome) -> None:
        if outcome.action is Action.HAND_OVER:
            logger.info(
                "Task %s[%s] is not registered here; handed over to worker %s.",
                death.task,
                death.task_id,
                outcome.taker.rpartition("/")[0],
            )
        elif outcome.action is Action.REQUEUE:
            logger.warning(
                "Task %s[%s] is not registered here; put back for a newer worker, next attempt in %.0fs.",
                death.task,
                death.task_id,
                outcome.delay,
            )
        else:
            logger.error(
                "Received unregistered task of type %s[%s]; no worker knew it in time.", death.task, death.task_id
            )

    def _announce_unfit(self, delivery: Delivery, exc: BaseException | None) -> None:
        message = delivery.message
        assert message is not None
        # Decoded again: Celery's strategies may have changed the headers that they were given.
        headers, properties, history = message.decode_headers(), message.decode_properties(), message.decode_history()
        signals.task_rejected.send(
            sender=self._slow.consumer,
            message=received_message(delivery, headers, properties, history, accept=self.around.accept),
            exc=exc,
        )

"""Executor: runs one message through Celery's own tracer, in the thread that calls it, and reports what happened.

1. Decode the entry; what cannot be decoded is an event like any other.
2. Plain messages go straight to the task's tracer (the fast path): no eta that lies ahead, no expiry, no stamps, not
   revoked, no task events, no rate limit, no receiver of ``task_received``, no custom ``Task.Request``.
3. All others go through Celery's own strategy and Request (``slow_path``).
4. ``outcome.decide`` decides, ``settle`` does it.

The tracer, the Request and the strategy are Celery's, looked up late: Sentry and others replace them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.app import trace
from celery.app.task import Context
from celery.exceptions import InvalidTaskError, Reject
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import state as worker_state
from celery.worker.strategy import logger as strategy_logger
from kombu.exceptions import ContentDisallowed, DecodeError, SerializationError
from kombu.serialization import loads, prepare_accept_content

from ..app import Streams
from ..broker import Delivery
from ..exceptions import MessageError
from ..running_task import RunningTask, current
from .chords import claim_left
from .inline_request import ETA_SLACK, PASSING_BY, Progress
from .outcome import Action, Circumstances, Event, decide
from .requests import received_message
from .settle import Death, Settler
from .slow_path import SlowPath
from .task_errors import event_of, let_go
from .task_options import TaskPlan, flag, make_callable, plan_for

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Executor",)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Executor:
    """Runs deliveries for one consumer, one at a time."""

    app: Celery
    hostname: str
    streams: Streams
    settler: Settler
    progress: Progress
    #: Time limits of the worker (``--time-limit``, ``--soft-time-limit``), in seconds.
    soft_limit: float | None = None
    hard_limit: float | None = None
    #: Called with the task's name when a task starts.
    count: Callable[[str], None] = lambda name: None
    #: Tasks run in the worker's own process: there Celery's Request counts what it runs by itself.
    in_parent: bool = False
    plans: dict[str, TaskPlan] = field(default_factory=dict)
    #: Content types that may be decoded, as kombu wants them.
    accept: Any = None
    _slow: SlowPath = field(init=False)
    _does_info: bool = False
    _deduplicates: bool = False

    def __post_init__(self) -> None:
        self._slow = SlowPath(self)

    def prepare(self) -> None:
        """Read the options of all tasks and build their strategies and tracers; again after any of them changed."""
        app = self.app
        self.accept = prepare_accept_content(app.conf.accept_content)
        self._deduplicates = app.conf.worker_deduplicate_successful_tasks
        self._does_info = strategy_logger.isEnabledFor(logging.INFO)
        for name, task in app.tasks.items():
            plan = plan_for(task, self.streams, rate_limits=not app.conf.worker_disable_rate_limits)
            if plan.acks_late:
                task.acks_late = True
            make_callable(task)
            self.plans[name] = plan
            task.__trace__ = trace.build_tracer(name, task, app.loader, self.hostname, app=app)
        self._slow.forget_strategies()

    # -- one delivery

    def execute(self, delivery: Delivery) -> None:
        """Run and settle one delivery. Lets SystemExit and whatever else ends a process pass, with nothing settled."""
        message = delivery.message
        if message is None:
            self.malformed(delivery, Event.MALFORMED, MessageError(delivery.error))
            return
        try:
            headers = message.decode_headers()
            properties = message.decode_properties()
            history = message.decode_history() if message.history else {}
        except MessageError as exc:
            self.malformed(delivery, Event.MALFORMED, exc)
            return
        name = headers.get("task")
        if "task" in headers and not (isinstance(name, str) and isinstance(headers.get("id"), str)):
            wrong = MessageError(f"task {name!r} and id {headers.get('id')!r} must be strings")
            self.malformed(delivery, Event.MALFORMED, wrong)
            return
        plan = self.plans.get(name) if isinstance(name, str) else None
        try:
            self._dispatch(delivery, plan, headers, properties, history)
        except PASSING_BY:
            raise
        except Exception as exc:
            # Raised outside of the body, by headers and callbacks of odd types or by user code around the task.
            logger.error("Entry %s cannot be executed.", delivery.entry_id.decode(), exc_info=True)
            self.malformed(delivery, Event.INVALID, exc, headers)

    def _dispatch(
        self,
        delivery: Delivery,
        plan: TaskPlan | None,
        headers: dict[str, Any],
        properties: dict[str, Any],
        history: dict[str, Any],
    ) -> None:
        if plan is not None and plan.interval_ms and not self._has_token(delivery, plan, headers, history):
            return
        if (
            plan is not None
            and plan.plain
            and not headers.get("expires")
            and not headers.get("stamped_headers")
            and "compression" not in headers
            and not signals.task_received.receivers
            and not self.sends_events()
            and headers.get("id") not in worker_state.revoked
        ):
            self._fast(delivery, plan, headers, properties, history)
        else:
            self._slow.execute(delivery, headers, properties, history)

    def sends_events(self) -> bool:
        """Return whether task events are wanted."""
        dispatcher = self._slow.consumer.event_dispatcher
        return dispatcher is not None and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups)

    def use_events(self, dispatcher: Any) -> None:
        """Send task events through ``dispatcher`` from now on; None sends none."""
        self._slow.consumer.event_dispatcher = dispatcher
        self._slow.forget_strategies()

    def _has_token(self, delivery: Delivery, plan: TaskPlan, headers: dict[str, Any], history: dict[str, Any]) -> bool:
        """Return whether the rate limit lets the task run now; if not, the message goes to the delayed set."""
        if history.pop("granted", None) or headers.get("id") in worker_state.revoked:
            return True
        node = "" if self.streams.conf.rate_limit_scope == "global" else self.hostname
        answer, _ = self.settler.insist(
            lambda: self.settler.broker.take_token(
                delivery.stream.queue, plan.task.name, node=node, interval_ms=plan.interval_ms
            ),
            "ask for a token",
        )
        wait_ms, reserved = answer or (0, True)
        if not wait_ms:
            return True
        self.finish(
            delivery,
            plan,
            {**history, "granted": 1} if reserved else history,
            Event.LIMITED,
            early_by=wait_ms / 1000,
        )
        return False

    # -- the fast path

    def _fast(
        self,
        delivery: Delivery,
        plan: TaskPlan,
        request: dict[str, Any],
        properties: dict[str, Any],
        history: dict[str, Any],
    ) -> None:
        eta = request.get("eta")
        if eta is not None:
            due = self._due(eta)
            if due is None:
                self._slow.execute(delivery, request, properties, history)  # Celery says what is wrong with it
                return
            if due > time.time() + ETA_SLACK:
                self.finish(delivery, plan, history, Event.EARLY, early_by=due - time.time())
                return
        message = delivery.message
        assert message is not None
        task = plan.task
        task_id = request.get("id")
        try:
            args, kwargs, embed = loads(
                message.body, properties.get("content_type"), properties.get("content_encoding"), accept=self.accept
            )
            if not isinstance(kwargs, dict):  # Celery's tracer would report an error to nobody, and no result
                raise MessageError(f"the keyword arguments must be a mapping, not {type(kwargs).__name__}")
        except ContentDisallowed as exc:
            self.malformed(delivery, Event.NOT_ACCEPTED, exc, request)
            return
        except (DecodeError, SerializationError, ValueError, TypeError) as exc:
            self.malformed(delivery, Event.MALFORMED, exc, request)
            return
        if (
            embed
            and embed.get("chord")
            and history.get("redelivered")
            and self.waits_for_claim(delivery, plan, request, history)
        ):
            return
        if self._does_info:
            context = {
                "id": task_id,
                "name": request.get("shadow") or task.name,
                "args": request.get("argsrepr", ""),
                "kwargs": request.get("kwargsrepr", ""),
                "eta": None if eta is None else maybe_make_aware(maybe_iso8601(eta), self.app.timezone),
            }
            strategy_logger.info(trace.LOG_RECEIVED, context, extra={"data": context})
        hard, soft = request.get("timelimit") or (None, None)
        hard = hard or task.time_limit or self.hard_limit
        soft = soft or task.soft_time_limit or self.soft_limit
        if hard or soft:
            self.progress.limit(soft=soft, hard=hard)
        self.count(task.name)
        request.update(
            args=args,
            kwargs=kwargs,
            hostname=self.hostname,
            is_eager=False,
            properties=properties,
            reply_to=properties.get("reply_to"),
            correlation_id=properties.get("correlation_id"),
            delivery_info={
                "exchange": "",
                "routing_key": delivery.stream.queue,
                "priority": properties.get("priority"),
                "redelivered": bool(history.get("redelivered")),
            },
            **embed or {},
        )
        running = RunningTask(task_id or "", request.get("retries") or 0, self.owner_check(delivery))
        token = current.set(running)
        try:
            retval, info, _, _ = task.__trace__(task_id, args, kwargs, request)
        except Reject as exc:  # raised by callbacks outside of the body; Celery's pool reports it as a failure
            retval, info = ExceptionInfo(), trace.TraceInfo(states.REJECTED, exc)
        except PASSING_BY:
            raise
        except Exception as exc:
            # What the tracer itself could not handle: a callback of an odd type, a result backend that gave up.
            logger.error("Task %s[%s] failed outside of its body.", task.name, task_id, exc_info=True)
            retval, info = ExceptionInfo(), trace.TraceInfo(states.FAILURE, exc)
        finally:
            current.reset(token)
            if hard or soft:
                self.progress.limit(soft=None, hard=None)
        if info is None:
            if running.held is not None:
                self.settler.publish(running.held)
            self.settler.ack(delivery)
            if self._deduplicates:
                worker_state.successful_requests.add(task_id)
            return
        event, raised = event_of(info.retval, task)
        if event is Event.REJECTED:
            self._announce_rejected(task, request, raised, retval)
        self.finish(
            delivery,
            plan,
            history,
            event,
            running=running,
            death=Death(task.name, task_id, repr(raised), getattr(retval, "traceback", None)),
        )
        let_go(raised)

    def waits_for_claim(
        self, delivery: Delivery, plan: TaskPlan, headers: Mapping[str, Any], history: dict[str, Any]
    ) -> bool:
        """Put a part of a chord back that ran before and whose chord's body is claimed; see :mod:`.chords`."""
        left = 0.0
        try:
            left = claim_left(plan.task.backend, headers.get("group") or "")
        except Exception:
            # Any result backend's own errors; to run it now is what Celery would do.
            logger.exception("Cannot ask whether the chord of task %s is being dispatched.", headers.get("id"))
        if left:
            logger.warning(
                "Task %s[%s] runs again in %.1f s: a process that may be dead has claimed the body of its chord.",
                plan.task.name,
                headers.get("id"),
                left,
            )
            self.finish(delivery, plan, history, Event.EARLY, early_by=left)
        return left > 0

    def tell(self, report: Callable[[], object]) -> None:
        """Tell the result backend and the like; whatever that raises, the message must be settled all the same."""
        try:
            report()
        except Exception:
            logger.exception("Reporting the outcome of a task failed; its message is settled all the same.")

    def _announce_rejected(self, task: Any, request: dict[str, Any], exc: BaseException, einfo: Any) -> None:
        # As Celery's Request.on_failure: a task that rejects its message will never run again.
        context = Context(request)
        ignored = request.get("ignore_result")
        ignored = task.ignore_result if ignored is None else ignored
        store = not ignored or task.store_errors_even_if_ignored
        self.tell(lambda: task.backend.mark_as_failure(context.id, exc, request=context, store_result=store))
        signals.task_failure.send(
            sender=task,
            task_id=context.id,
            exception=exc,
            args=context.args,
            kwargs=context.kwargs,
            traceback=einfo.traceback,
            einfo=einfo,
        )

    # -- what every path ends with

    def finish(
        self,
        delivery: Delivery,
        plan: TaskPlan,
        history: dict[str, Any],
        event: Event,
        *,
        running: RunningTask | None = None,
        death: Death | None = None,
        early_by: float = 0.0,
        acked_early: bool = False,
    ) -> None:
        """Decide what shall be done with the message after ``event``, and have it done.

        Args:
            running: what ran; holds the message of ``self.retry()``, if there was one.
            death: what a dead letter shall say.
            early_by: seconds until it may run.
            acked_early: the message was acknowledged before it ran.
        """
        task = plan.task
        outcome = decide(
            event,
            Circumstances(
                acks_late=not acked_early,
                acks_on_failure=flag(task, "acks_on_failure"),
                acks_on_timeout=flag(task, "acks_on_timeout"),
                reject_on_worker_lost=task.reject_on_worker_lost,
                dead_letter_failures=plan.dead_letter_failures,
                crashes=int(history.get("crashes") or 0),
                delivery_limit=plan.delivery_limit,
                early_by=early_by,
            ),
        )
        held = running.held if running is not None else None
        if held is not None and (event is not Event.RETRIED or acked_early):
            self.settler.publish(held)
            held = None
        if outcome.action is Action.ACK:
            self.settler.ack(delivery)
        else:
            self.settler.settle(delivery, outcome, death=death, held=held, history=history, acked_early=acked_early)

    def malformed(
        self,
        delivery: Delivery,
        event: Event,
        exc: BaseException,
        headers: Mapping[str, Any] | None = None,
        *,
        nameless: bool = False,
    ) -> None:
        """Settle what cannot be executed, whatever the reason is, and send ``task_rejected`` where Celery sends it.

        Args:
            nameless: it could be decoded and names no task.
        """
        known = headers or {}
        task_id = known.get("id")
        logger.critical(
            "Cannot decode entry %s of queue %s: %r. It goes to the dead letters.",
            delivery.entry_id.decode(),
            delivery.stream.queue,
            exc,
        )
        self.settler.settle(
            delivery,
            decide(event, Circumstances()),
            death=Death(known.get("task"), task_id if isinstance(task_id, str) else None, repr(exc)),
        )
        # As Celery's Consumer: on_invalid_task and on_unknown_message send it, and on_decode_error does not.
        if nameless or isinstance(exc, (InvalidTaskError, ContentDisallowed)):
            self._announce_unfit(delivery, None if nameless else exc)

    def _announce_unfit(self, delivery: Delivery, exc: BaseException | None) -> None:
        message = delivery.message
        assert message is not None
        # Decoded again: Celery's strategies may have changed the headers that they were given.
        headers, properties, history = message.decode_headers(), message.decode_properties(), message.decode_history()
        signals.task_rejected.send(
            sender=self._slow.consumer,
            message=received_message(delivery, headers, properties, history, accept=self.accept),
            exc=exc,
        )

    def owner_check(self, delivery: Delivery) -> Callable[[], bool]:
        """Return what answers ``celery_streams.still_owned()`` for ``delivery``; it asks Redis and is a heartbeat."""

        def owned() -> bool:
            if self.progress.lost():
                return False
            held = (self.settler.consumer, delivery.entry)
            return not self.settler.broker.extend([held])

        return owned

    def _due(self, eta: Any) -> float | None:
        try:
            return float(maybe_make_aware(maybe_iso8601(eta), self.app.timezone).timestamp())
        except (AttributeError, ValueError, TypeError, OverflowError):
            return None

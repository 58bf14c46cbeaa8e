"""Executor: runs one message through Celery's own tracer, in the thread that calls it, and reports what happened.

1. Decode the entry; what cannot be decoded is an event like any other.
2. Plain messages go straight to the task's tracer (the fast path): no eta that lies ahead, no expiry, no stamps, not
   revoked, no task events, no rate limit, no receiver of ``task_received``, no custom ``Task.Request``.
3. All others go through Celery's own strategy and Request (the slow path), with a pool that runs them here.
4. ``outcome.decide`` decides, ``settle`` does it.

The tracer, the Request and the strategy are Celery's, looked up late: Sentry and others replace them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import signals, states
from celery.app import trace
from celery.app.task import Context
from celery.exceptions import (
    Ignore,
    InvalidTaskError,
    NotRegistered,
    Reject,
    Retry,
    TaskRevokedError,
)
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import state as worker_state
from celery.worker.strategy import logger as strategy_logger
from kombu.exceptions import ContentDisallowed, DecodeError, SerializationError
from kombu.message import Message as KombuMessage
from kombu.serialization import loads, prepare_accept_content

from ..amqp import Streams
from ..broker import Delivery
from ..context import RunningTask, current
from ..exceptions import MessageError
from .local import ETA_SLACK, PASSING_BY, LocalConsumer, Progress, Run
from .outcome import Action, Circumstances, Event, decide
from .plan import TaskPlan, flag, make_callable, plan_for
from .settle import Death, Settler

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Executor", "let_go", "unwrapped")

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
    consumer: LocalConsumer = field(init=False)
    plans: dict[str, TaskPlan] = field(default_factory=dict)
    run_now: Run = field(init=False)
    _strategies: dict[str, Callable[..., Any]] = field(default_factory=dict)
    _accept: Any = None
    _does_info: bool = False

    def __post_init__(self) -> None:
        self.consumer = LocalConsumer(self, self.hostname, self.app)

    def prepare(self) -> None:
        """Read the options of all tasks and build their strategies and tracers; again after any of them changed."""
        app = self.app
        self._accept = prepare_accept_content(app.conf.accept_content)
        self._does_info = strategy_logger.isEnabledFor(logging.INFO)
        self.consumer.disable_rate_limits = True
        for name, task in app.tasks.items():
            plan = plan_for(task, self.streams, rate_limits=not app.conf.worker_disable_rate_limits)
            if plan.acks_late:
                task.acks_late = True
            make_callable(task)
            self.plans[name] = plan
            task.__trace__ = trace.build_tracer(name, task, app.loader, self.hostname, app=app)
        self._strategies.clear()

    # -- one delivery

    def execute(self, delivery: Delivery) -> None:
        """Run and settle one delivery. Lets SystemExit and whatever else ends a process pass, with nothing settled."""
        message = delivery.message
        if message is None:
            self._malformed(delivery, Event.MALFORMED, MessageError(delivery.error))
            return
        try:
            headers = message.decode_headers()
            properties = message.decode_properties()
            history = message.decode_history() if message.history else {}
        except MessageError as exc:
            self._malformed(delivery, Event.MALFORMED, exc)
            return
        name = headers.get("task")
        if "task" in headers and not (isinstance(name, str) and isinstance(headers.get("id"), str)):
            wrong = MessageError(f"task {name!r} and id {headers.get('id')!r} must be strings")
            self._malformed(delivery, Event.MALFORMED, wrong)
            return
        plan = self.plans.get(name) if isinstance(name, str) else None
        try:
            self._dispatch(delivery, plan, headers, properties, history)
        except PASSING_BY:
            raise
        except Exception as exc:
            # Raised outside of the body, by headers and callbacks of odd types or by user code around the task.
            logger.error("Entry %s cannot be executed.", delivery.entry_id.decode(), exc_info=True)
            self._malformed(delivery, Event.INVALID, exc, headers)

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
            and not self._events()
            and headers.get("id") not in worker_state.revoked
        ):
            self._fast(delivery, plan, headers, properties, history)
        else:
            self._slow(delivery, headers, properties, history)

    def _events(self) -> bool:
        dispatcher = self.consumer.event_dispatcher
        return dispatcher is not None and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups)

    def use_events(self, dispatcher: Any) -> None:
        """Send task events through ``dispatcher`` from now on; None sends none."""
        self.consumer.event_dispatcher = dispatcher
        self._strategies.clear()

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
        self._finish(
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
                self._slow(delivery, request, properties, history)  # Celery says what is wrong with it
                return
            if due > time.time() + ETA_SLACK:
                self._finish(delivery, plan, history, Event.EARLY, early_by=due - time.time())
                return
        message = delivery.message
        assert message is not None
        task = plan.task
        task_id = request.get("id")
        try:
            args, kwargs, embed = loads(
                message.body, properties.get("content_type"), properties.get("content_encoding"), accept=self._accept
            )
            if not isinstance(kwargs, dict):  # Celery's tracer would report an error to nobody, and no result
                raise MessageError(f"the keyword arguments must be a mapping, not {type(kwargs).__name__}")
        except ContentDisallowed as exc:
            self._malformed(delivery, Event.NOT_ACCEPTED, exc, request)
            return
        except (DecodeError, SerializationError, ValueError, TypeError) as exc:
            self._malformed(delivery, Event.MALFORMED, exc, request)
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
        running = RunningTask(task_id or "", request.get("retries") or 0, self._owned(delivery))
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
            worker_state.successful_requests.add(task_id)
            return
        event, raised = _event_of(info.retval, task)
        if event is Event.REJECTED:
            self._announce_rejected(task, request, raised, retval)
        self._finish(
            delivery,
            plan,
            history,
            event,
            running=running,
            death=Death(task.name, task_id, repr(raised), getattr(retval, "traceback", None)),
        )
        let_go(raised)

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

    # -- the slow path

    def _slow(
        self, delivery: Delivery, headers: dict[str, Any], properties: dict[str, Any], history: dict[str, Any]
    ) -> None:
        message = delivery.message
        assert message is not None
        kombu_message = KombuMessage(
            body=message.body,
            delivery_tag=delivery.entry_id.decode(),
            content_type=properties.get("content_type"),
            content_encoding=properties.get("content_encoding"),
            delivery_info={
                "exchange": "",
                "routing_key": delivery.stream.queue,
                "redelivered": bool(history.get("redelivered")),
            },
            properties=properties,
            headers=headers,
            accept=self._accept,
        )
        payload = None
        name, task_id = headers.get("task"), headers.get("id")
        try:
            if kombu_message.errors:
                kombu_message._reraise_error()
            decoded = kombu_message.payload
        except ContentDisallowed as exc:
            self._malformed(delivery, Event.NOT_ACCEPTED, exc, headers)
            return
        except Exception as exc:  # noqa: BLE001
            # Any serializer, compressor or user codec may raise anything; what it was is in the dead letter.
            self._malformed(delivery, Event.MALFORMED, exc, headers)
            return
        if name is None:
            payload = decoded
            try:
                name, task_id = payload["task"], payload["id"]
            except (TypeError, KeyError) as exc:
                self._malformed(delivery, Event.MALFORMED, MessageError(f"no task name: {exc}"), headers)
                return
        name, task_id = str(name), str(task_id)
        plan = self.plans.get(name)
        if plan is None:
            self._unknown(delivery, kombu_message, name, task_id, history)
            return
        run = self.run_now = Run(delivery, plan, history)
        owned = self._owned(delivery)
        # Acknowledged before it ran, the message is on no stream any more, and nobody else's.
        running = RunningTask(task_id, int((payload or headers).get("retries") or 0), lambda: run.early or owned())
        token = current.set(running)
        try:
            self._strategy(name)(kombu_message, payload, self._on_ack, self._on_reject, [])
        except TaskRevokedError:
            logger.debug("Task %s[%s] was revoked before it started.", name, task_id)
        except _Disowned:
            logger.warning("Task %s[%s] does not run here: its message is not ours any more.", name, task_id)
            return
        except (InvalidTaskError, ContentDisallowed) as exc:
            signals.task_rejected.send(sender=self.consumer, message=kombu_message, exc=exc)
            event = Event.NOT_ACCEPTED if isinstance(exc, ContentDisallowed) else Event.INVALID
            self._malformed(delivery, event, exc, headers)
            return
        except (DecodeError, ValueError, TypeError) as exc:
            if run.started:
                raise
            self._malformed(delivery, Event.MALFORMED, exc, headers)
            return
        finally:
            current.reset(token)
        event, death = self._slow_event(run, name, task_id)
        self._finish(
            delivery,
            plan,
            history,
            event,
            running=running,
            death=death,
            early_by=0.0 if run.due is None else run.due - time.time(),
            acked_early=run.early,
        )

    def _strategy(self, name: str) -> Callable[..., Any]:
        strategy = self._strategies.get(name)
        if strategy is None:
            strategy = self._strategies[name] = self._counted(
                self.app.tasks[name].start_strategy(self.app, self.consumer), name
            )
        return strategy

    def _counted(self, strategy: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            result = strategy(*args)
            if self.run_now.started and not self.in_parent:
                self.count(name)
            return result

        return run

    def _slow_event(self, run: Run, name: str, task_id: str) -> tuple[Event, Death]:
        if run.due is not None:
            return Event.EARLY, Death(name, task_id)
        if run.traced is None:
            told = {"ack": Event.REVOKED, "requeue": Event.REQUEUED}
            return told.get(run.verdict, Event.INVALID), Death(name, task_id)
        failed, retval, _ = run.traced
        if not failed:
            return Event.SUCCEEDED, Death(name, task_id)
        event, exc = _event_of(retval.exception, run.plan.task)
        death = Death(name, task_id, repr(exc), retval.traceback)
        let_go(exc)
        return event, death

    def _on_ack(self, logger: Any = None, errors: Any = None) -> None:
        run = self.run_now
        run.verdict = "ack"
        if run.started and run.traced is None and not run.plan.acks_late:
            assert run.delivery.message is not None
            self.progress.keep(run.delivery.message)
            if not self.settler.ack_now(run.delivery):
                raise _Disowned
            run.early = True

    def _on_reject(self, logger: Any = None, errors: Any = None, requeue: bool = False) -> None:
        self.run_now.verdict = "requeue" if requeue else "reject"

    # -- what every path ends with

    def _finish(
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

    def _malformed(
        self, delivery: Delivery, event: Event, exc: BaseException, headers: Mapping[str, Any] | None = None
    ) -> None:
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

    def _unknown(
        self, delivery: Delivery, kombu_message: Any, name: str, task_id: str, history: dict[str, Any]
    ) -> None:
        now_ms = int(time.time() * 1000)
        since = int(history.setdefault("unknown", now_ms))
        outcome = decide(
            Event.UNKNOWN,
            Circumstances(unknown_for=(now_ms - since) / 1000, unknown_task_ttl=self.streams.conf.unknown_task_ttl),
        )
        exc = NotRegistered(name)
        if outcome.action is Action.REQUEUE:
            logger.warning(
                "Task %s[%s] is not registered here; put back for newer workers, again in %.0fs.",
                name,
                task_id,
                outcome.delay,
            )
        else:
            logger.error("Received unregistered task of type %s[%s]; no worker knew it in time.", name, task_id)
            request = Context(
                kombu_message.headers, properties=kombu_message.properties, chord=None, errbacks=None, name=name
            )
            self.tell(lambda: self.app.backend.mark_as_failure(task_id, exc, request=request))
            if self._events():
                self.consumer.event_dispatcher.send("task-failed", uuid=task_id, exception=repr(exc))
            signals.task_unknown.send(sender=self.consumer, message=kombu_message, exc=exc, name=name, id=task_id)
        self.settler.settle(delivery, outcome, death=Death(name, task_id, repr(exc)), history=history)

    def _owned(self, delivery: Delivery) -> Callable[[], bool]:
        def owned() -> bool:
            if self.progress.lost():
                return False
            held = (delivery.stream, self.settler.consumer, delivery.entry_id)
            return not self.settler.broker.extend([held])

        return owned

    def _due(self, eta: Any) -> float | None:
        try:
            return float(maybe_make_aware(maybe_iso8601(eta), self.app.timezone).timestamp())
        except (AttributeError, ValueError, TypeError, OverflowError):
            return None


class _Disowned(Exception):
    """The message could not be acknowledged before its task, which must not start here."""


def unwrapped(exc: BaseException) -> BaseException:
    """Return the exception that billiard wrapped for its way between processes."""
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def let_go(exc: BaseException | None) -> None:
    """Break the circle of an exception, its traceback and the frames that hold the exception.

    Each failure leaves some ten kilobytes in such circles, and the collector looks at them seldom: a worker with many
    failing tasks would grow by tens of megabytes in between.
    """
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        exc.__traceback__ = None
        exc = exc.__cause__ or exc.__context__


def _event_of(exc: BaseException, task: Any) -> tuple[Event, BaseException]:
    exc = unwrapped(exc)
    if isinstance(exc, Retry):
        return Event.RETRIED, exc
    if isinstance(exc, Reject):
        return (Event.REQUEUED if exc.requeue else Event.REJECTED), exc
    if isinstance(exc, Ignore):
        return Event.IGNORED, exc
    if task.throws and isinstance(exc, task.throws):
        return Event.EXPECTED, exc
    return Event.FAILED, exc

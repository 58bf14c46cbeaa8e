"""Fast path: runs a plain message straight through its task's tracer, in the thread that calls it.

Plain is what needs nothing of Celery's Request: no eta that lies ahead, no expiry, no stamps, not revoked, no task
events, no receiver of ``task_received``, acknowledged late, no custom ``Task.Request`` or strategy (see
:func:`is_plain`). It returns what happened, and settles nothing. The tracer is Celery's, looked up late: Sentry and
others replace it.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.app import trace
from celery.exceptions import InvalidTaskError, Reject
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import state as worker_state
from celery.worker.strategy import logger as strategy_logger
from kombu.exceptions import ContentDisallowed, DecodeError, SerializationError
from kombu.serialization import loads

from ..exceptions import MessageError
from ..running_task import current
from .chords import dispatch_awaited
from .execution import ETA_SLACK, PASSING_BY, Execution, OwnedTask, Report, Surroundings
from .option_values import first_limit
from .outcome import Event
from .own_process import end_foreign_process
from .requests import build_request
from .settle import Death
from .task_errors import einfo_of, event_of, log_raised, shown

__all__ = ("is_plain", "run_plain")

logger = logging.getLogger(__name__)

_SUCCEEDED = Report(Event.SUCCEEDED)


def is_plain(execution: Execution, around: Surroundings) -> bool:
    """Return whether the message needs nothing of Celery's Request and strategy."""
    options, headers = execution.options, execution.headers
    return (
        options is not None
        and options.plain
        and not headers.get("expires")
        and not headers.get("stamped_headers")
        and "compression" not in headers
        and not signals.task_received.receivers
        and not around.sends_events()
        and headers.get("id") not in worker_state.revoked
    )


def run_plain(execution: Execution, around: Surroundings, *, logs_receipt: bool) -> Report | None:
    """Run the task of a plain message; None when Celery has to say what is wrong with its eta.

    Args:
        logs_receipt: "Task ... received" is wanted in the log.
    """
    delivery, options, request, properties = (
        execution.delivery, execution.options, execution.headers, execution.properties
    )  # fmt: skip
    assert options is not None
    eta = request.get("eta")
    if eta is not None:
        due = _due(eta, around)
        if due is None:
            return None
        # Asked for again before it goes back: what was promoted just now is not early because of an old guess.
        if due > around.clock.guess() + ETA_SLACK and (left := due - around.clock.now()) > ETA_SLACK:
            return Report(Event.EARLY, early_by=left)
    message = delivery.message
    assert message is not None
    task, task_id = options.task, request.get("id")
    try:
        args, kwargs, embed = loads(
            message.body, properties.get("content_type"), properties.get("content_encoding"), accept=around.accept
        )
        if not isinstance(kwargs, dict):  # Celery's tracer would report an error to nobody, and no result
            raise MessageError(f"the keyword arguments must be a mapping, not {type(kwargs).__name__}")
    except ContentDisallowed as exc:
        return Report(Event.NOT_ACCEPTED, error=exc)
    except (DecodeError, SerializationError, ValueError, TypeError) as exc:
        return Report(Event.MALFORMED, error=exc)
    if embed and embed.get("chord") and execution.history.get("redelivered"):
        left = dispatch_awaited(task, request)
        if left:
            return Report(Event.EARLY, early_by=left)
    try:
        hard, soft = request.get("timelimit") or (None, None)
        hard = first_limit(hard, task.time_limit, around.hard_limit)
        soft = first_limit(soft, task.soft_time_limit, around.soft_limit)
    except (TypeError, ValueError) as exc:
        return Report(Event.INVALID, error=InvalidTaskError(f"invalid time limits {request['timelimit']!r}: {exc}"))
    if logs_receipt:
        _log_receipt(task, request, eta, around)
    around.count(task.name)
    request.update(
        args=args,
        kwargs=kwargs,
        hostname=around.hostname,
        is_eager=False,
        properties=properties,
        reply_to=properties.get("reply_to"),
        correlation_id=properties.get("correlation_id"),
        delivery_info={
            "exchange": "",
            "routing_key": delivery.stream.queue,
            "priority": properties.get("priority"),
            "redelivered": bool(execution.history.get("redelivered")),
        },
        **embed or {},
    )
    running = OwnedTask(delivery, around, task_id, request.get("retries"))
    if hard or soft:
        around.progress.limit(soft=soft, hard=hard)
    token = current.set(running)
    try:
        try:
            retval, info, _, _ = task.__trace__(task_id, args, kwargs, request)
        finally:
            if os.getpid() != around.pid:
                end_foreign_process()
    except PASSING_BY:
        raise
    except BaseException as exc:  # noqa: BLE001
        # What Celery's pool reports as a failure: a body that raised what is no Exception, a callback that raised
        # Reject or is of an odd type, a result backend that gave up.
        if isinstance(exc, Exception) and not isinstance(exc, Reject):
            log_raised(logger.error, "Task %s[%s] failed outside of its body.", task.name, task_id)
        retval, info = einfo_of(exc), trace.TraceInfo(states.FAILURE, exc)
        _report_failure(execution, around, retval)
    finally:
        current.reset(token)
        if hard or soft:
            around.progress.limit(soft=None, hard=None)
    if info is None:
        around.ran_before(task_id)
        return Report(Event.SUCCEEDED, settled=True) if running.retried else _SUCCEEDED
    event, raised = event_of(info.retval, task)
    if event is Event.REJECTED and info.state == states.REJECTED:
        # As Celery's Request.on_failure: a task that rejects its message will never run again.
        _report_failure(execution, around, retval)
    return Report(
        event,
        Death(task.name, str(task_id), shown(raised), getattr(retval, "traceback", None)),
        settled=running.retried,
        error=raised,
    )


def _report_failure(execution: Execution, around: Surroundings, einfo: ExceptionInfo) -> None:
    """Store the failure and send the signals, by Celery's own Request."""

    def report() -> None:
        request = build_request(
            around.app,
            execution.delivery,
            hostname=around.hostname,
            eventer=None,
            on_ack=_ignore,
            on_reject=_ignore,
        )
        if request is not None:
            request.on_failure(einfo)

    around.tell(report)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """The message is settled by its outcome."""


def _log_receipt(task: Any, request: dict[str, Any], eta: Any, around: Surroundings) -> None:
    context = {
        "id": request.get("id"),
        "name": request.get("shadow") or task.name,
        "args": request.get("argsrepr", ""),
        "kwargs": request.get("kwargsrepr", ""),
        "eta": None if eta is None else maybe_make_aware(maybe_iso8601(eta), around.app.timezone),
    }
    strategy_logger.info(trace.LOG_RECEIVED, context, extra={"data": context})


def _due(eta: Any, around: Surroundings) -> float | None:
    try:
        return float(maybe_make_aware(maybe_iso8601(eta), around.app.timezone).timestamp())
    except (AttributeError, ValueError, TypeError, OverflowError):
        return None

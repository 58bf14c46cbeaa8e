"""Fast path: runs a plain message straight through its task's tracer, in the thread that calls it.

Plain is what needs nothing of Celery's Request: no eta that lies ahead, no expiry, no stamps, not revoked, no task
events, no receiver of ``task_received``, acknowledged late, no custom ``Task.Request`` or strategy (see
:func:`is_plain`). It returns what happened, and settles nothing. The tracer is Celery's, looked up late: Sentry and
others replace it.
"""

from __future__ import annotations

import logging
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated
from celery import signals, states
from celery.app import trace
from celery.exceptions import InvalidTaskError
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import state as worker_state
from celery.worker.strategy import logger as strategy_logger
from kombu.exceptions import ContentDisallowed, DecodeError, SerializationError
from kombu.serialization import loads

from ..message import decode_json
from ..notes import HEADER as TRACK_HEADER
from ..partitions import queue_of
from ..running_task import current
from .burial import Death
from .chords import dispatch_awaited
from .execution import ETA_SLACK, Escaped, Execution, OwnedTask, Report, Surroundings, check_kwargs
from .option_values import first_limit
from .outcome import Event
from .requests import build_request
from .task_errors import as_received, class_of, event_of, is_of, shown

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
    if eta is not None and not execution.hurried:
        due = _due(eta, around)
        if due is None:
            return None
        # Asked for again before it goes back: what was promoted just now is not early because of an old guess.
        if due > around.clock.guess() + ETA_SLACK and (left := due - around.clock.now()) > ETA_SLACK:
            return Report(Event.EARLY, early_by=left)
    message = delivery.message
    assert message is not None
    task, task_id = options.task, request.get("id")
    content_type = properties.get("content_type")
    try:
        args, kwargs, embed = (
            decode_json(message.body)
            if content_type in around.json_types
            else loads(message.body, content_type, properties.get("content_encoding"), accept=around.accept)
        )
        check_kwargs(kwargs)
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
        if hard or soft or task.time_limit or task.soft_time_limit or around.hard_limit or around.soft_limit:
            hard = first_limit(hard, task.time_limit, around.hard_limit)
            soft = first_limit(soft, task.soft_time_limit, around.soft_limit)
        else:
            hard = soft = None
    except (TypeError, ValueError) as exc:
        return Report(Event.INVALID, error=InvalidTaskError(f"invalid time limits {request['timelimit']!r}: {exc}"))
    if logs_receipt:
        _log_receipt(task, request, eta, around)
    shadow = request.get("shadow")
    around.count(task.name, str(shadow) if shadow else task.name)
    if TRACK_HEADER in request:
        around.settler.note_start(delivery)
    # One by one: this runs for each message, and a call with as many arguments takes as long as all the rest of it.
    request["args"] = args
    request["kwargs"] = kwargs
    request["hostname"] = around.hostname
    request["is_eager"] = False
    request["properties"] = properties
    request["reply_to"] = properties.get("reply_to")
    request["correlation_id"] = properties.get("correlation_id")
    request["delivery_info"] = {
        "exchange": "",
        "routing_key": queue_of(delivery.entry.stream.queue),
        "priority": properties.get("priority"),
        "redelivered": bool(execution.history.get("redelivered")),
    }
    if embed:
        request.update(embed)
    running = OwnedTask(delivery, around, task_id, request.get("retries"))
    if hard or soft:
        around.progress.limit(soft=soft, hard=hard)
    token = current.set(running)
    try:
        traced = around.trace(task.__trace__, task_id, args, kwargs, request, name=task.name, task_id=task_id)
        if isinstance(traced, Escaped):
            retval, info = traced.einfo, trace.TraceInfo(states.FAILURE, traced.exc)
            _report_failure(execution, around, retval)
        else:
            retval, info, _, _ = traced
    finally:
        current.reset(token)
        if hard or soft:
            around.progress.limit(soft=None, hard=None)
    if info is None:
        around.ran_before(task_id)
        return Report(Event.SUCCEEDED, settled=True) if running.retried else _SUCCEEDED
    event, raised = event_of(info.retval, task)
    if (event is Event.REJECTED and info.state == states.REJECTED) or (
        event is Event.FAILED and is_of(raised, Terminated) and not isinstance(traced, Escaped)
    ):
        # As Celery's Request.on_failure: a task that rejects its message will never run again, and one that raises what
        # billiard raises in a process that it ends is revoked.
        _report_failure(execution, around, retval)
    return Report(
        event,
        Death(task.name, str(task_id), shown(raised), getattr(retval, "traceback", None), class_of(raised)),
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
            request.on_failure(as_received(einfo))

    if not around.tell(report):
        around.on_untold(execution.delivery, einfo)


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

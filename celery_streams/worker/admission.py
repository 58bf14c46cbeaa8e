"""Admission: whether a message of a limited task may start now; one that may not is moved aside by the same script.

Tokens and places are kept in Redis, for all workers (``lanes``); what the limits of a task are, ``limits`` says.
Tasks without limits are not asked about.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.worker import state as worker_state
from kombu.serialization import loads

from ..attempts import FIELD as ATTEMPTS
from ..exceptions import LimitKeyError
from ..lanes import Lane
from ..limits import KEYS_HEADER, Limits, arguments_of, keys_of, lane_of
from ..locks import HEADER, Lock
from .execution import Execution, Report, Surroundings
from .outcome import Event

__all__ = ("held_back", "lane_for_penalty", "started_elsewhere")

logger = logging.getLogger(__name__)

_HELD = Report(Event.HELD)


def held_back(execution: Execution, around: Surroundings) -> Report | None:
    """Return None when the message may start now; else what happened to it instead. Revoked tasks need no place."""
    options = execution.options
    if options is None or not options.limits:
        return None
    delivery, settler = execution.delivery, around.settler
    if execution.task_id in worker_state.revoked:
        settler.vacate_with(delivery.entry, options.task.name, options.limits)
        return None
    try:
        lane = _lane(execution, around, options.task, options.limits)
    except LimitKeyError as exc:
        return Report(Event.INVALID, error=exc)
    if lane is None:
        return None
    # What was put back, or has started once, stood in front of what waits now; a retry, which knows only what became of
    # the messages before it, did not.
    history = execution.history
    around.progress.settling()
    found = settler.admit(
        delivery,
        lane,
        options.task.name,
        options.limits,
        ahead=bool(history.keys() - {ATTEMPTS}),
        published=str(history.get("first") or ""),
    )
    if found is None or found.lost:
        return Report(Event.DISOWNED)
    if not found.admitted:
        return _HELD
    around.progress.settling(ends=True)
    return None


def started_elsewhere(execution: Execution, around: Surroundings) -> Report | None:
    """Free the lock of a task that is unique until it starts; returns None when it may start, as all others may."""
    if HEADER not in execution.headers or execution.options is None:
        return None
    lock = Lock.parse(execution.headers[HEADER])
    if lock is None or not lock.until_start or around.settler.starts(execution.delivery):
        return None
    return Report(Event.DISOWNED)


def lane_for_penalty(execution: Execution, around: Surroundings) -> Lane:
    """Return the lane of a message whose task raised RateLimited; tasks without limits have one, too."""
    options = execution.options
    name = str(execution.headers.get("task"))
    found = None
    if options is not None and options.limits:
        try:
            found = _lane(execution, around, options.task, options.limits)
        except LimitKeyError as exc:
            # It could be told when the task started, by the project's own code.
            logger.warning("%s; all messages of the task wait, not only those of its key.", exc)
    return found or lane_of(name, Limits(), (None, None), node="")


def _lane(execution: Execution, around: Surroundings, task: Any, limits: Limits) -> Lane | None:
    """Return the lane of a message; None when it cannot be decoded, or its task not be called with its arguments.

    Whoever runs it finds that out again, and reports it as for all other tasks.

    Raises:
        LimitKeyError: a key cannot be told.
    """
    keys: Any = (None, None)
    if limits.rate_key is not None or limits.concurrency_key is not None:
        keys = execution.headers.get(KEYS_HEADER)
        if not (isinstance(keys, list) and len(keys) == 2):
            message = execution.delivery.message
            assert message is not None
            properties = execution.properties
            try:
                args, kwargs, _ = loads(
                    message.body,
                    properties.get("content_type"),
                    properties.get("content_encoding"),
                    accept=around.accept,
                )
            except Exception:  # noqa: BLE001
                # Any serializer or user codec may raise anything; the message is decoded again, and its error reported.
                return None
            try:
                keys = keys_of(task, limits, args, kwargs)
            except LimitKeyError:
                if _fits(task, args, kwargs):
                    raise
                return None
    node = "" if around.streams.conf.rate_limit_scope == "global" else around.hostname
    return lane_of(task.name, limits, keys, node=node)


def _fits(task: Any, args: Any, kwargs: Any) -> bool:
    """Return whether the task can be called with these arguments."""
    try:
        arguments_of(task, args, kwargs)
    except TypeError:
        return False
    return True

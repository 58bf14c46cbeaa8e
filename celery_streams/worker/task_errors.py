"""Task errors: what an exception that a task raised means, and how it is let go; it settles nothing.

Tasks raise anything: classes whose ``repr`` fails, whose attributes cannot be set (a frozen dataclass), that are no
``Exception``. Nothing here runs code of theirs that could raise in our place.
"""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry
from kombu.utils.encoding import safe_repr

from .outcome import Event

__all__ = ("event_of", "let_go", "shown", "unwrapped")

# Read and written past what a class makes of its attributes.
_TRACEBACK = BaseException.__dict__["__traceback__"]
_CAUSE = BaseException.__dict__["__cause__"]
_CONTEXT = BaseException.__dict__["__context__"]


def unwrapped(exc: BaseException) -> BaseException:
    """Return the exception that billiard wrapped for its way between processes."""
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def shown(exc: BaseException) -> str:
    """Return ``repr(exc)``, or what can be said of an exception whose ``repr`` fails."""
    return str(safe_repr(exc))


def let_go(exc: BaseException | None) -> None:
    """Break the circle of an exception, its traceback and the frames that hold the exception.

    Each failure leaves some ten kilobytes in such circles, and the collector looks at them seldom: a worker with many
    failing tasks would grow by tens of megabytes in between.
    """
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        _TRACEBACK.__set__(exc, None)
        exc = _CAUSE.__get__(exc) or _CONTEXT.__get__(exc)


def event_of(exc: BaseException, task: Any) -> tuple[Event, BaseException]:
    """Return what happened to a message whose task raised ``exc``, and the exception as the task raised it."""
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

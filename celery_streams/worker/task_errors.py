"""Task errors: what an exception that a task raised means, and how it is let go; it settles nothing.

Tasks raise anything: classes whose ``repr`` fails, whose attributes cannot be set (a frozen dataclass), or that are not
an ``Exception``, or raise what is none (``GeneratorExit``) where somebody looks at them, at ``__class__`` too. Nothing
here runs their code without a guard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

from billiard.common import human_status
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry
from kombu.utils.encoding import safe_repr

from ..limits import RateLimited
from .outcome import Event

__all__ = (
    "Interruption",
    "as_received",
    "class_of",
    "einfo_of",
    "ending_of",
    "event_of",
    "is_of",
    "let_go",
    "log_raised",
    "shown",
    "unwrapped",
)

E = TypeVar("E", bound=BaseException)

# Read and written past what a class makes of its attributes.
_TRACEBACK = BaseException.__dict__["__traceback__"]
_CAUSE = BaseException.__dict__["__cause__"]
_CONTEXT = BaseException.__dict__["__context__"]
_NAME = type.__dict__["__name__"]
_CODE = SystemExit.__dict__["code"]


class Interruption(BaseException):
    """Raised in a running task by this worker to end it; its message is settled elsewhere, or later."""


#: What ends the process or the task, and is let through wherever it strikes.
_ENDINGS = (SystemExit, KeyboardInterrupt, Interruption)


def is_of(exc: BaseException, kinds: type[E] | tuple[type[E], ...]) -> TypeGuard[E]:
    """Return whether ``exc`` is of one of these classes; ``isinstance`` asks the exception itself where it is not."""
    return issubclass(type(exc), kinds)


def unwrapped(exc: BaseException) -> BaseException:
    """Return the exception that billiard wrapped for its way between processes."""
    return exc.exc if is_of(exc, ExceptionWithTraceback) else exc


def as_received(einfo: ExceptionInfo) -> ExceptionInfo:
    """Return ``einfo`` as Celery's Request receives it from a child: pickling takes away what billiard wrapped it in.

    What has not been pickled would be told as ``ExceptionWithTraceback()`` in events, signals and custom Requests.
    """
    einfo.exception = unwrapped(einfo.exception)
    return einfo


def shown(exc: BaseException) -> str:
    """Return ``repr(exc)``, or what can be said of an exception whose ``repr`` fails."""
    try:
        return str(safe_repr(exc))
    except _ENDINGS:
        raise
    except BaseException:  # noqa: BLE001
        return f"{class_of(exc)}(...)"


def class_of(exc: BaseException) -> str:
    """Return the name of the class of an exception: what can be told of it without what it says."""
    return str(_NAME.__get__(type(unwrapped(exc))))


def ending_of(exc: BaseException) -> str:
    """Return what Celery says of a process that ended because its task raised ``exc``: an exit code, or a class."""
    if not is_of(exc, SystemExit):
        return class_of(exc)
    code = _CODE.__get__(exc)
    if code is None:
        return str(human_status(0))
    return str(human_status(int.__index__(code) if issubclass(type(code), int) else 1))


def einfo_of(exc: BaseException) -> ExceptionInfo:
    """Return billiard's ExceptionInfo for ``exc``, which is being handled; of a stand-in where ``exc`` prevents it."""
    try:
        return as_received(ExceptionInfo())
    except _ENDINGS:
        raise
    except BaseException:  # noqa: BLE001
        # Its traceback cannot be formatted: an attribute of it raised, whatever.
        try:
            raise RuntimeError(f"{shown(exc)} (its traceback cannot be shown)") from None
        except RuntimeError:
            return as_received(ExceptionInfo())


def log_raised(log: Callable[..., None], message: str, *args: Any) -> None:
    """Log ``message`` with the traceback of what is being handled, or without it where that cannot be shown."""
    try:
        log(message, *args, exc_info=True)
    except _ENDINGS:
        raise
    except BaseException:  # noqa: BLE001
        # logging formats a traceback where it handles errors of its own, too.
        log(f"{message} (its traceback cannot be shown)", *args)


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
    if is_of(exc, Retry):
        return Event.RETRIED, exc
    if is_of(exc, RateLimited):
        return Event.LIMITED, exc
    if is_of(exc, Reject):
        return (Event.REQUEUED if exc.requeue else Event.REJECTED), exc
    if is_of(exc, Ignore):
        return Event.IGNORED, exc
    return Event.EXPECTED if _is_expected(exc, task.throws) else Event.FAILED, exc


def _is_expected(exc: BaseException, throws: Any) -> bool:
    """Return whether Celery calls it "raised expected"; an option that is no tuple of classes (a list) says nothing."""
    try:
        return bool(throws) and isinstance(exc, throws)
    except _ENDINGS:
        raise
    except BaseException:  # noqa: BLE001
        # The option, its classes' own ``__instancecheck__``, or what the exception says of its class.
        return False

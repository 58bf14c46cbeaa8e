"""Option values: time limits and counts as people write them, numbers or text (environment variables); it sets none.

Celery runs tasks whose limits are text, for its timers take what ``float`` takes. What cannot be understood is found
when the worker starts (:func:`misunderstood`), and not by the first task in a child.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from celery.utils.time import rate

if TYPE_CHECKING:
    from celery.app.task import Task

__all__ = ("count", "first_limit", "misunderstood", "seconds")


def seconds(value: Any) -> float | None:
    """Return a time limit in seconds; None, an empty text and zero are no limit.

    Raises:
        ValueError: it is no number.
    """
    if value is None or value == "" or value is False:
        return None
    try:
        found = math.nan if value is True else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if math.isnan(found):
        raise ValueError(f"{value!r} is not a number of seconds")
    return found if found and not math.isinf(found) else None


def first_limit(*values: Any) -> float | None:
    """Return the first of these time limits (a message's, its task's, the worker's) that is one.

    True is one second, as it is to Celery's timers; a worker whose own limit it is does not start.

    Raises:
        ValueError: the first that is given is no number.
    """
    for value in values:
        if value:
            found = 1.0 if value is True else seconds(value)
            if found is not None:
                return found
    return None


def count(value: Any) -> int | None:
    """Return a count (tasks, children, KiB); None and an empty text are no bound.

    Raises:
        ValueError: it is no whole number.
    """
    if value is None or value == "":
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(value)
        if found == int(found):
            return int(found)
    except (TypeError, ValueError, OverflowError):
        pass  # said below, as of a number that is not whole
    raise ValueError(f"{value!r} is not a whole number")


def misunderstood(values: Mapping[str, tuple[Any, str]], tasks: Iterable[Task]) -> Iterator[str]:
    """Yield a sentence for each time limit and count of the worker and of its tasks that has no meaning.

    Args:
        values: name of the setting -> its value, and ``seconds``, ``count`` (at least 1) or ``amount`` (at least 0).
    """
    told: set[str] = set()
    for name, (value, kind) in values.items():
        wrong = _wrong(value, kind)
        if wrong:
            told.add(wrong)
            yield f"{name}: {wrong}"
    found: dict[tuple[str, str], list[str]] = {}
    for task in sorted(tasks, key=lambda task: str(task.name)):
        for option, kind in _OF_TASKS.items():
            wrong = _wrong(getattr(task, option, None), kind)
            if wrong and wrong not in told:  # a task takes over what the setting says
                found.setdefault((option, wrong), []).append(str(task.name))
    for (option, wrong), names in found.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{option} of task {', '.join(names[:_NAMED])}{more}: {wrong}"


#: Tasks with the same wrong option that are named.
_NAMED = 3

#: Options of a task that a worker reads before a message of it comes.
_OF_TASKS = {
    "time_limit": "seconds",
    "soft_time_limit": "seconds",
    "rate_limit": "rate",
    "streams_delivery_limit": "count",
}


def _wrong(value: Any, kind: str) -> str:
    least = 1 if kind == "count" else 0
    try:
        found = _KINDS[kind](value)
    except (TypeError, ValueError, OverflowError, AttributeError, KeyError) as exc:
        return str(exc) if kind != "rate" else f"{value!r} is not a rate such as 10/m"
    return f"{value!r} is less than {least}" if found is not None and found < least else ""


_KINDS: dict[str, Callable[[Any], float | None]] = {"seconds": seconds, "count": count, "amount": count, "rate": rate}

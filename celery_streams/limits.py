"""Limits: how often, and how many at once, messages of a task may start; what a task, the settings and Redis say of it.

It decides nothing about messages and talks to nobody: ``lanes`` keeps what has to wait.
"""

from __future__ import annotations

import inspect
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject
from celery.utils.time import rate

from .exceptions import ConfigurationError, LimitKeyError
from .lanes import Lane
from .spelling import nearest

__all__ = (
    "KEYS_HEADER",
    "NUMBERS",
    "UNIQUE_OPTIONS",
    "Limits",
    "RateLimited",
    "arguments_of",
    "check_key",
    "key_of",
    "keys_of",
    "lane_of",
    "limits_of",
    "option_of",
    "parse_limits",
    "parse_numbers",
    "without_task",
    "written_rate",
)

#: Header of a message that says the keys of its limits: the rate's, and the concurrency's.
KEYS_HEADER = "streams_limit_keys"

#: Bytes that a key may have.
_LONGEST_KEY = 1024

#: The greatest number that may run at once.
_MOST = 1_000_000_000

#: What may be set at run time; keys are code.
NUMBERS = ("rate", "concurrency", "concurrency_per_key")

#: What the setting says besides, which ``unique`` reads.
UNIQUE_OPTIONS = ("unique", "unique_key", "unique_until", "unique_on_duplicate", "unique_replace")

#: The name of an argument, or what tells the key.
Key = str | Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one task; None is no limit."""

    #: Starts per second; 0.0 is no limit.
    rate: float = 0.0
    rate_key: Key | None = None
    #: How many may run at once, over all workers.
    concurrency: int | None = None
    concurrency_key: Key | None = None
    concurrency_per_key: int | None = None

    def __bool__(self) -> bool:
        return bool(self.rate or self.rate_key or self.concurrency or self.concurrency_per_key)

    @property
    def interval_ms(self) -> float:
        """Milliseconds between two starts; 0.0 is no limit."""
        return 1000.0 / self.rate if self.rate else 0.0

    def told(self) -> dict[str, Any]:
        """Return what the scripts have to know of the numbers."""
        return {
            "interval": self.interval_ms,
            **({"limit": self.concurrency} if self.concurrency else {}),
            **({"key_limit": self.concurrency_per_key} if self.concurrency_per_key else {}),
        }


class RateLimited(Reject, Ignore):  # type: ignore[misc]
    """Raised by a task: "the provider says that this is too often"; it starts again later, with no attempt used up.

    Nothing of the same ``streams_rate_limit_key`` starts for so many seconds, or nothing of the task where it has
    none. On a list queue it goes back at once.

    Raises:
        ValueError: ``seconds`` is no finite number.
    """

    # A Reject for whoever runs the task; an Ignore for ``autoretry_for=(Exception,)``, which would make a retry of it.

    def __init__(self, seconds: float) -> None:
        self.seconds = max(float(seconds), 0.0)
        if not math.isfinite(self.seconds):
            raise ValueError(f"RateLimited needs a finite number of seconds, got {seconds!r}")
        super().__init__(f"limited for {self.seconds:g} s", requeue=True)

    def __reduce__(self) -> Any:
        return type(self), (self.seconds,)


def lane_of(task: str, limits: Limits, keys: Sequence[str | None], *, node: str) -> Lane:
    """Return the lane of a message with these keys; ``node`` is empty for a rate over all workers."""
    rate_key, key = keys
    if limits.rate_key is not None:
        name = f"{task} {rate_key}"
    else:
        name = f"{task}@{node}" if node and limits.rate else task
    said: dict[str, Any] = {"task": task, "rate": name, **limits.told()}
    penalised = ""
    if limits.concurrency_per_key:
        said["key"] = f"{task} {key}"
        # A stroke in the first key is not the one between both.
        name = f"{name.replace('|', '||')} | {key}"
        penalised = said["key"] if limits.rate_key is None else ""
    lasting = bool(limits.concurrency or limits.concurrency_per_key)
    return Lane(name, json.dumps(said, separators=(",", ":")), lasting, penalised)


def limits_of(task: Any, setting: Mapping[str, Any], set_at_run_time: Mapping[str, Any] | None = None) -> Limits:
    """Return the limits of a task: what was set at run time wins over its own options, and these over the setting.

    Raises:
        ConfigurationError: an option means nothing, or names an argument that the task does not have.
    """
    own = {
        "rate": getattr(task, "rate_limit", None),
        "rate_key": option_of(task, "streams_rate_limit_key"),
        "concurrency": getattr(task, "streams_concurrency", None),
        "concurrency_key": option_of(task, "streams_concurrency_key"),
        "concurrency_per_key": getattr(task, "streams_concurrency_per_key", None),
    }
    said = {**setting, **{name: value for name, value in own.items() if value is not None}, **(set_at_run_time or {})}
    found = Limits(**parse_limits(said, f"Task {task.name}"))
    if found.concurrency_per_key and found.concurrency_key is None:
        raise ConfigurationError(f"Task {task.name}: concurrency_per_key has no effect without a concurrency_key")
    if found.concurrency_key is not None and "concurrency_per_key" not in said:
        raise ConfigurationError(f"Task {task.name}: concurrency_key has no effect without concurrency_per_key")
    for key in (found.rate_key, found.concurrency_key):
        check_key(task, key, f"Task {task.name}: a key", "limit")
    return found


def check_key(task: Any, key: Any, where: str, purpose: str) -> None:
    """Check what tells a key: None, the name of an argument of the task, or a callable.

    Raises:
        ConfigurationError: it is none of them.
    """
    if key is not None and not (callable(key) or (isinstance(key, str) and key)):
        raise ConfigurationError(f"{where} must be an argument's name, or a callable, got {key!r}")
    if inspect.iscoroutinefunction(key) or inspect.iscoroutinefunction(type(key).__call__):
        raise ConfigurationError(f"{where} must not be an async function, for nothing awaits it, got {key!r}")
    if isinstance(key, str) and key not in _signature(task).parameters:
        known = list(_signature(task).parameters)
        raise ConfigurationError(f"Task {task.name} has no argument {key!r} to {purpose} by{nearest(key, known)}")


def parse_limits(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check limits as people write them, by their names without prefix; ``where`` begins what an error says.

    Raises:
        ConfigurationError: a name or a value means nothing.
    """
    known = [item.name for item in fields(Limits)]
    found: dict[str, Any] = {}
    for name, value in said.items():
        if name in UNIQUE_OPTIONS:
            continue
        if name not in known:
            raise ConfigurationError(f"{where} has no limit {name!r}{nearest(str(name), [*known, *UNIQUE_OPTIONS])}")
        if name == "rate":
            found[name] = _rate(value, where)
        elif name.endswith("_key") and not name.endswith("per_key"):
            if value is not None and not (callable(value) or (isinstance(value, str) and value)):
                raise ConfigurationError(f"{where}: {name} must be an argument's name, or a callable, got {value!r}")
            found[name] = value
        else:
            found[name] = None if value is None else _count(value, f"{where}: {name}")
    return found


def without_task(limits: Mapping[str, Any], tasks: Iterable[str]) -> list[str]:
    """Return a sentence for each name in ``streams_limits`` that is no task's; only who knows all tasks can tell."""
    known = list(tasks)
    return [
        f"streams_limits names {name!r}, and the project has no such task{nearest(name, known)}"
        for name in sorted(set(limits) - set(known))
    ]


def parse_numbers(words: Sequence[str], where: str) -> dict[str, Any]:
    """Read ``rate=10/s concurrency=3`` as it is written at run time.

    Raises:
        ConfigurationError: a word means nothing.
    """
    said: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in NUMBERS:
            raise ConfigurationError(f"{word!r} must be one of {', '.join(f'{one}=...' for one in NUMBERS)}")
        if not value.strip():
            raise ConfigurationError(f"{word!r} has no number: is a shell variable not set? ({name}=none is no limit)")
        said[name] = value if value.lower() != "none" else None
    parse_limits(said, where)
    return {name: int(value) if value and name != "rate" else value for name, value in said.items()}


def _rate(value: Any, where: str) -> float:
    try:
        found = float(rate(value))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as exc:
        said = f'{where}: a rate must be a number, "10/s", "10/m" or "10/h", got {_short(value)}'
        raise ConfigurationError(said) from exc
    # The time between two starts, too: a rate of 1e-308 has none that could be written down.
    if found < 0 or not math.isfinite(found) or (found and not math.isfinite(1000.0 / found)):
        raise ConfigurationError(f"{where}: a rate must be finite and not negative, got {_short(value)}")
    return found


def written_rate(per_second: float) -> str:
    """Return a rate as people write it: ``1/h``, and not ``0.000277778/s``."""
    for unit, seconds in (("s", 1), ("m", 60), ("h", 3_600)):
        number = per_second * seconds
        if round(number) >= 1 and math.isclose(number, round(number), rel_tol=1e-9):
            return f"{round(number)}/{unit}"
    return f"{per_second:g}/s"


def _count(value: Any, where: str) -> int:
    try:
        found = int(value)
    except (TypeError, ValueError, OverflowError):
        found = 0
    if isinstance(value, bool) or not 1 <= found <= _MOST or (isinstance(value, float) and found != value):
        raise ConfigurationError(f"{where} must be a whole number from 1 to {_MOST:,}, got {_short(value)}")
    return found


def _short(value: Any) -> str:
    try:
        return textwrap.shorten(repr(value), 60, placeholder=" ...")
    except ValueError:
        return "one with too many digits"  # Python does not write them


def option_of(task: Any, name: str) -> Any:
    """Return an option that may be a callable, which Celery makes a method of the task."""
    value = getattr(task, name, None)
    # A method of anything else is what it was when it was given.
    return getattr(value, "__func__", value) if isinstance(getattr(value, "__self__", None), Task) else value


def _signature(task: Any) -> inspect.Signature:
    return inspect.signature(task.run)


def arguments_of(task: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of one message by name, defaults too.

    Raises:
        TypeError: the task cannot be called with them.
    """
    bound = _signature(task).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def keys_of(task: Any, limits: Limits, args: Any, kwargs: Any) -> list[str | None]:
    """Return the keys of the rate and of the concurrency of one message; None where there is no key.

    Raises:
        LimitKeyError: a callable raised, an argument is missing, or a key is too long.
    """
    return [
        None if key is None else key_of(task, key, args, kwargs) for key in (limits.rate_key, limits.concurrency_key)
    ]


def key_of(task: Any, key: Key, args: Any, kwargs: Any) -> str:
    """Return the key of one message: what its argument ``key`` holds, or what the callable says.

    Raises:
        LimitKeyError: the callable raised, or returned None; the argument is missing; the key is longer than 1 kB, or
            no text. An argument that holds None is a key as any other value.
    """
    if isinstance(key, str):
        try:
            given = arguments_of(task, args, kwargs)[key]
        except TypeError as exc:
            raise LimitKeyError(f"Task {task.name}: argument {key!r} gives no key: {exc}") from exc
    else:
        try:
            given = key(task, args, kwargs)
        except Exception as exc:
            # The project's own code may raise anything.
            raise LimitKeyError(f"Task {task.name}: the function for its key, {key!r}, raised {exc!r}") from exc
        if given is None:
            # With a forgotten `return` all messages would be those of one key, "None": one at a time, or duplicates. To
            # take it for no key, as some do elsewhere, would lift the limit as silently.
            said = f"Task {task.name}: the function for its key, {key!r}, returned None"
            raise LimitKeyError(f"{said}; it must return a text for each message")
    found = _as_text(given, task)
    if len(found.encode(errors="surrogatepass")) > _LONGEST_KEY:
        raise LimitKeyError(f"Task {task.name}: its key has more than {_LONGEST_KEY} bytes: {found[:60]!r} ...")
    # What the scripts part names by.
    return found.replace("\0", "\\0").replace("\1", "\\1").encode(errors="backslashreplace").decode()


def _as_text(given: Any, task: Any) -> str:
    try:
        found = str(given)
    except Exception as exc:
        # Values of any class.
        raise LimitKeyError(f"Task {task.name}: its key cannot be written as text: {exc!r}") from exc
    if inspect.iscoroutine(given):
        given.close()  # it would be said later, and elsewhere, that nobody awaited it
    # What names itself by where it is in memory is another key each time, and so no limit at all.
    if not isinstance(given, str) and hex(id(given)) in found:
        raise LimitKeyError(f"Task {task.name}: its key must be a text, or have one of its own, got {found[:60]}")
    return found

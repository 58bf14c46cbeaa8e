"""Setting values: what a setting may say, one function for each kind of value. ``conf`` knows which is whose.

Each is given the name of the setting, for its error, and the value as it was written: in Python, or as text in the
environment. Each raises :class:`ConfigurationError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .exceptions import ConfigurationError
from .partitions import MOST, is_partition

__all__ = (
    "WORDS",
    "boolean",
    "count",
    "databases",
    "json_names",
    "limits",
    "number",
    "optional_age",
    "optional_count",
    "optional_seconds",
    "partitions",
    "prefix",
    "scope",
    "seconds",
    "steps",
    "text",
    "tracked",
    "visibility",
)

#: How texts say yes and no.
WORDS = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off", ""), False)


def json_names(text: str) -> list[str] | None:
    """Return the names of a JSON list; None when it is none: a shell pattern may begin with a bracket, too."""
    if not text.startswith("["):
        return None
    try:
        names = json.loads(text)
    except ValueError:
        return None
    return names if all(isinstance(name, str) for name in names) else None


def text(name: str, raw: Any) -> str | None:
    if raw is None or raw == "":
        return None
    if not isinstance(raw, str):
        raise ConfigurationError(f"{name} must be a string, got {raw!r}")
    return raw


def prefix(name: str, raw: Any) -> str:
    said = text(name, raw)
    if not said or "{" in said or "}" in said:
        raise ConfigurationError(f"{name} must be a non-empty string without braces, got {raw!r}")
    return said


def boolean(name: str, raw: Any) -> bool:
    if isinstance(raw, str):
        word = raw.strip().lower()
        if word in WORDS:
            return WORDS[word]
    elif isinstance(raw, (bool, int)):
        return bool(raw)
    raise ConfigurationError(f"{name} must be True or False, got {raw!r}")


def number(name: str, raw: Any, kind: Callable[[Any], Any], least: float) -> Any:
    try:
        value = kind(raw)
    except (TypeError, ValueError, OverflowError):
        raise ConfigurationError(f"{name} must be a number, got {raw!r}") from None
    if not math.isfinite(value):
        raise ConfigurationError(f"{name} must be a finite number, got {raw!r}")
    if value < least:
        raise ConfigurationError(f"{name} must be at least {least:g}, got {raw!r}")
    return value


def seconds(name: str, raw: Any) -> Any:
    return number(name, getattr(raw, "total_seconds", lambda: raw)(), float, 0.0)


def visibility(name: str, raw: Any) -> Any:
    return number(name, getattr(raw, "total_seconds", lambda: raw)(), float, 1.0)


def optional_age(name: str, raw: Any) -> Any:
    return None if raw in (None, "") else visibility(name, raw)


def optional_seconds(name: str, raw: Any) -> Any:
    return None if raw in (None, "") else seconds(name, raw)


def count(name: str, raw: Any) -> Any:
    return number(name, raw, int, 1)


def optional_count(name: str, raw: Any) -> Any:
    return None if raw in (None, "") else count(name, raw)


def steps(name: str, raw: Any) -> tuple[int, ...]:
    try:
        return tuple(sorted(int(step) for step in raw))
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{name} must be a list of numbers such as [0, 3, 6, 9], got {raw!r}") from exc


def databases(name: str, raw: Any) -> bool | tuple[str, ...]:
    if raw is None or isinstance(raw, bool):
        return bool(raw)
    if isinstance(raw, str):
        try:
            return boolean(name, raw)
        except ConfigurationError:
            raw = [part.strip() for part in raw.split(",") if part.strip()]
    if isinstance(raw, (list, tuple, set, frozenset)) and raw and all(isinstance(one, str) for one in raw):
        return tuple(raw)
    raise ConfigurationError(f"{name} must be True, False, or aliases of databases, got {raw!r}")


def scope(name: str, raw: Any) -> str:
    if raw not in ("worker", "global"):
        raise ConfigurationError(f"{name} must be 'worker' or 'global', got {raw!r}")
    return str(raw)


def limits(name: str, raw: Any) -> Mapping[str, Mapping[str, Any]]:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except ValueError as exc:
            raise ConfigurationError(f"{name} is not valid JSON: {exc}") from exc
    if not isinstance(raw, Mapping) or not all(isinstance(one, Mapping) for one in raw.values()):
        raise ConfigurationError(f'{name} must be a mapping of task to limits such as {{"rate": "10/s"}}, got {raw!r}')
    return {str(task): dict(said) for task, said in raw.items()}


def partitions(name: str, raw: Any) -> Mapping[str, int]:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw or "{}")
        except ValueError as exc:
            raise ConfigurationError(f"{name} is not valid JSON: {exc}") from exc
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f'{name} must be a mapping of queue to number such as {{"emails": 8}}, got {raw!r}')
    for queue, number in raw.items():
        if not isinstance(queue, str) or not queue or is_partition(queue):
            raise ConfigurationError(f"{name} must name queues, got {queue!r}")
        if type(number) is not int or not 1 <= number <= MOST:
            raise ConfigurationError(
                f"{name}: queue {queue!r} must have a whole number of partitions from 1 to {MOST}, got {number!r}"
            )
    return {queue: number for queue, number in raw.items() if number > 1}


def tracked(name: str, raw: Any) -> bool | tuple[str, ...]:
    if isinstance(raw, str) and raw.strip().lower() not in WORDS:
        raw = json_names(raw.strip()) or [part.strip() for part in raw.split(",") if part.strip()]
    if isinstance(raw, (str, bool, int)):
        return boolean(name, raw)
    if isinstance(raw, Iterable) and not isinstance(raw, (bytes, Mapping)):
        names = tuple(raw)
        if all(isinstance(one, str) and one for one in names):
            return names
    raise ConfigurationError(f"{name} must be True, False, or names of tasks or patterns, got {raw!r}")

"""Unique tasks: which messages of a task are the same one; what the options of a task, and the settings, say of that.

It talks to nobody: ``locks`` keeps which message is there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kombu.utils.json import dumps

from .exceptions import ConfigurationError, LimitKeyError
from .limits import UNIQUE_OPTIONS, Key, arguments_of, check_key, key_of, option_of
from .locks import Lock

__all__ = ("Unique", "lock_of", "unique_of")

_CHOICES = {"unique_until": ("end", "start"), "unique_on_duplicate": ("return", "raise")}


@dataclass(frozen=True, slots=True)
class Unique:
    """How a task is unique."""

    #: After so many seconds the lock ends in any case; None: with its message.
    seconds: float | None = None
    #: What tells messages that are the same; None: all arguments.
    key: Key | None = None
    until_start: bool = False
    raises: bool = False
    replaces: bool = False


def unique_of(task: Any, setting: Mapping[str, Any]) -> Unique | None:
    """Return how a task is unique, None when it is not; its own options win over the setting.

    Raises:
        ConfigurationError: an option means nothing, or names an argument that the task does not have.
    """
    own = {name: option_of(task, f"streams_{name}") for name in UNIQUE_OPTIONS}
    said = {name: setting[name] for name in UNIQUE_OPTIONS if setting.get(name) is not None}
    said.update((name, value) for name, value in own.items() if value is not None)
    where = f"Task {task.name}"
    for name, choices in _CHOICES.items():
        if said.get(name, choices[0]) not in choices:
            raise ConfigurationError(f"{where}: {name} must be {choices[0]!r} or {choices[1]!r}, got {said[name]!r}")
    unique = said.pop("unique", False)
    if unique is False:
        if said:
            raise ConfigurationError(f"{where}: {', '.join(said)} has no effect without unique")
        return None
    replaces = said.get("unique_replace", False)
    until_start = said.get("unique_until") == "start"
    if not isinstance(replaces, bool):
        raise ConfigurationError(f"{where}: unique_replace must be True or False, got {replaces!r}")
    if replaces and not until_start:
        raise ConfigurationError(
            f'{where}: unique_replace needs unique_until="start": the arguments of a task that runs cannot be replaced'
        )
    check_key(task, said.get("unique_key"), f"{where}: unique_key", "be unique")
    return Unique(
        seconds=None if unique is True else _seconds(unique, where),
        key=said.get("unique_key"),
        until_start=until_start,
        raises=said.get("unique_on_duplicate") == "raise",
        replaces=replaces,
    )


def lock_of(task: Any, unique: Unique, args: Any, kwargs: Any) -> Lock:
    """Return the lock of one message.

    Raises:
        LimitKeyError: a callable raised, an argument is missing, a key is too long, or arguments cannot be compared.
    """
    key = _all_of(task, args, kwargs) if unique.key is None else key_of(task, unique.key, args, kwargs)
    name = hashlib.sha256(f"{task.name}\0{key}".encode(errors="surrogatepass")).hexdigest()[:32]
    return Lock(name, None if unique.seconds is None else math.ceil(unique.seconds * 1000), unique.until_start)


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, (int, float)) and value > 0 and math.isfinite(value):
        return float(value)
    raise ConfigurationError(f"{where}: unique must be True, or a number of seconds above 0, got {value!r}")


def _all_of(task: Any, args: Any, kwargs: Any) -> str:
    # By name: the same arguments, given by position or by name, are the same message.
    try:
        known = arguments_of(task, args, kwargs)
    except TypeError as exc:
        raise LimitKeyError(f"Task {task.name} cannot be called with these arguments: {exc}") from exc
    try:
        return str(dumps(known, sort_keys=True))
    except Exception as exc:
        # Values of any class, with any code to write or compare them.
        raise LimitKeyError(
            f"Task {task.name}: its arguments cannot be compared ({exc!r}); set streams_unique_key"
        ) from exc

"""Placing: by which key a message belongs to a partition of its queue; what the options of its task say of that.

A script sees the keys of one partition, so whatever is counted must lie in one: the key of a limit, and the lock of a
unique task, decide. A limit over all messages of a task has no partition that it could be counted in. It talks to
nobody; which partition it is then, ``partitions`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .exceptions import ConfigurationError
from .limits import Key, Limits, check_key, key_of, option_of
from .unique import Unique, lock_of

__all__ = ("KEY_OPTION", "Decider", "decider")

#: The option of a task that names the key.
KEY_OPTION = "streams_partition_key"

#: The args and kwargs of a message; returns its key.
#:
#: Raises:
#:     LimitKeyError: a callable raised, an argument is missing, or a key is too long.
Decider = Callable[[Any, Any], str]


def decider(task: Any, limits: Limits, unique: Unique | None, queue: str, count: int) -> Decider | None:
    """Return what tells the key of a message of ``task`` on ``queue``; None: the task id is the key.

    Raises:
        ConfigurationError: an option means nothing; the task has a limit that no single partition could keep, or two
            keys, each of which would decide.
    """
    where = f"on queue {queue!r}, which has {count} partitions (streams_partitions)"
    own: Key | None = option_of(task, KEY_OPTION)
    check_key(task, own, f"Task {task.name}: {KEY_OPTION}", "choose a partition")
    if limits.rate and limits.rate_key is None:
        raise ConfigurationError(
            f"Task {task.name}: no rate over all messages can be kept {where}; set streams_rate_limit_key, or use "
            "another queue"
        )
    if limits.concurrency:
        raise ConfigurationError(
            f"Task {task.name}: no concurrency over all messages can be kept {where}, only "
            "streams_concurrency_per_key; use another queue"
        )
    said = {
        KEY_OPTION: own,
        "streams_concurrency_key": limits.concurrency_key,
        "streams_rate_limit_key": limits.rate_key,
        "streams_unique_key": unique.key if unique is not None else None,
    }
    given = [(name, key) for name, key in said.items() if key is not None]
    for name, key in given:
        first, decides = given[0]
        if key != decides:
            raise ConfigurationError(
                f"Task {task.name}: one key decides where a message lies {where}; {first} and {name} must be the same"
            )
    if given:
        return partial(_of_key, task, given[0][1])
    return None if unique is None else partial(_of_lock, task, unique)


def _of_key(task: Any, key: Key, args: Any, kwargs: Any) -> str:
    return key_of(task, key, args, kwargs)


def _of_lock(task: Any, unique: Unique, args: Any, kwargs: Any) -> str:
    return lock_of(task, unique, args, kwargs).name

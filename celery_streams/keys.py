"""Every Redis key of celery-streams, in one place; it talks to nobody.

The data model, for a queue ``Q`` and the default prefix. The braces make the queue name the cluster hash tag, so
that all keys of a queue live in one slot and one script may touch them together.

=============================================  ======  ===========================================================
key                                            type    holds
=============================================  ======  ===========================================================
``celery-streams:{Q}``                         stream  messages of the highest priority (0, the default); one group
``celery-streams:{Q}:3`` ``:6`` ``:9``         stream  messages of the lower priority steps (kombu's direction)
``celery-streams:{Q}:front`` ``:3:front`` ...  stream  what was put back or became due while others waited: read first
``celery-streams:{Q}:front:mark`` ...          string  last entry put to the stream as to a front; expires by itself
``celery-streams:{Q}:delayed``                 zset    member -> due time in milliseconds since the epoch
``celery-streams:{Q}:delayed:messages``        hash    member -> the packed message (see ``message.pack``)
``celery-streams:{Q}:wake``                    stream  at most one entry; a new one says "an earlier due time came"
``celery-streams:{Q}:dead``                    stream  dead letters: the whole message, the reason, its history
``celery-streams:{Q}:claims``                  string  turn of the claimers, expires by itself
``celery-streams:{Q}:rate:TASK[:NODE]``        string  rate limit: when the next token is free (ms); expires by itself
``celery-streams:{Q}:migrating:out``           list    on their way to another database: tag, then a Celery list element
``celery-streams:{Q}:migrating:in``            list    arrived from another database, before they become entries
``celery-streams:{Q}:migrating:tags``          zset    tag -> when its element was known to be gone from the other side
``celery-streams:queues``                      set     names of all queues that were ever used
``celery-streams:workers``                     hash    worker -> its last beat (ms) and what it reads; see ``presence``
``celery-streams:revoked``                     zset    revoked task id -> time (s) at which it is forgotten
``celery-streams:revoked:stamps``              zset    ``[header, stamp]`` in JSON whose tasks are revoked -> likewise
=============================================  ======  ===========================================================

A front is there only while it is needed; it has the group, pending entries and heartbeats of a task stream. An entry of
either has the fields ``headers``, ``properties`` and ``body``, and ``history`` when it was put back at least once.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = (
    "DEFAULT_PREFIX",
    "DEFAULT_STEPS",
    "GROUP",
    "QueueKeys",
    "queue_keys",
    "queues",
    "rate",
    "revoked",
    "revoked_stamps",
    "step_index",
    "workers",
)

#: Name of the one consumer group of every task stream.
GROUP = "celery-streams"

#: Default of ``streams_key_prefix``.
DEFAULT_PREFIX = "celery-streams"

#: kombu's ``priority_steps`` for Redis: 0 is the highest.
DEFAULT_STEPS: tuple[int, ...] = (0, 3, 6, 9)


#: kombu's greatest priority, which is the lowest in rank.
_GREATEST_PRIORITY = 9


def step_index(steps: tuple[int, ...], priority: Any) -> int:
    """Return the index of the step that ``priority`` belongs to, as kombu's Redis transport does."""
    try:
        bounded = max(min(int(priority), _GREATEST_PRIORITY), 0)
    except (TypeError, ValueError, OverflowError):
        bounded = 0
    return max(bisect_right(steps, bounded) - 1, 0)


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys of one queue; ``streams``, ``fronts``, ``marks`` run parallel to ``steps``, highest priority first."""

    queue: str
    steps: tuple[int, ...]
    streams: tuple[str, ...]
    fronts: tuple[str, ...]
    marks: tuple[str, ...]
    delayed: str
    delayed_messages: str
    wake: str
    dead: str
    claims: str

    def step_index(self, priority: Any) -> int:
        """Return the index of the priority step that a message of this priority belongs to, as kombu does.

        It takes text that is a number, too, and what is none for the highest priority.
        """
        return step_index(self.steps, priority) if priority else 0


@lru_cache(maxsize=4096)
def queue_keys(prefix: str, queue: str, steps: tuple[int, ...] = DEFAULT_STEPS) -> QueueKeys:
    """Return the keys of ``queue``."""
    base = f"{prefix}:{{{queue}}}"
    streams = tuple(base if index == 0 else f"{base}:{step}" for index, step in enumerate(steps))
    return QueueKeys(
        queue=queue,
        steps=steps,
        streams=streams,
        fronts=tuple(f"{stream}:front" for stream in streams),
        marks=tuple(f"{stream}:front:mark" for stream in streams),
        delayed=f"{base}:delayed",
        delayed_messages=f"{base}:delayed:messages",
        wake=f"{base}:wake",
        dead=f"{base}:dead",
        claims=f"{base}:claims",
    )


def rate(prefix: str, queue: str, task: str, node: str) -> str:
    """Return the key of a task's rate limit on a queue; ``node`` is empty for the limit over all workers."""
    return f"{prefix}:{{{queue}}}:rate:{task}" + (f":{node}" if node else "")


@dataclass(frozen=True, slots=True)
class MigrationKeys:
    """The keys of a migration between databases, in either of them; they are gone when it is done."""

    outgoing: str
    incoming: str
    tags: str


def migration_keys(prefix: str, queue: str) -> MigrationKeys:
    """Return the keys of a migration of ``queue``."""
    base = f"{prefix}:{{{queue}}}:migrating"
    return MigrationKeys(outgoing=f"{base}:out", incoming=f"{base}:in", tags=f"{base}:tags")


def queues(prefix: str) -> str:
    """Return the key of the set of all queue names."""
    return f"{prefix}:queues"


def revoked(prefix: str) -> str:
    """Return the key of the revoked task ids."""
    return f"{prefix}:revoked"


def revoked_stamps(prefix: str) -> str:
    """Return the key of the stamps whose tasks are revoked."""
    return f"{prefix}:revoked:stamps"


def workers(prefix: str) -> str:
    """Return the key of what the workers say of themselves."""
    return f"{prefix}:workers"

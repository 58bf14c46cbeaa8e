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
``celery-streams:{Q}:block:NAME``              string  outcome of a block that was published, or a hash: the ids of its
                                                       messages (``bulk(key=...)``); expires by itself
``celery-streams:{Q}:unblock:CONSUMER``        stream  ends a consumer's blocking read, where Redis refuses CLIENT
                                                       UNBLOCK; expires by itself
``celery-streams:{Q}:claims``                  string  turn of the claimers, expires by itself
``celery-streams:{Q}:paused``                  string  while nobody reads the queue: since when (ms), and why
``celery-streams:{Q}:turns``                   string  who watches the delayed messages (JSON), expires by itself
``celery-streams:{Q}:history``                 stream  what it held, once a minute for a day; see ``history``
``celery-streams:{Q}:history:minutes``         hash    minute since the epoch -> what workers counted in it; for an
                                                       hour; see ``tallies``
``celery-streams:{Q}:history:tens``            hash    ten minutes since the epoch -> likewise; for a day
``celery-streams:{Q}:history:versions``        stream  when a worker of another version began to read it
``celery-streams:{Q}:held``                    hash    what may not run now -> the packed message; see ``lanes``
``celery-streams:{Q}:held:lanes`` ...          hash    ``lanes``: in which order; ``places``: what runs under a limit
``celery-streams:{Q}:held:ready`` ...          zset    ``ready``: what waits for a time; ``ring``: for a place, and
                                                       turns of what was put back; ``rates``: next tokens; ``running``:
                                                       what counts for a limit
``celery-streams:{Q}:unique``                  hash    lock of a unique task -> which message holds it, in JSON
``celery-streams:{Q}:migrating:out``           list    on their way to another database: tag, then a Celery list element
``celery-streams:{Q}:migrating:in``            list    arrived from another database, before they become entries
``celery-streams:{Q}:migrating:tags``          zset    tag -> when its element was known to be gone from the other side
``celery-streams:alias:ID``                    string  task id of the first, of which task ID is a duplicate; expires
``celery-streams:limits``                      hash    task -> the limits that were set at run time, in JSON
``celery-streams:news``                        stream  at most one entry; a new one has all workers look; see ``news``
``celery-streams:state:ID``                    string  a tracked task: its state, and where it is; expires by itself
``celery-streams:queues``                      set     names of all queues that were ever used
``celery-streams:workers``                     hash    worker -> its last beat (ms) and what it reads; see ``presence``
``celery-streams:history:turn:...``            string  somebody has written the history of these queues in this minute
``celery-streams:alerts``                      hash    queue and name of an alert -> the level that was sent
``celery-streams:alerts:turn``                 string  somebody has looked at the alerts in this minute
``celery-streams:revoked``                     zset    revoked task id -> time (s) at which it is forgotten
``celery-streams:revoked:stamps``              zset    ``[header, stamp]`` in JSON whose tasks are revoked -> likewise
=============================================  ======  ===========================================================

A queue with partitions is several of these: ``Q`` itself, and ``Q::partition-1.151`` and so on (see ``partitions``).

A front is there only while it is needed; it has the group, pending entries and heartbeats of a task stream. An entry of
either has the fields ``headers``, ``properties`` and ``body``, and ``history`` when it was put back at least once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

__all__ = (
    "DEFAULT_PREFIX",
    "DEFAULT_STEPS",
    "GROUP",
    "NOBODY",
    "QueueKeys",
    "alerts",
    "alerts_turn",
    "alias",
    "block",
    "history_turn",
    "limits",
    "news",
    "queue_keys",
    "queues",
    "revoked",
    "revoked_stamps",
    "shared_types",
    "state",
    "step_index",
    "unblock",
    "workers",
)

#: Name of the one consumer group of every task stream.
GROUP = "celery-streams"

#: The consumer for what was delivered and is in nobody's list; it never beats. The scripts know its name.
NOBODY = "nobody"

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
    paused: str
    turns: str
    history: str
    #: What workers counted, by the minute and by ten minutes.
    tallies: tuple[str, str]
    #: When their version changed.
    versions: str
    unique: str
    #: What is held back: the keys that ``lua/prelude/shelf`` takes apart.
    shelf: tuple[str, ...]

    @property
    def shelf_and_streams(self) -> tuple[str, ...]:
        """What a script needs that gives back places, and moves what waited for them."""
        return (*self.shelf, *self.streams, *self.fronts, *self.marks)

    @property
    def types(self) -> dict[str, str]:
        """The keys, each with the type of its value."""
        held, lanes, ready, ring, rates, places, running, _ = self.shelf
        kinds = {
            "stream": (*self.streams, *self.fronts, self.wake, self.dead, self.history, self.versions),
            "zset": (self.delayed, ready, ring, rates, running),
            "hash": (self.delayed_messages, *self.tallies, self.unique, held, lanes, places),
            "string": (*self.marks, self.claims, self.paused, self.turns),
        }
        return {key: kind for kind, those in kinds.items() for key in those}

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
        paused=f"{base}:paused",
        turns=f"{base}:turns",
        history=f"{base}:history",
        tallies=(f"{base}:history:minutes", f"{base}:history:tens"),
        versions=f"{base}:history:versions",
        unique=f"{base}:unique",
        shelf=(
            f"{base}:held",
            *(f"{base}:held:{name}" for name in ("lanes", "ready", "ring", "rates", "places", "running")),
            f"{base}:wake",
        ),
    )


def block(prefix: str, queue: str, name: str) -> str:
    """Return the key of the mark that a published block leaves for a while."""
    return f"{prefix}:{{{queue}}}:block:{name}"


def unblock(prefix: str, queue: str, consumer: str) -> str:
    """Return the key of the stream that ends a blocking read of a consumer."""
    return f"{prefix}:{{{queue}}}:unblock:{consumer}"


def alias(prefix: str, task_id: str) -> str:
    """Return the key of the task for which the result of a duplicate answers."""
    return f"{prefix}:alias:{task_id}"


def limits(prefix: str) -> str:
    """Return the key of the limits that were set at run time."""
    return f"{prefix}:limits"


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


def history_turn(prefix: str, of: Sequence[str]) -> str:
    """Return the key that says that somebody has written the history of these queues in this minute."""
    return f"{prefix}:history:turn:{crc32(chr(0).join(sorted(of)).encode(errors='surrogatepass')):08x}"


def alerts(prefix: str) -> str:
    """Return the key of the alerts of which the Django project was told."""
    return f"{prefix}:alerts"


def alerts_turn(prefix: str) -> str:
    """Return the key that says that somebody has looked at the alerts in this minute."""
    return f"{prefix}:alerts:turn"


def news(prefix: str) -> str:
    """Return the key of the stream that tells workers to look."""
    return f"{prefix}:news"


def queues(prefix: str) -> str:
    """Return the key of the set of all queue names."""
    return f"{prefix}:queues"


def revoked(prefix: str) -> str:
    """Return the key of the revoked task ids."""
    return f"{prefix}:revoked"


def revoked_stamps(prefix: str) -> str:
    """Return the key of the stamps whose tasks are revoked."""
    return f"{prefix}:revoked:stamps"


def state(prefix: str, task_id: str) -> str:
    """Return the key of the state of a tracked task."""
    return f"{prefix}:state:{task_id}"


def workers(prefix: str) -> str:
    """Return the key of what the workers say of themselves."""
    return f"{prefix}:workers"


def shared_types(prefix: str) -> dict[str, str]:
    """Return the keys that are no queue's, each with the type of its value; those that expire are not among them."""
    return {
        limits(prefix): "hash",
        news(prefix): "stream",
        queues(prefix): "set",
        workers(prefix): "hash",
        alerts(prefix): "hash",
        revoked(prefix): "zset",
        revoked_stamps(prefix): "zset",
    }

"""Inspection: what operators and monitors ask of the queues, and purge; dead letters have a module of their own.

Read-only but for :func:`purge`; nothing here is on the way of a message. Figures come from Redis itself and are exact
at the moment of the call. It knows neither Celery nor the worker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import keys, presence, scripts
from .broker import StreamBroker
from .connection import pairs
from .entries import milliseconds
from .exceptions import BrokerError, GroupMissing, KeyMissing, KeyOfOtherType, NotPermitted
from .message import decode_object
from .pages import STEP_BYTES
from .partitions import by_queue, queue_of
from .pauses import parse_pause
from .presence import WorkerPresence

__all__ = (
    "ConsumerInfo",
    "QueueStatus",
    "consumers",
    "entries_added",
    "has_held_messages",
    "known_partitions",
    "known_queues",
    "odd_keys",
    "own_group",
    "purge",
    "queue_bytes",
    "queue_status",
    "redis_time",
)

#: Seconds within which what is due counts as work for a scaler.
SOON = 60.0

#: Entries that one purge step discards, so that Redis is never held up for long.
_PURGE_STEP = 1_000

#: Seconds after which a consumer of a worker that does not beat counts as dead.
_UNHEARD = 75.0


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue at one moment. Ages are in seconds, by Redis' clock."""

    queue: str
    #: Not delivered yet.
    waiting: int
    #: Delivered and not settled: being run, or held for it.
    pending: int
    #: Due later (eta, countdown, retry).
    delayed: int
    #: Dead letters.
    dead: int
    #: Consumers (children, or the reader of threads) of living workers.
    consumers: int
    #: Age of the oldest message that waits; None when none waits.
    oldest_waiting: float | None
    #: Seconds by which the earliest delayed message is late; 0.0 when none is.
    overdue: float
    #: Seconds until the earliest delayed message is due, 0.0 when it is late; None when none is delayed.
    due_in_seconds: float | None = None
    #: Delayed messages that are due within :data:`SOON`.
    due_soon: int = 0
    #: Workers that live and read it.
    workers: int = 0
    #: Node names of workers that read it and were killed, or cannot reach Redis: their heart does not beat.
    dead_workers: tuple[str, ...] = ()
    #: Children of these living workers that crashed within the last ten minutes.
    crashes: int = 0
    #: Seconds since it was paused; None while it is not.
    paused: float | None = None
    #: What somebody said about that.
    pause_reason: str = ""
    #: Of limited tasks: they wait for a token or a place.
    held: int = 0
    #: Locks of unique tasks; one whose message is gone counts until a worker sweeps it, though nobody believes it.
    locks: int = 0
    #: Streams over which its messages are spread (``streams_partitions``, or what was so once), of each priority.
    partitions: int = 1
    #: Its keys that hold a value of another type, which somebody else wrote: what should be there counts as nothing.
    odd_keys: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Entries on the streams: waiting and pending."""
        return self.waiting + self.pending

    @property
    def backlog(self) -> int:
        """What a scaler should count: what waits, runs, or is due soon; of a paused queue only what runs.

        It never misses delayed messages, as the length of a stream does, and is never unknown, as Redis' lag is. More
        workers do nothing for what a limit holds back, but without any it is never let go: all of it counts as one.
        """
        if self.paused is not None:
            return self.pending
        return self.pending + self.waiting + self.due_soon or int(self.held > 0)

    @property
    def lag(self) -> int:
        """Entries that the group has not read yet (Redis' own ``lag`` is NULL once entries are deleted)."""
        return self.waiting


@dataclass(frozen=True, slots=True)
class ConsumerInfo:
    """One consumer of a queue: a child, thread or loop of a worker."""

    name: str
    pending: int
    #: Seconds since it last asked for work or gave a heartbeat through a read.
    idle: float


def redis_time(broker: StreamBroker) -> float:
    """Return Redis' clock, in seconds since the epoch."""
    seconds, micros = broker.client.call("TIME")
    return int(seconds) + int(micros) / 1e6


def known_queues(broker: StreamBroker) -> list[str]:
    """Return the names of all queues that were ever used under this prefix, sorted."""
    return list(known_partitions(broker))


def known_partitions(broker: StreamBroker) -> dict[str, list[str]]:
    """Return all queues that were ever used, sorted, with the names under which each lies in Redis: its own first."""
    names = broker.client.call("SMEMBERS", keys.queues(broker.prefix))
    return by_queue(name.decode(errors="replace") for name in names)


#: What tells the type of a key without a change, and which of its values is never long.
_TELLING = {"stream": "XLEN", "zset": "ZCARD", "hash": "HLEN", "set": "SCARD", "string": "GET"}


def odd_keys(broker: StreamBroker, types: Mapping[str, str]) -> list[str]:
    """Return those of the keys that hold a value of another type than ``types`` says. One round trip."""
    replies = broker.client.pipeline([(_TELLING[kind], key) for key, kind in types.items()])
    for reply in replies:
        if isinstance(reply, BrokerError) and not isinstance(reply, KeyOfOtherType):
            raise reply
    return [key for key, reply in zip(types, replies, strict=True) if isinstance(reply, BrokerError)]


def queue_status(
    broker: StreamBroker,
    queue: str,
    *,
    workers: Sequence[WorkerPresence] | None = None,
    names: Sequence[str] | None = None,
) -> QueueStatus:
    """Return the state of ``queue``, all its partitions together; a queue that was never used is all zeros.

    Three round trips for each partition, and one for each argument that is left out. Whoever acts on its figures looks
    at ``odd_keys`` first.

    Args:
        workers: those of :func:`presence.workers`, for whoever asks for many queues, or does not need to know of
            consumers.
        names: those of its partitions, as :func:`known_partitions` has them.
    """
    beating = presence.workers(broker) if workers is None else workers
    found = [_status(broker, name, beating) for name in (broker.partitions(queue) if names is None else names)]
    return found[0] if len(found) == 1 else _together(found)


def _together(found: Sequence[QueueStatus]) -> QueueStatus:
    """Return the states of the partitions of a queue as one, which is called as the first is."""
    whole = found[0]
    return replace(
        whole,
        waiting=sum(one.waiting for one in found),
        pending=sum(one.pending for one in found),
        delayed=sum(one.delayed for one in found),
        dead=sum(one.dead for one in found),
        # Each worker reads all of them.
        consumers=max(one.consumers for one in found),
        oldest_waiting=max((one.oldest_waiting for one in found if one.oldest_waiting is not None), default=None),
        overdue=max(one.overdue for one in found),
        due_in_seconds=min((one.due_in_seconds for one in found if one.due_in_seconds is not None), default=None),
        due_soon=sum(one.due_soon for one in found),
        held=sum(one.held for one in found),
        locks=sum(one.locks for one in found),
        partitions=len(found),
        odd_keys=tuple(key for one in found for key in one.odd_keys),
    )


def _status(broker: StreamBroker, queue: str, beating: Sequence[WorkerPresence]) -> QueueStatus:
    names, of = broker.queue_keys(queue), queue_of(queue)
    commands: list[tuple[Any, ...]] = [("TIME",), ("ZCARD", names.delayed), ("XLEN", names.dead)]
    commands += [("ZRANGE", names.delayed, 0, 0, "WITHSCORES"), ("GET", names.paused), ("HLEN", names.shelf[0])]
    commands.append(("HLEN", names.unique))
    streams = broker.present(queue)
    for stream in streams:
        commands += [("XLEN", stream), ("XINFO", "GROUPS", stream), ("XINFO", "CONSUMERS", stream, keys.GROUP)]
    [clock, delayed, dead, head, said, on_hold, locks, *rest], is_odd = _replies(broker, commands)
    now_ms = int(clock[0]) * 1000 + int(clock[1]) // 1000
    length = pending = 0
    heard: dict[str, float] = {}
    looks: list[tuple[Any, ...]] = []
    for index, stream in enumerate(streams):
        entries, groups, held = rest[3 * index : 3 * index + 3]
        group = own_group(groups)
        length += entries or 0
        pending += int(group[b"pending"]) if group else 0
        for consumer in map(pairs, held or ()):
            name = consumer[b"name"].decode(errors="replace")
            heard[name] = min(consumer[b"idle"] / 1000, heard.get(name, math.inf))
        if entries:
            start = b"(" + group[b"last-delivered-id"] if group else "-"
            looks.append(("XRANGE", stream, start, "+", "COUNT", 1))
    due_soon, oldest = 0, None
    if delayed:
        looks.append(("ZCOUNT", names.delayed, "-inf", now_ms + int(SOON * 1000)))
    for found in broker.client.call_all(looks) if looks else ():
        if isinstance(found, int):
            due_soon = found
        elif found:
            age = max(now_ms - _published_ms(found[0]), 0) / 1000
            oldest = age if oldest is None else max(oldest, age)
    odd = tuple(odd_keys(broker, names.types)) if is_odd else ()
    if names.paused in odd:
        said = b""  # it pauses its queue whatever it holds
    pause = None if said is None else parse_pause(queue, said)
    overdue = max(now_ms - float(head[1]), 0.0) / 1000 if head else 0.0
    return QueueStatus(
        queue=queue,
        waiting=max(length - pending, 0),
        pending=pending,
        delayed=delayed or 0,
        dead=dead or 0,
        consumers=len(_living(of, beating, heard)),
        oldest_waiting=oldest,
        overdue=overdue,
        due_in_seconds=max(float(head[1]) - now_ms, 0.0) / 1000 if head else None,
        due_soon=due_soon,
        odd_keys=odd,
        workers=sum(one.is_alive for one in beating if of in one.queues),
        crashes=sum(one.crashes for one in beating if of in one.queues and one.is_alive),
        dead_workers=tuple(sorted({one.node for one in beating if of in one.queues and not one.is_alive})),
        paused=None if pause is None else max(now_ms / 1000 - pause.since, 0.0),
        held=on_hold or 0,
        locks=locks or 0,
        pause_reason="" if pause is None else pause.reason,
    )


def _replies(broker: StreamBroker, commands: Sequence[tuple[Any, ...]]) -> tuple[list[Any], bool]:
    """Return the replies to commands, None where there is no such key or group, or one of another type; and if any is.

    Raises:
        BrokerError: Redis is away, or refused one for another reason.
    """
    replies = broker.client.pipeline(commands)
    is_odd = False
    for index, reply in enumerate(replies):
        if not isinstance(reply, BrokerError):
            continue
        if not isinstance(reply, (GroupMissing, KeyMissing, KeyOfOtherType)):
            raise reply
        is_odd = is_odd or isinstance(reply, KeyOfOtherType)
        replies[index] = None
    return replies, is_odd


def queue_bytes(broker: StreamBroker, queue: str) -> dict[str, int]:
    """Return how much memory the parts of ``queue`` take, in bytes, by Redis' samples: stream, delayed, dead, held.

    Raises:
        NotPermitted: the user may not ask (``MEMORY USAGE``).
    """
    parts: dict[str, list[str]] = {"stream": [], "delayed": [], "dead": [], "held": []}
    for name in broker.partitions(queue):
        names = broker.queue_keys(name)
        parts["stream"] += broker.present(name)
        parts["delayed"] += (names.delayed, names.delayed_messages)
        parts["dead"].append(names.dead)
        parts["held"] += (key for key in names.shelf if key != names.wake)
    asked = [("MEMORY", "USAGE", key) for part in parts.values() for key in part]
    found = iter(broker.client.call_all(asked))
    return {name: sum(next(found) or 0 for _ in part) for name, part in parts.items()}


def entries_added(broker: StreamBroker, queue: str) -> int | None:
    """Return how many entries were ever added to the streams of ``queue``: messages, retries, and what became due.

    None where Redis does not count them (before 7.0), does not permit the question, or has no stream yet.
    """
    streams = [key for name in broker.partitions(queue) for key in broker.queue_keys(name).streams]
    try:
        found = broker.client.call_all([("XINFO", "STREAM", one) for one in streams], missing_is_none=True)
    except (NotPermitted, KeyOfOtherType):
        return None
    counts: list[int | None] = [pairs(one).get(b"entries-added") for one in found if one]
    known = [one for one in counts if one is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _living(queue: str, workers: Sequence[WorkerPresence], heard: Mapping[str, float]) -> set[str]:
    """Return the consumers of ``queue`` that live.

    Args:
        heard: the consumers in the group, and for how many seconds Redis has not heard of each.
    """
    found = {one.name for worker in workers if worker.is_alive for one in worker.consumers_of(queue)}
    nodes = {worker.node for worker in workers}
    # Workers of versions that did not beat: Redis hears of them each minute.
    return found | {name for name, idle in heard.items() if name.rpartition("/")[0] not in nodes and idle < _UNHEARD}


def has_held_messages(broker: StreamBroker, queue: str) -> bool:
    """Return whether ``queue`` holds a message, or held one; a worker that reads it makes it known all the same."""
    return any(_has_held(broker, name) for name in broker.partitions(queue))


def _has_held(broker: StreamBroker, name: str) -> bool:
    names = broker.queue_keys(name)
    looks: list[tuple[Any, ...]] = [("ZCARD", names.delayed), ("XLEN", names.dead)]
    for stream in names.streams:
        looks += [("XLEN", stream), ("XINFO", "GROUPS", stream)]
    [delayed, dead, *rest], is_odd = _replies(broker, looks)
    groups = [own_group(found) for found in rest[1::2]]
    delivered = any(group is not None and group[b"last-delivered-id"] != b"0-0" for group in groups)
    return is_odd or delivered or any((delayed, dead, *rest[::2]))


def own_group(groups: Sequence[Any] | None) -> dict[bytes, Any] | None:
    """Return our consumer group out of the reply of ``XINFO GROUPS``; None when it is not there."""
    return next((group for group in map(pairs, groups or ()) if group[b"name"] == keys.GROUP.encode()), None)


def consumers(broker: StreamBroker, queue: str) -> list[ConsumerInfo]:
    """Return the consumers of ``queue``, all its priority steps and partitions together."""
    streams = [stream for name in broker.partitions(queue) for stream in broker.present(name)]
    replies = broker.client.call_all(
        [("XINFO", "CONSUMERS", stream, keys.GROUP) for stream in streams], missing_is_none=True
    )
    found: dict[str, ConsumerInfo] = {}
    for reply in replies:
        for raw in map(pairs, reply or ()):
            name = raw[b"name"].decode(errors="replace")
            known = found.get(name)
            idle = raw[b"idle"] / 1000
            found[name] = ConsumerInfo(
                name, raw[b"pending"] + (known.pending if known else 0), min(idle, known.idle) if known else idle
            )
    return sorted(found.values(), key=lambda info: info.name)


def purge(broker: StreamBroker, queue: str) -> int:
    """Discard everything of ``queue`` that waits, is delayed or held; what is pending goes on. Returns how many.

    In steps of 1,000, so that Redis is never held up; not atomic as a whole.
    """
    return sum(_purge(broker, name) for name in broker.partitions(queue))


def _purge(broker: StreamBroker, queue: str) -> int:
    names = broker.queue_keys(queue)
    count = 0
    # First what is held: it would be released for the places of what is discarded. What runs keeps its place.
    held, lanes, ready, ring = names.shelf[:4]
    delayed, on_hold, *_ = broker.client.call_all(
        [
            ("ZCARD", names.delayed),
            ("HLEN", held),
            ("UNLINK", names.delayed, names.delayed_messages, held, lanes, ready, ring),
        ]
    )
    steps = len(broker.steps)
    for place in (*range(steps, 2 * steps), *range(steps)):
        more = True
        while more:
            args = [keys.GROUP, steps, place, _PURGE_STEP, STEP_BYTES]
            discarded, more = broker.client.run(scripts.PURGE, names.shelf_and_streams, args)
            count += discarded
    return count + int(delayed) + int(on_hold)


def _published_ms(entry: list[Any]) -> int:
    entry_id, flat = entry
    for name, value in zip(flat[::2], flat[1::2], strict=False):
        if name == b"history":
            first = milliseconds(decode_object(value).get("first"))
            if first:
                return first
    return int(entry_id.partition(b"-")[0])

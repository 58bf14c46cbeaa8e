"""Inspection: what operators and monitors ask of the queues, and the verbs that are theirs: replay and purge.

Read-only unless a name says otherwise; nothing here is on the way of a message. Figures come from Redis itself and
are exact at the moment of the call. It knows neither Celery nor the worker.
"""

from __future__ import annotations

import contextlib
import math
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from kombu.message import Message as KombuMessage
from kombu.serialization import prepare_accept_content

from . import keys, presence, scripts
from .broker import STEP_BYTES, StreamBroker
from .connection import pairs
from .exceptions import CannotRun, MessageError
from .message import Message, decode_json, unpack, unpack_fields
from .obstacles import Obstacle, find_obstacles, stamps_of, task_id_of, under_new_id, without_expiry
from .presence import WorkerPresence

__all__ = (
    "Arguments",
    "ConsumerInfo",
    "DeadLetter",
    "DelayedMessage",
    "QueueStatus",
    "consumers",
    "dead_letter",
    "dead_letters",
    "decode_arguments",
    "delayed_messages",
    "has_held_messages",
    "known_queues",
    "obstacles",
    "own_group",
    "purge",
    "purge_dead",
    "queue_status",
    "redis_time",
    "replay",
)

#: Entries that one purge step discards, so that Redis is never held up for long.
_PURGE_STEP = 1_000

#: Seconds after which a consumer of a worker that does not beat counts as dead.
_UNHEARD = 75.0

_ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


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
    #: Workers that live and read it.
    workers: int = 0
    #: Node names of workers that read it and were killed, or cannot reach Redis: their heart does not beat.
    dead_workers: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Entries on the streams: waiting and pending."""
        return self.waiting + self.pending

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


@dataclass(frozen=True, slots=True)
class DelayedMessage:
    """A message that is due later."""

    queue: str
    member: str
    #: Seconds since the epoch.
    due: float
    #: None when there is none, or the value is no packed message.
    message: Message | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up, whole, with the reason."""

    queue: str
    entry_id: str
    #: Why, see ``outcome.Reason``: failed, crashed, unknown-task, malformed, ...
    reason: str
    task: str | None
    task_id: str | None
    #: ``repr`` of the exception, and its traceback.
    exception: str | None
    traceback: str | None
    worker: str | None
    #: Deliveries that ended in a crash.
    crashes: int
    #: Seconds since the epoch: when it died; when it was published.
    died: float
    published: float | None
    #: The raw fields as they lay on the stream, also when they could not be decoded.
    fields: tuple[tuple[bytes, bytes], ...]

    @property
    def message(self) -> Message | None:
        """The message, or None when the entry never was one."""
        flat = [part for pair in self.fields for part in pair]
        try:
            return Message.from_fields(flat)
        except MessageError:
            return None


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a message's task was called with, as far as the body may be decoded."""

    args: Any = None
    kwargs: Any = None
    #: Why the body was not decoded; None when it was.
    error: str | None = None


def redis_time(broker: StreamBroker) -> float:
    """Return Redis' clock, in seconds since the epoch."""
    seconds, micros = broker.client.call("TIME")
    return int(seconds) + int(micros) / 1e6


def known_queues(broker: StreamBroker) -> list[str]:
    """Return the names of all queues that were ever used under this prefix, sorted."""
    return sorted(name.decode(errors="replace") for name in broker.client.call("SMEMBERS", keys.queues(broker.prefix)))


def queue_status(broker: StreamBroker, queue: str, *, workers: Sequence[WorkerPresence] | None = None) -> QueueStatus:
    """Return the state of ``queue``; a queue that was never used is all zeros. Four round trips.

    ``workers`` are those of :func:`presence.workers`, for whoever asks for many queues, or does not need to know of
    consumers; by default they are asked for.
    """
    said = presence.workers(broker) if workers is None else workers
    names = broker.queue_keys(queue)
    commands: list[tuple[Any, ...]] = [("TIME",), ("ZCARD", names.delayed), ("XLEN", names.dead)]
    commands += [("ZRANGE", names.delayed, 0, 0, "WITHSCORES")]
    streams = broker.present(queue)
    for stream in streams:
        commands += [("XLEN", stream), ("XINFO", "GROUPS", stream), ("XINFO", "CONSUMERS", stream, keys.GROUP)]
    clock, delayed, dead, head, *rest = broker.client.call_all(commands, missing_is_none=True)
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
    oldest = None
    for found in broker.client.call_all(looks) if looks else ():
        if found:
            age = max(now_ms - _published_ms(found[0]), 0) / 1000
            oldest = age if oldest is None else max(oldest, age)
    overdue = max(now_ms - float(head[1]), 0.0) / 1000 if head else 0.0
    return QueueStatus(
        queue=queue,
        waiting=max(length - pending, 0),
        pending=pending,
        delayed=delayed or 0,
        dead=dead or 0,
        consumers=len(_living(queue, said, heard)),
        oldest_waiting=oldest,
        overdue=overdue,
        workers=sum(one.is_alive for one in said if queue in one.queues),
        dead_workers=tuple(sorted({one.node for one in said if queue in one.queues and not one.is_alive})),
    )


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
    names = broker.queue_keys(queue)
    looks: list[tuple[Any, ...]] = [("ZCARD", names.delayed), ("XLEN", names.dead)]
    for stream in names.streams:
        looks += [("XLEN", stream), ("XINFO", "GROUPS", stream)]
    delayed, dead, *rest = broker.client.call_all(looks, missing_is_none=True)
    groups = [own_group(found) for found in rest[1::2]]
    delivered = any(group is not None and group[b"last-delivered-id"] != b"0-0" for group in groups)
    return delivered or any((delayed, dead, *rest[::2]))


def own_group(groups: Sequence[Any] | None) -> dict[bytes, Any] | None:
    """Return our consumer group out of the reply of ``XINFO GROUPS``; None when it is not there."""
    return next((group for group in map(pairs, groups or ()) if group[b"name"] == keys.GROUP.encode()), None)


def consumers(broker: StreamBroker, queue: str) -> list[ConsumerInfo]:
    """Return the consumers of ``queue``, all its priority steps together."""
    replies = broker.client.call_all(
        [("XINFO", "CONSUMERS", stream, keys.GROUP) for stream in broker.present(queue)], missing_is_none=True
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


def delayed_messages(broker: StreamBroker, queue: str, *, limit: int = 1_000) -> list[DelayedMessage]:
    """Return the first ``limit`` delayed messages of ``queue``, the earliest first; large ones take several steps."""
    found: list[DelayedMessage] = []
    while page := broker.preview(queue, offset=len(found), count=limit - len(found)):
        found += [
            DelayedMessage(queue, member.decode(errors="replace"), float(score) / 1000, _unpacked(raw))
            for member, score, raw in page
        ]
    return found


# -- dead letters -----------------------------------------------------------------------------------------------------


def dead_letters(
    broker: StreamBroker,
    queue: str,
    *,
    task: str | None = None,
    reason: str | None = None,
    older_than: float | None = None,
    newer_than: float | None = None,
    ids: Collection[str] | None = None,
    now: float | None = None,
) -> Iterator[DeadLetter]:
    """Yield the dead letters of ``queue``, the oldest first, in pages of 100 and fewer.

    ``task`` is a name or a shell pattern; ``ids`` are entry ids or task ids; ``older_than`` and ``newer_than`` are ages
    in seconds, by Redis' clock, which wrote when a letter died; ``now`` is that clock for whoever asks for several
    queues. What dies after the first page was asked for does not appear, so that whoever replays what is yielded
    comes to an end.
    """
    key = broker.queue_keys(queue).dead
    clock = redis_time(broker) if now is None else now
    start: Any = "-" if newer_than is None else _id_at(clock - newer_than)
    newest = broker.client.call("XREVRANGE", key, "+", "-", "COUNT", 1)
    if not newest:
        return
    end: Any = newest[0][0] if older_than is None else _id_at(clock - older_than)
    while True:
        page = broker.scan(key, start=start, end=end)
        if not page:
            return
        for entry_id, fields in page:
            letter = _dead_letter(queue, entry_id, fields)
            if (
                (task is None or letter.task == task or fnmatchcase(letter.task or "", task))
                and (reason is None or letter.reason == reason)
                and (ids is None or letter.entry_id in ids or letter.task_id in ids)
            ):
                yield letter
        start = b"(" + page[-1][0]


def decode_arguments(message: Message, *, accept: Iterable[str] | None) -> Arguments:
    """Decode what the task was called with, through ``accept`` (Celery's ``accept_content``) and nothing else.

    A content type that is not accepted stays undecoded, as in the worker: a pickle is never loaded to be looked at.
    """
    try:
        headers, properties = message.decode_headers(), message.decode_properties()
        kombu_message = KombuMessage(
            body=message.body,
            content_type=properties.get("content_type"),
            content_encoding=properties.get("content_encoding"),
            headers=headers,
            properties=properties,
            accept=prepare_accept_content(["json"] if accept is None else list(accept)),
        )
        payload = kombu_message.decode()
        if "task" in headers:
            args, kwargs, *_ = payload
        else:  # protocol 1
            args, kwargs = payload.get("args"), payload.get("kwargs")
    except Exception as exc:  # noqa: BLE001  (decoders, and those that users register, raise anything)
        return Arguments(error=f"{type(exc).__name__}: {exc}")
    return Arguments(args, kwargs)


def dead_letter(broker: StreamBroker, queue: str, entry_id: str) -> DeadLetter | None:
    """Return one dead letter by its id, or None (also when the id is no entry id)."""
    if not _is_entry_id(entry_id):
        return None
    found = broker.client.call("XRANGE", broker.queue_keys(queue).dead, entry_id, entry_id)
    return _dead_letter(queue, *found[0]) if found else None


def obstacles(broker: StreamBroker, letters: Sequence[DeadLetter]) -> list[tuple[Obstacle, ...]]:
    """Return for each dead letter why no worker would run it; one round trip for all of them.

    Of one that is no task message nothing is said here: :func:`replay` refuses it.
    """
    messages = [_readable(letter) for letter in letters]
    ids = {task_id for message in messages if message and (task_id := task_id_of(message)) is not None}
    stamps = {stamp for message in messages if message for stamp in stamps_of(message)}
    looks = [("ZSCORE", keys.revoked(broker.prefix), task_id) for task_id in ids]
    looks += [("ZSCORE", keys.revoked_stamps(broker.prefix), stamp) for stamp in stamps]
    clock, *scores = broker.client.call_all([("TIME",), *looks])
    now = int(clock[0]) + int(clock[1]) / 1e6
    # The score says when a revocation is forgotten.
    revoked = {name for name, score in zip((*ids, *stamps), scores, strict=True) if score and float(score) > now}
    return [find_obstacles(message, now=now, revoked=revoked) if message else () for message in messages]


def _readable(letter: DeadLetter) -> Message | None:
    message = letter.message
    try:
        if message is not None:
            message.decode_headers()
            message.decode_properties()
    except MessageError:
        return None
    return message


def replay(
    broker: StreamBroker,
    letter: DeadLetter,
    *,
    queue: str | None = None,
    ignore_expires: bool = False,
    ignore_revoked: bool = False,
) -> str | None:
    """Move a dead letter back to its queue, or to another, as a message with no history; it keeps its task id.

    Atomic: run twice, or killed half-way, it is moved once. Three round trips. Returns the new entry id, or None when
    the letter is no longer there. What no worker would run stays where it is.

    Args:
        ignore_expires: move it also when it has expired, without its expiry.
        ignore_revoked: move it also when it was revoked, as a task with a new id and no stamps, for workers know for
            hours what was revoked.

    Raises:
        CannotRun: it has expired, or was revoked.
        MessageError: the letter is not a task message; no worker could run it.
    """
    message = letter.message
    if message is None:
        raise MessageError(f"Dead letter {letter.entry_id} of queue {letter.queue!r} is not a task message.")
    changed = message
    for obstacle in obstacles(broker, [letter])[0]:
        if not (ignore_expires if obstacle.kind == "expired" else ignore_revoked):
            raise CannotRun(f"Dead letter {letter.entry_id} of queue {letter.queue!r} stays: {obstacle.text}.")
        changed = without_expiry(changed) if obstacle.kind == "expired" else under_new_id(changed, str(uuid.uuid4()))
    target = broker.queue_keys(queue or letter.queue)
    step = target.step_index(message.decode_properties().get("priority"))
    broker.client.call("SADD", keys.queues(broker.prefix), target.queue)
    moved = broker.client.run(
        scripts.REPLAY,
        [broker.queue_keys(letter.queue).dead, target.streams[step]],
        [letter.entry_id, *(changed.as_fields() if changed is not message else ())],
    )
    return moved.decode() if moved else None


def purge_dead(broker: StreamBroker, queue: str, entry_ids: Iterable[str]) -> int:
    """Delete dead letters for good; returns how many there were."""
    wanted = [entry_id for entry_id in entry_ids if _is_entry_id(entry_id)]
    return int(broker.client.call("XDEL", broker.queue_keys(queue).dead, *wanted)) if wanted else 0


def purge(broker: StreamBroker, queue: str) -> int:
    """Discard everything of ``queue`` that waits or is delayed; what is pending goes on. Returns how many.

    In steps of 1,000, so that Redis is never held up; not atomic as a whole.
    """
    names = broker.queue_keys(queue)
    count = 0
    for stream in (*names.fronts, *names.streams):
        while True:
            discarded, more = broker.client.run(scripts.PURGE, [stream], [keys.GROUP, _PURGE_STEP, STEP_BYTES])
            count += discarded
            if not more:
                break
    delayed, _ = broker.client.call_all([("ZCARD", names.delayed), ("UNLINK", names.delayed, names.delayed_messages)])
    return count + int(delayed)


def _dead_letter(queue: str, entry_id: bytes, flat: list[bytes]) -> DeadLetter:
    fields = pairs(flat)
    if b"fields" in fields and b"headers" not in fields:
        with contextlib.suppress(MessageError):  # then it is a field of that name, and nothing more
            fields |= pairs(unpack_fields(fields[b"fields"]))
            del fields[b"fields"]
    death = _decoded(fields.pop(b"death", b""))
    headers = _decoded(fields.get(b"headers", b""))
    history = _decoded(fields.get(b"history", b""))
    published = _milliseconds(history.get("first")) or _milliseconds(death.get("entry_id"))
    return DeadLetter(
        queue=queue,
        entry_id=entry_id.decode(),
        reason=str(death.get("reason", "unknown")),
        task=_text(death.get("task") or headers.get("task")),
        task_id=_text(death.get("task_id") or headers.get("id")),
        exception=death.get("exception"),
        traceback=death.get("traceback"),
        worker=death.get("worker"),
        crashes=_number(death.get("crashes") or history.get("crashes")),
        died=int(entry_id.partition(b"-")[0]) / 1000,
        published=published / 1000 if published else None,
        fields=tuple(fields.items()),
    )


def _id_at(seconds: float) -> str:
    return str(max(int(seconds * 1000), 0))


def _is_entry_id(text: str) -> bool:
    return bool(_ENTRY_ID.fullmatch(text)) and all(int(part) < 2**64 for part in text.split("-"))


def _text(value: Any) -> str | None:
    """Return what a malformed message says in the place of a text only if it is one."""
    return value if isinstance(value, str) else None


def _milliseconds(entry_id: Any) -> int:
    """Return the time in an entry id, 0 when it is none: anybody can write a history."""
    return int(entry_id.partition("-")[0]) if isinstance(entry_id, str) and _is_entry_id(entry_id) else 0


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _unpacked(raw: bytes | None) -> Message | None:
    try:
        return unpack(raw) if raw else None
    except MessageError:
        return None


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        value = decode_json(raw) if raw else {}
    except MessageError:
        return {}
    return value if isinstance(value, dict) else {}


def _published_ms(entry: list[Any]) -> int:
    entry_id, flat = entry
    for name, value in zip(flat[::2], flat[1::2], strict=False):
        if name == b"history":
            first = _milliseconds(_decoded(value).get("first"))
            if first:
                return first
    return int(entry_id.partition(b"-")[0])

"""Dead letters: reads them, moves them back to a queue, deletes them; why a message died is decided in the worker.

It knows neither Celery's app nor the worker. Nothing here is on the way of a message.
"""

from __future__ import annotations

import contextlib
import heapq
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from kombu.message import Message as KombuMessage
from kombu.serialization import prepare_accept_content

from . import keys, notes, scripts
from .attempts import FIELD, Attempt, of_history, parse
from .broker import StreamBroker
from .connection import pairs
from .entries import is_entry_id, milliseconds
from .exceptions import CannotRun, DuplicateTask, HolderThere, MessageError
from .inspect import redis_time
from .message import Message, decode_object, unpack_fields
from .obstacles import Obstacle, find_obstacles, stamps_of, task_id_of, under_new_id, without_expiry
from .pages import scan, steps
from .partitions import located, queue_of, shown_id
from .revoked_holders import make_way
from .transfers import are_apart, replay_apart

__all__ = (
    "Arguments",
    "DeadLetter",
    "dead_letter",
    "dead_letters",
    "decode_arguments",
    "obstacles",
    "parse_dead_letter",
    "purge_dead",
    "replay",
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up, complete and with the reason."""

    queue: str
    #: Of one in a partition of its queue, with the number of that: ``1712345678901-0/3``.
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
    #: The last attempt as the letter says it; see :attr:`attempts`.
    last_attempt: Any = field(default=None, repr=False)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """How the starts of the message ended, the oldest first: at most the last :data:`attempts.MOST` and one."""
        history = decode_object(dict(self.fields).get(b"history", b""))
        return (*of_history(history), *parse(self.last_attempt))

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
    """Yield the dead letters of ``queue``, all its partitions together, the oldest first, in pages of 100 and fewer.

    ``task`` is a name or a shell pattern; ``ids`` are entry ids or task ids; ``older_than`` and ``newer_than`` are ages
    in seconds, by Redis' clock, which wrote when a letter died; ``now`` is that clock for whoever asks for several
    queues. What dies after the first page was asked for does not appear, so that whoever replays what is yielded
    comes to an end.
    """
    clock = redis_time(broker) if now is None else now
    start = "-" if newer_than is None else _id_at(clock - newer_than)
    end = None if older_than is None else _id_at(clock - older_than)
    sources = [_letters(broker, name, start, end) for name in broker.partitions(queue)]
    for letter in heapq.merge(*sources, key=lambda one: one.died):
        if (
            (task is None or letter.task == task or fnmatchcase(letter.task or "", task))
            and (reason is None or letter.reason == reason)
            and (ids is None or letter.entry_id in ids or letter.task_id in ids)
        ):
            yield letter


def _letters(broker: StreamBroker, name: str, start: Any, end: Any) -> Iterator[DeadLetter]:
    key = broker.queue_keys(name).dead
    newest = broker.client.call("XREVRANGE", key, "+", "-", "COUNT", 1)
    if not newest:
        return
    end = newest[0][0] if end is None else end
    while True:
        page = scan(broker.client, key, start=start, end=end)
        if not page:
            return
        for entry_id, fields in page:
            yield parse_dead_letter(name, entry_id, fields)
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
            if not isinstance(payload, (list, tuple)):  # a text, where nothing says what it is, would be taken apart
                raise MessageError(f"the body must be a list, not {type(payload).__name__}")
            args, kwargs, *_ = payload
        else:  # protocol 1
            args, kwargs = payload.get("args"), payload.get("kwargs")
    except Exception as exc:  # noqa: BLE001  (decoders, and those that users register, raise anything)
        return Arguments(error=f"{type(exc).__name__}: {exc}")
    return Arguments(args, kwargs)


def dead_letter(broker: StreamBroker, queue: str, entry_id: str) -> DeadLetter | None:
    """Return one dead letter by its id, or None (also when the id is no entry id)."""
    name, there = located(queue, entry_id)
    if not is_entry_id(there):
        return None
    found = broker.client.call("XRANGE", broker.queue_keys(name).dead, there, there)
    return parse_dead_letter(name, *found[0]) if found else None


def obstacles(broker: StreamBroker, letters: Sequence[DeadLetter]) -> list[tuple[Obstacle, ...]]:
    """Return for each dead letter why no worker would run it; one round trip for all of them.

    A letter that is not a task message has none here: :func:`replay` refuses it.
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

    Atomic: run twice, or killed half-way, it is moved once. Three round trips, and up to three more for what is unique:
    a message that waits and was revoked binds no letter. Returns the new entry id, or None when
    the letter is no longer there. What no worker would run stays where it is. To another queue on a Redis Cluster it is
    stored first, and not twice within ten minutes; then there is no id to tell, and it is empty.

    Args:
        ignore_expires: move it also when it has expired, without its expiry.
        ignore_revoked: move it also when it was revoked, as a task with a new id and no stamps, for workers know for
            hours what was revoked.

    Raises:
        CannotRun: it has expired, or was revoked, or is unique and a newer message is there.
        MessageError: the letter is not a task message; no worker could run it.
    """
    message = letter.message
    if message is None:
        raise MessageError(f"Dead letter {letter.entry_id} of queue {letter.queue!r} is not a task message.")
    changed = message
    for obstacle in obstacles(broker, [letter])[0]:
        if not (ignore_expires if obstacle.kind == "expired" else ignore_revoked):
            raise CannotRun(
                f"Dead letter {letter.entry_id} of queue {letter.queue!r} was not replayed: {obstacle.text}."
            )
        changed = without_expiry(changed) if obstacle.kind == "expired" else under_new_id(changed, str(uuid.uuid4()))
    source, entry_id = located(letter.queue, letter.entry_id)
    target = broker.queue_keys(source if queue in (None, letter.queue) else queue or "")
    step = target.step_index(message.decode_properties().get("priority"))
    make_way(broker, target.queue, changed)
    broker.client.call("SADD", keys.queues(broker.prefix), target.queue)
    if are_apart(broker, target.queue, source):
        return _replayed_apart(broker, letter, changed, target.queue)
    mark = notes.mark_of(changed)
    moved = broker.client.run(
        *notes.behind(
            scripts.REPLAY,
            [broker.queue_keys(source).dead, target.streams[step]],
            [entry_id, *(changed.as_fields() if changed is not message else ())],
            [mark and notes.note(broker.prefix, mark, "queued", target.queue)],
        )
    )
    if isinstance(moved, list):
        raise HolderThere(
            f"Dead letter {letter.entry_id} of queue {letter.queue!r} was not replayed: its task is unique, and "
            f"message {moved[0].decode(errors='replace')} holds its lock."
        )
    return shown_id(target.queue, moved.decode()) if moved else None


def _replayed_apart(broker: StreamBroker, letter: DeadLetter, message: Message, queue: str) -> str | None:
    source, entry_id = located(letter.queue, letter.entry_id)
    try:
        return "" if replay_apart(broker, source, entry_id, message, queue=queue) else None
    except DuplicateTask as exc:
        raise HolderThere(
            f"Dead letter {letter.entry_id} of queue {letter.queue!r} was not replayed: its task is unique, and "
            f"message {exc.task_id} on queue {queue!r} holds its lock."
        ) from exc


def purge_dead(broker: StreamBroker, queue: str, entry_ids: Iterable[str]) -> int:
    """Delete dead letters for good; returns how many there were."""
    wanted: dict[str, list[str]] = {}
    for name, entry_id in (located(queue, one) for one in entry_ids):
        if is_entry_id(entry_id):
            wanted.setdefault(name, []).append(entry_id)
    return sum(
        int(broker.client.call("XDEL", broker.queue_keys(name).dead, *some))
        for name, ids in wanted.items()
        for some in steps(ids)
    )


def parse_dead_letter(name: str, entry_id: bytes, flat: list[bytes]) -> DeadLetter:
    """Return a dead letter from its entry on a queue, or a partition of one; what is malformed in it is left out."""
    fields = pairs(flat)
    if b"fields" in fields and b"headers" not in fields:
        with contextlib.suppress(MessageError):  # then it is a field of that name, and nothing more
            fields |= pairs(unpack_fields(fields[b"fields"]))
            del fields[b"fields"]
    death = decode_object(fields.pop(b"death", b""))
    task, task_id = death.get("task"), death.get("task_id")
    # Read where the letter itself does not say it: a search looks at thousands.
    headers = {} if task and task_id else decode_object(fields.get(b"headers", b""))
    history = decode_object(fields.get(b"history", b""))
    published = milliseconds(history.get("first")) or milliseconds(death.get("entry_id"))
    return DeadLetter(
        queue=queue_of(name),
        entry_id=shown_id(name, entry_id.decode()),
        reason=str(death.get("reason", "unknown")),
        task=_text(task or headers.get("task")),
        task_id=_text(task_id or headers.get("id")),
        exception=death.get("exception"),
        traceback=death.get("traceback"),
        worker=death.get("worker"),
        crashes=_number(death.get("crashes") or history.get("crashes")),
        died=int(entry_id.partition(b"-")[0]) / 1000,
        published=published / 1000 if published else None,
        fields=tuple(fields.items()),
        last_attempt=death.get(FIELD),
    )


def _id_at(seconds: float) -> str:
    return str(max(int(seconds * 1000), 0))


def _text(value: Any) -> str | None:
    """Return what a malformed message says in the place of a text only if it is one."""
    return value if isinstance(value, str) else None


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0

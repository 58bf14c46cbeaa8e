"""Migration: moves what is queued between Celery's lists and the streams, in either direction, under load.

One database: each message moves in one script, so it is on one side or on the other at every instant, and a worker or
another migration that was faster wins. Two databases (``streams_url`` is not the broker's): ``database_transfer``
carries them across. A run begins with what an earlier one that was killed left on its way, whichever way that went.

What is running stays where it is: its worker settles it. Dead letters stay on the streams.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo
from typing import Any, Literal

from celery.utils.time import maybe_iso8601, maybe_make_aware

from . import keys, scripts
from .broker import StreamBroker
from .connection import RedisClient
from .database_transfer import DatabaseTransfer
from .exceptions import BrokerError, KeyOfOtherType, MessageError
from .inspect import own_group, queue_status
from .kombu_lists import SEPARATOR, ListKeys, Wrapped, list_keys, priority_of, unwrap, unwrap_unacked, wrap
from .lanes import let_go
from .locks import count_locks
from .message import Message, encode_history, pack, unpack
from .pages import STEP_BYTES, preview, scan

__all__ = ("Direction", "Migration", "Moves", "Plan", "same_database")

logger = logging.getLogger(__name__)

Direction = Literal["streams", "lists"]

ADOPT = scripts.load("adopt")
PEEK = scripts.load("peek")
RECALL = scripts.load("recall")
SURRENDER = scripts.load("surrender")
UNDELAY = scripts.load("undelay")

#: Messages moved in one step, fewer when they are large, so that Redis is never held up for long.
_STEP = 100

#: Rounds over a queue: workers put entries back, and delayed messages come due, while the first one goes on.
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What a migration of one queue would move, and what it would leave."""

    queue: str
    to: Direction
    #: On Celery's lists.
    queued: int
    #: On the streams and not delivered.
    waiting: int
    delayed: int
    #: Held by consumers without a heartbeat for the visibility timeout.
    abandoned: int
    #: Being run by living workers of ours: left alone.
    running: int
    #: Fetched by stock workers and not acknowledged: moved only with ``include_unacked``.
    unacked: int
    #: Left on the way by a migration that was killed.
    in_transit: int
    #: Of limited tasks, moved aside until they may start.
    held: int = 0
    #: Locks of unique tasks, which end on lists.
    locks: int = 0

    @property
    def total(self) -> int:
        """Messages that would be moved."""
        if self.to == "streams":
            return self.queued + self.in_transit
        return self.waiting + self.delayed + self.held + self.abandoned + self.in_transit


@dataclass(slots=True)
class Moves:
    """What a migration of one queue did."""

    queue: str
    to: Direction
    #: Messages that can run now.
    moved: int = 0
    #: Messages that are due later.
    delayed: int = 0
    #: Messages that dead consumers had held.
    abandoned: int = 0
    #: Messages taken back from stock workers; they are counted in the others too.
    recalled: int = 0
    #: Elements that are no messages, moved for a worker to dead-letter them.
    malformed: int = 0
    #: Entries that are no messages, left on the stream.
    skipped: int = 0
    #: Messages of limited tasks that had to wait; they are counted in ``moved`` too.
    held: int = 0
    #: Locks of unique tasks that ended.
    locks: int = 0

    @property
    def total(self) -> int:
        """Messages moved."""
        return self.moved + self.delayed + self.abandoned + self.malformed


class Migration:
    """Moves queues between the lists behind ``lists`` and the streams of ``broker``.

    Args:
        options: ``broker_transport_options``.
        visibility_timeout: seconds without a heartbeat after which a consumer counts as dead.
        time_zone: of an ``eta`` that names none.
        progress: called with the number of messages just moved.
    """

    def __init__(
        self,
        broker: StreamBroker,
        lists: RedisClient,
        *,
        options: Mapping[str, Any],
        visibility_timeout: float,
        time_zone: tzinfo = timezone.utc,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.broker = broker
        self.lists = lists
        self.progress = progress
        self._options = options
        self._idle_ms = int(visibility_timeout * 1000)
        self._time_zone = time_zone
        self._one_database = same_database(broker.client, lists)

    # -- looking

    def plan(self, queue: str, to: Direction) -> Plan:
        """Return what would be moved now; changes nothing."""
        names = list_keys(queue, self._options)
        status = queue_status(self.broker, queue, workers=())
        if status.odd_keys:
            odd = ", ".join(status.odd_keys)
            raise KeyOfOtherType(f"Queue {queue!r} has keys of another type: {odd}; celery-streams doctor says more")
        ours = self.broker.partitions(queue)
        streams = [stream for name in ours for stream in self.broker.present(name)]
        abandoned = sum(1 for stream in streams for _ in self._abandoned(stream))
        sides = [self.lists] if self._one_database else [self.lists, self.broker.client]
        transit = [
            (side.call("LLEN", keep.outgoing), side.call("LLEN", keep.incoming))
            for keep in (keys.migration_keys(self.broker.prefix, name) for name in ours)
            for side in sides
        ]
        return Plan(
            queue=queue,
            to=to,
            queued=sum(int(self.lists.call("LLEN", key)) for key in names.lists),
            waiting=status.waiting,
            delayed=status.delayed,
            abandoned=abandoned,
            running=status.pending - abandoned,
            unacked=sum(1 for _ in self._unacked(names)),
            held=status.held,
            locks=count_locks(self.broker, queue) if to == "lists" else 0,
            in_transit=sum(int(count) for pair in transit for count in pair),
        )

    # -- lists to streams

    def to_streams(self, queue: str, *, include_unacked: bool = False, moves: Moves | None = None) -> Moves:
        """Move everything on the lists of ``queue`` to its streams; what has an eta ahead becomes a delayed message.

        ``include_unacked`` also takes back what stock workers have fetched. They do not notice: what they run now will
        run again, and what they hold for its eta will run twice. Stop them first.

        ``moves`` is counted up while it goes on, for whoever wants to know after an error.

        ``streams_max_length`` does not bound a migration: it moves messages and makes none. Of a queue with partitions
        they go to the first, behind each other as they were.

        Raises:
            BrokerError: Redis is away or refuses; what was not moved is still where it was, and another run goes on.
        """
        moves = moves or Moves(queue, "streams")
        names = list_keys(queue, self._options)
        for name in self.broker.partitions(queue)[1:]:
            self._resume(moves, names, name)
        transfer = self._resume(moves, names, queue)
        for _ in range(_ROUNDS):
            before = moves.total
            if include_unacked:
                self._recall(moves, names)
            for key in names.lists:
                if transfer is None:
                    self._adopt(moves, key, queue)
                    continue
                while transfer.depart(key):
                    transfer.to_streams()
                    self._adopt(moves, transfer.kept.incoming, queue)
            if moves.total == before:
                break
        return moves

    def _adopt(self, moves: Moves, key: str, name: str) -> None:
        """Move the list ``key``, in the database of the streams, to the streams of ``name``, until it is empty."""
        ours = self.broker.queue_keys(name)
        target = [key, ours.delayed, ours.delayed_messages, ours.wake, *ours.streams]
        while True:
            elements = self.broker.client.run(PEEK, [key], [_STEP, STEP_BYTES])
            if not elements:
                return
            self.broker.client.call("SADD", keys.queues(self.broker.prefix), name)
            converted = [self._convert(element, ours) for element in elements]
            args: list[Any] = []
            for element, (due_ms, member, packed) in zip(elements, converted, strict=True):
                args += [element, due_ms, member, packed]
            moved = self.broker.client.run(ADOPT, target, args)
            for position in moved:
                due_ms, _, packed = converted[int(position)]
                if not packed:
                    moves.malformed += 1
                elif due_ms:
                    moves.delayed += 1
                else:
                    moves.moved += 1
            self.progress(len(moved))

    def _convert(self, element: bytes, names: keys.QueueKeys) -> tuple[int, str, bytes]:
        try:
            message = unwrap(element, names)
            headers = message.decode_headers()
        except MessageError as exc:
            logger.warning("An element of queue %s is not a message and becomes a dead letter: %s", names.queue, exc)
            return 0, "", b""
        return self._due_ms(headers), f"{headers.get('id')}:migrated:{uuid.uuid4().hex}", pack(message)

    def _due_ms(self, headers: Mapping[str, Any]) -> int:
        try:
            due = maybe_make_aware(maybe_iso8601(headers.get("eta")), self._time_zone)
            due_ms = int(due.timestamp() * 1000)
        except (AttributeError, ValueError, TypeError, OverflowError):
            return 0  # none, or one that the worker says what is wrong with
        return due_ms if due_ms > datetime.now(timezone.utc).timestamp() * 1000 else 0

    def _recall(self, moves: Moves, names: ListKeys) -> None:
        for tag, element in self._unacked(names):
            key = names.lists[names.index_of(priority_of(element))]
            moves.recalled += int(self.lists.run(RECALL, [names.unacked, names.unacked_index, key], [tag, element]))

    def _unacked(self, names: ListKeys) -> Iterator[tuple[bytes, bytes]]:
        """Yield (delivery tag, element) of what stock workers have fetched from the queue."""
        cursor: Any = b"0"
        seen: set[bytes] = set()
        while True:
            cursor, flat = self.lists.call("HSCAN", names.unacked, cursor, "COUNT", _STEP)
            for tag, value in zip(flat[::2], flat[1::2], strict=True):
                try:
                    element, exchange, routing_key = unwrap_unacked(value)
                except MessageError:
                    continue
                if tag not in seen and names.queue in self._queues_of(exchange, routing_key, names):
                    seen.add(tag)
                    yield tag, element
            if int(cursor) == 0:
                return

    def _queues_of(self, exchange: str, routing_key: str, names: ListKeys) -> set[str]:
        if not exchange:
            return {routing_key}
        separator = str(self._options.get("sep") or SEPARATOR)
        bound = [
            member.decode(errors="replace").split(separator)
            for member in self.lists.call("SMEMBERS", names.bindings % exchange)
        ]
        return {parts[2] for parts in bound if len(parts) == 3 and parts[0] == routing_key}

    # -- streams to lists

    def to_lists(self, queue: str, *, moves: Moves | None = None) -> Moves:
        """Move what waits, what is delayed and what dead consumers hold from the streams of ``queue`` to its lists.

        A delayed message keeps its eta, or gets one: the time it was delayed until. A stock worker runs it then.

        Raises:
            BrokerError: as in :meth:`to_streams`.
        """
        moves = moves or Moves(queue, "lists")
        names = list_keys(queue, self._options)
        locks = count_locks(self.broker, queue)
        for name in self.broker.partitions(queue):
            self._to_lists(moves, names, name)
        moves.locks = max(locks - count_locks(self.broker, queue), 0)
        return moves

    def _to_lists(self, moves: Moves, names: ListKeys, name: str) -> None:
        ours = self.broker.queue_keys(name)
        target = _Target(names, self._resume(moves, names, name))
        skipped = moves.skipped
        for _ in range(_ROUNDS):
            before = moves.total
            moves.skipped = skipped
            self._undelay(moves, target, name)
            moves.held += let_go(self.broker, name)
            for step in range(len(ours.steps)):
                for place in (len(ours.steps) + step, step):
                    self._surrender(moves, target, name, place)
                    self._surrender_abandoned(moves, target, name, place)
            if moves.total == before:
                break

    def _undelay(self, moves: Moves, target: _Target, name: str) -> None:
        ours = self.broker.queue_keys(name)
        offset = 0
        while True:
            page = preview(self.broker.client, ours, offset=offset, count=_STEP)
            if not page:
                return
            args: list[Any] = []
            wrapped: list[Wrapped] = []
            for member, score, raw in page:
                try:
                    message = unpack(raw)
                    one = wrap(message, target.names, eta=self._later_eta(message, float(score)))
                except MessageError:
                    moves.skipped += 1
                    continue
                wrapped.append(one)
                args += [member, raw, *target.place(one)]
            # What is left alone stays in front; what was promoted meanwhile is gone.
            offset += len(page) - len(wrapped)
            if not wrapped:
                continue
            moved = self.broker.client.run(UNDELAY, [ours.delayed, ours.delayed_messages, *target.lists], args)
            target.carry()
            moves.delayed += len(moved)
            self.progress(len(moved))

    def _later_eta(self, message: Message, due_ms: float) -> str | None:
        """Return the eta to set; None leaves the headers as they are: the message is due, or has its own."""
        now_ms = datetime.now(timezone.utc).timestamp() * 1000
        if due_ms <= now_ms:
            return None
        try:
            eta = datetime.fromtimestamp(due_ms / 1000, timezone.utc).isoformat()
        except (OverflowError, ValueError, OSError) as exc:
            raise MessageError(f"its due time, {due_ms:.0f} ms, is not a date") from exc
        return None if self._due_ms(message.decode_headers()) >= int(due_ms) else eta

    def _surrender(self, moves: Moves, target: _Target, name: str, place: int) -> None:
        """Move what waits on a stream of the queue; they are counted from 0, then its fronts."""
        stream = self._stream(name, place)
        start: Any = self._last_delivered(stream)
        while True:
            page = scan(self.broker.client, stream, start=b"(" + start if start else "-", count=_STEP)
            if not page:
                return
            start = page[-1][0]
            moves.moved += self._give(moves, target, name, place, page, idle_ms="")

    def _surrender_abandoned(self, moves: Moves, target: _Target, name: str, place: int) -> None:
        """Move what consumers hold that gave no heartbeat for the visibility timeout."""
        stream = self._stream(name, place)
        ids = list(self._abandoned(stream))
        for one in ids:
            page = scan(self.broker.client, stream, start=one, end=one)
            moves.abandoned += self._give(moves, target, name, place, page, idle_ms=self._idle_ms)

    def _give(
        self, moves: Moves, target: _Target, name: str, place: int, page: Sequence[Any], *, idle_ms: int | str
    ) -> int:
        names = self.broker.queue_keys(name)
        args: list[Any] = []
        for entry_id, fields in page:
            try:
                message = Message.from_fields(fields, step=place % len(names.steps))
                if idle_ms != "":
                    message = _redelivered(message)
                args += [entry_id, *target.place(wrap(message, target.names))]
            except MessageError:
                moves.skipped += 1
        if not args:
            return 0
        where = [keys.GROUP, len(names.steps), place, idle_ms]
        moved = self.broker.client.run(SURRENDER, [*names.shelf_and_streams, *target.lists], [*where, *args])
        target.carry()
        self.progress(len(moved))
        return len(moved)

    def _stream(self, queue: str, place: int) -> str:
        names = self.broker.queue_keys(queue)
        return (*names.streams, *names.fronts)[place]

    def _last_delivered(self, stream: str) -> bytes | None:
        (groups,) = self.broker.client.call_all([("XINFO", "GROUPS", stream)], missing_is_none=True)
        group = own_group(groups)
        return bytes(group[b"last-delivered-id"]) if group else None

    def _abandoned(self, stream: str) -> Iterator[bytes]:
        start: Any = "-"
        while True:
            look = ("XPENDING", stream, keys.GROUP, "IDLE", self._idle_ms, start, "+", _STEP)
            (page,) = self.broker.client.call_all([look], missing_is_none=True)
            yield from (held[0] for held in page or ())
            if not page or len(page) < _STEP:
                return
            start = b"(" + page[-1][0]

    # -- between two databases

    def _resume(self, moves: Moves, names: ListKeys, name: str) -> DatabaseTransfer | None:
        """Bring what an earlier migration left on its way to where that went; returns the way, if there is one."""
        kept = keys.migration_keys(self.broker.prefix, name)
        transfer = None if self._one_database else DatabaseTransfer(self.lists, self.broker.client, kept, names)
        if transfer is not None:
            transfer.to_streams()
        self._adopt(moves if moves.to == "streams" else Moves(moves.queue, "streams"), kept.incoming, name)
        if transfer is not None:
            transfer.to_lists()
            transfer.forget_open_tags()
        return transfer


class _Target:
    """Where messages for the lists are put: the lists themselves, or on their way to another database."""

    def __init__(self, names: ListKeys, transfer: DatabaseTransfer | None) -> None:
        self.names = names
        self.lists = list(names.lists) if transfer is None else [transfer.kept.outgoing]
        self._transfer = transfer

    def place(self, wrapped: Wrapped) -> tuple[int, bytes]:
        """Return which of the lists, counted from 1, and the element for it."""
        if self._transfer is None:
            return wrapped.index + 1, wrapped.element
        return 1, self._transfer.tagged(wrapped)

    def carry(self) -> None:
        """Carry on what was put here."""
        if self._transfer is not None:
            self._transfer.to_lists()


def _redelivered(message: Message) -> Message:
    """Return the message with a history that says that a process had started it."""
    history = {**message.decode_history(), "redelivered": 1}
    return Message(message.headers, message.properties, message.body, encode_history(history), message.step)


def same_database(one: RedisClient, other: RedisClient) -> bool:
    """Return whether two clients see the same keys; False when that cannot be known, which is slower and as safe."""
    if one.url == other.url:
        return True
    try:
        return _identity(one) == _identity(other)
    except (BrokerError, ValueError):
        return False


def _identity(client: RedisClient) -> tuple[bytes, bytes]:
    server, connection = client.call("INFO", "server"), client.call("CLIENT", "INFO")
    run_id = next((line[7:] for line in server.splitlines() if line.startswith(b"run_id:")), b"")
    database = next((word[3:] for word in connection.split() if word.startswith(b"db=")), b"")
    if not run_id or not database:
        raise ValueError("the server does not say who it is")
    return run_id, database

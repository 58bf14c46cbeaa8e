"""StreamBroker: the hot path of a message's life in Redis: publish, delay, promote, read, and every way to settle.

It knows keys, scripts and commands; it knows neither Celery nor what a task is. Inspection, replay and purge stand in
``inspect``. Each method is one round trip and one atomic step unless its docstring says otherwise; none of them
retries. Settling (ack, retry, reject, requeue, release) first checks that the entry is still pending for the
consumer, so it is safe to send twice and never touches what another worker runs.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from . import keys, scripts
from .clock import steady_time
from .connection import BlockingConnection, RedisClient, explained
from .exceptions import BrokerError, BrokerFull, GroupExists, MessageError, QueueFull
from .message import Message, decode_json, encode_history, encode_json, pack

__all__ = ("STEP_BYTES", "Delivery", "Entry", "Promotion", "Recovery", "StreamBroker", "StreamRef")

#: Greatest pause in ms between re-deliveries of a message whose processes keep dying.
MAX_BACKOFF_MS = 60_000

#: Kinds of waits that are counted from now on, and not until a date: the longest of each in ms. The kind stands in the
#: member of the delayed set.
LONGEST_WAIT_MS = {"crash": MAX_BACKOFF_MS, "limit": 10_000, "unknown": 30_000}

#: Seconds after which a publisher writes the name of a queue to the set of all queues again: somebody may have
#: forgotten it.
_INTRODUCE_EVERY = 60.0

#: Queues that a publisher remembers to have introduced, in a project that makes queue names of its data.
_MOST_INTRODUCED = 10_000

#: Bytes of messages that one script may copy, whatever their number: Redis serves nobody else meanwhile.
STEP_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class StreamRef:
    """One task stream, or the front of one: its queue, the index of its priority step, and its key."""

    queue: str
    step: int
    key: str
    #: The key of its front, where what is put back waits for its turn before all else; a front has none.
    front: str = field(default="", compare=False)

    def at_front(self) -> StreamRef:
        """Return the front of this stream."""
        return StreamRef(self.queue, self.step, self.front)


class Entry(NamedTuple):
    """One entry of one stream. Its id alone does not tell it from others: it is unique within its stream only.

    A named tuple, not a dataclass, for one is made of every message that is read.
    """

    stream: StreamRef
    id: bytes

    def __str__(self) -> str:
        return f"{self.id.decode()} of queue {self.stream.queue}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """An entry that was handed to a consumer and is pending for it until it is settled."""

    entry: Entry
    #: None when the entry is not a message (then ``fields`` and ``error`` say what it is).
    message: Message | None
    fields: tuple[bytes, ...] = ()
    error: str = ""

    @property
    def stream(self) -> StreamRef:
        """The stream of the entry."""
        return self.entry.stream

    @property
    def entry_id(self) -> bytes:
        """The id of the entry within its stream."""
        return self.entry.id


@dataclass(frozen=True, slots=True)
class Promotion:
    """What one look at the delayed sets did."""

    moved: int
    #: Members whose message was gone (deleted by someone else).
    missing: int
    #: Milliseconds until the next message is due, 0 when the next step has something to do; None: nothing is delayed.
    next_due_ms: int | None
    #: What Redis said about the first queue whose messages it refused to move; they are still delayed. Empty: none.
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one look for entries of dead consumers did."""

    moved: int
    #: Pending entries that had been deleted or trimmed by someone else.
    vanished: int
    #: Entries over the delivery limit, now pending for the caller, with the consumer that had them last.
    exhausted: tuple[tuple[Delivery, str], ...]
    #: It ended at the limit of a step; the next look may come at once.
    more: bool = False
    #: Redis' time in milliseconds since the epoch.
    clock_ms: int = field(default=0, compare=False)
    #: Holders of which the caller did not say how long they may be silent; what they hold was left alone.
    strangers: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class BusyQueues:
    """Which queues have pending entries."""

    queues: tuple[str, ...]
    #: Redis' time in milliseconds since the epoch.
    clock_ms: int


class StreamBroker:
    """The streams of one Redis database under one key prefix."""

    def __init__(
        self, client: RedisClient, *, prefix: str = keys.DEFAULT_PREFIX, steps: tuple[int, ...] = keys.DEFAULT_STEPS
    ) -> None:
        self.client = client
        self.prefix = prefix
        self.steps = steps
        #: Queue -> when its name is written to the set of all queues again.
        self._introduced: dict[str, float] = {}

    # -- names

    def queue_keys(self, queue: str) -> keys.QueueKeys:
        """Return the Redis keys of ``queue``."""
        return keys.queue_keys(self.prefix, queue, self.steps)

    def streams(self, queues: Iterable[str]) -> list[StreamRef]:
        """Return the task streams of ``queues`` by priority first: all queues' step 0, then all queues' step 1 ..."""
        names = [self.queue_keys(queue) for queue in queues]
        return [
            StreamRef(one.queue, step, one.streams[step], one.fronts[step])
            for step in range(len(self.steps))
            for one in names
        ]

    def present(self, queue: str) -> list[str]:
        """Return the keys of the task streams of ``queue``, and of those fronts that are there. One round trip."""
        names = self.queue_keys(queue)
        found = self.client.call_all([("EXISTS", front) for front in names.fronts])
        return [*names.streams, *(front for front, there in zip(names.fronts, found, strict=True) if there)]

    # -- publish

    def publish(self, queue: str, message: Message, *, max_length: int | None = None) -> bytes:
        """Append ``message`` to the stream of its priority step and return the entry id.

        Raises:
            QueueFull: the queue already holds ``max_length`` messages (waiting, pending and delayed together).
        """
        if time.monotonic() >= self._introduced.get(queue, 0.0):
            self._introduce(queue)
        names = self.queue_keys(queue)
        key = names.streams[message.step]
        if max_length is None:
            entry_id = self.client.call("XADD", key, "*", *message.as_fields())
        else:
            entry_id = self.client.run(
                scripts.PUBLISH,
                [key, names.delayed, *names.streams, *names.fronts],
                [max_length, message.headers, message.properties, message.body],
            )
            if not entry_id:
                raise QueueFull(
                    f"Queue {queue!r} holds {max_length} messages (streams_max_length); nothing was stored."
                )
        return bytes(entry_id)

    def delay(self, queue: str, message: Message, *, due_ms: int, member: str, max_length: int | None = None) -> None:
        """Store ``message`` until ``due_ms`` (milliseconds since the epoch, compared with Redis' clock).

        The same ``member`` again replaces the message, which makes the publish of a retry idempotent.

        Raises:
            QueueFull: as in :meth:`publish`.
        """
        if time.monotonic() >= self._introduced.get(queue, 0.0):
            self._introduce(queue)
        names = self.queue_keys(queue)
        stored = self.client.run(
            scripts.DELAY,
            [names.delayed, names.delayed_messages, names.wake, *(names.streams + names.fronts if max_length else ())],
            [due_ms, member, pack(message), max_length or 0],
        )
        if not stored:
            raise QueueFull(f"Queue {queue!r} holds {max_length} messages (streams_max_length); nothing was stored.")

    def _introduce(self, queue: str) -> None:
        self.client.call("SADD", keys.queues(self.prefix), queue)
        if len(self._introduced) >= _MOST_INTRODUCED:
            self._introduced.clear()  # those still in use are written once more
        self._introduced[queue] = time.monotonic() + _INTRODUCE_EVERY

    # -- consumer groups

    def ensure_groups(self, queues: Iterable[str]) -> int:
        """Create missing streams and groups (from the beginning, so that no waiting message is skipped).

        Returns the number of groups created. One round trip; each group is created atomically.

        Raises:
            BrokerError: a key holds another type, or the command is not permitted.
        """
        names = list(queues)
        commands: list[tuple[Any, ...]] = [
            ("XGROUP", "CREATE", ref.key, keys.GROUP, "0", "MKSTREAM") for ref in self.streams(names)
        ]
        commands += [("SADD", keys.queues(self.prefix), queue) for queue in names]
        created = 0
        for reply in self.client.pipeline(commands) if commands else []:
            if isinstance(reply, GroupExists):
                continue
            if isinstance(reply, BrokerError):
                raise reply
            if reply in (b"OK", "OK"):
                created += 1
        return created

    def forget_consumer(self, queues: Iterable[str], consumer: str) -> int:
        """Delete ``consumer`` from all groups where it holds nothing; returns from how many."""
        return self._forget(queues, consumer, 0)

    def forget_idle_consumers(
        self,
        queues: Iterable[str],
        *,
        idle_ms: int,
        living: Iterable[str] = (),
        nodes: Mapping[str, int] | None = None,
    ) -> int:
        """Delete consumers that hold nothing and were not heard of for ``idle_ms``; returns how many.

        Args:
            living: consumers that are kept, however long nobody heard of them.
            nodes: shorter times in ms for the others of these node names.
        """
        # Lua's JSON does not tell an empty list from an empty mapping; it iterates over both.
        said = encode_json({"living": list(living), "nodes": dict(nodes or {})})
        return self._forget(queues, "", idle_ms, said)

    def touch_consumers(self, queues: Iterable[str], consumers: Sequence[str]) -> int:
        """Say that idle ``consumers`` are alive, so that nobody takes them for gone; returns how many were told of."""
        streams = [ref.key for ref in self.streams(queues)]
        if not streams or not consumers:
            return 0
        return int(self.client.run(scripts.TOUCH, streams, [keys.GROUP, *consumers]))

    def _forget(self, queues: Iterable[str], consumer: str, idle_ms: int, *said: Any) -> int:
        streams = self.streams(queues)
        if not streams:
            return 0
        names = [*(ref.key for ref in streams), *(ref.front for ref in streams)]
        return int(self.client.run(scripts.FORGET, names, [keys.GROUP, consumer, idle_ms, len(streams), *said]))

    # -- read

    @staticmethod
    def read_command(streams: Sequence[StreamRef], consumer: str, *, count: int) -> tuple[Any, ...]:
        """Return the command of a read that does not block, for a pipeline; see :meth:`parse_read`."""
        width = sum(ref.step == streams[0].step for ref in streams)
        names = [key for ref in streams for key in (ref.front, ref.key)]
        return (scripts.READ, names, [keys.GROUP, consumer, count, width])

    @staticmethod
    def parse_read(streams: Sequence[StreamRef], reply: Any) -> list[Delivery]:
        """Turn the reply to :meth:`read_command` into deliveries."""
        found: list[Delivery] = []
        for index, entries in reply or ():
            ref = streams[(index - 1) // 2]
            if index % 2:
                ref = ref.at_front()
            found += [delivery(ref, entry_id, fields) for entry_id, fields in entries]
        return found

    def read(self, streams: Sequence[StreamRef], consumer: str, *, count: int) -> list[Delivery]:
        """Read up to ``count`` new entries of the highest priority that has any, without blocking.

        What was put back, or became due, comes before what waits on its stream.
        """
        return self.parse_read(streams, self.client.run(*self.read_command(streams, consumer, count=count)))

    @staticmethod
    def send_blocking_read(
        connection: BlockingConnection, streams: Sequence[StreamRef], consumer: str, *, block_ms: int
    ) -> None:
        """Ask for the next entry of any of ``streams``; the reply is taken with :meth:`receive_blocking_read`.

        Fronts need no listening to: they are written to only while something waits on their streams.
        """
        names = [ref.key for ref in streams]
        connection.send(
            "XREADGROUP",
            "GROUP",
            keys.GROUP,
            consumer,
            "COUNT",
            1,
            "BLOCK",
            block_ms,
            "STREAMS",
            *names,
            *">" * len(names),
        )

    @staticmethod
    def receive_blocking_read(
        connection: BlockingConnection, streams: Sequence[StreamRef], *, timeout: float
    ) -> list[Delivery]:
        """Take the reply of :meth:`send_blocking_read`, highest priority first; empty when the time was up.

        Raises:
            BrokerUnavailable: no reply within ``timeout`` seconds, or the stream was deleted meanwhile.
        """
        reply = connection.receive(timeout=timeout)
        by_key = {ref.key.encode(): ref for ref in streams}
        found = [
            delivery(by_key[key], entry_id, fields) for key, entries in reply or () for entry_id, fields in entries
        ]
        if len(found) > 1:
            found.sort(key=lambda item: item.stream.step)
        return found

    # -- settle

    @staticmethod
    def ack_command(consumer: str, entries: Sequence[Entry]) -> tuple[Any, ...]:
        """Return the command that acknowledges and deletes ``entries``; see :meth:`parse_ack`."""
        return _by_stream(scripts.ACK, [keys.GROUP, consumer], entries)

    @staticmethod
    def parse_ack(entries: Sequence[Entry], reply: Any) -> list[Entry]:
        """Turn the reply to :meth:`ack_command` into the entries that were no longer the consumer's."""
        return [entries[position] for position in reply]

    def ack(self, consumer: str, entries: Sequence[Entry]) -> list[Entry]:
        """Acknowledge and delete ``entries``; returns those that ``consumer`` no longer owned (left alone)."""
        if not entries:
            return []
        return self.parse_ack(entries, self.client.run(*self.ack_command(consumer, entries)))

    def release(self, consumer: str, entries: Sequence[Entry]) -> int:
        """Put un-started ``entries`` back for other consumers, with no delivery counted; returns how many.

        They run before what waits on their streams, in their order. Large ones take several steps.
        """
        count, left = 0, list(entries)
        while left:
            order: dict[StreamRef, int] = {}
            at: list[Any] = []
            for ref, entry_id in left:
                at += [order.setdefault(ref, len(order) + 1), entry_id]
            put_back, looked, _ = self.client.run(
                scripts.RELEASE, self._ways_back(order), [keys.GROUP, consumer, STEP_BYTES, *at]
            )
            count += put_back
            del left[:looked]
        return count

    def _ways_back(self, streams: Iterable[StreamRef]) -> list[str]:
        """Return for each stream or front its key, and those of its task stream, of the front and of the mark."""
        names: list[str] = []
        for ref in streams:
            known = self.queue_keys(ref.queue)
            names += [ref.key, known.streams[ref.step], known.fronts[ref.step], known.marks[ref.step]]
        return names

    def held_by(self, consumer: str, streams: Sequence[StreamRef], *, limit: int = 10_000) -> list[Entry]:
        """Return what is pending for ``consumer`` on ``streams`` and their fronts, at most ``limit`` on each."""
        sources = [place for ref in streams for place in (ref.at_front(), ref)]
        commands = [("XPENDING", one.key, keys.GROUP, "-", "+", limit, consumer) for one in sources]
        replies = self.client.call_all(commands, missing_is_none=True) if commands else []
        return [Entry(one, held[0]) for one, found in zip(sources, replies, strict=True) for held in found or ()]

    def release_all(self, streams: Sequence[StreamRef], consumer: str) -> int:
        """Put back everything that is pending for ``consumer`` on ``streams`` and their fronts; returns how many.

        It runs before what waits there, in its order. Many, and large ones, take several steps.
        """
        if not streams:
            return 0
        sources: dict[StreamRef, None] = {}
        for ref in streams:
            known = self.queue_keys(ref.queue)
            for key in (known.fronts[ref.step], known.streams[ref.step]):
                sources[StreamRef(ref.queue, ref.step, key)] = None
        names = self._ways_back(sources)
        count, more = 0, 1
        while more:
            put_back, _, more = self.client.run(scripts.RELEASE, names, [keys.GROUP, consumer, STEP_BYTES])
            count += put_back
        return count

    def requeue(
        self,
        consumer: str,
        entry: Entry,
        *,
        history: dict[str, Any],
        delay_ms: int = 0,
        behind: bool = False,
        kind: str = "back",
    ) -> bool:
        """Put one entry back with a new ``history``, after ``delay_ms``; returns whether it was still ours.

        Args:
            kind: what it waits for: one of :data:`LONGEST_WAIT_MS`, or a date.
            behind: it goes behind what waits on its stream by then; else it runs before that.
        """
        stream, entry_id = entry.stream, entry.id.decode()
        names = self.queue_keys(stream.queue)
        # Entry ids are unique within one stream only.
        member = f"{history.get('first', entry_id)}:{kind}:{stream.key}:{entry_id}"
        return bool(
            self.client.run(
                scripts.REQUEUE,
                [*self._ways_back([stream]), names.delayed, names.delayed_messages, names.wake],
                [
                    keys.GROUP,
                    consumer,
                    entry.id,
                    encode_history(history),
                    delay_ms,
                    member,
                    stream.step,
                    int(behind),
                ],
            )
        )

    def retry(
        self,
        consumer: str,
        entry: Entry,
        message: Message,
        *,
        queue: str,
        due_ms: int = 0,
        member: str = "",
    ) -> bool:
        """Acknowledge an entry and store ``message`` on ``queue`` in its place, in one atomic step.

        ``due_ms`` is in milliseconds since the epoch, 0 for now. Returns False, with nothing stored, when the entry
        was no longer ours. One more round trip for the first retry to a queue that this broker never wrote to.
        """
        # Two messages with one task id, each of which is retried, are two: the entry tells them apart.
        member = f"{member}:{entry.stream.key}:{entry.id.decode()}"
        if queue != entry.stream.queue and time.monotonic() >= self._introduced.get(queue, 0.0):
            # A full Redis refuses to remember the name, and yet the retry must be stored.
            with contextlib.suppress(BrokerFull):
                self._introduce(queue)
        names = self.queue_keys(queue)
        return bool(
            self.client.run(
                scripts.RETRY,
                [entry.stream.key, names.streams[message.step], names.delayed, names.delayed_messages, names.wake],
                [
                    keys.GROUP,
                    consumer,
                    entry.id,
                    due_ms,
                    member,
                    message.headers,
                    message.properties,
                    message.body,
                    pack(message) if due_ms else b"",
                ],
            )
        )

    def reject(
        self,
        consumer: str,
        entry: Entry,
        *,
        death: bytes,
        max_length: int | None,
        ttl: float | None,
        max_memory: int | None = None,
        message: Message | None = None,
    ) -> bytes | None:
        """Move an entry to its queue's dead letters with ``death`` (JSON); returns the dead letter's id.

        The oldest dead letters beyond ``max_length``, ``ttl`` and ``max_memory`` (in bytes) are deleted.
        ``message`` is given only when the entry was acknowledged before it ran: then there is nothing to own.
        ``ttl`` is in seconds. Returns None when the entry was no longer ours.
        """
        ttl_ms = "" if ttl is None else int(ttl * 1000)
        args: list[Any] = [keys.GROUP, consumer, entry.id, death, max_length or 0, ttl_ms, max_memory or 0]
        args.append(int(steady_time() * 1000))
        if message is not None:
            args += message.as_fields()
        reply = self.client.run(scripts.REJECT, [entry.stream.key, self.queue_keys(entry.stream.queue).dead], args)
        return bytes(reply) if reply else None

    def scan(self, key: str, *, start: bytes | str = "-", end: bytes | str = "+", count: int = 100) -> list[Any]:
        """Return the next entries of a stream as XRANGE does, at most ``count``, and as :data:`STEP_BYTES` take."""
        return list(self.client.run(scripts.SCAN, [key], [start, end, count, STEP_BYTES]))

    def preview(self, queue: str, *, offset: int = 0, count: int = 100) -> list[Any]:
        """Return delayed messages from ``offset`` on, at most ``count``, and as :data:`STEP_BYTES` take.

        Each is its member, its due time in milliseconds, and the packed message, empty when there is none.
        """
        names = self.queue_keys(queue)
        if count <= 0:
            return []
        return list(
            self.client.run(scripts.PREVIEW, [names.delayed, names.delayed_messages], [offset, count, STEP_BYTES])
        )

    def fetch(self, entry: Entry) -> Delivery | None:
        """Read one entry again by its id; None when it is gone."""
        entries = self.client.call("XRANGE", entry.stream.key, entry.id, entry.id)
        return delivery(entry.stream, *entries[0]) if entries else None

    # -- services

    def extend(self, held: Sequence[tuple[str, Entry]]) -> list[int]:
        """Heartbeat for pairs of consumer and entry; returns the positions whose consumer no longer owns it."""
        if not held:
            return []
        order: dict[str, int] = {}
        args: list[Any] = [keys.GROUP]
        for consumer, (ref, entry_id) in held:
            args += [order.setdefault(ref.key, len(order) + 1), consumer, entry_id]
        return [int(position) for position in self.client.run(scripts.EXTEND, list(order), args)]

    def promote(self, queues: Sequence[str], *, limit: int = 500) -> Promotion:
        """Move due messages of ``queues`` to their streams, before what waits there.

        At most ``limit`` and :data:`STEP_BYTES` in this step.

        A queue that Redis refuses (a key of another type) does not hold up the others, and is not raised about: see
        :attr:`Promotion.refusal`.
        """
        if not queues:
            return Promotion(0, 0, None)
        names: list[str] = []
        for queue in queues:
            known = self.queue_keys(queue)
            names += [known.delayed, known.delayed_messages, *known.streams, *known.fronts, *known.marks]
        moved, missing, wait, refusal = self.client.run(
            scripts.PROMOTE, names, [keys.GROUP, len(self.steps), limit, STEP_BYTES]
        )
        return Promotion(moved, missing, None if wait < 0 else int(wait), explained(scripts.PROMOTE, refusal.decode()))

    def clock_ms(self) -> int:
        """Return Redis' time in milliseconds since the epoch."""
        seconds, micros = self.client.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def busy_queues(self, queues: Sequence[str]) -> BusyQueues:
        """Return those of ``queues`` that have pending entries, and Redis' time."""
        names = [self.queue_keys(queue) for queue in queues]
        streams = [key for one in names for key in (*one.streams, *one.fronts)]
        if not streams:
            return BusyQueues((), self.clock_ms())
        clock_ms, found = self.client.run(scripts.BUSY, streams, [keys.GROUP, 2 * len(self.steps)])
        return BusyQueues(tuple(queues[int(index)] for index in found), int(clock_ms))

    def clock_was_set(self, queue: str) -> tuple[int, int]:
        """Set right what was measured before Redis' clock was set back, or by another clock; safe to call twice.

        Returns the number of pending entries whose idle time begins anew, and of delayed messages that are due earlier.
        """
        names = self.queue_keys(queue)
        waits = [word for kind, longest in LONGEST_WAIT_MS.items() for word in (kind, longest)]
        anew, earlier = self.client.run(
            scripts.CLOCK_WAS_SET,
            [names.delayed, names.wake, names.claims, *names.streams, *names.fronts],
            [keys.GROUP, *waits],
        )
        return int(anew), int(earlier)

    def recover(
        self,
        queue: str,
        consumer: str,
        *,
        idle_ms: int,
        turn_ms: int,
        pauses_ms: Sequence[int],
        limit: int = 100,
        patience: Mapping[bytes, int | None] | None = None,
        expected_ms: int | None = None,
        tolerance_ms: int = 0,
    ) -> Recovery:
        """Put back what consumers held that gave no heartbeat for ``idle_ms``, at most ``limit`` entries.

        Args:
            patience: for how many milliseconds a holder may be silent, None is for ever; by default all holders for
                ``idle_ms``. What holders hold that it does not name is left alone: see :attr:`Recovery.strangers`.
            expected_ms: what Redis' clock should say; when it is more than ``tolerance_ms`` off, nothing is done.

        One caller looks per ``turn_ms``, whoever comes first; after as many entries as ``limit``, or as
        :data:`STEP_BYTES` take, the next look may come at once. An entry goes back after the pause
        for as many crashes as it has then (milliseconds, 0 is at once; ``outcome`` decided them); one with more crashes
        than there are pauses becomes pending for ``consumer``, which must settle it.
        """
        names = self.queue_keys(queue)
        pairs = [word for name, ms in (patience or {}).items() for word in (name, "" if ms is None else ms)]
        moved, vanished, exhausted, more, clock_ms, strangers = self.client.run(
            scripts.RECOVER,
            [
                names.delayed,
                names.delayed_messages,
                names.wake,
                names.claims,
                *names.streams,
                *names.fronts,
                *names.marks,
            ],
            [
                *(keys.GROUP, consumer, idle_ms, limit, STEP_BYTES, turn_ms, json.dumps(list(pauses_ms))),
                *("" if expected_ms is None else expected_ms, tolerance_ms, "" if patience is None else 1, *pairs),
            ],
        )
        places = [*(streams := self.streams([queue])), *(ref.at_front() for ref in streams)]
        return Recovery(
            moved,
            vanished,
            tuple(
                (
                    delivery(places[index], entry_id, fields),
                    holder.decode(errors="replace"),
                )
                for index, entry_id, fields, holder in exhausted
            ),
            bool(more),
            int(clock_ms),
            tuple(strangers),
        )

    def take_token(
        self, queue: str, task: str, *, node: str, interval_ms: float, horizon_ms: int = 10_000
    ) -> tuple[int, bool]:
        """Take a token of the rate limit of ``task``; ``node`` is empty for the limit over all workers.

        Returns ``(0, True)`` when the task may run now, ``(wait in ms, True)`` when the token of that moment was
        reserved, ``(wait in ms, False)`` when the queue for tokens is longer than ``horizon_ms``: ask again then.
        """
        key = keys.rate(self.prefix, queue, task, node)
        wait, reserved = self.client.run(scripts.LIMIT, [key], [interval_ms, horizon_ms])
        return int(wait), bool(reserved) or not wait

    # -- revoked ids and stamps, for workers that start later

    def revoke(self, task_ids: Iterable[str], *, seconds: float) -> None:
        """Remember revoked task ids for so many seconds. Two round trips."""
        self._remember(keys.revoked(self.prefix), task_ids, seconds)

    def revoked(self, *, limit: int = 50_000) -> list[str]:
        """Return the revoked task ids that are not forgotten yet, the newest ``limit``. Two round trips."""
        return [task_id.decode() for task_id in self._remembered(keys.revoked(self.prefix), limit)]

    def revoke_stamps(self, pairs: Iterable[tuple[str, Any]], *, seconds: float) -> None:
        """Remember for so many seconds that tasks with these stamps, pairs of header and stamp, are revoked."""
        self._remember(keys.revoked_stamps(self.prefix), map(encode_json, pairs), seconds)

    def revoked_stamps(self, *, limit: int = 5_000) -> list[tuple[str, Any]]:
        """Return the pairs of header and stamp that are not forgotten yet, the newest ``limit``.

        They are fewer than ids: Celery compares each stamp of a task with all of them.
        """
        found = self._remembered(keys.revoked_stamps(self.prefix), limit)
        return [(header, stamp) for header, stamp in map(decode_json, found)]

    # By Redis' clock, or a worker that is ahead forgets what all others revoked; and not by one that is ahead just now.

    def _remember(self, key: str, members: Iterable[str], seconds: float) -> None:
        names = list(members)
        if not names:
            return
        now = self.clock_ms() / 1000
        pairs = [word for name in names for word in (now + seconds, name)]
        self.client.pipeline([("ZADD", key, *pairs), ("ZREMRANGEBYSCORE", key, "-inf", f"({min(now, steady_time())}")])

    def _remembered(self, key: str, limit: int) -> list[bytes]:
        now = min(self.clock_ms() / 1000, steady_time())
        return cast("list[bytes]", self.client.call("ZREVRANGEBYSCORE", key, "+inf", now, "LIMIT", 0, limit))


def delivery(stream: StreamRef, entry_id: bytes, fields: list[bytes] | None) -> Delivery:
    """Build a Delivery; an entry that is not a message keeps its raw fields and the reason."""
    try:
        return Delivery(Entry(stream, entry_id), Message.from_fields(fields or [], step=stream.step))
    except MessageError as exc:
        return Delivery(Entry(stream, entry_id), None, tuple(fields or ()), str(exc))


def _by_stream(
    script: scripts.Script, args: list[Any], entries: Sequence[Entry]
) -> tuple[scripts.Script, list[str], list[Any]]:
    order: dict[str, int] = {}
    for ref, entry_id in entries:
        args += [order.setdefault(ref.key, len(order) + 1), entry_id]
    return script, list(order), args

"""StreamBroker: the hot path of a message's life in Redis: publish, delay, promote, read, and every way to settle.

It knows keys, scripts and commands; it knows neither Celery nor what a task is. Inspection, replay and purge stand in
``inspect``; the commands of reads, and what their replies mean, in ``reads``; how entries of dead consumers come back
in ``recovery``; the names of consumers in ``consumers``. Each method is one round trip and one atomic step unless its
docstring says otherwise; none of them retries. Settling (ack, retry, reject, requeue, put back) first checks that the
entry is still pending for the consumer, so it is safe to send twice and never touches what another worker runs.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import keys, notes, reads, scripts
from .clock import steady_time
from .connection import RedisClient
from .entries import Delivery, Entry, StreamRef, delivery
from .exceptions import (
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    ClusterNode,
    GroupExists,
    KeyOfOtherType,
    QueueFull,
)
from .extension import extend
from .message import Message, encode_history, pack
from .pages import STEP_BYTES, STEP_WORDS, each_part, steps
from .partitions import by_queue, is_partition, queue_of
from .redis_errors import explained

__all__ = ("Promotion", "StreamBroker")

logger = logging.getLogger(__name__)

#: Seconds after which a publisher writes the name of a queue to the set of all queues again: somebody may have
#: forgotten it.
_INTRODUCE_EVERY = 60.0

#: Seconds after which it is tried again, where the node that keeps the names is away.
_INTRODUCE_AGAIN = 30.0

#: Queues that a publisher remembers to have introduced, in a project that makes queue names of its data.
_MOST_INTRODUCED = 10_000


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
    #: The same as ``next_due_ms`` for each queue; of one that Redis refused it is -1.
    waits: tuple[int | None, ...] = field(default=(), compare=False)


class StreamBroker:
    """The streams of one Redis database under one key prefix."""

    def __init__(
        self,
        client: RedisClient,
        *,
        prefix: str = keys.DEFAULT_PREFIX,
        steps: tuple[int, ...] = keys.DEFAULT_STEPS,
        spread: Collection[str] = (),
    ) -> None:
        self.client = client
        #: Queues that have several partitions, for what errors say.
        self._spread = spread
        self.prefix = prefix
        self.steps = steps
        #: Queue -> when its name is written to the set of all queues again.
        self._introduced: dict[str, float] = {}
        #: Until when no name is written: the node of a cluster that keeps them is away.
        self._unnamed_until = 0.0
        #: It was said that none can be written.
        self._said_unnamed = False

    # -- names

    def queue_keys(self, queue: str) -> keys.QueueKeys:
        """Return the Redis keys of ``queue``."""
        return keys.queue_keys(self.prefix, queue, self.steps)

    def partitions(self, queue: str) -> list[str]:
        """Return the names under which ``queue`` lies in Redis: its own, and those of its other partitions, if any.

        One round trip. What has the name of a partition is that alone.
        """
        if is_partition(queue):
            return [queue]
        names = self.client.call("SMEMBERS", keys.queues(self.prefix))
        return by_queue([queue, *(name.decode(errors="replace") for name in names)])[queue]

    def streams(self, queues: Iterable[str]) -> list[StreamRef]:
        """Return the task streams of ``queues`` by priority first: all queues' step 0, then all queues' step 1 ..."""
        names = [self.queue_keys(queue) for queue in queues]
        return [
            StreamRef(one.queue, step, one.streams[step], one.fronts[step], one.paused)
            for step in range(len(self.steps))
            for one in names
        ]

    def by_slot(self, queues: Sequence[str]) -> Sequence[Sequence[str]]:
        """Return ``queues`` in parts that one script may look after together: all of them, but on a Redis Cluster."""
        return self.client.by_slot(queues, lambda queue: self.queue_keys(queue).streams[0])

    def streams_by_slot(self, streams: Sequence[StreamRef]) -> Sequence[Sequence[StreamRef]]:
        """Return ``streams`` in parts that one command may read together, each in its order."""
        return self.client.by_slot(streams, _key_of_stream)

    def entries_by_slot(self, entries: Sequence[Entry]) -> Sequence[Sequence[Entry]]:
        """Return ``entries`` in parts that one script may settle together, each in its order."""
        return self.client.by_slot(entries, _key_of_entry)

    def present(self, queue: str) -> list[str]:
        """Return the keys of the task streams of ``queue``, and of those fronts that are there. One round trip."""
        names = self.queue_keys(queue)
        found = self.client.call_all([("EXISTS", front) for front in names.fronts])
        return [*names.streams, *(front for front, there in zip(names.fronts, found, strict=True) if there)]

    def followed_by(self, more: scripts.Script, names: list[str], args: list[Any]) -> StreamBroker:
        """Return a broker whose scripts are run in one step with ``more``, which comes behind each of them."""
        client: Any = _FollowedClient(self.client, more, names, args)
        return StreamBroker(client, prefix=self.prefix, steps=self.steps)

    # -- publish

    def publish(self, queue: str, message: Message, *, max_length: int | None = None) -> bytes:
        """Append ``message`` to the stream of its priority step and return the entry id.

        Raises:
            QueueFull: the queue already holds ``max_length`` messages (waiting, pending, delayed and held together).
        """
        if self.is_new(queue):
            self.introduce(queue)
        names = self.queue_keys(queue)
        key = names.streams[message.step]
        noted = [notes.waiting(self.prefix, queue, message)] if notes.is_tracked(message) else []
        fields = [message.headers, message.properties, message.body]
        if max_length is None:
            if not noted:
                return bytes(self.client.call("XADD", key, "*", *message.as_fields()))
            entry_id = self.client.run(*notes.behind(scripts.APPEND, [key], fields, noted))
        else:
            names_of_all = [key, names.delayed, *names.streams, *names.fronts, names.shelf[0]]
            entry_id = self.client.run(*notes.behind(scripts.PUBLISH, names_of_all, [max_length, *fields], noted))
            if not entry_id:
                raise self.full(queue, max_length)
        return bytes(entry_id)

    def full(self, queue: str, max_length: int | None) -> QueueFull:
        """Return the error that a queue, or a partition of one, holds as many messages as it may."""
        name = queue_of(queue)
        where, setting = f"Queue {name!r}", "streams_max_length"
        if name in self._spread:
            where, setting = f"A partition of queue {name!r}", "its share of streams_max_length"
        return QueueFull(f"{where} holds {max_length} messages ({setting}); nothing was stored.")

    def stored(self, queue: str, count: int) -> None:
        """Note that so many messages were stored through others' commands; who counts does something about it."""

    def delay(self, queue: str, message: Message, *, due_ms: int, member: str, max_length: int | None = None) -> None:
        """Store ``message`` until ``due_ms`` (milliseconds since the epoch, compared with Redis' clock).

        The same ``member`` again replaces the message, which makes the publish of a retry idempotent.

        Raises:
            QueueFull: as in :meth:`publish`.
        """
        if self.is_new(queue):
            self.introduce(queue)
        names = self.queue_keys(queue)
        stored = self.client.run(
            *notes.behind(
                scripts.DELAY,
                [
                    names.delayed,
                    names.delayed_messages,
                    names.wake,
                    *((*names.streams, *names.fronts, names.shelf[0]) if max_length else ()),
                ],
                [due_ms, member, pack(message), max_length or 0],
                [self.note_of(queue, message, due_ms=due_ms, member=member)],
            )
        )
        if not stored:
            raise self.full(queue, max_length)

    def note_of(
        self, queue: str, message: Message, *, due_ms: int = 0, member: str = "", must: str = "", entry: str = ""
    ) -> notes.Note | None:
        """Return what is noted when ``message`` is stored, instead of ``entry``; None when its task is not tracked."""
        if not notes.is_tracked(message):
            return None
        now_ms = int(steady_time() * 1000)
        return notes.waiting(
            self.prefix, queue, message, due_ms=due_ms, now_ms=now_ms, member=member, must=must, entry=entry
        )

    def is_new(self, queue: str) -> bool:
        """Return whether the name of ``queue`` is to be written to the set of all queues before it is published to."""
        return time.monotonic() >= max(self._introduced.get(queue, 0.0), self._unnamed_until)

    def introduce(self, queue: str) -> None:
        """Write the name of ``queue`` to the set of all queues.

        Raises:
            BrokerError: its node is away, or refuses; on a Redis Cluster not where another one is away.
        """
        self.check_place(queue)
        names = keys.queues(self.prefix)
        try:
            added = self.client.call("SADD", names, queue)
        except BrokerUnavailable:
            if self.client.slot_of(names) == self.client.slot_of(self.queue_keys(queue).streams[0]):
                raise
            # Another node of a cluster is away. The one of the queue may take the message, and its workers know it.
            self.not_introduced()
        else:
            self.introduced(queue, added=bool(added))

    def check_place(self, queue: str) -> None:
        """Refuse a queue whose keys lie apart: on a Redis Cluster nothing that is stored there could be read.

        Raises:
            ClusterNode: it is such a queue.
        """
        slots = {self.client.slot_of(key) for key in self.queue_keys(queue).types}
        if len(slots) > 1:
            raise ClusterNode(
                f"Queue {queue!r} cannot be on a Redis Cluster: with streams_key_prefix {self.prefix!r} the first "
                "braces in its keys are empty, so that they lie in several slots; the name of a queue must not begin "
                "with '}' there"
            )

    def _say_unnamed(self, exc: KeyOfOtherType) -> None:
        """Say once that nobody can write the names of queues, for somebody put something else there."""
        self.not_introduced()
        if not self._said_unnamed:
            logger.error("Tools do not see queues that are new, and partitions that are, nobody reads: %s", exc)
        self._said_unnamed = True

    def not_introduced(self) -> None:
        """Note that the node that keeps the names is away: not each message may wait for it."""
        self._unnamed_until = time.monotonic() + _INTRODUCE_AGAIN

    def introduced(self, queue: str, *, added: bool = False) -> None:
        """Note that the name of ``queue`` was written to the set of all queues, and whether it was not there before.

        Workers are told of partitions that are new: they read all those of their queues.
        """
        if added and is_partition(queue):
            self.client.pipeline([("XADD", keys.news(self.prefix), "MAXLEN", 1, "*", "about", "partitions")])
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
        return len(self.make_missing_groups(queues))

    def make_missing_groups(self, queues: Iterable[str]) -> list[str]:
        """Do what :meth:`ensure_groups` does, and return the queue of each group that was created."""
        names = list(queues)
        for queue in names:
            self.check_place(queue)
        streams = self.streams(names)
        commands: list[tuple[Any, ...]] = [
            ("XGROUP", "CREATE", ref.key, keys.GROUP, "0", "MKSTREAM") for ref in streams
        ]
        commands += [("SADD", keys.queues(self.prefix), queue) for queue in names]
        replies = self.client.pipeline(commands) if commands else []
        for reply in replies[: len(streams)]:
            if isinstance(reply, BrokerError) and not isinstance(reply, GroupExists):
                raise reply
        for queue, added in zip(names, replies[len(streams) :], strict=True):
            if isinstance(added, KeyOfOtherType):
                self._say_unnamed(added)
            elif isinstance(added, BrokerError):
                raise added
            else:
                self.introduced(queue, added=bool(added))
        return [ref.queue for ref, reply in zip(streams, replies, strict=False) if reply in (b"OK", "OK")]

    # -- read

    def read(self, streams: Sequence[StreamRef], consumer: str, *, count: int) -> list[Delivery]:
        """Read up to ``count`` new entries of the highest priority that has any, without blocking.

        What was put back, or became due, comes before what waits on its stream.
        """
        found: list[Delivery] = []
        for part in self.streams_by_slot(streams):
            found = reads.parse_read(part, self.client.run(*reads.read_command(part, consumer, count=count)))
            if found:
                break
        return found

    # -- settle

    @staticmethod
    def ack_command(consumer: str, entries: Sequence[Entry]) -> tuple[Any, ...]:
        """Return the command that acknowledges and deletes ``entries``; see :meth:`parse_ack`."""
        by_key = _by_key(entries)
        return scripts.ACK, list(by_key), [keys.GROUP, consumer, *(b" ".join(ids) for ids in by_key.values())]

    @staticmethod
    def parse_ack(entries: Sequence[Entry], reply: Any) -> list[Entry]:
        """Turn the reply to :meth:`ack_command` into the entries that were no longer the consumer's."""
        if not reply:
            return []
        by_key: dict[str, list[Entry]] = {}
        for entry in entries:
            by_key.setdefault(entry.stream.key, []).append(entry)
        in_order = [entry for those in by_key.values() for entry in those]
        return [in_order[position] for position in reply]

    def ack(self, consumer: str, entries: Sequence[Entry]) -> list[Entry]:
        """Acknowledge and delete ``entries``; returns those that ``consumer`` no longer owned (left alone)."""
        lost: list[Entry] = []
        for part in self.entries_by_slot(entries):
            lost += self.parse_ack(part, self.client.run(*self.ack_command(consumer, part)))
        return lost

    def put_back(self, consumer: str, entries: Sequence[Entry]) -> int:
        """Put un-started ``entries`` back for other consumers, with no delivery counted; returns how many.

        They run before what waits on their streams, in their order. Large ones take several steps.
        """
        return sum(each_part(self.entries_by_slot(entries), partial(self._put_back, consumer)))

    def _put_back(self, consumer: str, entries: Sequence[Entry]) -> int:
        count = 0
        left = list(entries)
        while left:
            names: list[str] = []
            at: list[Any] = []
            places = 2 * len(self.steps)
            begins: dict[str, int] = {}
            for ref, entry_id in left:
                if ref.queue not in begins:
                    more = self.queue_keys(ref.queue).shelf_and_streams
                    if names and len(names) + len(more) + len(at) > STEP_WORDS:
                        break
                    begins[ref.queue] = len(begins) * places
                    names += more
                at += [begins[ref.queue] + self.where(ref), entry_id]
                if len(names) + len(at) >= STEP_WORDS:
                    break
            args = [keys.GROUP, consumer, len(self.steps), STEP_BYTES, *at]
            put_back, looked, _ = self.client.run(scripts.PUT_BACK, names, args)
            count += put_back
            del left[:looked]
        return count

    def where(self, ref: StreamRef) -> int:
        """Return which stream of its queue this is, as scripts count: the task streams from 0, then the fronts."""
        front = ref.key == self.queue_keys(ref.queue).fronts[ref.step]
        return ref.step + (len(self.steps) if front else 0)

    def held_by(self, consumer: str, streams: Sequence[StreamRef], *, limit: int = 10_000) -> list[Entry]:
        """Return what is pending for ``consumer`` on ``streams`` and their fronts, at most ``limit`` on each."""
        sources = [place for ref in streams for place in (ref.at_front(), ref)]
        commands = [("XPENDING", one.key, keys.GROUP, "-", "+", limit, consumer) for one in sources]
        replies = self.client.call_all(commands, missing_is_none=True) if commands else []
        return [Entry(one, held[0]) for one, found in zip(sources, replies, strict=True) for held in found or ()]

    def put_back_all(self, streams: Sequence[StreamRef], consumer: str) -> int:
        """Put back everything that is pending for ``consumer`` on the queues of ``streams``; returns how many.

        It runs before what waits there, in its order. Many, and large ones, take several steps.
        """
        queues = list(dict.fromkeys(ref.queue for ref in streams))
        return sum(each_part(self.by_slot(queues), partial(self._put_all_back, consumer)))

    def _put_all_back(self, consumer: str, queues: Sequence[str]) -> int:
        count = 0
        for some in steps(queues, words=len(self.queue_keys(queues[0]).shelf_and_streams)):
            names = [key for queue in some for key in self.queue_keys(queue).shelf_and_streams]
            args, more = [keys.GROUP, consumer, len(self.steps), STEP_BYTES], 1
            while more:
                put_back, _, more = self.client.run(scripts.PUT_BACK, names, args)
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
            kind: what it waits for: one of ``recovery.LONGEST_WAIT_MS``, or a date.
            behind: it goes behind what waits on its stream by then; else it runs before that.
        """
        stream = entry.stream
        names = self.queue_keys(stream.queue)
        member = self.waiting_member(entry, history, kind)
        return bool(
            self.client.run(
                scripts.REQUEUE,
                [
                    *(stream.key, names.streams[stream.step], names.fronts[stream.step], names.marks[stream.step]),
                    *(names.delayed, names.delayed_messages, names.wake),
                ],
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

    @staticmethod
    def waiting_member(entry: Entry, history: dict[str, Any], kind: str) -> str:
        """Return the member of the delayed set under which an entry waits that is put back for later."""
        entry_id = entry.id.decode()
        # Entry ids are unique within one stream only.
        return f"{history.get('first', entry_id)}:{kind}:{entry.stream.key}:{entry_id}"

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
        if queue != entry.stream.queue and self.is_new(queue):
            # A full Redis refuses to remember the name, and yet the retry must be stored.
            with contextlib.suppress(BrokerFull):
                self.introduce(queue)
        names = self.queue_keys(queue)
        return bool(
            self.client.run(
                *notes.behind(
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
                        message.history,
                    ],
                    [
                        self.note_of(
                            queue,
                            message,
                            due_ms=due_ms,
                            member=member if due_ms else "",
                            entry=entry.id.decode(),
                        )
                    ],
                )
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

    def fetch(self, entry: Entry) -> Delivery | None:
        """Read one entry again by its id; None when it is gone."""
        entries = self.client.call("XRANGE", entry.stream.key, entry.id, entry.id)
        return delivery(entry.stream, *entries[0]) if entries else None

    # -- services

    def extend(self, held: Sequence[tuple[str, Entry]]) -> list[int]:
        """Heartbeat for pairs of consumer and entry; see :func:`extension.extend`."""
        return extend(self.client, held)

    def promote(self, queues: Sequence[str], *, limit: int = 100) -> Promotion:
        """Move due messages of ``queues`` to their streams, before what waits there.

        At most ``limit`` and :data:`STEP_BYTES` in this step.

        A queue that Redis refuses (a key of another type) does not hold up the others, and is not raised about: see
        :attr:`Promotion.refusal`.
        """
        parts = self.by_slot(queues)
        if len(parts) != 1:
            return _together(queues, parts, [self.promote(part, limit=limit) for part in parts])
        names: list[str] = []
        for queue in queues:
            known = self.queue_keys(queue)
            names += [known.delayed, known.delayed_messages, *known.streams, *known.fronts, *known.marks]
        moved, missing, waits, refusal = self.client.run(
            scripts.PROMOTE, names, [keys.GROUP, len(self.steps), limit, STEP_BYTES]
        )
        return Promotion(
            moved,
            missing,
            min((wait for wait in waits if wait >= 0), default=None),
            explained(scripts.PROMOTE, refusal.decode()),
            tuple(None if wait == -1 else max(wait, -1) for wait in waits),
        )

    def clock_ms(self) -> int:
        """Return Redis' time in milliseconds since the epoch."""
        seconds, micros = self.client.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


class _FollowedClient:
    """A client that runs each script in one step with another one behind it."""

    def __init__(self, client: RedisClient, more: scripts.Script, more_keys: list[str], more_args: list[Any]) -> None:
        self._client = client
        self._more = more
        self._more_keys = more_keys
        self._more_args = more_args

    def run(self, script: scripts.Script, names: Sequence[str], args: Sequence[Any]) -> Any:
        both = _BOTH.get((script.sha, self._more.sha))
        if both is None:
            both = _BOTH[script.sha, self._more.sha] = scripts.following(script, self._more)
        return self._client.run(both, [*names, *self._more_keys], [*args, *self._more_args, len(names), len(args)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


_BOTH: dict[tuple[str, str], scripts.Script] = {}


def _key_of_stream(ref: StreamRef) -> str:
    return ref.key


def _key_of_entry(entry: Entry) -> str:
    return entry.stream.key


def _together(queues: Sequence[str], parts: Sequence[Sequence[str]], found: Sequence[Promotion]) -> Promotion:
    """Return what looks at parts of ``queues`` did as that of one look."""
    waits = {
        queue: wait
        for part, one in zip(parts, found, strict=True)
        for queue, wait in zip(part, one.waits, strict=False)
    }
    return Promotion(
        sum(one.moved for one in found),
        sum(one.missing for one in found),
        min((one.next_due_ms for one in found if one.next_due_ms is not None), default=None),
        next((one.refusal for one in found if one.refusal), ""),
        tuple(waits[queue] for queue in queues),
    )


def _by_key(entries: Sequence[Entry]) -> dict[str, list[bytes]]:
    """Return the ids of ``entries`` by the key of their stream, each in its order."""
    found: dict[str, list[bytes]] = {}
    for ref, entry_id in entries:
        ids = found.get(ref.key)
        if ids is None:
            found[ref.key] = ids = []
        ids.append(entry_id)
    return found

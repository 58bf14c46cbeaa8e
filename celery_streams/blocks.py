"""Blocks: messages that are held for a while and stored together; whose they are, and what became of each of them.

A :class:`Block` belongs to one thread, greenlet or coroutine: what those that it starts publish is not held. It stores
in pipelines of bounded count and bytes, and tells afterwards what was stored, what failed, and of what nobody knows.
What opens a block, and when it ends, is the matter of ``bulk`` (see ``holding``), of kombu's ``Producer.batch`` (see
``amqp``) and of a database transaction (``django_integration``).
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from kombu.utils.functional import retry_over_time

from .block_store import MESSAGE_WORDS, MessageBlock, QueuedMessage, publish_blocks
from .broker import StreamBroker
from .exceptions import BrokerError, BrokerUnavailable, CeleryStreamsError, DuplicateTask, ReplyLost
from .notes import WORDS as NOTE_WORDS
from .notes import is_tracked
from .pages import steps
from .partitions import queue_of

__all__ = (
    "MAX_BYTES",
    "MAX_COUNT",
    "Block",
    "BulkError",
    "Held",
    "Holder",
    "NotPublished",
    "PublishCall",
    "TaskIds",
    "current_call",
    "find",
    "opened",
    "owner",
)

logger = logging.getLogger(__name__)

#: Messages, and bytes of them, in one pipeline: Redis serves nobody else while it stores the messages of one queue.
MAX_COUNT, MAX_BYTES = 500, 1_000_000

#: What Celery's own setting for publishing again is when a block is told nothing: see ``task_publish_retry_policy``.
RetryPolicy = Mapping[str, Any]


class NotPublished(CeleryStreamsError, RuntimeError):
    """The task is held back, by a bulk block or until a transaction commits: nobody can wait for its result yet."""


class Holder(Protocol):
    """What keeps the messages of a publish call instead of storing them."""

    def hold(self, held: Held) -> None:
        """Keep a message."""

    def call_ended(self) -> None:
        """Be told that the call is over, and all that it wants to happen later is known."""


@dataclass(slots=True)
class PublishCall:
    """One call of Celery's task sender: what it held, and what is to happen when all of that is stored."""

    holder: Holder | None
    #: Messages of this call that are held and not stored yet.
    held: int = 0
    after: list[Callable[[], Any]] = field(default_factory=list)


#: The call of Celery's task sender that is under way in this context.
current_call: ContextVar[PublishCall | None] = ContextVar("celery_streams_publish_call", default=None)


@dataclass(slots=True)
class Held:
    """A message that is held, and the call that published it."""

    queue: str
    queued: QueuedMessage
    call: PublishCall | None = None
    #: Has the result backend listen for the result, if anybody may still ask for it; before the message is stored.
    listen: Callable[[], Any] | None = None

    def stored(self) -> None:
        """Do what the call wanted to happen when its messages are stored, if this was the last one."""
        call = self.call
        if call is None:
            return
        call.held -= 1
        if not call.held:
            after, call.after = call.after, []
            for do in after:
                do()


#: One UUID behind the other, as ``str`` writes them.
_UUIDS = re.compile("(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})+")
_UUID_LENGTH = 36


class TaskIds(Sequence[str]):
    """Task ids in the order in which they were added; a UUID takes 16 bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes | tuple[str, ...]] = []
        self._count = 0

    def add(self, ids: Sequence[str]) -> None:
        """Add ids behind the others."""
        if not ids:
            return
        self._count += len(ids)
        if set(map(len, ids)) == {_UUID_LENGTH} and _UUIDS.fullmatch("".join(ids)):
            packed = bytes.fromhex("".join(ids).replace("-", ""))
            if self._parts and isinstance(self._parts[-1], bytes):
                self._parts[-1] += packed
            else:
                self._parts.append(packed)
        else:
            self._parts.append(tuple(ids))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            yield from _uuids(part) if isinstance(part, bytes) else part

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]

    def __repr__(self) -> str:
        return f"<{self._count} task ids>"


def _uuids(packed: bytes) -> Iterator[str]:
    for at in range(0, len(packed), 16):
        text = packed[at : at + 16].hex()
        yield f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class BulkError(BrokerError):
    """Some messages of a block were not stored, or nobody knows whether they were.

    It is also of the class of the first error, which is its cause: ``except QueueFull`` goes on to work.

    Attributes:
        stored: ids of the messages that lie in Redis (a message for several queues: in all of them).
        failed: id -> error, for those that surely do not.
        uncertain: ids of those whose reply was lost: they may lie there or not.
    """

    def __init__(self, text: str = "", block: Block | None = None) -> None:
        super().__init__(text)
        self._block = block
        self.failed: dict[str, CeleryStreamsError] = {}
        self.uncertain: tuple[str, ...] = ()
        self._stored: Sequence[str] = ()

    @property
    def stored(self) -> tuple[str, ...]:
        """Ids of the messages that lie in Redis."""
        bad = {*self.failed, *self.uncertain}
        return tuple(one for one in self._stored if one not in bad)

    def repeat(self) -> None:
        """Store what failed, and make sure of what is uncertain: within ten minutes nothing is stored twice.

        Raises:
            BulkError: again, with a new account of all messages of the block.
        """
        if self._block is not None:
            self._block.repeat()

    def __reduce__(self) -> tuple[Any, ...]:
        kinds = tuple(type(error) for error in self.failed.values())[:1] or (ReplyLost,)
        return _restored, (kinds[0], str(self), self.stored, dict(self.failed), self.uncertain)

    def _tell(
        self, text: str, stored: Sequence[str], failed: dict[str, CeleryStreamsError], uncertain: Sequence[str]
    ) -> None:
        self.args = (text,)
        self._stored, self.failed, self.uncertain = stored, failed, tuple(uncertain)


_KINDS: dict[type[CeleryStreamsError], type[BulkError]] = {}


def _bulk_error(kind: type[CeleryStreamsError]) -> type[BulkError]:
    """Return the class of errors that are a BulkError and a ``kind``."""
    if kind in (BrokerError, BulkError) or issubclass(kind, BulkError):
        return BulkError
    if kind not in _KINDS:
        _KINDS[kind] = type("BulkError", (BulkError, kind), {"__module__": __name__, "__doc__": BulkError.__doc__})
    return _KINDS[kind]


def _restored(
    kind: type[CeleryStreamsError],
    text: str,
    stored: Sequence[str],
    failed: dict[str, CeleryStreamsError],
    uncertain: Sequence[str],
) -> BulkError:
    error = _bulk_error(kind)(text)
    error._tell(text, stored, failed, uncertain)
    return error


def owner() -> tuple[int, Any]:
    """Return what tells this thread (or greenlet, where they are patched) and coroutine from all others."""
    # current_task() raises where no loop runs, which takes most of what a publish in a block needs to find its block.
    loop = asyncio._get_running_loop()
    return threading.get_ident(), None if loop is None else asyncio.current_task(loop)


#: The blocks that are open in this context, the innermost first: pairs of what they belong to and the block.
opened: ContextVar[tuple[tuple[Any, Block], ...]] = ContextVar("celery_streams_blocks", default=())


def find(whose: Any) -> Block | None:
    """Return the innermost open block of ``whose`` that belongs to this thread and coroutine."""
    for streams, block in opened.get():
        if streams is whose and not block.closed and block.owner == owner():
            return block
    return None


@dataclass(slots=True)
class _Part:
    """The messages of one pipeline for one queue; repeated as it is until somebody knows what became of it."""

    queue: str
    held: list[Held]
    name: str
    #: A reply was lost, and none since then said what became of it.
    uncertain: bool = False
    error: BrokerError | None = None


class Block:
    """Messages of one owner that are held and stored together; see the module."""

    def __init__(
        self,
        broker: StreamBroker,
        *,
        max_length: Callable[[str], int | None],
        retry_policy: RetryPolicy | None,
        key: str | None = None,
        max_count: int = MAX_COUNT,
        max_bytes: int = MAX_BYTES,
        max_seconds: float | None = None,
        on_duplicate: Callable[[Held, DuplicateTask], CeleryStreamsError | None] = lambda held, error: error,
        on_refused: Callable[[Sequence[Held]], Sequence[Held]] = lambda refused: (),
    ) -> None:
        self.broker = broker
        self.owner = owner()
        self.closed = False
        #: What the caller said about transactions; see ``Streams.holder``.
        self.using: Any = None
        self._max_length = max_length
        self._policy = retry_policy
        self._key = key
        #: Deals with a duplicate that was not stored, or returns the error that it is.
        self._on_duplicate = on_duplicate
        #: Is given messages that were duplicates, or of a group with one; returns those that are so no longer.
        self._on_refused = on_refused
        self._max_count, self._max_bytes, self._max_seconds = max_count, max_bytes, max_seconds
        #: When a pipeline was last sent, or the block opened (monotonic seconds).
        self.sent_at = time.monotonic()
        self._held: list[Held] = []
        self._bytes = 0
        self._flushing = False
        self._stored = TaskIds()
        self._failed: list[tuple[Held, CeleryStreamsError]] = []
        self._lost: list[_Part] = []
        #: The error that was raised, when one was; its account is kept up to date.
        self.error: BulkError | None = None

    # -- the holder of publish calls

    def hold(self, held: Held) -> None:
        """Keep a message until the block is full, or ends."""
        self._held.append(held)
        self._bytes += held.queued.size

    def call_ended(self) -> None:
        """Store what is held when it is enough for a pipeline.

        Raises:
            BulkError: some of it could not be stored.
        """
        late = self._max_seconds is not None and time.monotonic() - self.sent_at >= self._max_seconds
        if late or len(self._held) >= self._max_count or self._bytes >= self._max_bytes:
            self.flush()

    def holds(self, task_id: str) -> bool:
        """Return whether the message of a task is held, and not sent yet."""
        return any(one.queued.id == task_id for one in self._held)

    def discard(self) -> None:
        """Forget what is held."""
        self._held, self._bytes = [], 0

    # -- storing

    def flush(self) -> None:
        """Store all that is held.

        Raises:
            BulkError: some of it could not be stored, or nobody knows.
        """
        if self._flushing:
            return  # receivers of after_task_publish may publish: the loop below takes that along
        before = len(self._failed), len(self._lost)
        self._flushing = True
        try:
            while self._held:
                _listen(self._held)
                held, size = self._held, self._bytes
                self._held, self._bytes = [], 0
                fits = len(held) <= self._max_count and size <= self._max_bytes
                for some in (held,) if fits else self._pieces(held):
                    self._send([_Part(queue, ours, self._name()) for queue, ours in _parts(some)])
        finally:
            self._flushing = False
            self.sent_at = time.monotonic()
        if before != (len(self._failed), len(self._lost)):
            raise self.account()

    def repeat(self) -> None:
        """Send again what failed or is uncertain.

        Raises:
            BulkError: some of it still could not be stored.
        """
        failed, self._failed = self._failed, []
        lost, self._lost = self._lost, []
        if lost:
            self._send(lost)
        self._held = [*(held for held, _ in failed), *self._held]
        self._bytes = sum(one.queued.size for one in self._held)
        before = len(self._failed) + len(self._lost)
        self.flush()
        if before:
            raise self.account()

    def account(self) -> BulkError:
        """Return the error that tells what became of each message; the same one for the whole block."""
        failed = {held.queued.id: error for held, error in self._failed}
        uncertain = [held.queued.id for part in self._lost for held in part.held if held.queued.id not in failed]
        first = next(iter(failed.values()), None) or next((part.error for part in self._lost if part.error), None)
        text = f"{len(failed)} messages were not stored, and {len(uncertain)} may or may not be"
        text = f"{text}; {len(self._stored)} are stored. {first}"
        if self.error is None:
            self.error = _bulk_error(type(first) if first is not None else BrokerError)(text, self)
            self.error.__cause__ = first
        self.error._tell(text, self._stored, failed, uncertain)
        return self.error

    @property
    def is_complete(self) -> bool:
        """Whether all messages that were sent are stored."""
        return not self._failed and not self._lost

    def _name(self) -> str:
        return self._key or uuid4().hex

    def _pieces(self, held: list[Held]) -> Iterator[list[Held]]:
        """Cut what is held at the bounds; one message that is larger than they allow goes alone."""
        piece: list[Held] = []
        size = 0
        for one in held:
            if piece and (len(piece) >= self._max_count or size + one.queued.size > self._max_bytes):
                yield piece
                piece, size = [], 0
            piece.append(one)
            size += one.queued.size
        if piece:
            yield piece

    def _send(self, parts: list[_Part]) -> None:
        """Store ``parts``, again by the retry policy where that may help, and write down what became of them."""
        open_parts = parts

        def attempt() -> None:
            nonlocal open_parts
            open_parts = self._attempt(open_parts)
            if open_parts:
                raise open_parts[0].error or BrokerUnavailable()

        policy = self._policy
        try:
            if policy is None:
                attempt()
            else:
                retry_over_time(
                    attempt,
                    BrokerUnavailable,
                    max_retries=policy.get("max_retries", 3),
                    interval_start=policy.get("interval_start", 0),
                    interval_step=policy.get("interval_step", 0.2),
                    interval_max=policy.get("interval_max", 1),
                )
        except BrokerUnavailable:
            pass  # what is left is told by account()
        except BaseException:
            # Ctrl-C, or a time limit, between two attempts or while one was under way.
            for part in open_parts:
                part.uncertain, part.error = True, part.error or ReplyLost("interrupted")
            self._give_up(open_parts)
            raise
        self._give_up(open_parts)

    def _attempt(self, parts: list[_Part]) -> list[_Part]:
        """Send ``parts`` once; returns those that may be sent again."""
        blocks = [
            MessageBlock(
                part.queue,
                part.name,
                [held.queued for held in part.held],
                by_ids=self._key is not None,
                max_length=self._max_length(part.queue),
            )
            for part in parts
        ]
        again: list[_Part] = []
        for part, outcome in zip(parts, publish_blocks(self.broker, blocks), strict=True):
            if isinstance(outcome, BrokerError):
                part.error = outcome.of_publish(queue_of(part.queue))
                part.uncertain = part.uncertain or isinstance(outcome, ReplyLost)
                if isinstance(outcome, BrokerUnavailable):
                    again.append(part)
                else:
                    self._give_up([part])
            else:
                self._settle(part, dict(outcome))
        return again

    def _settle(self, part: _Part, refused: dict[int, CeleryStreamsError]) -> None:
        done = [held for at, held in enumerate(part.held) if at not in refused] if refused else part.held
        duplicates = [part.held[at] for at, error in refused.items() if isinstance(error, DuplicateTask)]
        again = self._on_refused(duplicates) if duplicates else ()
        self._held = [*again, *self._held]
        self._bytes += sum(held.queued.size for held in again)
        sent_again = set(map(id, again))
        for at, error in refused.items():
            held = part.held[at]
            if id(held) in sent_again:
                continue
            left = self._on_duplicate(held, error) if isinstance(error, DuplicateTask) else error
            if left is not None:
                self._failed.append((held, left))
        self._stored.add([held.queued.id for held in done])
        self.broker.stored(part.queue, len(done))
        for held in done:
            held.stored()

    def _give_up(self, parts: list[_Part]) -> None:
        for part in parts:
            error = part.error or BrokerUnavailable()
            if part.uncertain:
                self._lost.append(part)
            else:
                self._failed += [(held, error) for held in part.held]


def _listen(held: list[Held]) -> None:
    for one in held:
        listen, one.listen = one.listen, None
        if listen is not None:
            try:
                listen()
            except Exception as exc:
                # Any result backend's own errors. Whoever asks for these results listens then; the tasks must go out.
                logger.warning("Nobody listens yet for the results of the tasks of a block: %s", exc, exc_info=True)
                return


def _parts(held: list[Held]) -> Iterator[tuple[str, list[Held]]]:
    """Cut what is held by queues, and into what fits into one command."""
    found: dict[str, list[Held]] = {}
    for one in held:
        found.setdefault(one.queue, []).append(one)
    for queue, ours in found.items():
        tracked = any(is_tracked(one.queued.message) for one in ours)
        for some in steps(ours, words=MESSAGE_WORDS + (NOTE_WORDS if tracked else 0)):
            yield queue, list(some)

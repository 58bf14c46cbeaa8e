"""Delayed messages: looks at what is due later, and lets an operator run one now or take it away.

Who promotes what is due stands in ``worker.delayed``; nothing here is on the way of a message.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from . import notes, scripts
from .attempts import Attempt, of_history
from .broker import StreamBroker
from .exceptions import MessageError
from .message import Message, decode_object, unpack
from .pages import preview, steps
from .partitions import queue_of

__all__ = ("DelayedMessage", "cancel", "delayed_message", "delayed_messages", "run_now")

#: Messages that one step reads.
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class DelayedMessage:
    """A message that is due later."""

    queue: str
    member: str
    #: Seconds since the epoch.
    due: float
    #: None when there is none, or the value is no packed message.
    message: Message | None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """How the starts of the message so far ended, the oldest first."""
        return of_history(decode_object(self.message.history)) if self.message is not None else ()


def delayed_messages(broker: StreamBroker, queue: str, *, limit: int = 1_000, offset: int = 0) -> list[DelayedMessage]:
    """Return ``limit`` delayed messages of ``queue`` from ``offset`` on, the earliest first; large ones take steps.

    Of a queue with partitions, those before ``offset`` are read, too.
    """
    names = broker.partitions(queue)
    if len(names) == 1:
        return list(_delayed(broker, queue, limit=limit, offset=offset))
    sources = [_delayed(broker, name, limit=offset + limit, offset=0) for name in names]
    return list(islice(heapq.merge(*sources, key=lambda one: one.due), offset, offset + limit))


def _delayed(broker: StreamBroker, name: str, *, limit: int, offset: int) -> Iterator[DelayedMessage]:
    names = broker.queue_keys(name)
    last = offset + limit
    while page := preview(broker.client, names, offset=offset, count=min(last - offset, _PAGE)):
        for member, score, raw in page:
            shown = member.decode(errors="surrogateescape")
            yield DelayedMessage(queue_of(name), shown, float(score) / 1000, _unpacked(raw))
        offset += len(page)


def delayed_message(broker: StreamBroker, queue: str, member: str) -> DelayedMessage | None:
    """Return one delayed message by its member of the delayed set; None when it is no longer there. Two round trips."""
    wanted = member.encode(errors="surrogateescape")
    names = [broker.queue_keys(name) for name in broker.partitions(queue)]
    looks = [("ZSCORE", one.delayed, wanted) for one in names]
    looks += [("HGET", one.delayed_messages, wanted) for one in names]
    found = broker.client.call_all(looks)
    for score, raw in zip(found[: len(names)], found[len(names) :], strict=True):
        if score is not None:
            return DelayedMessage(queue, member, float(score) / 1000, _unpacked(raw))
    return None


def run_now(broker: StreamBroker, queue: str, members: Sequence[str]) -> int:
    """Make delayed messages due at once and move them to their streams; returns how many were still delayed.

    They run ahead of what was due before, for somebody asked for it, and whatever eta they name.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    wanted = [member.encode(errors="surrogateescape") for member in members]
    count = 0
    for name in broker.partitions(queue):
        names = broker.queue_keys(name)
        keys = [names.delayed, names.delayed_messages]
        there = sum(int(broker.client.run(scripts.HURRY, keys, some)) for some in steps(wanted))
        while there and broker.promote([name]).next_due_ms == 0:
            pass
        count += there
    return count


def cancel(broker: StreamBroker, queue: str, members: Sequence[str]) -> list[Message | None]:
    """Take delayed messages away for good; returns those that were there (None: its value was no message).

    Atomic for each: what is promoted meanwhile runs, and is not among them.
    """
    return [one for name in broker.partitions(queue) for one in _cancel(broker, name, members)] if members else []


def _cancel(broker: StreamBroker, queue: str, members: Sequence[str]) -> list[Message | None]:
    names = broker.queue_keys(queue)
    wanted = [member.encode(errors="surrogateescape") for member in members]
    keys = [names.delayed, names.delayed_messages]
    found = [raw for some in steps(wanted) for raw in broker.client.run(scripts.CANCEL, keys, some)]
    cancelled = [_unpacked(raw) for raw in found]
    marks = [mark for message in cancelled if (mark := notes.mark_of(message)) is not None]
    # Only over a state that waits for its time: the task may have been published again under its id.
    noted = [notes.note(broker.prefix, mark, "revoked", queue, must='"u":', r="cancelled") for mark in marks]
    for part in steps(noted, words=notes.WORDS):
        broker.client.note(notes.stand_alone(part))
    return cancelled


def _unpacked(raw: bytes | None) -> Message | None:
    try:
        return unpack(raw) if raw else None
    except MessageError:
        return None

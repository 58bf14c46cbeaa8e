"""Delayed messages: looks at what is due later, and lets an operator run one now or take it away.

Who promotes what is due stands in ``worker.delayed``; nothing here is on the way of a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import notes, scripts
from .broker import StreamBroker
from .exceptions import MessageError
from .message import Message, unpack
from .pages import preview, steps

__all__ = ("DelayedMessage", "cancel", "delayed_messages", "run_now")


@dataclass(frozen=True, slots=True)
class DelayedMessage:
    """A message that is due later."""

    queue: str
    member: str
    #: Seconds since the epoch.
    due: float
    #: None when there is none, or the value is no packed message.
    message: Message | None


def delayed_messages(broker: StreamBroker, queue: str, *, limit: int = 1_000, offset: int = 0) -> list[DelayedMessage]:
    """Return ``limit`` delayed messages of ``queue`` from ``offset`` on, the earliest first; large ones take steps."""
    found: list[DelayedMessage] = []
    names = broker.queue_keys(queue)
    while page := preview(broker.client, names, offset=offset + len(found), count=limit - len(found)):
        found += [
            DelayedMessage(queue, member.decode(errors="surrogateescape"), float(score) / 1000, _unpacked(raw))
            for member, score, raw in page
        ]
    return found


def run_now(broker: StreamBroker, queue: str, members: Sequence[str]) -> int:
    """Make delayed messages due at once and move them to their streams; returns how many were still delayed.

    They run ahead of what was due before, for somebody asked for it, and whatever eta they name.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    names = broker.queue_keys(queue)
    wanted = [member.encode(errors="surrogateescape") for member in members]
    keys = [names.delayed, names.delayed_messages]
    there = sum(int(broker.client.run(scripts.HURRY, keys, some)) for some in steps(wanted))
    while there and broker.promote([queue]).next_due_ms == 0:
        pass
    return there


def cancel(broker: StreamBroker, queue: str, members: Sequence[str]) -> list[Message | None]:
    """Take delayed messages away for good; returns those that were there (None: its value was no message).

    Atomic for each: what is promoted meanwhile runs, and is not among them.
    """
    names = broker.queue_keys(queue)
    wanted = [member.encode(errors="surrogateescape") for member in members]
    if not wanted:
        return []
    keys = [names.delayed, names.delayed_messages]
    found = [raw for some in steps(wanted) for raw in broker.client.run(scripts.CANCEL, keys, some)]
    cancelled = [_unpacked(raw) for raw in found]
    marks = [mark for message in cancelled if (mark := notes.mark_of(message)) is not None]
    # Only over a state that waits for its time: the task may have been published again under its id.
    noted = [notes.note(broker.prefix, mark, "revoked", queue, must='"u":', r="cancelled") for mark in marks]
    for part in steps(noted, words=notes.WORDS):
        broker.client.run(*notes.stands_alone(part))
    return cancelled


def _unpacked(raw: bytes | None) -> Message | None:
    try:
        return unpack(raw) if raw else None
    except MessageError:
        return None

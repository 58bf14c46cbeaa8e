"""Entries: one place on one stream, and what a consumer is handed there; the values that the broker takes and gives."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .exceptions import MessageError
from .message import Message
from .partitions import queue_of, shown_id

__all__ = ("Delivery", "Entry", "StreamRef", "delivery", "is_entry_id", "milliseconds")

_ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


@dataclass(frozen=True, slots=True)
class StreamRef:
    """One task stream, or the front of one: its queue, the index of its priority step, and its key."""

    queue: str
    step: int
    key: str
    #: The key of its front, where what is put back waits for its turn before all else; a front has none.
    front: str = field(default="", compare=False)
    #: The key that is there while the queue is paused; a front, of which nobody reads by itself, has none.
    paused: str = field(default="", compare=False)

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
        name = self.stream.queue
        return f"{shown_id(name, self.id.decode())} of queue {queue_of(name)}"


class Delivery(NamedTuple):
    """An entry that was handed to a consumer and is pending for it until it is settled."""

    entry: Entry
    #: None when the entry is not a message (then ``fields`` and ``error`` say what it is).
    message: Message | None
    fields: tuple[bytes, ...] = ()
    error: str = ""
    #: Another worker handed it over, because it did not know the task.
    handed: bool = False

    @property
    def stream(self) -> StreamRef:
        """The stream of the entry."""
        return self.entry.stream

    @property
    def entry_id(self) -> bytes:
        """The id of the entry within its stream."""
        return self.entry.id

    def __str__(self) -> str:
        return f"entry {self.entry}"


def delivery(stream: StreamRef, entry_id: bytes, fields: list[bytes] | None) -> Delivery:
    """Build a Delivery; an entry that is not a message keeps its raw fields and the reason."""
    try:
        return Delivery(Entry(stream, entry_id), Message.from_fields(fields or [], step=stream.step))
    except MessageError as exc:
        return Delivery(Entry(stream, entry_id), None, tuple(fields or ()), str(exc))


def is_entry_id(text: str) -> bool:
    """Return whether Redis takes ``text`` as the id of an entry."""
    return bool(_ENTRY_ID.fullmatch(text)) and all(int(part) < 2**64 for part in text.split("-"))


def milliseconds(entry_id: Any) -> int:
    """Return the time in an entry id, 0 when it is none: anybody can write a history."""
    return int(entry_id.partition("-")[0]) if isinstance(entry_id, str) and is_entry_id(entry_id) else 0

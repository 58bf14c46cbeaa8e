"""Slots: what each child is doing, kept where the parent can read it at any time, also after a SIGKILL.

A slot is a piece of a shared memory map, one for each child:

* the batch: the entries that the child has read, in the order in which it runs them;
* how far it is: entries ``[0, finished)`` ran and are waiting to be acknowledged in one go, ``started - 1`` is
  running if it is greater than ``finished - 1``, the rest has not been started;
* since when, and the time limits of what runs;
* what the parent asks of it: ``restrict`` takes entries back that were not started.

The child writes its half of the header, the parent the other; no lock is shared, so nobody can die holding one. The
one race that matters (the child starts an entry while the parent takes it back) is decided as in Dekker's algorithm:
each writes its own word first and then reads the other's, with a full memory barrier between (an uncontended lock).
When both see each other neither runs the entry, and the child puts it back; the settle scripts' ownership check makes
putting back twice harmless.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..broker import StreamRef
from ..message import Message, pack, unpack

__all__ = ("MAX_BATCH", "Held", "Slot", "SlotTable", "Snapshot")

#: Entries that a child holds at most; DESIGN: small tasks are fetched in batches, measured best near 100.
MAX_BATCH = 100

#: Bytes of a slot: header, batch, and the message of a task that was acknowledged before it ran.
_SLOT_SIZE = 64 * 1024
_CHILD = struct.Struct(
    "<qIIIIIIdddqq"
)  # pid batch count started finished flags settled started_at soft hard done client
_PARENT = struct.Struct("<QII")  # restricted (batch << 32 | index), asked, spare
_PARENT_AT = 128
_ENTRY = struct.Struct("<QQI4x")  # milliseconds, sequence, index of the stream
_ENTRIES_AT = 256
_MESSAGE_AT = _ENTRIES_AT + _ENTRY.size * MAX_BATCH
_LENGTH = struct.Struct("<I")
_COUNT_AT = 12
_PROGRESS = struct.Struct("<IIII")  # started finished flags settled
_PROGRESS_AT = 16
_TIMES = struct.Struct("<ddd")
_TIMES_AT = 32
_DONE_AT = 56

#: Flag: the running task's message was acknowledged before it ran.
ACKED_EARLY = 1

#: Flag: the running task's body raised SystemExit or KeyboardInterrupt.
EXITED = 2

#: What the parent asked of the child (``asked``).
LOST_OWNERSHIP = 1
TERMINATE = 2

_barrier = threading.Lock()


@dataclass(frozen=True, slots=True)
class Held:
    """An entry that a child holds."""

    stream: StreamRef
    entry_id: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A slot at one moment. Times are ``time.monotonic`` seconds."""

    pid: int
    batch: int
    #: Ran, not acknowledged yet.
    finished: tuple[Held, ...]
    running: Held | None
    #: Not started.
    waiting: tuple[Held, ...]
    started_at: float
    soft: float | None
    hard: float | None
    acked_early: bool
    #: Its body raised SystemExit or KeyboardInterrupt; the process ends for that.
    exited: bool
    #: Tasks that this child finished.
    done: int


class Slot:
    """One child's part of the table; ``streams`` is the list that both sides number streams by."""

    def __init__(self, memory: mmap.mmap, index: int, streams: list[StreamRef]) -> None:
        self.index = index
        self.streams = streams
        self._memory = memory
        self._at = index * _SLOT_SIZE
        self._batch = 0
        self._done = 0

    # -- the child's half

    def attach(self, pid: int) -> None:
        """Take the slot for a new child: everything in it is cleared."""
        parent_word = self._at + _PARENT_AT
        self._memory[self._at : self._at + _ENTRIES_AT] = bytes(_ENTRIES_AT)
        _PARENT.pack_into(self._memory, parent_word, 0, 0, 0)
        self._batch = self._done = 0
        _CHILD.pack_into(self._memory, self._at, pid, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0)

    def load(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Write a new batch of ``(index of the stream, entry id)``; nothing of it is started yet."""
        memory, at = self._memory, self._at
        _LENGTH.pack_into(memory, at + _COUNT_AT, 0)
        _PROGRESS.pack_into(memory, at + _PROGRESS_AT, 0, 0, 0, 0)
        offset = at + _ENTRIES_AT
        for stream, entry_id in entries:
            ms, _, sequence = entry_id.partition(b"-")
            _ENTRY.pack_into(memory, offset, int(ms), int(sequence), stream)
            offset += _ENTRY.size
        self._batch = (self._batch + 1) & 0x7FFFFFFF
        struct.pack_into("<II", memory, at + 8, self._batch, len(entries))

    def begin(self, index: int, *, soft: float | None, hard: float | None) -> bool:
        """Say that entry ``index`` starts now; False when the parent took it back: then it must not start."""
        memory, at = self._memory, self._at
        _TIMES.pack_into(memory, at + _TIMES_AT, time.monotonic(), soft or 0.0, hard or 0.0)
        struct.pack_into("<I", memory, at + _PROGRESS_AT, index + 1)
        with _barrier:
            pass
        (word,) = struct.unpack_from("<Q", memory, at + _PARENT_AT)
        if word >> 32 == self._batch and index >= word & 0xFFFFFFFF:
            struct.pack_into("<I", memory, at + _PROGRESS_AT, index)
            return False
        return True

    def limit(self, *, soft: float | None, hard: float | None) -> None:
        """Set the time limits of the running task (they become known only after it was decoded)."""
        struct.pack_into("<dd", self._memory, self._at + _TIMES_AT + 8, soft or 0.0, hard or 0.0)

    def finish(self, index: int) -> None:
        """Say that entry ``index`` ran and waits for its acknowledgement (or was settled: see :meth:`settled`)."""
        self._done += 1
        struct.pack_into("<II", self._memory, self._at + _PROGRESS_AT + 4, index + 1, 0)
        struct.pack_into("<q", self._memory, self._at + _DONE_AT, self._done)

    def settled(self, count: int) -> None:
        """Say that the first ``count`` entries of the batch are settled."""
        struct.pack_into("<I", self._memory, self._at + _PROGRESS_AT + 12, count)

    def keep(self, message: Message) -> None:
        """Keep the message of the running task, which is about to be acknowledged before it runs."""
        packed = pack(message)
        at = self._at + _MESSAGE_AT
        if len(packed) + _LENGTH.size > _SLOT_SIZE - _MESSAGE_AT:
            packed = pack(Message(message.headers, message.properties, b"", message.history, message.step))
            if len(packed) + _LENGTH.size > _SLOT_SIZE - _MESSAGE_AT:
                packed = b""
        _LENGTH.pack_into(self._memory, at, len(packed))
        self._memory[at + _LENGTH.size : at + _LENGTH.size + len(packed)] = packed
        struct.pack_into("<I", self._memory, self._at + _PROGRESS_AT + 8, ACKED_EARLY)

    def exited(self) -> None:
        """Say that the body of the running task raised SystemExit or KeyboardInterrupt."""
        at = self._at + _PROGRESS_AT + 8
        (flags,) = struct.unpack_from("<I", self._memory, at)
        struct.pack_into("<I", self._memory, at, flags | EXITED)

    def lost(self) -> bool:
        """Return whether the parent found that an entry of this batch is no longer ours."""
        word, asked, _ = _PARENT.unpack_from(self._memory, self._at + _PARENT_AT)
        return bool(asked & LOST_OWNERSHIP) and word >> 32 == self._batch

    def terminate_asked(self) -> bool:
        """Return whether the parent wants this child to end at once (and not only some process manager)."""
        return bool(_PARENT.unpack_from(self._memory, self._at + _PARENT_AT)[1] & TERMINATE)

    def restricted(self) -> bool:
        """Return whether the parent took entries of this batch back, or settled some in our place."""
        (word,) = struct.unpack_from("<Q", self._memory, self._at + _PARENT_AT)
        return bool(word >> 32 == self._batch)

    # -- the parent's half

    def restrict(self) -> Snapshot:
        """Take back everything that was not started: the child will start none of ``waiting`` any more."""
        memory, at = self._memory, self._at
        _, batch, _, started = struct.unpack_from("<qIII", memory, at)
        word, asked, spare = _PARENT.unpack_from(memory, at + _PARENT_AT)
        asked = asked if word >> 32 == batch else asked & TERMINATE
        _PARENT.pack_into(memory, at + _PARENT_AT, batch << 32 | started, asked, spare)
        with _barrier:
            pass
        return self.snapshot()

    def ask_terminate(self) -> None:
        """Say that the SIGTERM that follows comes from the parent."""
        memory, at = self._memory, self._at + _PARENT_AT
        word, asked, spare = _PARENT.unpack_from(memory, at)
        _PARENT.pack_into(memory, at, word, asked | TERMINATE, spare)

    def mark_lost(self, batch: int) -> None:
        """Tell the child that an entry of ``batch`` is no longer ours."""
        memory, at = self._memory, self._at + _PARENT_AT
        word, asked, spare = _PARENT.unpack_from(memory, at)
        if word >> 32 != batch:
            word, asked = batch << 32 | 0xFFFFFFFF, asked & TERMINATE
        _PARENT.pack_into(memory, at, word, asked | LOST_OWNERSHIP, spare)

    def snapshot(self) -> Snapshot:
        """Return what the slot says now; a batch that changes meanwhile is read again."""
        memory, at = self._memory, self._at
        while True:
            pid, batch, count, started, finished, flags, settled, since, soft, hard, done, _ = _CHILD.unpack_from(
                memory, at
            )
            count = min(count, MAX_BATCH)
            ids = [_ENTRY.unpack_from(memory, at + _ENTRIES_AT + _ENTRY.size * i) for i in range(count)]
            if struct.unpack_from("<I", memory, at + 8)[0] == batch:
                break
        held = [
            Held(self.streams[stream], b"%d-%d" % (ms, sequence))
            for ms, sequence, stream in ids
            if stream < len(self.streams)
        ]
        running = held[started - 1] if finished < started <= len(held) else None
        return Snapshot(
            pid=pid,
            batch=batch,
            finished=tuple(held[settled:finished]),
            running=running,
            waiting=tuple(held[max(started, finished) :]),
            started_at=since,
            soft=_as_given(soft),
            hard=_as_given(hard),
            acked_early=bool(flags & ACKED_EARLY) and running is not None,
            exited=bool(flags & EXITED) and running is not None,
            done=done,
        )

    def kept_message(self) -> Message | None:
        """Return the message of a task that was acknowledged early; its body is empty if it was too large."""
        at = self._at + _MESSAGE_AT
        (length,) = _LENGTH.unpack_from(self._memory, at)
        if not 0 < length <= _SLOT_SIZE - _MESSAGE_AT - _LENGTH.size:
            return None
        return unpack(self._memory[at + _LENGTH.size : at + _LENGTH.size + length])

    def clear(self) -> None:
        """Forget the batch of a child that is gone."""
        struct.pack_into("<II", self._memory, self._at + 8, 0, 0)
        _PROGRESS.pack_into(self._memory, self._at + _PROGRESS_AT, 0, 0, 0, 0)


def _as_given(limit: float) -> float | None:
    """Return a time limit as people wrote it, since Celery shows it: 5 and not 5.0."""
    return (int(limit) if limit.is_integer() else limit) or None


class SlotTable:
    """All slots of a worker: one shared memory map, inherited by forks, reopened by path in spawned children."""

    #: Slots; memory is only taken for those that are used.
    CAPACITY = 1024

    def __init__(self, path: str | None = None, *, shared_by_path: bool = False) -> None:
        size = self.CAPACITY * _SLOT_SIZE
        if path is None:
            descriptor, path = tempfile.mkstemp(prefix="celery-streams-slots-")
            os.ftruncate(descriptor, size)
            self._owner = os.getpid()
        else:
            descriptor = os.open(path, os.O_RDWR)
            self._owner = 0
        self.path = path
        self._memory = mmap.mmap(descriptor, size)
        os.close(descriptor)
        if self._owner and not shared_by_path:
            os.unlink(path)
        self._unlink = bool(self._owner) and shared_by_path
        self.streams: list[StreamRef] = []

    def slot(self, index: int) -> Slot:
        """Return slot ``index``."""
        return Slot(self._memory, index, self.streams)

    def __reduce__(self) -> tuple[Any, ...]:
        return (SlotTable, (self.path,), {"streams": self.streams})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.streams = state["streams"]

    def close(self) -> None:
        """Remove the file, if there is one."""
        if self._unlink and self._owner == os.getpid():
            self._unlink = False
            os.unlink(self.path)

"""Slots: what each child is doing, kept where the parent can read it at any time, also after a SIGKILL.

A slot is a piece of a shared memory map, one for each child:

* the batch: the entries that the child has read, in the order in which it runs them;
* how far it is: entries ``[0, finished)`` ran and are waiting to be acknowledged in one go, ``started - 1`` is
  running if it is greater than ``finished - 1``, the rest has not been started;
* since when, and the time limits of what runs;
* how often each task was started, by numbers that the child tells the parent names for;
* what the parent asks of it: ``restrict`` takes entries back that were not started.

The child writes its half of the header, the parent the other; no lock is shared, so nobody can die holding one. The
one race that matters (the child starts an entry while the parent takes it back) is decided as in Dekker's algorithm:
each writes its own word first and then reads the other's, with a full memory barrier between (an uncontended lock).
When both see each other neither runs the entry, and the child puts it back; the settle scripts' ownership check makes
putting back twice harmless.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..entries import Entry, StreamRef
from ..message import Message, pack, unpack

__all__ = ("COUNTED", "MAX_BATCH", "Slot", "SlotTable", "Snapshot", "as_given")

logger = logging.getLogger(__name__)

#: Entries that a child holds at most: small tasks are fetched in batches; measured best near 100.
MAX_BATCH = 100

#: Bytes of a slot: header, batch, and the message of a task that was acknowledged before it ran.
_SLOT_SIZE = 64 * 1024

# Where the numbers of the header lie. They are read and written through views of aligned 32 and 64 bit words, each
# store one instruction: struct.pack_into clears the bytes first, and the other side would see zeros now and then.
# The child's half. 64 bits: process id; batch, and the number of its entries above it; tasks done.
_PID, _BATCH, _DONE = 0, 1, 7
# 32 bits: entries that were started, that are finished, flags of the running one, entries that are settled.
_STARTED, _FINISHED, _FLAGS, _SETTLED = 4, 5, 6, 7
# Doubles: start of the running task, its soft and its hard time limit.
_SINCE, _SOFT, _HARD = 4, 5, 6
# Double: when a read last succeeded.
_READ = 8
# 64 bits, each written by one thread: task events that were kept so far, and how many of them were sent.
_EVENTS_KEPT, _EVENTS_SENT = 9, 10
# The parent's half. 64 bits, index below and batch above: from where on entries are restricted; which entry was lost
# (its index + 1); which entry's task was terminated, likewise. 32 bits: the batch of which what was restricted is back
# in its streams; whether to end at once.
_RESTRICTED, _LOST, _ENDED = 16, 17, 19
_RETURNED, _TERMINATE = 36, 37

_ENTRY = struct.Struct("<QQI4x")  # milliseconds, sequence, index of the stream
_ENTRIES_AT = 256
#: Tasks that a child counts by name; what it starts of more of them is counted under the last number.
COUNTED = 256
_COUNTS_AT = _ENTRIES_AT + _ENTRY.size * MAX_BATCH
_MESSAGE_AT = _COUNTS_AT + 8 * COUNTED
_LENGTH = struct.Struct("<I")
#: In the place of a length: the message lies in a file of its own.
_SPOOLED = 0xFFFFFFFF
_LOW = 0xFFFFFFFF

#: Flag: the running task's message was acknowledged before it ran.
ACKED_EARLY = 1

#: Flag: the running task's body raised SystemExit or KeyboardInterrupt.
EXITED = 2


#: Flag: the running task's message was settled as retried; its body goes on.
RETRIED = 4

#: Flag: what the running task came to is being settled.
SETTLING = 8

#: Flag, beside EXITED: it was KeyboardInterrupt.
BY_KEYBOARD = 16


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A slot at one moment. Times are ``time.monotonic`` seconds."""

    pid: int
    batch: int
    #: Ran, not acknowledged yet.
    finished: tuple[Entry, ...]
    running: Entry | None
    #: Not started.
    waiting: tuple[Entry, ...]
    started_at: float
    soft: float | None
    hard: float | None
    acked_early: bool
    #: Its body raised SystemExit or KeyboardInterrupt; the process ends for that.
    exited: bool
    #: Tasks that this child finished.
    done: int
    #: Its message was settled as retried, and its body goes on: nothing is left to do for it.
    retried: bool = False
    #: What ``exited`` says was KeyboardInterrupt.
    by_keyboard: bool = False
    #: What strategies of tasks keep, to run it later.
    kept: tuple[Entry, ...] = ()
    #: Since when the oldest of ``waiting`` waits, where nothing runs before it; None: for what runs.
    waiting_since: float | None = None
    #: What it came to is being settled, maybe once more after a lost reply: whoever settles says what is lost.
    settling: bool = False


class Slot:
    """One child's part of the table; ``streams`` is the list that both sides number streams by."""

    def __init__(self, memory: mmap.mmap, index: int, streams: list[StreamRef], *, spool: Path) -> None:
        self.index = index
        self.streams = streams
        #: Where a message lies that is kept and too large for the slot.
        self._spool = spool
        self._memory = memory
        self._at = index * _SLOT_SIZE
        header = memoryview(memory)[self._at : self._at + _ENTRIES_AT]
        counts = memoryview(memory)[self._at + _COUNTS_AT : self._at + _MESSAGE_AT]
        self._counts = counts.cast("Q")
        self._words, self._longs, self._doubles = header.cast("I"), header.cast("Q"), header.cast("d")
        self._batch = 0
        self._done = 0
        #: The last task that was found terminated after its end.
        self._heeded = 0
        self._restricting = threading.Lock()
        #: Taken for nothing but the order in which memory is written and read; a lock of each side's own, for one that
        #: a thread of the parent held during the fork would never be free in the child.
        self._barrier = threading.Lock()

    # -- the child's half

    def attach(self, pid: int) -> None:
        """Take the slot for a new child: everything in it is cleared."""
        self._memory[self._at : self._at + _ENTRIES_AT] = bytes(_ENTRIES_AT)
        self._memory[self._at + _COUNTS_AT : self._at + _MESSAGE_AT] = bytes(8 * COUNTED)
        self._batch = self._done = self._heeded = 0
        self._longs[_PID] = pid

    def load(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Write a new batch of ``(index of the stream, entry id)``; nothing of it is started yet."""
        words = self._words
        self._longs[_BATCH] &= _LOW  # no entries: whoever reads the old batch now begins anew
        words[_STARTED] = words[_FINISHED] = words[_FLAGS] = words[_SETTLED] = 0
        offset = self._at + _ENTRIES_AT
        for stream, entry_id in entries:
            ms, _, sequence = entry_id.partition(b"-")
            _ENTRY.pack_into(self._memory, offset, int(ms), int(sequence), stream)
            offset += _ENTRY.size
        self._batch = (self._batch + 1) & 0x7FFFFFFF
        with self._barrier:
            self._longs[_BATCH] = len(entries) << 32 | self._batch

    def shorten(self, count: int) -> None:
        """Forget the entries of the batch from ``count`` on: they were put back."""
        self._longs[_BATCH] = count << 32 | self._batch

    def begin(self, index: int) -> bool:
        """Say that entry ``index`` starts now; False when the parent took it back: then it must not start.

        Time limits come later, with :meth:`limit`: until its body starts a message may have to wait for Redis.
        """
        doubles = self._doubles
        doubles[_SINCE], doubles[_SOFT], doubles[_HARD] = time.monotonic(), 0.0, 0.0
        self._words[_STARTED] = index + 1
        with self._barrier:
            pass
        word = self._longs[_RESTRICTED]
        if word >> 32 == self._batch and index >= word & _LOW:
            self._words[_STARTED] = index
            return False
        return True

    def limit(self, *, soft: float | None, hard: float | None) -> None:
        """Set the time limits of the running task, which count from the first call on; None ends them."""
        if (soft or hard) and not self.limited():
            self._doubles[_SINCE] = time.monotonic()
        self._doubles[_SOFT], self._doubles[_HARD] = soft or 0.0, hard or 0.0

    def limited(self) -> bool:
        """Return whether the running task has a time limit now."""
        return bool(self._doubles[_SOFT] or self._doubles[_HARD])

    def finish(self, index: int) -> None:
        """Say that entry ``index`` ran and waits for its acknowledgement (or was settled: see :meth:`settled`)."""
        self._done += 1
        self._words[_FINISHED] = index + 1
        self._words[_FLAGS] = 0
        self._longs[_DONE] = self._done

    def settled(self, count: int) -> None:
        """Say that the first ``count`` entries of the batch are settled."""
        self._words[_SETTLED] = count

    def took(self) -> float:
        """Return how many seconds ago the running task started."""
        return time.monotonic() - self._doubles[_SINCE]

    def keep(self, message: Message) -> None:
        """Keep the message of the running task, which is about to be acknowledged before it runs."""
        packed = pack(message)
        at = self._at + _MESSAGE_AT
        if len(packed) + _LENGTH.size > _SLOT_SIZE - _MESSAGE_AT:
            _LENGTH.pack_into(self._memory, at, _SPOOLED if self._write_spool(packed) else 0)
        else:
            _LENGTH.pack_into(self._memory, at, len(packed))
            self._memory[at + _LENGTH.size : at + _LENGTH.size + len(packed)] = packed
        self._words[_FLAGS] = ACKED_EARLY

    def _write_spool(self, packed: bytes) -> bool:
        try:
            with os.fdopen(os.open(self._spool, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(packed)
        except OSError as exc:
            logger.error(
                "A message of %d bytes is acknowledged before its task runs and cannot be kept in %s (%s): if its "
                "process dies now, there is no dead letter of it. Make room there.",
                len(packed),
                self._spool,
                exc,
            )
            return False
        return True

    def exited(self, *, by_keyboard: bool = False) -> None:
        """Say that the body of the running task raised SystemExit or KeyboardInterrupt."""
        self._words[_FLAGS] |= EXITED | BY_KEYBOARD if by_keyboard else EXITED

    def count(self, number: int) -> None:
        """Count a start of the task that the child calls ``number``."""
        self._counts[number] += 1

    def retried(self) -> None:
        """Say that the message of the running task was settled as retried, though its body goes on."""
        self._words[_FLAGS] |= RETRIED

    def settling(self, *, ends: bool = False) -> None:
        """Say that what the running task came to is being settled; or, when that ends, that it goes on."""
        if ends:
            self._words[_FLAGS] &= ~SETTLING
        else:
            self._words[_FLAGS] |= SETTLING

    def note_read(self) -> None:
        """Say that a read has succeeded."""
        self._doubles[_READ] = time.monotonic()

    def events_kept(self, count: int) -> None:
        """Say how many task events were kept so far to be sent; 0 begins anew."""
        if not count:
            self._longs[_EVENTS_SENT] = 0
        self._longs[_EVENTS_KEPT] = count

    def events_sent(self, count: int) -> None:
        """Say how many of them were sent."""
        self._longs[_EVENTS_SENT] = count

    def lost(self) -> bool:
        """Return whether the parent found that the running entry is no longer ours."""
        return self._longs[_LOST] == self._batch << 32 | self._words[_STARTED]

    def terminate_asked(self) -> bool:
        """Return whether the parent wants this child to end at once (and not only some process manager)."""
        return bool(self._words[_TERMINATE])

    def task_terminated(self) -> bool | None:
        """Return whether the parent wants the task to end that runs now; None when a SIGTERM is not for a task.

        The parent signals a process; by the time it comes the task may be over and the next one may run: that is False.
        """
        word = self._longs[_ENDED]
        if not word:
            return None
        started = self._words[_STARTED]
        if word == self._batch << 32 | started and self._words[_FINISHED] < started:
            return True
        stale, self._heeded = word != self._heeded, word
        return False if stale else None

    def restricted(self) -> bool:
        """Return whether the parent took entries of this batch back, or settled some in our place."""
        return self._longs[_RESTRICTED] >> 32 == self._batch

    # -- the parent's half

    def counts(self) -> list[int]:
        """Return how often the child has started the tasks that it calls by these numbers, also after its death."""
        return list(self._counts)

    def restrict(self) -> Snapshot:
        """Take back everything that was not started: the child will start none of ``waiting`` any more."""
        with self._restricting:
            while True:
                batch = self._longs[_BATCH] & _LOW
                word = batch << 32 | self._words[_STARTED]
                # Never later in the same batch: the child may just be about to see that it must not start one.
                if self._longs[_RESTRICTED] >> 32 != batch or word < self._longs[_RESTRICTED]:
                    self._longs[_RESTRICTED] = word
                with self._barrier:
                    pass
                shot = self.snapshot()
                if shot.batch == batch:  # else the child has loaded a new batch, of which nothing is restricted
                    return shot

    def returned(self, batch: int) -> None:
        """Note that what :meth:`restrict` found waiting is back in its streams, and what had finished acknowledged."""
        self._words[_RETURNED] = batch

    def ask_terminate(self) -> None:
        """Say that the SIGTERM that follows comes from the parent."""
        self._words[_TERMINATE] = 1

    def terminate_task(self, entry: Entry) -> bool:
        """Say that the SIGTERM that follows is for the task of ``entry``; False when that does not run any more.

        Nothing else of its batch will be started before the child has looked at what it holds.
        """
        while True:
            started = self._words[_STARTED]
            shot = self.restrict()
            if shot.running != entry:
                return False
            if self._words[_STARTED] == started:
                self._longs[_ENDED] = shot.batch << 32 | started
                return True

    def mark_lost(self, batch: int) -> None:
        """Tell the child that the entry of ``batch`` that it is running is no longer ours."""
        self._longs[_LOST] = batch << 32 | self._words[_STARTED]

    def snapshot(self) -> Snapshot:
        """Return what the slot says now; a batch that changes meanwhile is read again."""
        words, longs, doubles = self._words, self._longs, self._doubles
        while True:
            loaded = longs[_BATCH]
            batch, count = loaded & _LOW, min(loaded >> 32, MAX_BATCH)
            finished, settled = words[_FINISHED], words[_SETTLED]
            since, soft, hard = doubles[_SINCE], doubles[_SOFT], doubles[_HARD]
            # Read last: what is running has the times that were written before it was started, or newer ones.
            flags, started = words[_FLAGS], words[_STARTED]
            start = self._at + _ENTRIES_AT
            ids = [_ENTRY.unpack_from(self._memory, start + _ENTRY.size * i) for i in range(count)]
            with self._barrier:
                if longs[_BATCH] == loaded and words[_FINISHED] == finished and words[_STARTED] == started:
                    break
        held = [
            Entry(self.streams[stream], b"%d-%d" % (ms, sequence))
            for ms, sequence, stream in ids
            if stream < len(self.streams)
        ]
        running = held[started - 1] if finished < started <= len(held) else None
        first, end = settled, len(held)
        restricted = longs[_RESTRICTED]
        if words[_RETURNED] == batch and restricted >> 32 == batch:
            # Of a batch that was handed back the child only holds what was running then, and that until it is settled.
            end = restricted & _LOW
            first = max(settled, end - 1)
        return Snapshot(
            pid=longs[_PID],
            batch=batch,
            finished=tuple(held[first:finished]),
            running=running,
            waiting=tuple(held[max(started, finished) : end]),
            started_at=since,
            soft=as_given(soft),
            hard=as_given(hard),
            acked_early=bool(flags & ACKED_EARLY) and running is not None,
            exited=bool(flags & EXITED) and running is not None,
            by_keyboard=bool(flags & BY_KEYBOARD) and running is not None,
            done=longs[_DONE],
            retried=bool(flags & RETRIED) and running is not None,
            settling=bool(flags & SETTLING) and running is not None,
        )

    def has_unsent_events(self) -> bool:
        """Return whether the child kept task events that it did not send, also after its death."""
        return bool(self._longs[_EVENTS_KEPT] > self._longs[_EVENTS_SENT])

    def read_at(self) -> float:
        """Return when a read last succeeded, as ``time.monotonic`` has it; 0.0 for never."""
        return self._doubles[_READ]

    def kept_message(self) -> Message | None:
        """Return the message of a task that was acknowledged early."""
        at = self._at + _MESSAGE_AT
        (length,) = _LENGTH.unpack_from(self._memory, at)
        if length == _SPOOLED:
            return unpack(self._spool.read_bytes())
        if not 0 < length <= _SLOT_SIZE - _MESSAGE_AT - _LENGTH.size:
            return None
        return unpack(self._memory[at + _LENGTH.size : at + _LENGTH.size + length])

    def clear(self) -> None:
        """Forget the batch of a child that is gone."""
        _LENGTH.pack_into(self._memory, self._at + _MESSAGE_AT, 0)
        self._spool.unlink(missing_ok=True)
        self._longs[_BATCH] = 0
        self._words[_STARTED] = self._words[_FINISHED] = self._words[_FLAGS] = self._words[_SETTLED] = 0


def as_given(limit: float | None) -> float | None:
    """Return a time limit as people wrote it, since Celery shows it: 5 and not 5.0."""
    return (int(limit) if limit and float(limit).is_integer() else limit) or None


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
        return Slot(self._memory, index, self.streams, spool=Path(f"{self.path}.{index}"))

    def __reduce__(self) -> tuple[Any, ...]:
        return (SlotTable, (self.path,), {"streams": self.streams})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.streams = state["streams"]

    def close(self) -> None:
        """Remove the file, if there is one, and what was too large for the slots."""
        if os.getpid() == self._owner:
            for spool in Path(self.path).parent.glob(f"{Path(self.path).name}.*"):
                spool.unlink(missing_ok=True)
        if self._unlink and self._owner == os.getpid():
            self._unlink = False
            os.unlink(self.path)

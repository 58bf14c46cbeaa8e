"""Counts: what became of messages, counted where it happens, in memory that the parent reads whenever it is asked.

A :class:`Counts` is a piece of memory with one writer's process and any number of readers: rows of 64 bit words, each
with a label, and nothing is ever taken out of it. A child's piece is shared memory that belongs to its *place* in the
pool and not to the process: a successor goes on where the one before stopped. So nothing is lost with a child that is
killed or replaced, nothing has to be added up at its end, and no sum ever falls.

A row is published after its label, and each word is written by one store: a child that is killed in the middle leaves
either the old figure or the new one. What has no row of its own, because there are too many, or because nobody here
knows the task, is counted as :data:`OTHER`: names of unknown tasks are their senders' choice.

Nothing of this is there without ``--metrics-port``; ``metrics`` says how it is exposed.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..redis_errors import ERROR_KINDS
from .outcome import Event, Reason

__all__ = (
    "MOST_TASKS",
    "OTHER",
    "RUNTIME_BUCKETS",
    "WAIT_BUCKETS",
    "Counts",
    "CountsTable",
    "ErrorsRow",
    "QueueRow",
    "TaskRow",
)

#: The label of everything that has no row of its own.
OTHER = "other"

#: Tasks with rows of their own; names come from the project, which may make them up by the thousand.
MOST_TASKS = 200

#: Upper bounds in seconds: time in a task's body.
RUNTIME_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

#: Upper bounds in seconds: time in a queue. 15 is the visibility timeout: what was recovered shows as a step there.
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)

_EVENTS = tuple(Event)
#: By identity: to hash a member takes longer than all the rest of counting it.
_EVENT_AT = {id(event): at for at, event in enumerate(_EVENTS)}
_REASONS = tuple(Reason)
_ERROR_AT = {kind: at for at, kind in enumerate(ERROR_KINDS)}
_REASON_AT = {reason.value: at for at, reason in enumerate(_REASONS)}

# Words of a row. A task's: outcomes, run times by bucket (the last one beyond all bounds), their sum, dead letters.
_RUNTIMES = len(_EVENTS)
_RUNTIME_SUM = _RUNTIMES + len(RUNTIME_BUCKETS) + 1
_DEAD = _RUNTIME_SUM + 1
# A queue's: waits by bucket, their sum, and single counters.
_WAIT_SUM = len(WAIT_BUCKETS) + 1
_CHILD, _WORKER, _LOST, _STREAM, _LIST = range(_WAIT_SUM + 1, _WAIT_SUM + 6)
# And one row of its own for errors of Redis, by their kind.
_WORDS = max(_DEAD + len(_REASONS), _LIST + 1, len(ERROR_KINDS))

#: Rows of a piece of memory, for tasks and queues together.
_ROWS = 256

# A piece: the number of published rows, the rows, the labels (length, then JSON).
_HEADER = 8
_LABELS_AT = _HEADER + 8 * _WORDS * _ROWS
#: Bytes of a piece; only the pages that are used take memory.
_SIZE = 128 * 1024

_TASK, _QUEUE, _ERRORS = 0, 1, 2
_TASK_OTHER = (_TASK, OTHER, OTHER)
_QUEUE_OTHER = (_QUEUE, OTHER, "")
_ERRORS_ROW = (_ERRORS, "", "")


@dataclass(frozen=True, slots=True)
class TaskRow:
    """What was counted for one task of one queue; times in seconds, buckets not cumulative."""

    queue: str
    task: str
    outcomes: dict[Event, int]
    runtimes: tuple[int, ...]
    runtime_sum: float
    dead_letters: dict[Reason, int]


@dataclass(frozen=True, slots=True)
class QueueRow:
    """What was counted for one queue; times in seconds, buckets not cumulative."""

    queue: str
    waits: tuple[int, ...]
    wait_sum: float
    #: Entries taken over from a child of this worker that died, and from another worker.
    from_children: int
    from_workers: int
    #: Entries that were another's when they were settled.
    lost_ownership: int
    #: Messages that were published to its stream and to Celery's list.
    to_stream: int
    to_list: int


@dataclass(frozen=True, slots=True)
class ErrorsRow:
    """What Redis refused, and how often it could not be reached, by kind of error."""

    kinds: dict[str, int]


class Counts:
    """One piece of memory; a process that counts has one, and its threads share it.

    Args:
        memory: at least as large as a piece, at ``at``; None takes memory of the process' own.
        mine: this process counts here; False only reads.
    """

    def __init__(self, memory: mmap.mmap | None = None, at: int = 0, *, mine: bool = True) -> None:
        self._memory = mmap.mmap(-1, _SIZE) if memory is None else memory
        self._at = at
        view = memoryview(self._memory)[at : at + _LABELS_AT]
        self._longs, self._doubles = view.cast("Q"), view.cast("d")
        # Reentrant: signal handlers of a cold shutdown may interrupt whoever counts.
        self._lock = threading.RLock()
        self._rows: dict[tuple[int, str, str], int] = {}
        self._tasks: set[str] = set()
        #: Where the next label goes; after a kill something may lie there that was never published.
        self._end = self._at + _LABELS_AT
        if mine:
            for number, (label, end) in enumerate(self._labels()):
                self._note(label, number, end)
            for label in (_TASK_OTHER, _QUEUE_OTHER, _ERRORS_ROW):
                self._row(*label)

    # -- counting

    def see_queue(self, queue: str) -> None:
        """Make sure that a queue has its row, all zeros: what begins at 1 has not grown, for who compares."""
        with self._lock:
            self._row(_QUEUE, queue, "")

    def ended(self, queue: str, task: str, event: Event, seconds: float | None) -> None:
        """Count a delivery that ended, and how long its task's body ran; None: it did not."""
        longs = self._longs
        with self._lock:
            row = self._rows.get((_TASK, queue, task)) or self._row(_TASK, queue, task)
            longs[row + _EVENT_AT[id(event)]] += 1
            if seconds is not None:
                longs[row + _RUNTIMES + bisect_left(RUNTIME_BUCKETS, seconds)] += 1
                self._doubles[row + _RUNTIME_SUM] += seconds

    def started(self, queue: str, task: str, waited: float | None) -> None:
        """Count a task that starts, by the seconds for which its message waited; None: it was started before.

        The task has its row from now on, all zeros.
        """
        with self._lock:
            if (_TASK, queue, task) not in self._rows:
                self._row(_TASK, queue, task)
            if waited is not None:
                if waited < 0.0:  # by two clocks
                    waited = 0.0
                row = self._rows.get((_QUEUE, queue, "")) or self._row(_QUEUE, queue, "")
                self._longs[row + bisect_left(WAIT_BUCKETS, waited)] += 1
                self._doubles[row + _WAIT_SUM] += waited

    def dead_letter(self, queue: str, task: str, reason: str) -> None:
        """Count a dead letter."""
        with self._lock:
            self._longs[self._row(_TASK, queue, task) + _DEAD + _REASON_AT[reason]] += 1

    def recovered(self, queue: str, count: int, *, of_child: bool) -> None:
        """Count entries that were taken over from a child that died, or from another worker."""
        self._add(queue, _CHILD if of_child else _WORKER, count)

    def lost_ownership(self, queue: str) -> None:
        """Count an entry that was another's when it was settled."""
        self._add(queue, _LOST, 1)

    def published(self, queue: str, count: int, *, to_stream: bool) -> None:
        """Count messages that this process published."""
        self._add(queue, _STREAM if to_stream else _LIST, count)

    def redis_error(self, kind: str) -> None:
        """Count an error of Redis, by one of :data:`redis_errors.ERROR_KINDS`."""
        with self._lock:
            self._longs[self._row(*_ERRORS_ROW) + _ERROR_AT[kind]] += 1

    def _add(self, queue: str, word: int, count: int) -> None:
        with self._lock:
            self._longs[self._row(_QUEUE, queue, "") + word] += count

    def _row(self, kind: int, queue: str, task: str) -> int:
        """Return the first word of a row, which is made when it is new."""
        label = (kind, queue, task)
        row = self._rows.get(label)
        if row is None:
            row = self._rows[label] = self._make(label)
        return row

    def _make(self, label: tuple[int, str, str]) -> int:
        kind, queue, task = label
        if kind == _TASK and task not in self._tasks and len(self._tasks) >= MOST_TASKS:
            return self._row(_TASK, queue, OTHER)
        number = int(self._longs[0])
        packed = json.dumps(label, separators=(",", ":")).encode()
        packed = len(packed).to_bytes(4, "little") + packed
        end = self._end + len(packed)
        if number == _ROWS or end > self._at + _SIZE:
            return self._rows[_QUEUE_OTHER if kind == _QUEUE else _TASK_OTHER]
        self._memory[self._end : end] = packed
        self._longs[0] = number + 1
        return self._note(label, number, end)

    def _note(self, label: tuple[int, str, str], number: int, end: int) -> int:
        self._rows[label] = row = self._first_word(number)
        self._end = end
        if label[0] == _TASK:
            self._tasks.add(label[2])
        return row

    @staticmethod
    def _first_word(number: int) -> int:
        return _HEADER // 8 + number * _WORDS

    # -- reading

    def _labels(self) -> Iterator[tuple[tuple[int, str, str], int]]:
        """Return the labels of the published rows, each with where it ends."""
        at = self._at + _LABELS_AT
        for _ in range(int(self._longs[0])):
            length = int.from_bytes(self._memory[at : at + 4], "little")
            kind, queue, task = json.loads(self._memory[at + 4 : at + 4 + length])
            at += 4 + length
            yield (kind, queue, task), at

    def rows(self) -> Iterator[TaskRow | QueueRow | ErrorsRow]:
        """Return what has been counted; figures of one row may be a moment apart."""
        for number, ((kind, queue, task), _) in enumerate(self._labels()):
            first = self._first_word(number)
            words = self._longs[first : first + _WORDS].tolist()
            if kind == _TASK:
                yield TaskRow(
                    queue,
                    task,
                    dict(zip(_EVENTS, words, strict=False)),
                    tuple(words[_RUNTIMES:_RUNTIME_SUM]),
                    self._doubles[first + _RUNTIME_SUM],
                    dict(zip(_REASONS, words[_DEAD:], strict=False)),
                )
            elif kind == _ERRORS:
                yield ErrorsRow(dict(zip(ERROR_KINDS, words, strict=False)))
            else:
                yield QueueRow(
                    queue, tuple(words[:_WAIT_SUM]), self._doubles[first + _WAIT_SUM], *words[_CHILD : _LIST + 1]
                )


class CountsTable:
    """The pieces of all children of a worker: one shared memory map, inherited by forks, reopened by spawned children.

    Args:
        shared_by_path: children are spawned, and open it by its path.
    """

    #: Children; memory is only taken for those that there are.
    CAPACITY = 1024

    def __init__(self, path: str | None = None, *, shared_by_path: bool = False) -> None:
        size = self.CAPACITY * _SIZE
        self._owner = os.getpid() if path is None else 0
        if path is None:
            descriptor, path = tempfile.mkstemp(prefix="celery-streams-counts-")
            os.ftruncate(descriptor, size)
        else:
            descriptor = os.open(path, os.O_RDWR)
        self.path = path
        self._memory = mmap.mmap(descriptor, size)
        os.close(descriptor)
        self._linked = bool(self._owner)
        if self._owner and not shared_by_path:
            self.close()
        #: The places that were ever taken, in the parent.
        self._places: dict[int, Counts] = {}

    def of_child(self, index: int) -> Counts:
        """Return, in a child, what it counts in: it goes on where the one before it in its place stopped."""
        return Counts(self._memory, index * _SIZE)

    def watch(self, index: int) -> None:
        """Note, in the parent, that the place is taken."""
        if index not in self._places:
            self._places[index] = Counts(self._memory, index * _SIZE, mine=False)

    def pieces(self) -> Sequence[Counts]:
        """Return all that children have counted in."""
        return list(self._places.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return (CountsTable, (self.path,))

    def close(self) -> None:
        """Remove the file; what is mapped stays."""
        if self._linked and os.getpid() == self._owner:
            self._linked = False
            os.unlink(self.path)

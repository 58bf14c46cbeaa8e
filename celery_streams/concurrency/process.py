"""Process: a child of the prefork pool as its parent knows it: what it holds, what it is told, how it is ended."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from billiard.connection import wait

from ..entries import Entry
from ..poll import writable
from ..worker.child import child_main
from ..worker.dead_children import Cause
from ..worker.pieces import pieces
from ..worker.slots import Slot, Snapshot

__all__ = ("Child", "Ending", "child_target", "end_by_force", "send_signal")

logger = logging.getLogger(__name__)

#: Seconds between SIGTERM and SIGKILL for a child that must end (billiard's own figure).
_GRACE = 0.1


class Ending:
    """Becomes readable when a process ends, whoever else lives on.

    billiard's sentinel is a pipe, which everything that a task forks inherits, and which is not closed before the last
    of these processes has ended. Where the system has no pidfd (Linux before 5.3, macOS) it must do, and the pool's
    chores notice such a death a moment later.
    """

    def __init__(self, process: Any) -> None:
        try:
            self._own: int | None = os.pidfd_open(process.pid)
        except (AttributeError, OSError) as exc:
            logger.debug("No pidfd for process %s: %r", process.pid, exc)
            self._own = None
        self._descriptor: int = process.sentinel if self._own is None else self._own
        self._closed = False
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def copy(self) -> int | None:
        """Return a descriptor of its own for another thread than the one that closes this; None once it is closed."""
        with self._lock:
            return None if self._closed else os.dup(self._descriptor)

    def close(self) -> None:
        """Close what was opened for this, before the process is closed."""
        # In a forked child the thread that had the lock, if any, is not there to give it back.
        locked = self._lock.acquire(timeout=1.0)
        self._closed = True
        if self._own is not None:
            os.close(self._own)
            self._own = None
        if locked:
            self._lock.release()


@dataclass(slots=True, eq=False)
class Child:
    """One child, as the parent knows it."""

    index: int
    process: Any
    slot: Slot
    consumer: str
    control: Any
    ending: Ending
    born: float
    #: Queues it may read; None is all.
    queues: frozenset[str] | None = None
    ready: bool = False
    #: What it was not told yet, in pieces that its pipe takes at once.
    outbox: deque[bytes] = field(default_factory=deque)
    #: How many of the pool's streams it knows.
    knows: int = 0
    #: It was told to stop and will not be replaced.
    leaving: bool = False
    cause: Cause = field(default_factory=Cause)
    #: It said that it leaves since it is over ``--max-memory-per-child``.
    outgrown: bool = False
    #: What strategies of its tasks keep, as it said.
    kept: tuple[Entry, ...] = ()
    #: The names of the tasks that it counts, by its numbers, and how many starts were taken into the totals.
    task_names: dict[int, str] = field(default_factory=dict)
    totals: dict[int, int] = field(default_factory=dict)
    #: Descriptors that the event loop watches: its end, and what it says.
    watched: tuple[int, ...] = ()

    def snapshot(self) -> Snapshot:
        """Return what it holds now."""
        return self._with_kept(self.slot.snapshot())

    def restrict(self) -> Snapshot:
        """Let it start nothing more of its batch."""
        return self._with_kept(self.slot.restrict())

    def _with_kept(self, shot: Snapshot) -> Snapshot:
        return replace(shot, kept=self.kept) if self.kept else shot

    def returned(self, batch: int) -> None:
        """Note that what was restricted is back in its streams."""
        self.slot.returned(batch)

    def mark_lost(self, batch: int) -> None:
        """Tell it that the entry that it is running is no longer its own."""
        self.slot.mark_lost(batch)

    def new_starts(self) -> dict[str, int]:
        """Return how many tasks it has started since the last call, by name."""
        found: dict[str, int] = {}
        counts = self.slot.counts()
        for number, name in self.task_names.items():
            new = counts[number] - self.totals.get(number, 0)
            if new:
                self.totals[number] = counts[number]
                found[name] = new
        return found

    # -- what it is told

    def tell(self, *message: Any) -> None:
        """Send it a message, now or as soon as its pipe takes it."""
        self.outbox.extend(pieces(message))
        self.send()

    def send(self) -> None:
        """Send what waits in the outbox as far as the pipe takes it: a child with a long task does not listen."""
        try:
            while self.outbox and writable(self.control.fileno()):
                self.control.send_bytes(self.outbox[0])
                self.outbox.popleft()
        except (OSError, ValueError) as exc:
            self.outbox.clear()
            logger.debug("Child %s is gone: %s", self.consumer, exc)

    # -- its end

    def terminate(self) -> None:
        """Ask it to end now, whatever it runs."""
        self.slot.ask_terminate()
        send_signal(self.process.pid, signal.SIGTERM)


def end_by_force(children: Sequence[Child]) -> None:
    """Ask children to end, and kill those that have not a moment later; it is one moment for all of them."""
    # The main thread may notice an end meanwhile, and close what belongs to that child.
    copies = {copy: child for child in children if (copy := child.ending.copy()) is not None}
    left = dict(copies)
    try:
        for child in copies.values():
            child.terminate()
        deadline = time.monotonic() + _GRACE
        while left and (ended := wait(list(left), timeout=max(deadline - time.monotonic(), 0.0))):
            for descriptor in ended:
                del left[descriptor]
        for child in left.values():
            send_signal(child.process.pid, signal.SIGKILL)
    finally:
        for copy in copies:
            os.close(copy)


def child_target(
    app: Any,
    hostname: str,
    consumer: str,
    index: int,
    table: Any,
    control: Any,
    options: Any,
    other_ends: Sequence[Any],
) -> None:
    """Be a child; ``other_ends`` are what the parent has open for its children, which a forked process inherits.

    As long as one end of a pipe is open anywhere, the child at the other end does not see that the parent is gone. (On
    Linux the kernel ends a child with its parent.)
    """
    for end in other_ends:
        end.close()
    child_main(app, hostname, consumer, index, table, control, options)


def send_signal(pid: int, signum: int) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        logger.debug("Process %s is gone already.", pid)

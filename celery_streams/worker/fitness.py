"""Fitness: whether this process can still do its work, or a task has left it without what every task needs.

A task may lower a limit of its process, or leak: then there are no descriptors, no memory, no threads for whatever runs
there next, and a child that goes on fails message after message. It notices and reports it; who ends the process, and
starts another one, is the matter of ``child`` and its pool. It counts what happens in a row, for one such failure may
be the task's own.
"""

from __future__ import annotations

import errno
import logging
import os
import threading

__all__ = ("MOST", "Fitness", "has_descriptors")

logger = logging.getLogger(__name__)

#: Failures in a row after which the process is not fit for more.
MOST = 3

#: What the operating system says when a process has used up what it may have.
_USED_UP = {errno.EMFILE, errno.ENOMEM}

#: How Python says that a thread cannot be started, in all its versions.
_NO_THREAD = "can't start new thread"


class Fitness:
    """The fitness of one process."""

    def __init__(self) -> None:
        #: Why it is not fit; empty: it is.
        self.reason = ""
        self._failed = 0
        self._untold = False

    def could_not_report(self) -> None:
        """Note that the failure of the task that runs cannot be reported from here."""
        self._untold = True

    def ended(self, error: BaseException | None) -> None:
        """Note that a task has ended, with what it raised."""
        said = "could not report" if self._untold else _shortage(error) if error is not None else ""
        self._untold = False
        if not said:
            self._failed = 0
            return
        self._failed += 1
        if self._failed >= MOST and not self.reason:
            self.reason = f"{self._failed} failures in a row ({said})"

    def lost_redis(self) -> None:
        """Note that Redis cannot be reached: it is this process' own fault when it can open nothing at all."""
        if not self.reason and not has_descriptors():
            self.reason = "it has no descriptor left to reach Redis with"


def has_descriptors() -> bool:
    """Return whether this process may open anything."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as exc:
        return exc.errno != errno.EMFILE
    return True


def _has_threads() -> bool:
    """Return whether this process may start a thread, which counts as a process does."""
    try:
        thread = threading.Thread(target=int, name="celery-streams-fitness")
        thread.start()
    except RuntimeError:
        return False
    thread.join()
    return True


def _shortage(exc: BaseException) -> str:
    """Return what an exception says the process lacks, in a few words; '' for any other."""
    if isinstance(exc, MemoryError):
        return "no memory"
    if isinstance(exc, OSError) and exc.errno in _USED_UP and not isinstance(exc, TimeoutError):
        return os.strerror(exc.errno or 0)
    # Whoever finds a file locked is told the same as who may not fork.
    if isinstance(exc, OSError) and exc.errno == errno.EAGAIN and not _has_threads():
        return os.strerror(exc.errno)
    if isinstance(exc, RuntimeError) and _NO_THREAD in str(exc):
        return _NO_THREAD
    return ""

"""Mailbox: work for the parent's main thread, from any other; user code runs nowhere else in the parent."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from ..poll import readable

__all__ = ("Mailbox",)

logger = logging.getLogger(__name__)


class Mailbox:
    """What was posted, and a pipe that wakes whoever does it."""

    def __init__(self) -> None:
        self._posted: deque[Callable[[], None]] = deque()
        #: Chores that failed the last time.
        self._failing: set[str] = set()
        #: Becomes readable when something was posted.
        self.descriptor, self._wake = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._wake, False)

    def post(self, work: Callable[[], None]) -> None:
        """Have ``work`` done on the main thread."""
        self._posted.append(work)
        try:
            os.write(self._wake, b".")
        except BlockingIOError:
            pass  # the pipe is full of wake-ups already
        except OSError as exc:
            logger.debug("The pool is gone: %s", exc)

    def guarded(self, work: Callable[..., Any], *args: Any) -> None:
        """Call ``work``; what it raises is logged, for Celery takes some exceptions for a lost connection."""
        try:
            work(*args)
        except Exception:
            # A boundary of the event loop: a callback that raises would restart Celery's consumer.
            logger.exception("%s failed; the worker continues.", getattr(work, "__name__", work))

    def chore(self, work: Callable[[], object], name: str = "") -> None:
        """Do one of the chores; one that fails keeps none of the others waiting, and is logged once until it works."""
        name = name or getattr(work, "__qualname__", repr(work))
        try:
            work()
        except Exception:
            # A boundary, as in guarded(); what fails now most likely fails twice a second.
            if name not in self._failing:
                self._failing.add(name)
                logger.exception("%s failed; the worker continues and keeps trying.", name)
        else:
            if name in self._failing:
                self._failing.discard(name)
                logger.info("%s works again.", name)

    def drain(self) -> None:
        """Do what was posted, and let the pipe sleep again."""
        if readable([self.descriptor], timeout=0.0):  # eventlet makes a read wait, whatever the pipe's mode is
            with contextlib.suppress(BlockingIOError):  # woken twice for one byte
                os.read(self.descriptor, 4096)
        self.do_posted()

    def do_posted(self) -> None:
        """Do what was posted, without reading the pipe that wakes the main thread."""
        while self._posted:
            self.guarded(self._posted.popleft())

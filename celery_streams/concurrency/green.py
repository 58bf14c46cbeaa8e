"""green: what the pools of gevent and eventlet share: threads that are green, so that a task can be ended.

The thread pool does the work; once the standard library is patched its threads are green. The hub raises in a green
thread what ends its task, or says that its soft time limit is over: ``ending`` says when.
"""

from __future__ import annotations

from typing import ClassVar

import greenlet
from billiard.exceptions import SoftTimeLimitExceeded

from ..worker.runner import Runner
from . import ending
from .loops import keep_loops

__all__ = ("GreenPool",)


class _TaskEnded(ending.TaskEnded, greenlet.GreenletExit):  # type: ignore[misc]
    """The exception in a green thread, which prints no traceback of it."""


class _Green:
    """A green thread of the pool."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._thread = greenlet.getcurrent()
        self.pid = id(self._thread)

    def raise_soft(self, batch: int) -> None:
        self._thread.throw(SoftTimeLimitExceeded())

    def end(self, batch: int, reason: ending.TaskEnded) -> bool:
        self._thread.throw(reason)
        return True


class GreenPool(ending.EndingPool):
    """Celery's gevent or eventlet pool for streams."""

    task_ended: ClassVar[type[ending.TaskEnded]] = _TaskEnded

    #: As in Celery's green pools: a task may wait for the result of another one.
    task_join_will_block = False

    def on_start(self) -> None:
        """Start the pool."""
        keep_loops()
        super().on_start()

    def make_endable(self, runner: Runner) -> ending.Endable:
        """Return the green thread that runs now."""
        return _Green(runner)

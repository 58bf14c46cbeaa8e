"""eventlet: the thread pool, whose threads are green once eventlet has patched the standard library.

``celery-streams`` patches it before anything else is imported, as ``celery`` does for ``-P eventlet``. Coroutines of
``async def`` tasks run in real threads: an event loop cannot share a thread with green ones.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

import eventlet.tpool

from ..coroutines import runner
from ..worker.runner import Runner
from . import thread
from .contexts import keep_contexts

__all__ = ("TaskPool",)


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return eventlet.tpool.execute(contextvars.copy_context().run, asyncio.run, coroutine)


class TaskPool(thread.TaskPool):
    """Green threads."""

    def on_start(self) -> None:
        """Start the pool."""
        keep_contexts(self.app)
        super().on_start()

    def _work(self, task_runner: Runner) -> None:
        runner.set(_run_coroutine)
        super()._work(task_runner)

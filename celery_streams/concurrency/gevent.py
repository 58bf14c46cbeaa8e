"""gevent: the thread pool, whose threads are greenlets once gevent has patched the standard library.

``celery-streams`` patches it before anything else is imported, as ``celery`` does for ``-P gevent``. Coroutines of
``async def`` tasks run in real threads: an event loop cannot share a thread with green ones.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

import gevent

from ..coroutines import runner
from ..worker.runner import Runner
from . import thread
from .contexts import keep_contexts

__all__ = ("TaskPool",)


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    result, exc = gevent.get_hub().threadpool.apply(contextvars.copy_context().run, (_outcome, coroutine))
    if exc is not None:
        raise exc
    return result


def _outcome(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """Return what the coroutine returned or raised; gevent prints what a function in its thread pool raises."""
    try:
        return asyncio.run(coroutine), None
    except BaseException as exc:  # noqa: BLE001  (raised again in the greenlet that asked)
        return None, exc


class TaskPool(thread.TaskPool):
    """Greenlets."""

    def on_start(self) -> None:
        """Start the pool."""
        keep_contexts(self.app)
        super().on_start()

    def _work(self, task_runner: Runner) -> None:
        runner.set(_run_coroutine)
        super()._work(task_runner)

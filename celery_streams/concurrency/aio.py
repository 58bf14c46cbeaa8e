"""asyncio: ``async def`` tasks run together on one event loop, ``-c`` of them at once; others in threads.

Each running task has a thread in which Celery's tracer waits for its coroutine; the coroutines share one loop. What
Celery keeps for each thread (``self.request``, ``current_task``) is kept for each context instead, so that a coroutine
finds its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Coroutine
from typing import Any

from ..async_tasks import runner
from ..worker.runner import Runner
from . import thread
from .contexts import keep_contexts

__all__ = ("TaskPool",)


class TaskPool(thread.TaskPool):
    """Threads that wait for coroutines of one event loop."""

    def on_start(self) -> None:
        """Start the loop, then the threads."""
        keep_contexts(self.app)
        self._loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=self._run_loop, name="celery-streams-asyncio", daemon=True)
        self._loop_thread.start()
        super().on_start()

    def _run_loop(self) -> None:
        while True:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # A coroutine raised it, and asyncio lets it out of the loop, though it is the outcome of that task
                # alone: the loop's next round tells the thread that waits for it.
                continue
            return

    def _run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        context = contextvars.copy_context()
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def start() -> None:
            task = context.run(self._loop.create_task, coroutine)
            task.add_done_callback(finish)

        def finish(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                future.set_exception(asyncio.CancelledError())
            elif task.exception() is not None:
                future.set_exception(task.exception())
            else:
                future.set_result(task.result())

        self._loop.call_soon_threadsafe(start)
        return future.result()

    def _work(self, task_runner: Runner) -> None:
        runner.set(self._run_coroutine)
        super()._work(task_runner)

    def on_stop(self) -> None:
        """Let running tasks finish, then stop the loop."""
        super().on_stop()
        self._end_loop()

    def on_terminate(self) -> None:
        """Stop without waiting."""
        super().on_terminate()
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop_thread.join(timeout=2.0)

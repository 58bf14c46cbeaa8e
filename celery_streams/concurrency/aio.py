"""asyncio: ``async def`` tasks run together on one event loop, ``-c`` of them at once; others in threads.

Each running task has a thread in which Celery's tracer waits for its coroutine; the coroutines share one loop. What
Celery keeps for each thread (``self.request``, ``current_task``) is kept for each context instead, so that a coroutine
finds its own.

Time limits, ``revoke(terminate=True)`` and a cold shutdown end a coroutine by cancelling it. One that goes on is
cancelled again, and given up after a while: the thread stops waiting for it, and its message is settled as if it had
ended. A task that is no coroutine runs in the thread, where nothing can end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ClassVar

from ..async_tasks import runner
from ..awaited_tasks import is_async
from ..endable import EndableCoroutine
from ..running_task import current
from ..worker.runner import Runner
from .ending import Endable, EndingPool, TaskEnded

__all__ = ("TaskPool",)

logger = logging.getLogger(__name__)

#: Seconds after which a coroutine that goes on is cancelled again, and after which it is given up.
_AGAIN, _PATIENCE = 1.0, 5.0

#: Seconds after which a thread lets the next one run, while coroutines run; Python's own is ten times as much. Each
#: task goes from a thread to the loop and back, and waits there for whoever computes: of 100 tasks of 50 ms at once
#: each lost five milliseconds by that, and loses two. Tasks that are no coroutines would only cost more.
_SWITCH = 0.0005

#: Seconds after which it is given up where the worker ends.
_LEAVING = 0.5


class _Haste:
    """Has threads let each other run sooner while coroutines run, on any loop of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._before = self._set = 0.0

    def begin(self) -> None:
        """A coroutine runs."""
        with self._lock:
            if not self._running:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, _SWITCH))
                self._set = sys.getswitchinterval()
            self._running += 1

    def end(self) -> None:
        """It runs no longer."""
        with self._lock:
            self._running -= 1
            # Unless a task's code has set another one.
            if not self._running and sys.getswitchinterval() == self._set:
                sys.setswitchinterval(self._before)


_haste = _Haste()


class _Run:
    """One coroutine and the thread that waits for it; all but :meth:`wait` happens in the thread of the loop."""

    def __init__(self, waiter: _Waiter, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.batch = waiter.runner.record.batch
        self._waiter = waiter
        self._coroutine = EndableCoroutine(coroutine)
        self._context = contextvars.copy_context()
        # A lock and no Future of concurrent.futures, which costs several times as much: one is made for each task.
        self._running = threading.Lock()
        self._running.acquire()
        self._result: Any = None
        self._raised: BaseException | None = None
        self._task: asyncio.Task[Any] | None = None
        self._reason: TaskEnded | None = None
        self._cancelled = 0
        #: The thread waits no longer.
        self._over = False

    def wait(self) -> Any:
        """Return what the coroutine returns, or raise what it raises."""
        self._running.acquire()
        if self._raised is None:
            return self._result
        try:
            raise self._raised
        finally:
            self._raised = None  # which refers to this frame

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the coroutine on ``loop``."""
        _haste.begin()
        self._waiter.runs.append(self)
        # Not by loop.create_task, which a task's code may have replaced (set_task_factory): all share this loop.
        if sys.version_info >= (3, 11):
            self._task = asyncio.Task(self._coroutine, loop=loop, context=self._context)
        else:
            self._task = self._context.run(partial(asyncio.Task, self._coroutine, loop=loop))
        self._task.add_done_callback(self._finish)
        reason = self._waiter.told.get(self.batch)
        if reason is not None:
            self.end(reason)

    def _finish(self, task: asyncio.Task[Any]) -> None:
        # Asked in any case: asyncio would log an exception that nobody looked at.
        raised = _cancelled(task) if task.cancelled() else task.exception()
        if self._over:
            return
        if self._reason is not None:
            raised = self._reason
        elif raised is None:
            self._result = task.result()
        self._let_go(raised)

    def _let_go(self, raised: BaseException | None) -> None:
        """Have the thread go on."""
        self._over = True
        _haste.end()
        self._waiter.runs.remove(self)
        self._raised = raised
        self._running.release()

    def raise_soft(self) -> None:
        """Raise SoftTimeLimitExceeded in the coroutine."""
        if self._task is not None and not self._task.done() and self._reason is None:
            self._coroutine.raise_soft(self._task)

    def end(self, reason: TaskEnded) -> None:
        """Cancel the coroutine, for ``reason``, until it ends or is given up."""
        if self._task is None or self._task.done():
            return
        self._reason = reason
        running = self._context.get(current)
        if running is not None:
            running.over = True
        self._coroutine.end()
        self._cancel()

    def _cancel(self) -> None:
        if self._over or self._task is None:
            return
        if self._cancelled * _AGAIN >= _PATIENCE:
            self.give_up()
            return
        self._cancelled += 1
        self._task.cancel()
        self._task.get_loop().call_later(_AGAIN, self._cancel)

    def give_up(self) -> None:
        """Wait no longer for a coroutine that was told to end: close it."""
        if self._reason is None or self._task is None or self._over:
            return
        logger.error("A coroutine goes on after it was cancelled, and is given up: %r", self._task)
        self._context.run(self._coroutine.give_up)
        self._task.cancel()
        self._let_go(self._reason)


def _cancelled(task: asyncio.Task[Any]) -> asyncio.CancelledError:
    """Return what a cancelled task raised, with what was said of it."""
    try:
        task.result()
    except asyncio.CancelledError as exc:
        return exc
    return asyncio.CancelledError()


class _Waiter:
    """A thread that runs a task, and the coroutines for which it waits: one, or those of threads of the task, too."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.pid = threading.get_native_id()
        self.runs: list[_Run] = []
        #: What shall end, though it has not come to its coroutine yet.
        self.told: dict[int, TaskEnded] = {}

    def raise_soft(self, batch: int) -> None:
        run = next((run for run in self.runs if run.batch == batch), None)
        if run is not None:
            run.raise_soft()

    def end(self, batch: int, reason: TaskEnded) -> bool:
        runs = [run for run in self.runs if run.batch == batch]
        for run in runs:
            run.end(reason)
        if not runs:
            self.told = {batch: reason}
        if not runs and reason.hard_limit is not None:
            logger.warning(
                "A task is over its hard time limit of %ss and goes on: this pool can end async def tasks only.",
                reason.hard_limit,
            )
        return bool(runs)

    def give_up(self) -> None:
        """Give up what was told to end."""
        for run in list(self.runs):
            run.give_up()


class TaskPool(EndingPool):
    """Threads that wait for coroutines of one event loop."""

    grace: ClassVar[float] = 2 * _LEAVING
    _endable: dict[int, _Waiter]  # type: ignore[assignment]

    def on_start(self) -> None:
        """Start the loop, then the threads."""
        self._loop = asyncio.new_event_loop()
        self._starting: deque[_Run] = deque()
        self._woken = self._wound_up = False
        self._loop_thread = threading.Thread(target=self._run_loop, name="celery-streams-asyncio", daemon=True)
        self._loop_thread.start()
        super().on_start()

    def _run_loop(self) -> None:
        while not self._wound_up:
            # Also when a coroutine has stopped the loop, on which others run.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                # A coroutine raised it, and asyncio lets it out of the loop, though it is the outcome of that task
                # alone: the loop's next round tells the thread that waits for it.
                self._loop.run_forever()

    def in_hub(self, work: Callable[..., Any], *args: Any) -> None:
        """Have the event loop call ``work``."""
        self._loop.call_soon_threadsafe(work, *args)

    def make_endable(self, runner: Runner) -> Endable:
        """Return what waits in this thread."""
        return _Waiter(runner)

    def _run_coroutine(self, waiter: _Waiter, coroutine: Coroutine[Any, Any, Any]) -> Any:
        run = _Run(waiter, coroutine)
        self._starting.append(run)
        if not self._woken:
            # Once for all that start before the loop looks: it is a system call, and another one there.
            self._woken = True
            self.in_hub(self._start_runs)
        return run.wait()

    def _start_runs(self) -> None:
        # First, for whoever comes after the last look has to wake the loop again.
        self._woken = False
        while self._starting:
            self._starting.popleft().start(self._loop)

    def _work_on(self, task_runner: Runner) -> None:
        runner.set(partial(self._run_coroutine, self._endable[task_runner.record.pid]))
        super()._work_on(task_runner)

    def reaches(self, task: Any) -> bool:
        """Return whether it is an ``async def`` task."""
        return is_async(task)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the coroutine for which the thread ``pid`` waits."""
        waiter = self._endable.get(pid)
        if waiter is not None and not waiter.runs and not self.cancels:
            raise NotImplementedError("this pool can end async def tasks only")
        super().terminate_job(pid, signal)

    # -- stop

    def _hurry(self) -> None:
        super()._hurry()
        self.in_hub(self._loop.call_later, _LEAVING, self._give_up)

    def _give_up(self) -> None:
        for waiter in list(self._endable.values()):
            waiter.give_up()

    def on_stop(self) -> None:
        """Let running tasks finish, then stop the loop."""
        super().on_stop()
        self._end_loop()

    def on_terminate(self) -> None:
        """End running tasks, then stop the loop."""
        super().on_terminate()
        self._end_loop()

    def _end_loop(self) -> None:
        """End what tasks left on the loop, as ``asyncio.run`` does, and stop it."""
        if self._loop_thread.is_alive():
            self.in_hub(lambda: asyncio.Task(self._wind_up(), loop=self._loop))
            self._loop_thread.join(timeout=2 * _LEAVING)

    async def _wind_up(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_LEAVING)
        await self._loop.shutdown_asyncgens()
        self._wound_up = True
        self._loop.stop()

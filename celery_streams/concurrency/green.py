"""green: what the pools of gevent and eventlet share: threads that are green, so that a task can be ended.

The thread pool does the work; once the standard library is patched its threads are green. A task whose hard time limit
is over, or that is revoked with terminate, is ended by an exception that the hub raises in its green thread; the
message is settled by the pool and not by what ran it. A task that never waits cannot be ended, and a soft time limit is
not enforced, as in Celery.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import greenlet

from .. import celery_private
from ..broker import Delivery, Entry
from ..worker.execution import Interruption
from ..worker.hand_back import Restrictable
from ..worker.runner import Runner
from ..worker.slots import Snapshot
from . import thread
from .contexts import keep_contexts
from .loops import keep_loops

__all__ = ("GreenPool", "TaskEnded")


class TaskEnded(Interruption, greenlet.GreenletExit):  # type: ignore[misc]
    """The task shall end: its hard time limit is over, or ``request``, Celery's, was terminated or cancelled."""

    def __init__(self, *, hard_limit: float | None = None, request: Any = None) -> None:
        super().__init__()
        self.hard_limit = hard_limit
        self.request = request


@dataclass(frozen=True, slots=True)
class _Green:
    """A green thread of the pool."""

    runner: Runner
    thread: Any


@dataclass(frozen=True, slots=True)
class _Terminated:
    """A task that was ended for remote control or a cold shutdown, and is not settled yet."""

    delivery: Delivery
    consumer: str
    request: Any
    until: float


class GreenPool(thread.TaskPool):
    """Celery's gevent or eventlet pool for streams."""

    enforced: ClassVar[frozenset[str]] = frozenset({"time_limit"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._green: dict[int, _Green] = {}
        #: Batches (of one) that were told to end: an exception in what cleans up after the first would do harm.
        self._told: dict[int, int] = {}
        self._terminated: dict[Entry, _Terminated] = {}

    @abstractmethod
    def in_hub(self, work: Callable[..., Any], *args: Any) -> None:
        """Have the hub call ``work``, which must not wait; only the hub can raise in a green thread and go on."""

    def on_start(self) -> None:
        """Start the pool."""
        keep_contexts(self.app)
        keep_loops()
        super().on_start()

    def _work(self, task_runner: Runner) -> None:
        current = greenlet.getcurrent()
        pid = task_runner.record.pid = id(current)
        self._green[pid] = _Green(task_runner, current)
        try:
            super()._work(task_runner)
        finally:
            del self._green[pid]
            self._told.pop(pid, None)

    # -- limits and termination

    def on_hard(self, holder: Restrictable, shot: Snapshot) -> None:
        """End the task; its failure is stored when it has ended."""
        self.in_hub(self._end_task, shot, TaskEnded(hard_limit=shot.hard))

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the task that the green thread ``pid`` runs (``revoke(terminate=True)``, cold shutdown)."""
        green = self._green.get(pid)
        shot = green.runner.record.snapshot() if green is not None else None
        running = shot.running if shot is not None else None
        request = self.parent.requests.known.get(running) if running is not None else None
        # Else that task ended, and the thread may run another one.
        if request is not None and running == self.parent.requests.at_work.get(pid):
            self.in_hub(self._end_task, shot, TaskEnded(request=request))

    def _end_task(self, shot: Snapshot, reason: TaskEnded) -> None:
        green = self._green.get(shot.pid)
        if green is None or self._told.get(shot.pid) == shot.batch:
            return
        now = green.runner.record.snapshot()
        # Once its body has ended a task has no limits any more: what settles its message is not to be interrupted.
        over = green.runner.settler.waiting or (reason.hard_limit is not None and not now.hard)
        if now.batch == shot.batch and now.running is not None and not over:
            self._told[shot.pid] = shot.batch
            green.thread.throw(reason)

    def _failed(self, runner: Runner, delivery: Delivery, exc: BaseException) -> None:
        if not isinstance(exc, TaskEnded):
            super()._failed(runner, delivery, exc)
            return
        consumer = runner.settler.consumer
        early = runner.record.kept_message() is not None
        if exc.hard_limit is not None:
            limit = exc.hard_limit
            self.mailbox.post(lambda: self.parent.lost.settle_lost(delivery, consumer, hard_limit=limit, early=early))
        elif not early:
            until = time.monotonic() + self.streams.conf.visibility_timeout / 3
            self._terminated[delivery.entry] = _Terminated(delivery, consumer, exc.request, until)
            self.mailbox.post(self._settle_terminated)

    def chores(self) -> None:
        """Settle what was terminated, too."""
        super().chores()
        self.mailbox.chore(self._settle_terminated)

    def _settle_terminated(self) -> None:
        """Acknowledge what Celery's Request has announced as revoked; put back everything else.

        The request announces it after it had the task ended, so this may come too early; what is put back although it
        is revoked is found to be so when it is read again.
        """
        for entry, ended in list(self._terminated.items()):
            if celery_private.was_revoked(ended.request):
                self.parent.lost.settler(ended.consumer).acknowledge([entry])
            elif celery_private.was_cancelled(ended.request) or time.monotonic() >= ended.until:
                self.parent.lost.settler(ended.consumer).put_back([entry], insist=False)
            else:
                continue
            self._terminated.pop(entry, None)

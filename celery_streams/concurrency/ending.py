"""ending: what the pools share in which one task can be ended: green threads, and coroutines.

The thread pool does the work. A task whose hard time limit is over, or that is revoked with terminate, or cancelled by
a cold shutdown, is ended by an exception in what runs it; the message is settled by the pool, once it has ended, and
not by what ran it. A soft time limit is raised in its body in the same way. A task that never waits cannot be reached.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from .. import celery_private
from ..entries import Delivery, Entry
from ..worker.execution import Interruption
from ..worker.hand_back import Restrictable
from ..worker.outcome import Event
from ..worker.runner import Runner
from ..worker.slots import Snapshot
from . import thread

__all__ = ("Endable", "EndingPool", "TaskEnded")


class TaskEnded(Interruption):
    """The task shall end: its hard time limit is over, or Celery's ``request`` of it was terminated or cancelled.

    With neither, the worker ends.
    """

    def __init__(self, *, hard_limit: float | None = None, request: Any = None) -> None:
        super().__init__()
        self.hard_limit = hard_limit
        self.request = request


class Endable(Protocol):
    """What runs one task after another, and can be told to end one; a batch is one task."""

    runner: Runner
    #: What tells it from the others of this pool, as process ids do children.
    pid: int

    def raise_soft(self, batch: int) -> None:
        """Raise SoftTimeLimitExceeded in the task, if it still runs."""

    def end(self, batch: int, reason: TaskEnded) -> bool:
        """End the task; returns whether that is possible. ``reason`` comes out of its tracer when it has ended."""


@dataclass(frozen=True, slots=True)
class _Terminated:
    """A task that was ended for remote control or a cold shutdown, and is not settled yet."""

    delivery: Delivery
    consumer: str
    request: Any
    until: float
    #: For how many seconds its body ran.
    ran_for: float


class EndingPool(thread.TaskPool):
    """A pool in which a task can be ended."""

    enforced: ClassVar[frozenset[str]] = frozenset({"time_limit", "soft_time_limit"})

    #: What :meth:`end` is told.
    task_ended: ClassVar[type[TaskEnded]] = TaskEnded

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: By pid.
        self._endable: dict[int, Endable] = {}
        #: Batches (of one) that were told to end: an exception in what cleans up after the first would do harm.
        self._told: dict[int, int] = {}
        self._terminated: dict[Entry, _Terminated] = {}

    @abstractmethod
    def in_hub(self, work: Callable[..., Any], *args: Any) -> None:
        """Have the loop of this pool call ``work``, which must not wait; only from there a task can be ended."""

    @abstractmethod
    def make_endable(self, runner: Runner) -> Endable:
        """Return what runs the tasks of ``runner``; called in its thread."""

    def _work(self, runner: Runner) -> None:
        endable = self.make_endable(runner)
        pid = runner.record.pid = endable.pid
        self._endable[pid] = endable
        try:
            super()._work(runner)
        finally:
            del self._endable[pid]
            self._told.pop(pid, None)

    # -- limits and termination

    def on_soft(self, holder: Restrictable, shot: Snapshot) -> None:
        """Raise SoftTimeLimitExceeded in the task, at what it waits for."""
        report = self.report_of_soft(holder, shot)
        self.in_hub(self._raise_soft, shot)
        self.mailbox.post(report)

    def _raise_soft(self, shot: Snapshot) -> None:
        endable = self._endable.get(shot.pid)
        if endable is None or self._told.get(shot.pid) == shot.batch:
            return
        now = endable.runner.record.snapshot()
        # Its body may have ended meanwhile, and has no limits any more.
        if now.batch == shot.batch and now.soft and now.running not in self._done.entries:
            endable.raise_soft(shot.batch)

    def on_hard(self, exceeded: Sequence[tuple[Restrictable, Snapshot]]) -> None:
        """End the tasks; each failure is stored when its task has ended."""
        for _, shot in exceeded:
            self.in_hub(self._end_task, shot, self.task_ended(hard_limit=shot.hard))

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the task that runs under ``pid`` (``revoke(terminate=True)``, cold shutdown)."""
        endable = self._endable.get(pid)
        shot = endable.runner.record.snapshot() if endable is not None else None
        running = shot.running if shot is not None else None
        request = self.parent.requests.known.get(running) if running is not None else None
        # Else that task ended, and the thread may run another one.
        if request is not None and running == self.parent.requests.at_work.get(pid):
            self.in_hub(self._end_task, shot, self.task_ended(request=request))

    def _end_task(self, shot: Snapshot, reason: TaskEnded) -> None:
        endable = self._endable.get(shot.pid)
        if endable is None or self._told.get(shot.pid) == shot.batch:
            return
        now = endable.runner.record.snapshot()
        # Once its body has ended a task has no limits any more: what settles its message is not to be interrupted.
        over = now.running in self._done.entries or (reason.hard_limit is not None and not now.hard)
        if now.batch != shot.batch or now.running is None or over:
            return
        # Before it ends, which it may do at once.
        self._told[shot.pid] = shot.batch
        if not endable.end(shot.batch, reason):
            del self._told[shot.pid]

    def end_tasks(self) -> None:
        """End all tasks, for the worker ends; their messages go back, where nothing was settled yet."""
        for endable in list(self._endable.values()):
            self.in_hub(self._end_task, endable.runner.record.snapshot(), self.task_ended())

    def _failed(self, runner: Runner, delivery: Delivery, exc: BaseException) -> None:
        if not isinstance(exc, TaskEnded):
            super()._failed(runner, delivery, exc)
            return
        lost, ran_for = self.parent.lost, runner.record.took()
        if runner.record.was_retried:  # settled
            lost.count_ended(delivery.entry, lost.task_of(delivery), Event.RETRIED, ran_for)
            return
        consumer = runner.settler.consumer
        early = runner.record.kept_message() is not None
        if exc.hard_limit is not None:
            limit = exc.hard_limit
            self.mailbox.post(
                lambda: lost.settle_lost(delivery, consumer, hard_limit=limit, early=early, ran_for=ran_for)
            )
        elif early:  # settled
            event = Event.INTERRUPTED if exc.request is None else Event.REVOKED
            lost.count_ended(delivery.entry, lost.task_of(delivery), event, ran_for)
        elif exc.request is None:
            self.mailbox.post(lambda: lost.settle_interrupted(delivery, consumer, ran_for=ran_for))
        else:
            until = time.monotonic() + self.streams.conf.visibility_timeout / 3
            self._terminated[delivery.entry] = _Terminated(delivery, consumer, exc.request, until, ran_for)
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
        lost = self.parent.lost
        for entry, ended in list(self._terminated.items()):
            if celery_private.was_revoked(ended.request):
                lost.settler(ended.consumer).acknowledge([entry], event=Event.REVOKED)
                lost.count_ended(entry, ended.request.task.name, Event.REVOKED, ended.ran_for)
            elif celery_private.was_cancelled(ended.request) or time.monotonic() >= ended.until:
                lost.settle_interrupted(ended.delivery, ended.consumer, ran_for=ended.ran_for)
            else:
                continue
            self._terminated.pop(entry, None)

    # -- stop

    def _hurry(self) -> None:
        super()._hurry()
        self.end_tasks()

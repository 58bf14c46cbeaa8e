"""What the code of a running task may reach of its delivery: how a retry is stored, and whether it is still the owner.

The worker sets :data:`current` around each task; the publish seam and :func:`still_owned` read it. It lies below both,
so that a web process which only publishes never imports the worker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .message import Message

__all__ = ("HeldRetry", "RunningTask", "current", "retrying", "still_owned")


@dataclass(frozen=True, slots=True)
class HeldRetry:
    """The message of a ``self.retry()``, which takes the place of the task's own entry in one step."""

    queue: str
    message: Message
    #: Milliseconds since the epoch; 0 is now.
    due_ms: int
    member: str


class RunningTask(ABC):
    """The delivery that runs in this thread, greenlet or coroutine."""

    __slots__ = ("over", "retried", "retries", "task_id")

    def __init__(self, task_id: str, retries: float) -> None:
        self.task_id = task_id
        self.retries = retries
        #: A retry was stored: the entry is settled.
        self.retried = False
        #: The pool settles the message, for it ended the task: nothing that runs on has a say in it.
        self.over = False

    @property
    @abstractmethod
    def queue(self) -> str:
        """The queue that its message lies on, or the partition of one."""

    @abstractmethod
    def owned(self) -> bool:
        """Return whether the message is still this worker's."""

    @abstractmethod
    def lock(self) -> str | None:
        """Return how the message of a unique task names its lock, for its retry to do so, too."""

    @abstractmethod
    def store_retry(self, held: HeldRetry) -> None:
        """Store a retry and settle the task's own entry with it, in one step."""

    def retry(self, held: HeldRetry) -> None:
        """Store ``held`` in place of the task's own entry.

        Called by the publish seam when the task calls ``self.retry()``: once that returns, the retry must survive
        whatever ends the process a moment later.
        """
        self.store_retry(held)
        self.retried = True


#: The running task, or None outside of one.
current: ContextVar[RunningTask | None] = ContextVar("celery_streams_running_task", default=None)


def retrying(headers: Mapping[str, Any]) -> RunningTask | None:
    """Return the running task whose retry has these headers; None: they are of another message."""
    running = current.get()
    if (
        running is not None
        and not running.retried
        and (headers.get("retries") or 0) == running.retries + 1
        and (headers.get("id") or "") == running.task_id
    ):
        return running
    return None


def still_owned() -> bool:
    """Return whether the running task's message is still this worker's.

    It stops being so when the process was stopped or cut off for longer than ``streams_visibility_timeout``: another
    worker may be running the same task, and nothing that this one returns will be acknowledged. Ask before an effect
    that must not happen twice. One round trip to Redis; True outside of a task and on list queues.

    Raises:
        BrokerUnavailable: Redis cannot be reached, so nobody can tell.
    """
    running = current.get()
    return True if running is None else running.owned()

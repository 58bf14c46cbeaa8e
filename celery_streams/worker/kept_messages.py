"""Kept messages: those that a task's own strategy holds on to, to run them later (celery-batches and the like).

Celery's default strategy runs a message or turns it away while it is called. Another one may return with nothing said:
then the message stays pending, under the heartbeat of its consumer, until the strategy acknowledges or rejects it. Here
is who they are; the parent is told of every change, for it gives the heartbeat and looks after them when their process
dies. They are acknowledged through a settler of their own: a timer may do it while a thread settles other messages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any, Generic, Protocol, TypeVar

from ..entries import Delivery, Entry
from .settle import Settler

__all__ = ("MOST_KEPT", "KeptMessages")

#: Messages that one consumer keeps at most; then it reads no more until some of them are settled.
MOST_KEPT = 10_000


class Keepable(Protocol):
    """What is known of a message that a strategy was called for."""

    task_id: str
    kept: bool

    @property
    def delivery(self) -> Delivery:
        """The message's delivery."""


T = TypeVar("T", bound=Keepable)


class KeptMessages(Generic[T]):
    """The messages that the strategies of one consumer keep.

    Args:
        settler: used for nothing else.
        tell: called with all kept entries after each change.
    """

    def __init__(self, settler: Settler, tell: Callable[[Collection[Entry]], None]) -> None:
        self.settler = settler
        self._tell = tell
        self._runs: dict[Entry, T] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._runs

    def keep(self, run: T) -> None:
        """Note that the strategy keeps the message of ``run``."""
        with self._lock:
            run.kept = True
            self._runs[run.delivery.entry] = run
            self._tell(tuple(self._runs))

    def of_task(self, task_id: Any) -> T | None:
        """Return the kept message of a task id, the oldest one."""
        with self._lock:
            return next((run for run in self._runs.values() if run.task_id == task_id), None)

    def release(self, run: T) -> None:
        """Note that the message of ``run`` is kept no longer: it is settled."""
        with self._lock:
            if self._runs.pop(run.delivery.entry, None) is not None:
                self._tell(tuple(self._runs))

    def flush(self) -> None:
        """Send the acknowledgements that were collected."""
        with self._lock:
            self.settler.flush()

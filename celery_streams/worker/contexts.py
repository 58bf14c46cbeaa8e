"""contexts: what Celery keeps for each thread or greenlet (``self.request``, ``current_task``), kept for each context.

A coroutine that runs in another thread finds its own so, and a task costs a quarter less: Celery's stacks ask for the
greenlet that runs, and look for it in a dictionary, at each of some ten accesses. A new thread begins with an empty
context, and so sees no task, as it did before.
"""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

from .. import celery_private

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("ContextStack", "keep_contexts")


class ContextStack:
    """Celery's LocalStack, for each context instead of each thread."""

    def __init__(self, name: str) -> None:
        self._items: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar(name, default=())

    def push(self, item: Any) -> None:
        """Put ``item`` on top."""
        self._items.set((*self._items.get(), item))

    def pop(self) -> Any:
        """Take the top off; None when there is none."""
        items = self._items.get()
        if not items:
            return None
        self._items.set(items[:-1])
        return items[-1]

    def __len__(self) -> int:
        return len(self._items.get())

    @property
    def stack(self) -> list[Any]:
        """All items, the oldest first."""
        return list(self._items.get())

    @property
    def top(self) -> Any:
        """The item on top, or None."""
        items = self._items.get()
        return items[-1] if items else None


#: The stack behind ``current_task``.
_current = ContextStack("current task")


def keep_contexts(app: Celery) -> None:
    """Exchange the stacks behind ``self.request`` and ``current_task``; before the tracers are built.

    What was exchanged before stays: a task may be running.
    """
    for name, task in list(app.tasks.items()):
        if not isinstance(task.request_stack, ContextStack):
            task.request_stack = ContextStack(f"request of {name}")
    celery_private.exchange_task_stack(_current)

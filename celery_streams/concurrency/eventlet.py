"""eventlet: the thread pool, whose threads are green once eventlet has patched the standard library.

``celery-streams`` patches it before anything else is imported, as ``celery`` does for ``-P eventlet``. An ``async def``
task runs on an event loop of its green thread, whose waiting eventlet has made cooperative.
"""

from __future__ import annotations

from . import thread
from .contexts import keep_contexts
from .loops import keep_loops

__all__ = ("TaskPool",)


class TaskPool(thread.TaskPool):
    """Green threads."""

    patched_by = "eventlet"

    def on_start(self) -> None:
        """Start the pool."""
        keep_contexts(self.app)
        keep_loops()
        super().on_start()

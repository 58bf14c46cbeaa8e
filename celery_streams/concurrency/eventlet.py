"""eventlet: the thread pool, whose threads are green once eventlet has patched the standard library.

``celery-streams`` patches it before anything else is imported, as ``celery`` does for ``-P eventlet``. An ``async def``
task runs on an event loop of its green thread, whose waiting eventlet has made cooperative.
"""

from __future__ import annotations

from celery import signals

from . import thread
from .contexts import keep_contexts
from .loops import keep_loops

__all__ = ("TaskPool",)


class TaskPool(thread.TaskPool):
    """Green threads."""

    def on_start(self) -> None:
        """Start the pool."""
        keep_contexts(self.app)
        keep_loops()
        signals.eventlet_pool_started.send(sender=self)
        super().on_start()

    def on_stop(self) -> None:
        """Let running tasks finish, then stop the services."""
        signals.eventlet_pool_preshutdown.send(sender=self)
        super().on_stop()
        signals.eventlet_pool_postshutdown.send(sender=self)

"""eventlet: the pool of green threads, once eventlet has patched the standard library.

``celery-streams`` patches it before anything else is imported, as ``celery`` does for ``-P eventlet``. An ``async def``
task runs on an event loop of its green thread, whose waiting eventlet has made cooperative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import signals

from .green import GreenPool

__all__ = ("TaskPool",)


class TaskPool(GreenPool):
    """Green threads."""

    patched_by = "eventlet"

    def on_start(self) -> None:
        """Start the pool."""
        signals.eventlet_pool_started.send(sender=self)
        super().on_start()

    def on_stop(self) -> None:
        """Let running tasks finish, then stop the services."""
        signals.eventlet_pool_preshutdown.send(sender=self)
        super().on_stop()
        signals.eventlet_pool_postshutdown.send(sender=self)

    def in_hub(self, work: Callable[..., Any], *args: Any) -> None:
        """Have eventlet's hub call ``work``."""
        from eventlet.hubs import get_hub  # at the top it would warn whoever is told that nothing is patched

        get_hub().schedule_call_global(0, work, *args)

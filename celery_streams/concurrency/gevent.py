"""gevent: the pool of green threads, which are greenlets once gevent has patched the standard library.

``celery-streams`` patches it before anything else is imported, as ``celery`` does for ``-P gevent``. An ``async def``
task runs on an event loop of its greenlet, whose waiting gevent has made cooperative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent import get_hub

from .green import GreenPool

__all__ = ("TaskPool",)


class TaskPool(GreenPool):
    """Greenlets."""

    patched_by = "gevent"

    def in_hub(self, work: Callable[..., Any], *args: Any) -> None:
        """Have gevent's hub call ``work``."""
        get_hub().loop.run_callback(work, *args)

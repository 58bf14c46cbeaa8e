"""gevent: the pool of green threads, which are greenlets once gevent has patched the standard library.

``celery-streams`` patches it before anything else is imported, as ``celery`` does for ``-P gevent``. An ``async def``
task runs on an event loop of its greenlet, whose waiting gevent has made cooperative.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gevent import get_hub
from gevent.monkey import get_original
from kombu.utils import functional

from .green import GreenPool

__all__ = ("TaskPool",)


class TaskPool(GreenPool):
    """Greenlets."""

    patched_by = "gevent"

    def on_start(self) -> None:
        """Start the pool, where kombu waits as everybody does.

        gevent looks for locks among all objects before it patches ``time``, Celery's proxies import most of Celery when
        they are looked at, and kombu keeps the ``sleep`` that it finds: all greenlets would stand still between two
        attempts to reach the broker.
        """
        if functional.sleep is get_original("time", "sleep"):  # type: ignore[attr-defined]
            functional.sleep = time.sleep  # type: ignore[attr-defined]
        super().on_start()

    def in_hub(self, work: Callable[..., Any], *args: Any) -> None:
        """Have gevent's hub call ``work``."""
        get_hub().loop.run_callback(work, *args)

"""events: task events of a child, through a dispatcher of its own.

Celery's EventDispatcher with two differences: events are collected and published together, at the latest after
:data:`INTERVAL`, also while a task runs; and a lock keeps the two threads that this takes apart (Celery's loses events
that are appended while it flushes).
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from celery.events import EventDispatcher
from kombu.exceptions import OperationalError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("ChildEvents",)

logger = logging.getLogger(__name__)

#: Seconds after which collected events are published at the latest.
INTERVAL = 0.2


class ChildEvents(EventDispatcher):  # type: ignore[misc]
    """Sends the task events of one child."""

    def __init__(self, app: Celery, hostname: str) -> None:
        self._guard = threading.RLock()
        self._stop = threading.Event()
        super().__init__(app.connection_for_write(), hostname=hostname, app=app, groups=["task"], buffer_group=["task"])
        threading.Thread(target=self._run, name="celery-streams-events", daemon=True).start()

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Collect one event."""
        with self._guard:
            return super().send(*args, **kwargs)

    def flush(self, *args: Any, **kwargs: Any) -> None:
        """Publish what was collected."""
        with self._guard:
            super().flush(*args, **kwargs)

    def end(self) -> None:
        """Publish what is left and close the connection."""
        self._stop.set()
        self._flush()
        self.connection.release()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._flush()

    def _flush(self) -> None:
        try:
            self.flush()
        except (OSError, OperationalError, *self.app.connection_for_write().connection_errors) as exc:
            logger.warning("Task events are kept until the broker is back: %s", exc)

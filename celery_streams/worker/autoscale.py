"""Autoscaler: Celery's, with the demand read from the streams: the parent holds no requests that it could count."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.worker.autoscale import Autoscaler as CeleryAutoscaler

from .. import inspect
from ..app import streams_of
from ..exceptions import BrokerError

__all__ = ("Autoscaler",)

logger = logging.getLogger(__name__)


class Autoscaler(CeleryAutoscaler):  # type: ignore[misc]
    """Grows with what waits; shrinks when nothing waited for ``AUTOSCALE_KEEPALIVE`` seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._demand = 0
        self._waited_at: float | None = None
        self.pool.autoscaler = self

    def look(self) -> None:
        """Count what runs and what waits, and scale; called by the pool every now and then."""
        streams = streams_of(self.worker.app)
        try:
            waiting = sum(inspect.queue_status(streams.broker, queue, workers=()).waiting for queue in self.pool.queues)
        except BrokerError as exc:
            logger.debug("Autoscaling pauses: the waiting messages cannot be counted: %s", exc)
            return
        running = sum(holder.snapshot().running is not None for holder in self.pool.holders())
        self._demand = running + waiting
        if waiting:
            self._waited_at = time.monotonic()
        self.maybe_scale()

    def scale_down(self, n: int) -> Any:
        """Stop ``n`` children, unless a message waited or children were started a moment ago.

        Said here because Celery before 5.7 knows only when children were started.
        """
        known = [at for at in (self._last_scale_up, self._waited_at) if at is not None]
        if known and time.monotonic() - max(known) > self.keepalive:
            return self._shrink(n)
        return None

    @property
    def qty(self) -> int:
        """Children that would have something to do."""
        return self._demand

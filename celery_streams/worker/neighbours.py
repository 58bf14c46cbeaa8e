"""Neighbours: whether a worker that starts waits for the answers of others, as Celery's Mingle does for a second.

A consumer step, loaded by :mod:`.consumer`; what the neighbours answer, Celery's own step takes.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.worker.consumer.mingle import Mingle as CeleryMingle

__all__ = ("Mingle",)

logger = logging.getLogger(__name__)


class Mingle(CeleryMingle):  # type: ignore[misc]
    """Celery's, without its second of waiting where nobody can hear the question."""

    name = CeleryMingle.name

    def send_hello(self, c: Any) -> Any:
        """Ask the other workers, in a thread, for the broker may be silent; return what they answered, by node name."""
        ask = super().send_hello
        return c.beside_work(lambda look: {} if _nobody_listens(c.connection) else ask(c))


def _nobody_listens(connection: Any) -> bool:
    """Return whether no client of Celery's broker has subscribed to a pattern, as kombu does for each worker.

    False where that cannot be known: on other transports, ours for a Redis Cluster among them, whose nodes each know of
    their own clients only, and for a user who may not ask (PUBSUB NUMPAT).
    """
    if connection.transport.driver_name != "redis":
        return False
    try:
        return bool(connection.default_channel.client.pubsub_numpat() == 0)
    except connection.channel_errors as exc:
        logger.debug("Cannot see whether other workers listen: %s", exc)
        return False

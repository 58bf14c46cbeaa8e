"""Workers: which queues they consume, and on which side; they are asked through Celery's remote control.

Stream workers say it in Redis, too (``presence``); stock workers say it nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.exceptions import OperationalError

from ..app import Streams
from ..exceptions import ConfigurationError
from .checks import Workers

__all__ = ("WORKERS_AWAY", "find_workers", "sort_workers")

#: What Celery's remote control raises when the broker is away or refuses.
WORKERS_AWAY = (OperationalError, OSError, ConfigurationError)


def find_workers(streams: Streams, *, timeout: float, limit: int | None = None) -> Workers:
    """Ask all workers which queues they consume, and tell stock workers from ours by their pool.

    Waits for ``timeout`` seconds, or until ``limit`` workers have answered.

    Raises:
        OperationalError, OSError: the broker is away or refuses.
    """
    app = streams.app
    with app.connection_for_write() as connection:
        errors = (*connection.connection_errors, *connection.channel_errors)
        try:
            look = app.control.inspect(timeout=timeout, connection=connection, limit=limit)
            consumed, stats = look.active_queues() or {}, look.stats() or {}
        except errors as exc:
            raise OperationalError(str(exc)) from exc
    return sort_workers(consumed, stats)


def sort_workers(consumed: Mapping[str, Any], stats: Mapping[str, Any]) -> Workers:
    """Sort the replies of ``active_queues`` and ``stats``."""
    stock: dict[str, tuple[str, ...]] = {}
    ours: dict[str, tuple[str, ...]] = {}
    for node, queues in sorted(consumed.items()):
        pool = str((stats.get(node) or {}).get("pool", {}).get("implementation", ""))
        side = ours if pool.startswith("celery_streams") else stock
        for queue in queues or ():
            side[queue["name"]] = (*side.get(queue["name"], ()), node)
    return Workers(stock, ours)

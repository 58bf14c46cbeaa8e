"""broker_bounds: bounds for the connections of a worker to Celery's own broker.

kombu's Redis transport has no socket time-out unless ``broker_transport_options`` gives one: on a connection whose peer
is gone without a word a publish waits for ever, and with it the main thread, its signals, and the shutdown. Remote
control, mingle and replies use the app's pools, not only what the worker itself opens: so it is the app that is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..redis_url import SOCKET_TIMEOUT

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("bound_connections",)


def bound_connections(app: Celery) -> None:
    """Give all connections to a Redis broker that the process opens from now on time-outs, unless the project does."""
    if app.connection_for_write().transport.driver_type == "redis":
        bounds = {
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": app.conf.broker_connection_timeout,
            "socket_keepalive": True,
        }
        app.conf.broker_transport_options = {**bounds, **(app.conf.broker_transport_options or {})}

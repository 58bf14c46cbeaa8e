"""broker_bounds: bounds for the connections of a worker to Celery's own broker.

kombu's Redis transport has no socket time-out unless ``broker_transport_options`` gives one: on a connection whose peer
is gone without a word a publish waits for ever, and with it the main thread, its signals, and the shutdown. Remote
control, mingle and replies use the app's pools, not only what the worker itself opens: so the app gets the bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import celery_private
from ..connection import hasten
from ..redis_url import SOCKET_TIMEOUT, wait

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("bound_connections", "bound_open_connection", "close_unused")


def bound_connections(app: Celery) -> None:
    """Give all connections to a Redis broker that the process opens from now on time-outs, unless the project does.

    Raises:
        ConfigurationError: no socket can wait as long as a time-out of the project's says.
    """
    conf = app.conf
    if conf.broker_connection_timeout:
        # In the environment it is text, with which no socket can be opened; likewise the others.
        conf.broker_connection_timeout = wait("broker_connection_timeout", conf.broker_connection_timeout)
    if app.connection_for_write().transport.driver_type == "redis":
        bounds = {
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": conf.broker_connection_timeout,
            "socket_keepalive": True,
        }
        given = dict(conf.broker_transport_options or {})
        for name in ("socket_timeout", "socket_connect_timeout"):
            if given.get(name):
                given[name] = wait(name, given[name])
        conf.broker_transport_options = {**bounds, **given}


def close_unused(connection: Any) -> None:
    """Close what the channels of a kombu connection keep open and do not use now; they open it again when they need it.

    Each of them has opened a connection only to see whether it can.
    """
    if connection.transport.driver_type != "redis":
        return
    for channel in list(connection.transport.channels or ()):
        for pool in celery_private.pools_of(channel):
            pool.disconnect(inuse_connections=False)
        client = vars(channel).get("client")
        # A channel keeps the connection on which it waited for replies, those of Mingle.
        if client is not None and client.connection is not None and not celery_private.waits_for_messages(channel):
            celery_private.stop_polling(channel, client.connection)
            client.connection.disconnect()


def bound_open_connection(connection: Any, seconds: float) -> None:
    """Wait at most ``seconds`` for each answer on a kombu connection that is open, and on what its channels open."""
    if connection.transport.driver_type != "redis":
        return
    if hasattr(connection.transport, "hasten"):  # ours, for a Redis Cluster
        connection.transport.hasten(seconds)
        return
    for channel in list(connection.transport.channels or ()):
        # What the channel has already: its properties would connect to a broker that may be silent.
        clients = [vars(channel)[name] for name in ("client", "subclient") if name in vars(channel)]
        for pool in (*celery_private.pools_of(channel), *(client.connection_pool for client in clients)):
            for name in ("socket_timeout", "socket_connect_timeout"):
                pool.connection_kwargs[name] = min(pool.connection_kwargs.get(name) or seconds, seconds)
            for made in celery_private.connections_of(pool):
                hasten(made, seconds)
        for client in clients:
            if client.connection is not None:
                hasten(client.connection, seconds)

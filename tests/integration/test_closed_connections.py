"""Connections to Celery's broker that a worker closes once its start needs them no more."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable

import kombu
import pytest
from celery import Celery
from kombu.utils import eventio

from celery_streams.worker.broker_bounds import bound_connections, close_unused


@pytest.mark.parametrize("poller", ["select", "epoll"])
def test_connection_that_is_closed_is_polled_for_no_more(redis_url: str, poller: str) -> None:
    """The next socket gets its number: eventlet refuses to poll it twice, and the worker ended five seconds old."""
    with kombu.Connection(redis_url) as connection:
        channel = connection.default_channel
        if poller == "select":  # as kombu polls in gevent and eventlet
            connection.transport.cycle.poller = eventio._select()
        replies = connection.SimpleQueue("replies")
        with pytest.raises(queue.Empty):
            replies.get(timeout=0.05)
        replies.consumer.cancel()
        channel._in_poll = None  # an answer has come
        polled = channel.client.connection._sock.fileno()
        seen: list[int] = []
        connection.transport.cycle.poller = Noting(connection.transport.cycle.poller, seen)

        close_unused(connection)

        assert seen == [polled]
        with pytest.raises(OSError):
            os.fstat(polled)


def test_time_outs_that_the_environment_says_as_text_open_connections(app: Callable[..., Celery]) -> None:
    project = app(
        broker_connection_timeout="4.5", broker_transport_options={"socket_timeout": "3", "visibility_timeout": 60}
    )

    bound_connections(project)

    with project.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
        pool = connection.default_channel.client.connection_pool
        assert (pool.connection_kwargs["socket_timeout"], pool.connection_kwargs["socket_connect_timeout"]) == (3, 4.5)


class Noting:
    """A poller that notes the descriptors which are taken out of it."""

    def __init__(self, poller: object, seen: list[int]) -> None:
        self._poller = poller
        self._seen = seen

    def unregister(self, sock: object) -> None:
        """Note the number and take it out."""
        self._seen.append(sock.fileno())  # type: ignore[attr-defined]
        self._poller.unregister(sock)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the poller."""
        self._poller.close()  # type: ignore[attr-defined]

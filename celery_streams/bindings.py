"""Bindings: to which of the project's queues a message goes, by kombu's rules; it publishes and stores nothing.

A message names an exchange and a routing key. Without an exchange the routing key is the queue's name. With one it goes
to every queue of the app that is bound to it: of a direct exchange by the same key, of a topic exchange by its pattern,
of a fanout exchange always. kombu's Redis transport knows no other type. A ``Broadcast`` queue has another name in each
process, and stays with kombu.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from kombu.common import Broadcast
from kombu.transport.virtual.exchange import TopicExchange

from .redis_url import place

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Bindings", "broker_place")

#: Pairs of exchange and routing key that are remembered, in a project that makes routing keys of its data.
_MOST = 1_024

#: kombu's rules for the words of a topic; it needs a channel for what is not asked of it here.
_TOPIC = TopicExchange(None)


class Bindings:
    """The queues of an app by exchange and routing key; what was found, or not found, is remembered for a while."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._found: dict[tuple[str, str], tuple[str, ...]] = {}
        self._queues = 0

    def find(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        """Return the names of the queues; none when no queue of the app is bound like that."""
        if not exchange:
            return (routing_key,) if routing_key else ()
        queues = self._app.amqp.queues
        if len(queues) != self._queues or len(self._found) >= _MOST:
            self._found.clear()
            self._queues = len(queues)
        key = (exchange, routing_key)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = tuple(
                queue.name for queue in list(queues.values()) if _is_bound(queue, exchange, routing_key)
            )
        return found

    def clear(self) -> None:
        """Forget what was found."""
        self._found.clear()


def _is_bound(queue: Any, exchange: str, routing_key: str) -> bool:
    if isinstance(queue, Broadcast):
        return False
    bindings = [(queue.exchange, queue.routing_key), *((one.exchange, one.routing_key) for one in queue.bindings or ())]
    return any(
        bound is not None and bound.name == exchange and _matches(bound.type, key or "", routing_key)
        for bound, key in bindings
    )


def _matches(kind: str, pattern: str, routing_key: str) -> bool:
    if kind == "fanout":
        return True
    if kind == "topic":
        return re.match(_TOPIC.key_to_pattern(pattern), routing_key) is not None
    return kind == "direct" and pattern == routing_key


def broker_place(connection: Any) -> Any:
    """Return what tells the brokers of kombu connections apart: where it is, whoever logs in."""
    uri = str(connection.as_uri(include_password=False))
    scheme = uri.partition("://")[0].partition("+")[0]
    if scheme in ("redis", "rediss", "valkey", "valkeys", "unix", "socket"):
        return place(uri)
    return (scheme, connection.hostname, connection.port, connection.virtual_host)

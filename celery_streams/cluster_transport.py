"""Cluster transport: kombu's way to a Redis Cluster, ``broker_url = "redis+cluster://..."``: remote control and events.

It carries what Celery's programs say to each other, and no tasks: those are on streams.

* What goes to a fanout exchange (broadcasts of ``control``, events, so gossip and Flower too) is told by pub/sub, which
  reaches all nodes of a cluster. The channel is ``/{EXCHANGE}/ROUTING.KEY``: all of an exchange is published at one
  node, so that events keep their order.
* Answers go to a list of whoever asked, ``ASKER.reply.CONTROL_EXCHANGE.pidbox``, at the node of its slot. It expires.
* Anything else would be a queue on a list, which nobody reads here: it is refused where it is published or consumed.

``broker_transport_options`` are those of kombu's Redis transport: ``global_keyprefix`` for the names of lists and
channels, ``health_check_interval`` for how often a subscription is looked at (seconds; 0: never), and time-outs.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections import deque
from importlib.metadata import version
from queue import Empty
from typing import Any

from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from .cluster import ClusterClient
from .cluster_listener import CHECK_EVERY, ListWait
from .exceptions import BrokerError, BrokerUnavailable, ConfigurationError, LoginRefused
from .poll import readable
from .redis_url import ConnectionOptions, with_login
from .scripts import Script

__all__ = ("Channel", "Transport")

logger = logging.getLogger(__name__)

#: kombu's types say less than it does: its own transports differ from them.
_virtual: Any = virtual

#: Milliseconds for which an answer is kept that nobody takes. Whoever asked is waiting for it.
ANSWERS_KEPT_MS = 60_000

#: Seconds after which what is waited for is looked at anew, where no event loop does so.
_ROUND = 1.0

#: Seconds between two looks of an event loop at the connections.
_LOOK_EVERY = 1.0

#: Stores an answer. KEYS: the list. ARGV: the answer, milliseconds that the list is kept.
_STORE = """
redis.call('LPUSH', KEYS[1], ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_STORED = Script("answer", _STORE, hashlib.sha1(_STORE.encode(), usedforsecurity=False).hexdigest())


def _is_for_answers(queue: str) -> bool:
    """Return whether a queue, or an exchange, is one for answers, by the names that kombu's Mailbox gives them."""
    return queue.endswith(".pidbox") and "reply." in queue


class Channel(_virtual.Channel):  # type: ignore[misc]
    """What Celery's programs declare, publish and consume."""

    supports_fanout = True
    #: What came by pub/sub was for all that listen; nobody can put it back.
    do_restore = False
    global_keyprefix = ""
    from_transport_options = (*_virtual.Channel.from_transport_options, "global_keyprefix")

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue.

        Raises:
            ConfigurationError: it is one of tasks.
        """
        if queue not in self.connection.topics and not _is_for_answers(queue):
            raise self._refused(queue, "A worker that reads it reads a list, of which there are none there")
        return super().basic_consume(queue, *args, **kwargs)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: Any, queue: str) -> None:
        if self.typeof(exchange).type == "fanout":
            self.connection.topics[queue] = self._topic(exchange, routing_key.replace("#", "*"))

    def _topic(self, exchange: str, routing_key: str | None) -> str:
        return f"{self.global_keyprefix}/{{{exchange}}}" + (f"/{routing_key}" if routing_key else "")

    def list_key(self, queue: str) -> str:
        """Return the key of the list with a queue's answers."""
        return f"{self.global_keyprefix}{queue}"

    def _put_fanout(self, exchange: str, message: Any, routing_key: str, **kwargs: Any) -> None:
        self.connection.nodes.publish(self._topic(exchange, routing_key), dumps(message))

    def _lookup(self, exchange: str, routing_key: str, default: Any = None) -> list[str]:
        # No table of bindings, which would have to be kept in Redis: the name of a list for answers says it all.
        return [f"{routing_key}.{exchange}" if _is_for_answers(exchange) else routing_key or exchange]

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        if not _is_for_answers(queue):
            raise self._refused(queue, "Nothing was published")
        self.connection.nodes.run(_STORED, [self.list_key(queue)], [dumps(message), ANSWERS_KEPT_MS])

    def _get(self, queue: str, timeout: Any = None) -> Any:
        found = self.connection.nodes.call("RPOP", self.list_key(queue)) if _is_for_answers(queue) else None
        if found is None:
            raise Empty
        return loads(bytes_to_str(found))

    def _size(self, queue: str) -> int:
        return int(self.connection.nodes.call("LLEN", self.list_key(queue))) if _is_for_answers(queue) else 0

    def _purge(self, queue: str) -> int:
        size = self._size(queue)
        if size:
            self.connection.nodes.call("DEL", self.list_key(queue))
        return size

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self.connection.topics.pop(queue, None)
        if _is_for_answers(queue):
            self.connection.nodes.call("DEL", self.list_key(queue))

    def _restore(self, message: Any) -> None:
        raise self._refused(message.delivery_info.get("routing_key") or "", "A message was not put back")

    def _refused(self, queue: str, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"Queue {queue!r} is not on streams, and the broker {self.connection.nodes.shown} is a Redis Cluster, "
            f"which holds no lists of Celery's. {what}: put the queue on streams (streams_queues = '*', with "
            "streams_enabled)"
        )


class Transport(_virtual.Transport):  # type: ignore[misc]
    """The connections of one of kombu's Connections, whose URL is that of a Redis Cluster.

    With kombu's event loop the loop watches them; without one, whoever drains events does.
    """

    Channel = Channel
    can_parse_url = True
    polling_interval = None
    #: Celery's events, gossip and mingle ask for it, and do what suits this transport.
    driver_type = "redis"
    driver_name = "redis-cluster"
    implements = _virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(("direct", "topic", "fanout"))
    )
    connection_errors: tuple[type[BaseException], ...] = (
        *_virtual.Transport.connection_errors,
        OSError,
        BrokerUnavailable,
        LoginRefused,
    )
    channel_errors: tuple[type[BaseException], ...] = (*_virtual.Transport.channel_errors, BrokerError)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        options = ConnectionOptions(
            transport=client.transport_options,
            ssl=client.ssl,
            connect_timeout=client.connect_timeout,
            username=client.userid,
            password=client.password,
            port=client.port,
            database=client.virtual_host,
        )
        #: The cluster.
        self.nodes = ClusterClient(client.hostname, options)
        #: Names to listen to, by queue.
        self.topics: dict[str, str] = {}
        every = client.transport_options.get("health_check_interval", CHECK_EVERY)
        self._subscription = self.nodes.subscription(check_every=every or math.inf)
        self._waits: dict[str, ListWait] = {}
        #: What has come, and is not delivered yet: queue and text.
        self._come: deque[tuple[str, bytes]] = deque()
        self._loop: Any = None
        #: What the loop watches, and whose loop it is.
        self._watched: dict[int, object] = {}
        self._pid = os.getpid()
        self._timer: Any = None

    def driver_version(self) -> str:
        """Return the version of redis-py."""
        return version("redis")

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return the URL, for ``Connection.as_uri``."""
        password = self.client.password
        return with_login(uri, self.client.userid, password if include_password or not password else mask)

    def hasten(self, seconds: float) -> None:
        """Wait at most ``seconds`` for each answer from now on: the process is about to end."""
        self.nodes.hasten(seconds)
        self._subscription.hasten(seconds)
        for wait in self._waits.values():
            wait.hasten(seconds)

    def establish_connection(self) -> Any:
        """Make a first contact.

        Raises:
            ConfigurationError: the server is no node of a cluster, or runs no scripts.
            BrokerError: it is away, or refuses the user.
        """
        self.nodes.greet()
        return super().establish_connection()

    def close_connection(self, connection: Any) -> None:
        """Close all connections."""
        super().close_connection(connection)
        self._leave_loop()
        self._subscription.close()
        for wait in self._waits.values():
            wait.close()
        self._waits.clear()
        self._come.clear()
        self.nodes.close()

    # -- without an event loop

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver one message, waiting at most ``timeout`` seconds for it.

        Raises:
            TimeoutError: none has come.
            BrokerUnavailable: the cluster is away.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._follow()
            self._subscription.check()
            self._gather()
            if self._come:
                self._deliver_next()
                return
            left = _ROUND if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if all(wait.is_asking for wait in self._waits.values()):  # else its slot has moved: it is asked elsewhere
                readable(self._descriptors(), timeout=min(left, _ROUND))

    # -- with kombu's event loop

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have ``loop`` watch what is consumed from now on."""
        self._leave_loop()
        self._loop, self._pid = loop, os.getpid()
        loop.on_tick.add(self._on_tick)
        self._timer = loop.call_repeatedly(_LOOK_EVERY, self._look)

    def _on_tick(self) -> None:
        self._follow()
        if self._subscription.has_heard:
            self._gather()
        self._deliver_all()
        self._watch()

    def _look(self) -> None:
        self._subscription.check()
        self._gather()
        self._deliver_all()
        self._watch()

    def on_readable(self, fileno: int) -> None:
        """Deliver what has come; the loop calls it."""
        self._gather()
        self._deliver_all()
        self._watch()

    def _watch(self) -> None:
        """Have the loop watch the connections that are open now, and forget those that were closed."""
        if self._loop is None:
            return
        now = self._descriptors()
        if now == self._watched:
            return
        for number, link in self._watched.items():
            if now.get(number) is not link:
                self._loop.remove(number)
        for number, link in now.items():
            if self._watched.get(number) is not link:
                self._loop.add_reader(number, self.on_readable, number)
        self._watched = now

    def _leave_loop(self) -> None:
        loop, self._loop = self._loop, None
        watched, self._watched = self._watched, {}
        # What a process was forked with is its parent's: even the descriptors that the loop watches are the same ones.
        if loop is None or self._pid != os.getpid():
            return
        loop.on_tick.discard(self._on_tick)
        self._timer.cancel()
        for number in watched:
            loop.remove(number)

    # -- both

    def _descriptors(self) -> dict[int, object]:
        found = self._subscription.watched
        for wait in self._waits.values():
            found.update(wait.watched)
        return found

    def _follow(self) -> None:
        """Listen to what is consumed now, and ask for the answers that are waited for."""
        consumed = self._callbacks
        self._subscription.listen(self.topics[queue] for queue in consumed if queue in self.topics)
        for queue in [queue for queue in self._waits if queue not in consumed]:
            self._waits.pop(queue).close()
        for channel in self.channels:
            for queue in channel._active_queues:
                if queue in self.topics:
                    continue
                if queue not in self._waits:
                    self._waits[queue] = self.nodes.wait_for(channel.list_key(queue))
                self._waits[queue].ask()

    def _gather(self) -> None:  # `_collect` would be kombu's: what drops a connection before it is made anew
        """Take what has come."""
        for name, text in self._subscription.receive():
            self._come.extend((queue, text) for queue, topic in self.topics.items() if topic == name)
        for queue, wait in self._waits.items():
            entry = wait.take()
            if entry is not None:
                self._come.append((queue, entry))

    def _deliver_all(self) -> None:
        while self._come:
            self._deliver_next()

    def _deliver_next(self) -> None:
        queue, text = self._come.popleft()
        callback = self._callbacks.get(queue)
        if callback is None:
            return  # cancelled meanwhile
        try:
            message = loads(bytes_to_str(text))
        except ValueError as exc:
            logger.warning("What came for %s is no message of kombu's, and was dropped: %s: %.200r", queue, exc, text)
            return
        if not isinstance(message, dict) or "delivery_tag" not in (message.get("properties") or ()):
            logger.warning("What came for %s is no message of kombu's, and was dropped: %.200r", queue, text)
            return
        callback(message)

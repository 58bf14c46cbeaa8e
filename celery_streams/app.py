"""What a Celery app knows of streams: its settings, its broker, and which queues are on streams.

:func:`streams_of` returns it, for any app; whether the app publishes through it is the matter of ``installation``.
It never imports the worker: a web process pays for publishing only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.entity import Exchange, Queue

from . import running_task
from .bindings import Bindings, broker_place
from .broker import StreamBroker
from .conf import StreamsConf, is_enabled
from .connection import RedisClient
from .exceptions import ConfigurationError
from .inspect import known_queues as used_queues
from .message import encode
from .printable import guard_loggers
from .redis_url import ConnectionOptions

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Streams", "streams_of")

guard_loggers()


class Streams:
    """What an installed app knows of streams: its settings, its broker, and which queues are on streams."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._conf: StreamsConf | None = None
        self._broker: StreamBroker | None = None
        self._bindings = Bindings(app)
        self._places: frozenset[Any] | None = None
        #: Children per queue (``-Q name:count``), set by the worker command.
        self.children: dict[str, int] = {}
        #: Names of ``-Q`` that look like a pattern and are none, set by the worker command.
        self.literal_queues: frozenset[str] = frozenset()
        #: Celery's command line runs because code called ``app.start`` or ``app.worker_main``.
        self.started_by_code = False

    @property
    def conf(self) -> StreamsConf:
        """The settings, read at first use.

        Raises:
            ConfigurationError: a setting is wrong.
        """
        if self._conf is None:
            self._conf = StreamsConf.from_app_conf(self.app.conf)
        return self._conf

    @property
    def url(self) -> str:
        """The URL of the Redis that holds the streams, with its password."""
        return self.conf.url or self._broker_url()

    @property
    def broker(self) -> StreamBroker:
        """The broker that this process publishes through.

        Raises:
            ConfigurationError: the URL is not one of a Redis.
        """
        if self._broker is None:
            self._broker = self.new_broker()
        return self._broker

    def new_broker(self, *, timeout: float | None = None) -> StreamBroker:
        """Return a broker with connections of its own, for a thread that must not wait for others.

        ``timeout`` is how long Redis may take to connect, and to answer each command; None is as configured.
        """
        client = self._client(self.conf.url, timeout=timeout)
        return StreamBroker(client, prefix=self.conf.key_prefix, steps=self.conf.priority_steps)

    def new_list_client(self) -> RedisClient:
        """Return a client of the project's own broker, where Celery's lists are.

        Raises:
            ConfigurationError: that is no Redis.
        """
        return self._client(None)

    def _client(self, own_url: str | None, *, timeout: float | None = None) -> RedisClient:
        app_conf = self.app.conf
        patience = {} if timeout is None else {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        options = ConnectionOptions(
            transport={**(app_conf.broker_transport_options or {}), **patience},
            ssl=(app_conf.broker_use_ssl or False) if not own_url else False,
            connect_timeout=app_conf.broker_connection_timeout,
            **({} if own_url else _settings_behind_the_url(app_conf)),
        )
        return RedisClient(own_url or self._broker_url(), options)

    def _broker_url(self) -> str:
        # Celery's properties, not conf.get: they honour CELERY_BROKER_URL, CELERY_BROKER_WRITE_URL and -b.
        url = self.app.conf.broker_write_url or self.app.conf.broker_url or "amqp://"
        urls = _alternatives(url)
        # Alternatives for kombu's failover; of Sentinels all are asked.
        return ";".join(urls) if urls[0].startswith("sentinel") else urls[0]

    def reload(self) -> None:
        """Forget the settings and connections, so that the next use reads them again (for tests)."""
        if self._broker is not None:
            self._broker.client.close()
        self._conf = self._broker = None
        self._bindings.clear()
        self._places = None

    def enabled(self) -> bool:
        """Return the switch as it stands now."""
        return is_enabled(self.app.conf)

    def on_streams(self, queue: str) -> bool:
        """Return whether ``queue`` is one of the chosen queues, whatever the switch says."""
        return self.conf.queues.matches(queue)

    def named_queues(self) -> list[str]:
        """Return the stream queues that ``task_queues`` and ``streams_queues`` name, the default queue too; sorted."""
        # A copy: another thread that publishes to a queue which nobody named adds it.
        queues = list(self.app.amqp.queues)
        return sorted({*filter(self.on_streams, queues), *self.conf.queues.names})

    def known_queues(self) -> list[str]:
        """Return the project's stream queues, sorted: those that its settings name, and all that were ever used.

        Raises:
            BrokerError: Redis is away, or refuses.
            ConfigurationError: a setting is wrong, or the URL is not one of a Redis.
        """
        return sorted({*used_queues(self.broker), *self.named_queues()})

    def route(self, exchange: Any, routing_key: str | None) -> tuple[str, ...]:
        """Return the stream queues of a message with this exchange and routing key; none leaves it to kombu.

        Raises:
            ConfigurationError: the message belongs to several queues, on streams and on lists.
        """
        if not self.enabled():
            return ()
        found = self._bindings.find(_name(exchange), routing_key or "")
        if len(found) > 1:
            chosen = [queue for queue in found if self.on_streams(queue)]
            if 0 < len(chosen) < len(found):
                raise ConfigurationError(
                    f"A message for {', '.join(found)} (one exchange and routing key) cannot go to lists and streams "
                    f"at once; of these streams_queues chooses {', '.join(chosen)}: choose all of them, or none"
                )
        return found if found and self.conf.queues.draw(found[0]) else ()

    def bound_queues(self, exchange: Any, routing_key: str | None) -> list[Queue]:
        """Return the project's queues that are bound to a named exchange with this routing key, to be declared.

        On Redis an exchange is nothing but the bindings that somebody declared; a worker that reads lists does so for
        its own queues, and no worker does for what is on streams until it is rolled back.
        """
        name = _name(exchange)
        if not name or not self.enabled():
            return []
        queues = self.app.amqp.queues
        return [queues[queue] for queue in self._bindings.find(name, routing_key or "") if queue in queues]

    def is_own_broker(self, connection: Any) -> bool:
        """Return whether a kombu connection leads to the project's own broker, whose messages may go to streams."""
        return broker_place(connection) in self._own_places()

    def _own_places(self) -> frozenset[Any]:
        if self._places is None:
            conf = self.app.conf
            urls = [conf.broker_url, conf.broker_write_url, conf.broker_read_url]
            self._places = frozenset(
                broker_place(self.app.connection(one)) for url in urls if url for one in _alternatives(url)
            )
        return self._places

    def send(
        self,
        queue: str,
        body: str | bytes,
        *,
        headers: Mapping[str, Any],
        properties: dict[str, Any],
        token: str,
    ) -> None:
        """Store one serialized message: now, at its ``eta``, or together with the entry of the task that retries.

        Args:
            token: the same for each attempt at the same publish. A delayed message is stored once for each, however
                often its reply was lost; its task id would not do, for two messages may have the same one.

        Raises:
            BrokerUnavailable, BrokerFull, QueueFull, BrokerError: it was not stored.
        """
        names = self.conf.queue_keys(queue)
        message = encode(headers, properties, body, step=names.step_index(properties.get("priority")))
        due_ms = self._due_ms(headers.get("eta"))
        member = f"{headers.get('id')}:{headers.get('retries') or 0}:{token}"
        retries = headers.get("retries") or 0
        running = running_task.current.get()
        if (
            running is not None
            and not running.retried
            and retries == running.retries + 1
            and (headers.get("id") or "") == running.task_id
        ):
            running.retry(running_task.HeldRetry(queue, message, due_ms, member))
        elif due_ms:
            self.broker.delay(queue, message, due_ms=due_ms, member=member, max_length=self.conf.max_length)
        else:
            self.broker.publish(queue, message, max_length=self.conf.max_length)

    def _due_ms(self, eta: Any) -> int:
        if not eta:
            return 0
        try:
            due = maybe_make_aware(maybe_iso8601(eta), self.app.timezone)
            due_ms = math.ceil(due.timestamp() * 1000)  # never before its eta
        except (AttributeError, ValueError, TypeError, OverflowError):
            return 0  # the worker says what is wrong with it, as Celery's does
        return due_ms if due_ms > self.app.now().timestamp() * 1000 else 0


def _name(exchange: Any) -> str:
    return str(exchange.name if isinstance(exchange, Exchange) else exchange or "")


def _settings_behind_the_url(conf: Any) -> dict[str, Any]:
    """Return Celery's older settings, which kombu takes for what a URL leaves open."""
    return {
        "username": conf.broker_user,
        "password": conf.broker_password,
        "port": int(conf.broker_port) if conf.broker_port else None,
        "database": conf.broker_vhost,
    }


def _alternatives(url: Any) -> list[str]:
    urls = [url] if isinstance(url, str) else list(url)
    return [one for each in urls for one in str(each).split(";") if one]


def streams_of(app: Celery) -> Streams:
    """Return what ``app`` knows of streams (made at first use)."""
    known = app.__dict__.get("_celery_streams")
    if known is None or known.app is not app:
        known = app.__dict__["_celery_streams"] = Streams(app)
    return cast("Streams", known)

"""The publish seam: how the messages of chosen queues leave Celery's own publishing code for a stream.

Celery's ``AMQP`` object hands out producers; ours differ from kombu's in one place, ``_publish``, below everything
that Celery, kombu and the tracing libraries do around a publish (signals, spans, serializer, compression, options).
Messages of other queues go on to kombu untouched. It never imports the worker: a web process pays for publishing only.

:func:`install` touches ``app.amqp`` and ``app.conf``, never ``app.tasks``, and connects to nothing.
"""

from __future__ import annotations

import logging
import math
import os
import uuid
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from celery import current_app
from celery.app import amqp as celery_amqp
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import pools
from kombu.entity import Exchange, Queue
from kombu.messaging import Consumer as KombuConsumer
from kombu.messaging import Producer as KombuProducer
from kombu.utils.functional import retry_over_time
from kombu.utils.imports import symbol_by_name

from . import context
from .broker import StreamBroker
from .conf import StreamsConf, is_enabled
from .connection import ConnectionOptions, RedisClient
from .exceptions import BrokerUnavailable, ConfigurationError
from .inspect import known_queues as used_queues
from .inspect import purge
from .message import encode

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Streams", "create_amqp", "install", "is_installed", "streams_of")

logger = logging.getLogger(__name__)

#: Celery's own AMQP class, as ``app.amqp_cls`` names it.
_STOCK_AMQP = "celery.app.amqp:AMQP"

#: What ``app.amqp_cls`` is set to: a name, so that apps survive pickling and spawned children.
_OUR_AMQP = "celery_streams.amqp:create_amqp"

#: How the decision of ``publish`` travels through kombu to ``_publish``.
_MARK = "celery_streams_queue"


class Streams:
    """What an installed app knows of streams: its settings, its broker, and which queues are on streams."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._conf: StreamsConf | None = None
        self._broker: StreamBroker | None = None
        self._bindings: dict[tuple[str, str], tuple[str, ...]] = {}
        #: Children per queue (``-Q name:count``), set by the worker command.
        self.children: dict[str, int] = {}

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

    def new_broker(self) -> StreamBroker:
        """Return a broker with connections of its own, for a thread that must not wait for others."""
        client = self._client(self.conf.url)
        return StreamBroker(client, prefix=self.conf.key_prefix, steps=self.conf.priority_steps)

    def new_list_client(self) -> RedisClient:
        """Return a client of the project's own broker, where Celery's lists are.

        Raises:
            ConfigurationError: that is no Redis.
        """
        return self._client(None)

    def _client(self, own_url: str | None) -> RedisClient:
        app_conf = self.app.conf
        options = ConnectionOptions(
            transport=dict(app_conf.broker_transport_options or {}),
            ssl=(app_conf.broker_use_ssl or False) if not own_url else False,
            connect_timeout=app_conf.broker_connection_timeout,
        )
        return RedisClient(own_url or self._broker_url(), options)

    def _broker_url(self) -> str:
        # Celery's properties, not conf.get: they honour CELERY_BROKER_URL, CELERY_BROKER_WRITE_URL and -b.
        url = self.app.conf.broker_write_url or self.app.conf.broker_url or "amqp://"
        first = str(url if isinstance(url, str) else next(iter(url)))
        # Alternatives for kombu's failover; a Sentinel URL names all Sentinels in one.
        return first if first.startswith("sentinel") else first.partition(";")[0]

    def reload(self) -> None:
        """Forget the settings and connections, so that the next use reads them again (for tests)."""
        if self._broker is not None:
            self._broker.client.close()
        self._conf = self._broker = None
        self._bindings.clear()

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
        found = self._resolve(exchange.name if isinstance(exchange, Exchange) else exchange or "", routing_key or "")
        if len(found) > 1:
            chosen = [queue for queue in found if self.on_streams(queue)]
            if 0 < len(chosen) < len(found):
                raise ConfigurationError(
                    f"A message for {', '.join(found)} (one exchange and routing key) cannot go to lists and streams "
                    f"at once; of these streams_queues chooses {', '.join(chosen)}: choose all of them, or none"
                )
        return found if found and self.conf.queues.draw(found[0]) else ()

    def _resolve(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        if not exchange:
            return (routing_key,) if routing_key else ()
        found = self._bindings.get((exchange, routing_key))
        if not found:
            found = self._bindings[exchange, routing_key] = tuple(
                queue.name
                for queue in self.app.amqp.queues.values()
                if queue.exchange is not None
                and (queue.exchange.name, queue.exchange.type) == (exchange, "direct")
                and (queue.routing_key or "") == routing_key
            )
        return found

    def send(
        self,
        queue: str,
        body: str | bytes,
        *,
        headers: Mapping[str, Any],
        properties: dict[str, Any],
    ) -> None:
        """Store one serialized message: now, at its ``eta``, or together with the entry of the task that retries.

        Raises:
            BrokerUnavailable, BrokerFull, QueueFull, BrokerError: it was not stored.
        """
        names = self.conf.queue_keys(queue)
        message = encode(headers, properties, body, step=names.step_index(properties.get("priority")))
        due_ms = self._due_ms(headers.get("eta"))
        retries = headers.get("retries") or 0
        running = context.current.get()
        if (
            running is not None
            and running.held is None
            and retries == running.retries + 1
            and headers.get("id") == running.task_id
        ):
            running.held = context.HeldRetry(queue, message, due_ms, _member(headers))
        elif due_ms:
            self.broker.delay(queue, message, due_ms=due_ms, member=_member(headers), max_length=self.conf.max_length)
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


def _member(headers: Mapping[str, Any]) -> str:
    """Return the name of a delayed message: the same for the same retry, so that it is stored once."""
    return f"{headers.get('id')}:{headers.get('retries') or uuid.uuid4().hex}"


class StreamsProducer(KombuProducer):
    """kombu's Producer for an installed app: messages of stream queues go to streams, all others to kombu."""

    #: Set on the subclass that is made for each app.
    streams: Streams

    def publish(self, body: Any, routing_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Publish as kombu does; to a stream, with the caller's retry policy but without a kombu connection."""
        # A held kombu connection, batch or transaction has no meaning for a stream: each message is stored at once.
        queues = self.streams.route(kwargs.get("exchange") or self.exchange, routing_key)
        if not queues:
            return cast("Any", super()).publish(body, routing_key, *args, **kwargs)
        retry, policy = kwargs.pop("retry", False), kwargs.pop("retry_policy", None) or {}
        kwargs[_MARK] = queues
        kwargs["declare"] = []  # kombu appends to it
        if not retry:
            return cast("Any", super()).publish(body, routing_key, *args, **kwargs)
        return retry_over_time(
            cast("Any", super()).publish,
            (BrokerUnavailable, *(policy.get("retry_errors") or ())),
            args=(body, routing_key, *args),
            kwargs=kwargs,
            max_retries=policy.get("max_retries", 3),
            interval_start=policy.get("interval_start", 0),
            interval_step=policy.get("interval_step", 0.2),
            interval_max=policy.get("interval_max", 1),
            timeout=kwargs.get("timeout"),
        )

    def _publish(
        self,
        body: Any,
        priority: int,
        content_type: str,
        content_encoding: str,
        headers: dict[str, Any],
        properties: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        queues = properties.pop(_MARK, None)
        if queues is None:
            return cast("Any", super())._publish(
                body, priority, content_type, content_encoding, headers, properties, *args, **kwargs
            )
        reply_to = properties.get("reply_to")
        if isinstance(reply_to, Queue):
            properties["reply_to"] = reply_to.name
        properties.update(content_type=content_type, content_encoding=content_encoding, priority=priority or 0)
        for queue in queues:
            self.streams.send(queue, body, headers=headers, properties=dict(properties))


class StreamsConsumer(KombuConsumer):
    """kombu's Consumer for an installed app: purging it purges the streams of its queues too."""

    streams: Streams

    def purge(self) -> int:
        """Discard what waits in the queues, on lists and on streams; returns the number of messages."""
        count = int(cast("Any", super()).purge() or 0)
        for queue in self.queues or ():
            if self.streams.on_streams(queue.name):
                count += purge(self.streams.broker, queue.name)
        return count


class StreamsAMQPMixin:
    """Goes in front of the app's AMQP class, Celery's or the user's own."""

    app: Any
    _producer_pool: Any

    @property
    def streams(self) -> Streams:
        return streams_of(self.app)

    @property
    def Producer(self) -> type[StreamsProducer]:  # noqa: N802  (Celery's name)
        made = self.__dict__.get("_streams_producer")
        if made is None:
            base = cast("Any", super()).Producer
            made = type("StreamsProducer", _bases(StreamsProducer, base), {"streams": self.streams})
            self.__dict__["_streams_producer"] = made
        return cast("type[StreamsProducer]", made)

    @cached_property  # may be replaced on the instance, like Celery's
    def Consumer(self) -> type[StreamsConsumer]:  # noqa: N802  (Celery's name)
        base = cast("Any", super()).Consumer
        return type("StreamsConsumer", _bases(StreamsConsumer, base), {"streams": self.streams})

    @property
    def producer_pool(self) -> pools.ProducerPool:
        if self._producer_pool is None:
            # A pool of our own beside kombu's: kombu shares its pools by broker URL with apps that are not installed.
            self._producer_pool = pools.ProducerPool(
                pools.connections[self.app.connection_for_write()], limit=self.app.pool.limit, Producer=self.Producer
            )
        return cast("pools.ProducerPool", self._producer_pool)

    publisher_pool = producer_pool  # Celery's older name

    def _create_task_sender(self) -> Callable[..., Any]:
        send = cast("Any", super())._create_task_sender()

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            if producer is not None and not isinstance(producer, StreamsProducer):
                producer = self._adopt(producer)
            return send(producer, name, message, **options)

        return send_task_message

    def _adopt(self, producer: Any) -> Any:
        # A producer that the user made: same state, same connection, our publish.
        if not isinstance(producer, KombuProducer):
            return producer
        adopted: Any = type("StreamsProducer", _bases(StreamsProducer, type(producer)), {"streams": self.streams})
        view = adopted.__new__(adopted)
        view.__dict__ = producer.__dict__
        return view


def _bases(ours: type, theirs: Any) -> tuple[type, ...]:
    return (ours,) if issubclass(ours, theirs) else (ours, theirs)


def _amqp_class(base: type) -> type:
    if issubclass(base, StreamsAMQPMixin):
        return base
    return type(f"Streams{base.__name__}", (StreamsAMQPMixin, base), {"__module__": __name__})


def create_amqp(app: Celery) -> celery_amqp.AMQP:
    """Build ``app.amqp`` for an installed app (what ``app.amqp_cls`` names, also in spawned children)."""
    base = symbol_by_name(app.conf.get("streams_amqp_cls") or _STOCK_AMQP)
    return cast("celery_amqp.AMQP", _amqp_class(base)(app))


def streams_of(app: Celery) -> Streams:
    """Return what ``app`` knows of streams (made at first use)."""
    known = app.__dict__.get("_celery_streams")
    if known is None or known.app is not app:
        known = app.__dict__["_celery_streams"] = Streams(app)
    return cast("Streams", known)


def is_installed(app: Celery) -> bool:
    """Return whether :func:`install` was called for ``app`` (or for the app it was pickled from)."""
    return bool(app.amqp_cls == _OUR_AMQP)


def install(app: Celery | None = None, *, queues: Any = None, enabled: Any = None) -> Celery:
    """Put the chosen queues of a Celery app on Redis Streams; call it once, anywhere, again does no harm.

    Args:
        app: the app; the current one by default.
        queues: overrides ``streams_queues``: names, shell patterns, or a mapping of name to share (0.0 to 1.0).
        enabled: overrides ``streams_enabled``: a boolean, a callable, or its dotted path.

    The environment variables ``CELERY_STREAMS_QUEUES`` and ``CELERY_STREAMS_ENABLED`` override both. Works before and
    after the app is configured and ``app.amqp`` is built, with a user's own AMQP class, and for apps that are pickled
    or spawned. Opens no connection; wrong settings are reported at the first publish or when a worker starts.

    Returns the app.
    """
    if app is None:
        app = current_app._get_current_object()
    changes: dict[str, Any] = {}
    if queues is not None:
        changes["streams_queues"] = queues
    if enabled is not None:
        changes["streams_enabled"] = enabled
    if not is_installed(app):
        if app.amqp_cls != _STOCK_AMQP:
            changes["streams_amqp_cls"] = app.amqp_cls
        app.amqp_cls = _OUR_AMQP
        built = app.__dict__.get("amqp")
        if built is not None:
            _adopt_built(built)
        _report_stock_worker(app)
    if changes:
        app.conf.update(changes)
        streams_of(app).reload()
    return app


def _adopt_built(amqp: Any) -> None:
    """Change the class of an ``app.amqp`` that others may already refer to; its queues and router stay."""
    amqp.__class__ = _amqp_class(type(amqp))
    amqp.__dict__.pop("send_task_message", None)
    amqp._producer_pool = None


def _report_stock_worker(app: Celery) -> None:
    """Warn when a stock ``celery worker`` starts on queues whose messages go to streams."""
    from celery.signals import celeryd_after_setup

    def warn(sender: Any = None, instance: Any = None, **kwargs: Any) -> None:
        if instance is None or instance.app is not app or not streams_of(app).enabled():
            return
        if getattr(instance.consumer_cls, "__module__", str(instance.consumer_cls)).startswith("celery_streams"):
            return
        idle = [name for name in app.amqp.queues.consume_from if streams_of(app).on_streams(name)]
        if idle:
            logger.warning(
                "Queue %s is on Redis Streams (pid %s): this worker reads Celery's list, which gets no new message. "
                "Start its worker with: celery-streams worker -Q %s",
                ", ".join(idle),
                os.getpid(),
                ",".join(idle),
            )

    celeryd_after_setup.connect(warn, weak=False, dispatch_uid=f"celery-streams-{id(app)}")

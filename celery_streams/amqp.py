"""The publish seam: how the messages of chosen queues leave Celery's own publishing code for a stream.

Celery's ``AMQP`` object hands out producers; ours differ from kombu's in one place, ``_publish``, below everything
that Celery, kombu and the tracing libraries do around a publish (signals, spans, serializer, compression, options).
Messages of other queues go on to kombu untouched. Which app it is put into, and how, is the matter of ``installation``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from celery.app import amqp as celery_amqp
from kombu import pools
from kombu.entity import Queue
from kombu.messaging import Consumer as KombuConsumer
from kombu.messaging import Producer as KombuProducer
from kombu.utils.functional import ChannelPromise, retry_over_time
from kombu.utils.imports import symbol_by_name

from . import blocks, celery_private
from .app import Streams, streams_of
from .blocks import PublishCall
from .exceptions import BrokerUnavailable
from .inspect import purge
from .notes import HEADER as TRACK_HEADER
from .plans import Recorded, publish_by_plans, recording

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("OUR_AMQP", "STOCK_AMQP", "adopt", "create_amqp")

#: Celery's own AMQP class, as ``app.amqp_cls`` names it.
STOCK_AMQP = "celery.app.amqp:AMQP"

#: What ``app.amqp_cls`` is set to: a name, so that apps survive pickling and spawned children.
OUR_AMQP = "celery_streams.amqp:create_amqp"

#: How the decision of ``publish`` travels through kombu to ``_publish``.
_MARK = "celery_streams_queue"

#: Under which name a kombu batch keeps our block.
_BATCH = "celery_streams_block"


class StreamsProducer(KombuProducer):
    """kombu's Producer for an installed app: messages of stream queues go to streams, all others to kombu."""

    #: Set on the subclass that is made for each app.
    streams: Streams

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        """Publish as kombu does; to a stream, with the caller's retry policy but without a kombu connection.

        Messages that are no tasks, and those that the caller sends through a connection to another broker, are
        kombu's. Arguments go on as they came: tracing libraries read them by name.
        """
        if not self._may_go_to_streams(body, kwargs.get("headers")):
            return cast("Any", super()).publish(body, *args, **kwargs)
        routing_key = args[0] if args else kwargs.get("routing_key")
        exchange = kwargs.get("exchange") or self.exchange
        # A held kombu connection or transaction has no meaning for a stream; a batch has: see _publish.
        queues = self.streams.route(exchange, self.routing_key if routing_key is None else routing_key)
        if not queues:
            bound = self.streams.bound_queues(exchange, routing_key)
            if bound:
                kwargs["declare"] = [*(kwargs.get("declare") or ()), *bound]
            published = cast("Any", super()).publish(body, *args, **kwargs)
            self.streams.listed(exchange, self.routing_key if routing_key is None else routing_key)
            return published
        headers = kwargs.get("headers")
        if headers:
            marks, conf = self.streams.marks, self.streams.conf
            marked = marks.headers_of(headers, body, conf)
            if marked is not None:
                headers = kwargs["headers"] = marked
            mark = marks.track_mark(headers.get("task"), conf)
            if mark is not None:
                kwargs["headers"] = {**headers, TRACK_HEADER: mark}
        queues = tuple(self.streams.marks.place(queue, headers or {}, body, self.streams.conf) for queue in queues)
        retry, policy = kwargs.pop("retry", False), kwargs.pop("retry_policy", None) or {}
        kwargs[_MARK] = (queues, uuid4().hex, bool(retry), policy)
        kwargs["declare"] = []  # kombu appends to it
        if not retry:
            return cast("Any", super()).publish(body, *args, **kwargs)
        return retry_over_time(
            cast("Any", super()).publish,
            (BrokerUnavailable, *(policy.get("retry_errors") or ())),
            args=(body, *args),
            kwargs=kwargs,
            max_retries=policy.get("max_retries", 3),
            interval_start=policy.get("interval_start", 0),
            interval_step=policy.get("interval_step", 0.2),
            interval_max=policy.get("interval_max", 1),
            timeout=kwargs.get("timeout"),
        )

    def _may_go_to_streams(self, body: Any, headers: Any) -> bool:
        message = headers if headers and "task" in headers else body
        if not (isinstance(message, Mapping) and "task" in message and "id" in message):
            return False
        connection = self.__connection__
        if connection is None and self._channel is not None and not isinstance(self._channel, ChannelPromise):
            connection = self.connection  # made for a channel
        if connection is None:
            return True
        if connection is not self.__dict__.get("_judged"):
            self.__dict__["_judged"] = connection
            self.__dict__["_is_own"] = self.streams.is_own_broker(connection)
        return bool(self.__dict__["_is_own"])

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
        mark = properties.pop(_MARK, None)
        if mark is None:
            return cast("Any", super())._publish(
                body, priority, content_type, content_encoding, headers, properties, *args, **kwargs
            )
        reply_to = properties.get("reply_to")
        if isinstance(reply_to, Queue):
            properties["reply_to"] = reply_to.name
        properties.update(content_type=content_type, content_encoding=content_encoding, priority=priority or 0)
        queues, token, retry, policy = mark
        recorded = recording.get()
        if recorded is not None:
            recorded += [Recorded(queue, body, dict(headers), dict(properties), retry, policy) for queue in queues]
        call = blocks.current_call.get()
        if call is not None:
            self._store(body, headers, properties, queues, token, call)
            return
        call = PublishCall(self.holder())
        self._store(body, headers, properties, queues, token, call)
        if call.holder is not None:
            call.holder.call_ended()

    def _store(
        self, body: Any, headers: Any, properties: dict[str, Any], queues: Any, token: str, call: PublishCall
    ) -> None:
        for queue in queues:
            self.streams.send(queue, body, headers=headers, properties=dict(properties), token=token, call=call)

    def holder(self) -> Any:
        """Return what holds the messages of this producer: its batch, or what holds all others."""
        batch = celery_private.publish_batch(self)
        if batch is None:
            return self.streams.holder()
        block = batch.__dict__.get(_BATCH)
        if block is None:
            # kombu counts its own operations; each message is one of ours.
            block = batch.__dict__[_BATCH] = self.streams.new_block(max_count=batch.max_size)
            celery_private.follow_batch(batch, flush=block.flush, discard=block.discard)
        return block


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

    #: Tells an app that was installed from others.
    publishes_to_streams = True

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
        celery_private.replace_in_sender(send, _when_stored)

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            if producer is not None and not isinstance(producer, StreamsProducer):
                producer = self._adopt(producer)
            holder = producer.holder() if isinstance(producer, StreamsProducer) else None
            call = PublishCall(holder)
            if holder is not None and message[3] and options.get("event_dispatcher") is None:
                options["event_dispatcher"] = _SentEvents(self.app, call)
            token = blocks.current_call.set(call)
            try:
                sent = send(producer, name, message, **options)
            finally:
                blocks.current_call.reset(token)
            if call.held and holder is not None:
                holder.call_ended()
            return sent

        self.__dict__["_streams_sender"] = send_task_message
        return send_task_message

    def is_plain(self) -> bool:
        """Return whether nothing of a user's takes part in a publish: no class, no producer, no sender."""
        return (
            type(self).__bases__ == (StreamsAMQPMixin, celery_amqp.AMQP)
            and self.Producer.__bases__ == (StreamsProducer,)
            and vars(self).get("send_task_message") is vars(self).get("_streams_sender")
        )

    def _adopt(self, producer: Any) -> Any:
        # A producer that the user made: same state, same connection, our publish.
        if not isinstance(producer, KombuProducer):
            return producer
        adopted: Any = type("StreamsProducer", _bases(StreamsProducer, type(producer)), {"streams": self.streams})
        view = adopted.__new__(adopted)
        view.__dict__ = producer.__dict__
        return view


class _SentEvents:
    """Stands for Celery's event dispatcher in one call: its ``task-sent`` is sent when the message is stored."""

    def __init__(self, app: Any, call: PublishCall) -> None:
        self._app, self._call = app, call

    def publish(self, kind: str, fields: dict[str, Any], producer: Any, **options: Any) -> None:
        """Publish an event as Celery's dispatcher does, now or later; by then the producer is another's."""
        events = self._app.events.Dispatcher(enabled=False)
        if not self._call.held:
            events.publish(kind, fields, producer, **options)
            return

        def publish() -> None:
            with self._app.producer_or_acquire() as own:
                events.publish(kind, fields, own, **options)

        self._call.after.append(publish)


def _when_stored(signal: Any) -> Callable[..., Any]:
    """Return what sends ``signal`` when the message of the call that is under way is stored."""

    def send(**named: Any) -> Any:
        call = blocks.current_call.get()
        if call is None or not call.held:
            return signal.send(**named)
        if signal.receivers:
            call.after.append(lambda: signal.send(**named))
        return []

    return send


def _bases(ours: type, theirs: Any) -> tuple[type, ...]:
    return (ours,) if issubclass(ours, theirs) else (ours, theirs)


def _amqp_class(base: type) -> type:
    if issubclass(base, StreamsAMQPMixin):
        return base
    return type(f"Streams{base.__name__}", (StreamsAMQPMixin, base), {"__module__": __name__})


def create_amqp(app: Celery) -> celery_amqp.AMQP:
    """Build ``app.amqp`` for an installed app (what ``app.amqp_cls`` names, also in spawned children)."""
    base = symbol_by_name(app.conf.get("streams_amqp_cls") or STOCK_AMQP)
    publish_by_plans(app, streams_of(app))  # of an app that was pickled, which install() did not see
    return cast("celery_amqp.AMQP", _amqp_class(base)(app))


def adopt(amqp: Any) -> None:
    """Change the class of an ``app.amqp`` that others may already refer to; its queues and router stay."""
    amqp.__class__ = _amqp_class(type(amqp))
    amqp.__dict__.pop("send_task_message", None)
    celery_private.forget_producer_pool(amqp)

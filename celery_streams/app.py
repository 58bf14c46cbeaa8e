"""What a Celery app knows of streams: its settings, its broker, and which queues are on streams.

:func:`streams_of` returns it, for any app; whether the app publishes through it is the matter of ``installation``.
It never imports the worker: a web process pays for publishing only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast
from uuid import uuid4
from weakref import WeakValueDictionary

from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.entity import Exchange, Queue

from . import blocks, keys, running_task
from .bindings import Bindings, broker_place
from .block_store import QueuedMessage
from .blocks import Block, Held, Holder, PublishCall
from .broker import StreamBroker
from .cluster import connect, is_cluster_url
from .conf import StreamsConf, is_enabled, plain_switch
from .connection import RedisClient
from .duplicates import groups_set_free, publish_or_find, tell
from .exceptions import BrokerError, CeleryStreamsError, ConfigurationError, DuplicateTask
from .header_marks import HeaderMarks
from .inspect import known_queues as used_queues
from .limits import limits_of
from .locks import HEADER, Lock
from .message import Message, encode
from .partitions import is_partition, queue_of
from .placing import decider
from .printable import guard_loggers
from .published import CountingBroker
from .redis_url import ConnectionOptions, safe_url
from .unique import unique_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Streams", "hold_in_transactions", "streams_of")


logger = logging.getLogger(__name__)


class Transactions(Protocol):
    """Who knows of the database transactions of this thread."""

    def holder(self, streams: Streams, using: Any) -> Holder | None:
        """Return what holds the messages of an app until the transactions that are open now commit; None: none is.

        ``using`` is a database alias, several, or True for all databases.
        """

    def is_held(self, streams: Streams, task_id: str) -> bool:
        """Return whether the message of a task waits for a transaction of this thread."""


_transactions: list[Transactions] = []


def hold_in_transactions(transactions: Transactions) -> None:
    """Say who knows of the database transactions of this process (``django_integration`` does)."""
    _transactions[:] = [transactions]


guard_loggers()


class Streams:
    """What an installed app knows of streams: its settings, its broker, and which queues are on streams."""

    #: Tells a result that a publish of this process has returned.
    OWN = "_celery_streams_own"

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
        #: Names of ``-Q`` that nobody else knows, and the name that each is most like, set by the worker command.
        self.odd_queues: dict[str, str] = {}
        #: What was set at run time, by task; a worker reads it in Redis (``worker.held_messages``).
        self.limits_in_redis: dict[str, dict[str, Any]] = {}
        #: What the headers of its tasks' messages say besides.
        self.marks = HeaderMarks(app)
        #: Results of unique tasks whose messages may be held, by id.
        self._awaited: WeakValueDictionary[str, Any] = WeakValueDictionary()
        #: Called with the queues of a task that went to Celery's lists; None: nobody counts.
        self._on_listed: Callable[[Sequence[str]], None] | None = None
        self._broker_class: Callable[..., StreamBroker] = StreamBroker
        #: What a worker counts and exposes (``worker.metrics``), set by the worker command; None: nothing.
        self.metrics: Any = None
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
            self._broker = self._new_broker(self._broker_class)
        return self._broker

    def new_broker(self, *, timeout: float | None = None, rests: bool = False) -> StreamBroker:
        """Return a broker with connections of its own, for a thread that must not wait for others.

        Args:
            timeout: how long Redis may take to connect, and to answer each command; None is as configured.
            rests: a node of a Redis Cluster that took longer is refused without being asked, for a while.
        """
        return self._new_broker(StreamBroker, timeout=timeout, rests=rests)

    def _new_broker(
        self, make: Callable[..., StreamBroker], *, timeout: float | None = None, rests: bool = False
    ) -> StreamBroker:
        client = self._client(self.conf.url, timeout=timeout, rests=rests)
        conf = self.conf
        return make(client, prefix=conf.key_prefix, steps=conf.priority_steps, spread=conf.partitions)

    def count_published(self, counted: Callable[..., None]) -> None:
        """Call ``counted(queue, count, to_stream=...)`` for what this process publishes, instead of who did before."""

        def on_listed(queues: Sequence[str]) -> None:
            for queue in queues:
                counted(queue, 1, to_stream=False)

        self._on_listed = on_listed
        self._broker_class = partial(CountingBroker, counted=partial(counted, to_stream=True))
        self._broker = None

    def new_list_client(self) -> RedisClient:
        """Return a client of the project's own broker, where Celery's lists are.

        Raises:
            ConfigurationError: that is no Redis, or a Redis Cluster, which holds none of them.
        """
        url = self._broker_url()
        if is_cluster_url(url):
            raise ConfigurationError(f"{safe_url(url)} is the URL of a Redis Cluster, which holds no lists of Celery's")
        return self._client(None)

    def new_client(self, database: int) -> RedisClient:
        """Return a client of another database of the Redis that holds the streams."""
        return self._client(self.conf.url, database=database)

    def new_client_of(self, url: str) -> RedisClient:
        """Return a client of any other Redis.

        Raises:
            ConfigurationError: the URL is not one of a Redis.
        """
        return self._client(url)

    def _client(
        self,
        own_url: str | None,
        *,
        timeout: float | None = None,
        database: int | None = None,
        rests: bool = False,
    ) -> RedisClient:
        app_conf = self.app.conf
        patience = {} if timeout is None else {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        options = ConnectionOptions(
            transport={**(app_conf.broker_transport_options or {}), **patience},
            ssl=(app_conf.broker_use_ssl or False) if not own_url else False,
            connect_timeout=app_conf.broker_connection_timeout,
            other_database=database,
            max_age=self.conf.max_connection_age,
            rests=rests,
            **({} if own_url else _settings_behind_the_url(app_conf)),
        )
        return connect(own_url or self._broker_url(), options)

    def _broker_url(self) -> str:
        # Celery's properties, not conf.get: they honour CELERY_BROKER_URL, CELERY_BROKER_WRITE_URL and -b.
        url = self.app.conf.broker_write_url or self.app.conf.broker_url or "amqp://"
        urls = _alternatives(url)
        # Alternatives for kombu's failover; of Sentinels, and of the nodes of a cluster, all are asked.
        return ";".join(urls) if urls[0].startswith("sentinel") or is_cluster_url(urls[0]) else urls[0]

    def reload(self) -> None:
        """Forget the settings and connections, so that the next use reads them again (for tests)."""
        if self._broker is not None:
            self._broker.client.close()
        self._conf = self._broker = None
        self._bindings.clear()
        self.marks.clear()
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
            ConfigurationError: the message belongs to several queues, on streams and on lists; or to a partition.
        """
        if not self.enabled():
            return ()
        found = self._bindings.find(_name(exchange), routing_key or "")
        for queue in found:
            if is_partition(queue):
                raise ConfigurationError(
                    f"{queue!r} is the name of a partition of queue {queue_of(queue)!r}; publish to the queue"
                )
        if len(found) > 1:
            chosen = [queue for queue in found if self.on_streams(queue)]
            if 0 < len(chosen) < len(found):
                raise ConfigurationError(
                    f"A message for {', '.join(found)} (one exchange and routing key) cannot go to lists and streams "
                    f"at once; streams_queues names only {', '.join(chosen)} of these: name all of them, or none"
                )
        return found if found and self.conf.queues.draw(found[0]) else ()

    def check_partitions(self, task: Any, *, run_time: Mapping[str, Any] | None = None) -> None:
        """Check that a task may be where its options and routes send it, with limits that are set at run time, if any.

        Raises:
            ConfigurationError: its queue has partitions, and it has a limit over all of them, or several keys.
        """
        if not self.conf.partitions:
            return
        queue = getattr(task, "queue", None)
        if queue is None:
            try:
                queue = self.app.amqp.router.route({}, task.name, task_type=task).get("queue")
            except Exception as exc:  # noqa: BLE001  (a project's router may want arguments; a publish has some)
                logger.debug("The queue of task %s is not known before it is published: %r", task.name, exc)
                return
        queue = str(getattr(queue, "name", queue))
        count = self.conf.partitions.get(queue)
        if count is not None and self.on_streams(queue):
            setting = self.conf.limits.get(task.name, {})
            decider(task, limits_of(task, setting, run_time), unique_of(task, setting), queue, count)

    def listed(self, exchange: Any, routing_key: str | None) -> None:
        """Say that a task went to the lists of the queues that are bound so."""
        if self._on_listed is not None:
            self._on_listed(self._bindings.find(_name(exchange), routing_key or ""))

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
                broker_place(self.app.connection(one)) for url in urls if url for one in _brokers(url)
            )
        return self._places

    def new_block(
        self, *, retry: bool | None = None, retry_policy: Mapping[str, Any] | None = None, **bounds: Any
    ) -> Block:
        """Return a block that stores through this app's broker; a policy that is not given is Celery's setting."""
        conf = self.app.conf
        policy = {**(conf.task_publish_retry_policy or {}), **(retry_policy or {})}
        wanted = conf.task_publish_retry if retry is None else retry
        return Block(
            self.broker,
            max_length=self.conf.max_length_of,
            retry_policy=policy if wanted else None,
            on_duplicate=self._on_duplicate,
            on_refused=self._on_refused,
            **bounds,
        )

    def holder(self) -> Holder | None:
        """Return what holds messages that this thread or coroutine publishes now; None: they are stored at once.

        Raises:
            ConfigurationError: they shall wait for a transaction, and nobody knows of any.
        """
        block = blocks.find(self) if blocks.opened.get() else None
        using = self.conf.publish_on_commit
        if block is not None and block.using is not None:
            using = block.using
        if using is False:
            return block
        if not _transactions:
            raise ConfigurationError(
                "streams_publish_on_commit and bulk(using=...) need Django's transactions: add django_integration to "
                "INSTALLED_APPS"
            )
        return _transactions[0].holder(self, using) or block

    def plain_switch(self) -> bool | None:
        """Return the switch where it can only change with the settings; None where a function decides."""
        return plain_switch(self.app.conf)

    def is_installed(self) -> bool:
        """Return whether the app publishes to streams, as far as its switch says so."""
        return bool(getattr(self.app.amqp, "publishes_to_streams", False))

    def is_held(self, task_id: str) -> bool:
        """Return whether the message of a task waits, in this thread and coroutine, for its block or transaction."""
        return any(
            block.holds(task_id) for streams, block in blocks.opened.get() if streams is self and not block.closed
        ) or any(transactions.is_held(self, task_id) for transactions in _transactions)

    def send(
        self,
        queue: str,
        body: str | bytes,
        *,
        headers: Mapping[str, Any],
        properties: dict[str, Any],
        token: str,
        call: PublishCall | None = None,
    ) -> None:
        """Store one serialized message: now, at its ``eta``, or together with the entry of the task that retries.

        What its ``call`` shall hold is held.

        Args:
            queue: the queue, or the partition of one.
            token: the same for each attempt at the same publish. A delayed message is stored once for each, however
                often its reply was lost; its task id would not do, for two messages may have the same one.

        Raises:
            BrokerUnavailable, BrokerFull, QueueFull, BrokerError: it was not stored.
            DuplicateTask: it was not stored, for a message that is there holds its lock.
        """
        names = self.conf.queue_keys(queue)
        message = encode(
            headers,
            properties,
            body,
            step=names.step_index(properties.get("priority")),
            compact=self.conf.compact_messages,
        )
        due_ms = self._due_ms(headers.get("eta"))
        member = f"{headers.get('id')}:{headers.get('retries') or 0}:{token}"
        running = running_task.retrying(headers)
        if running is not None:
            running.retry(running_task.HeldRetry(queue, message, due_ms, member))
        elif call is not None and call.holder is not None:
            call.held += 1
            call.holder.hold(Held(queue, QueuedMessage(str(headers.get("id")), message, due_ms, member), call))
        else:
            try:
                self._store(queue, message, headers, due_ms=due_ms, member=member, token=token)
            except BrokerError as exc:
                raise exc.of_publish(queue_of(queue)) from exc

    def _store(
        self, queue: str, message: Message, headers: Mapping[str, Any], *, due_ms: int, member: str, token: str
    ) -> None:
        if HEADER in headers and (lock := Lock.parse(headers[HEADER])) is not None:
            unique = self.marks.unique(headers.get("task"))
            publish_or_find(
                self.broker,
                queue,
                message,
                lock,
                token=token,
                due_ms=due_ms,
                member=member,
                max_length=self.conf.max_length_of(queue),
                replaces=unique is not None and unique.replaces,
            )
            self.broker.stored(queue, 1)
        elif due_ms:
            self.broker.delay(queue, message, due_ms=due_ms, member=member, max_length=self.conf.max_length_of(queue))
        else:
            self.broker.publish(queue, message, max_length=self.conf.max_length_of(queue))

    def _on_duplicate(self, held: Held, error: DuplicateTask) -> CeleryStreamsError | None:
        """Deal with a held message that was not stored: its caller gets the result of the first, or an error."""
        queued = held.queued
        headers = queued.message.decode_headers()
        unique = self.marks.unique(headers.get("task"))
        duplicate = tell(headers, held.queue, error.task_id)
        if duplicate.in_group:
            return duplicate
        raises = unique is not None and unique.raises
        replaces = unique is not None and unique.replaces and not raises
        lock = Lock.parse(headers.get(HEADER))
        # What waits for its time may have been revoked.
        if lock is not None and (replaces or error.waits):
            try:
                publish_or_find(
                    self.broker,
                    held.queue,
                    queued.message,
                    lock,
                    token=uuid4().hex,
                    due_ms=queued.due_ms,
                    member=queued.member,
                    max_length=self.conf.max_length_of(held.queue),
                    replaces=replaces,
                )
            except DuplicateTask as exc:
                duplicate = exc
            except BrokerError as exc:
                return exc.of_publish(queue_of(held.queue))
            else:
                held.stored()
                return None
        if raises:
            return duplicate
        logger.info("%s.", duplicate)
        result = self._awaited.pop(queued.id, None)
        if result is not None:
            result.id = duplicate.task_id
        if not headers.get("ignore_result"):
            self._keep_alias(queued.id, duplicate.task_id)
        return None

    def _on_refused(self, refused: Sequence[Held]) -> Sequence[Held]:
        """Return what to send again: groups of which a message was a duplicate of one that was revoked."""
        try:
            again = groups_set_free(self.broker, [(held.queue, held.queued.message) for held in refused])
        except BrokerError as exc:
            logger.debug("Cannot tell whether duplicates in a group are of revoked tasks: %s", exc)
            return ()
        return [refused[at] for at in again]

    def _keep_alias(self, task_id: str, first: str) -> None:
        # As long as the result would be.
        seconds = self.app.backend.expires
        expiry = ("EX", max(math.ceil(seconds), 1)) if seconds else ()
        try:
            self.broker.client.call("SET", keys.alias(self.broker.prefix, task_id), first, *expiry)
        except BrokerError as exc:
            logger.warning("Task %s is a duplicate of %s, and its result will not say so: %s", task_id, first, exc)

    def alias_of(self, task_id: str) -> str | None:
        """Return the id of the task of which a held message turned out to be a duplicate; None: it is none.

        Raises:
            BrokerError: Redis is away, or refuses.
        """
        found = self.broker.client.call("GET", keys.alias(self.broker.prefix, task_id))
        return None if found is None else found.decode(errors="replace")

    def raises_on_duplicate(self, name: Any) -> bool:
        """Return whether publishing a duplicate of a task is an error."""
        unique = self.marks.unique(name)
        return unique is not None and unique.raises

    def await_fate(self, name: Any, result: Any) -> None:
        """Have a result that is held answer for another message, if its own turns out to be a duplicate of that."""
        result.__dict__[self.OWN] = True
        if self.marks.unique(name) is not None:
            self._awaited[result.id] = result

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


def _brokers(url: Any) -> list[str]:
    """Return the alternatives of kombu's failover; the nodes of a cluster are one broker."""
    found = _alternatives(url)
    return [";".join(found)] if is_cluster_url(found[0]) else found


def streams_of(app: Celery) -> Streams:
    """Return what ``app`` knows of streams (made at first use)."""
    known = app.__dict__.get("_celery_streams")
    if known is None or known.app is not app:
        known = app.__dict__["_celery_streams"] = Streams(app)
    return cast("Streams", known)

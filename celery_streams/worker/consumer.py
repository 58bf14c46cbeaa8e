"""Consumer: Celery's Consumer in the parent, with the Tasks step replaced; Celery's code does all the rest.

Connection, mingle, events, gossip, heart, remote control and the event loop are Celery's steps on the project's
broker. Ours tells the pool which streams to read. The parent never sees a message.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from celery import bootsteps, signals
from celery.utils.graph import DependencyGraph
from celery.utils.sysinfo import load_average
from celery.worker import heartbeat, state
from celery.worker.consumer.agent import Agent
from celery.worker.consumer.connection import Connection
from celery.worker.consumer.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.consumer import Evloop
from celery.worker.consumer.control import Control as CeleryControl
from celery.worker.consumer.events import Events as CeleryEvents
from celery.worker.consumer.gossip import Gossip
from celery.worker.consumer.heart import Heart as CeleryHeart
from celery.worker.consumer.mingle import Mingle as CeleryMingle
from celery.worker.consumer.tasks import Tasks as CeleryTasks
from celery.worker.state import maybe_shutdown
from kombu.common import QoS
from kombu.exceptions import LimitExceeded

from .. import revocations
from ..app import streams_of
from ..exceptions import BrokerError
from . import revoked_stamps
from .broker_bounds import bound_open_connection, close_unused
from .broker_wait import wait_beside
from .control import Pidbox
from .events import BackgroundEvents
from .neighbours import Mingle
from .patterns import LOOK_EVERY, QueuePatterns

__all__ = ("Consumer", "Control", "StreamTasks", "TaskConsumer")

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds until Celery's connection is tried again after Redis refused what kombu does first.
_REFUSED_PAUSE = 1.0

#: Seconds from its start after which a worker closes the connections that Celery's steps have left behind, and again.
_SETTLED = (5.0, 25.0)

#: Seconds that the event loop waits for each of them: it reads what has arrived. What breaks is made anew, patiently,
#: beside the main thread.
_IN_LOOP = 1.0

#: Seconds that each answer of Celery's broker is waited for while the worker stops.
_LEAVING = 1.0

#: Seconds that each of them is waited for while a connection that broke is closed.
_LETTING_GO = 0.1


class TaskConsumer:
    """What Celery's Consumer takes for its kombu consumer: the queues that the pool reads."""

    #: Set by Celery's event loop; no message ever comes this way.
    on_message: Any = None
    channel: Any = None

    def __init__(self, consumer: Any, queues: list[Any]) -> None:
        self._consumer = consumer
        self._queues = {queue.name: queue for queue in queues}

    @property
    def queues(self) -> list[Any]:
        """kombu's Queue objects, for ``inspect active_queues``."""
        return list(self._queues.values())

    def consume(self, *args: Any, **kwargs: Any) -> None:
        """Have the pool read the queues as they are now."""
        self._consumer.pool.consume(list(self._queues))

    def add_queue(self, queue: Any) -> None:
        """Read one more queue from the next :meth:`consume` on."""
        self._queues[queue.name] = queue

    def cancel_by_queue(self, queue: Any) -> None:
        """Stop reading a queue; tasks of it that run go on."""
        if self._queues.pop(getattr(queue, "name", queue), None) is not None:
            self.consume()

    def consuming_from(self, queue: Any) -> bool:
        """Return whether the queue is read."""
        return getattr(queue, "name", queue) in self._queues

    def cancel(self) -> None:
        """Stop reading; what was fetched and not started goes back."""
        self._consumer.pool.consume([])

    def close(self) -> None:
        """Nothing is open here: the connections are the children's."""

    def qos(self, *args: Any, **kwargs: Any) -> None:
        """There is no prefetch count: children fetch what they start soon."""


class StreamTasks(bootsteps.StartStopStep):  # type: ignore[misc]
    """In the place of Celery's Tasks step."""

    requires = (Mingle,)
    name = CeleryTasks.name

    def __init__(self, c: Any, **kwargs: Any) -> None:
        c.task_consumer = c.qos = None
        self._look: Any = None
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        """Tell the pool what to read; children go on reading while Celery reconnects to its own broker."""
        c.pool.consumer = c
        c.update_strategies()
        c.qos = QoS(lambda prefetch_count: None, c.initial_prefetch_count)
        c.task_consumer = TaskConsumer(c, list(c.app.amqp.queues.consume_from.values()))
        self._load_revoked(c)
        c.pool.forward_revoked(list(state.revoked))
        c.pool.forward_stamps(revoked_stamps.known())
        c.tell_events()
        for seconds in _SETTLED:
            c.timer.call_after(seconds, self._close_unused, (c, c.connection))
        patterns = getattr(c.controller, "queue_patterns", None)
        if patterns:
            if self._look is not None:
                self._look.cancel()
            self._look = c.timer.call_repeatedly(LOOK_EVERY, self._add_new_queues, (c, patterns))

    def _close_unused(self, c: Any, connection: Any) -> None:
        if c.connection is not connection:
            return
        close_unused(connection)
        # What Mingle asked the other workers through; when it is in use, it is in use.
        with contextlib.suppress(LimitExceeded), c.app.pool.acquire(block=False) as pooled:
            close_unused(pooled)

    def _add_new_queues(self, c: Any, patterns: QueuePatterns) -> None:
        """Read the queues that came up since and match a pattern of ``-Q``."""
        for name in patterns.find():
            logger.info("New queue %s matches -Q; this worker now reads it.", name)
            c.add_task_queue(name)

    def stop(self, c: Any) -> None:
        """Stop reading, unless only Celery's connection is being made anew."""
        if c.task_consumer and c.blueprint.state != bootsteps.RUN:
            c.task_consumer.cancel()

    def shutdown(self, c: Any) -> None:
        """The worker ends."""
        if c.task_consumer:
            self.stop(c)
            c.task_consumer = None

    def info(self, c: Any) -> dict[str, Any]:
        """Return what ``inspect stats`` shows."""
        return {"prefetch_count": c.qos.value if c.qos else "N/A"}

    def _load_revoked(self, c: Any) -> None:
        broker = streams_of(c.app).new_broker()
        try:
            state.revoked.update(revocations.revoked(broker))
            revoked_stamps.add(revocations.revoked_stamps(broker))
        except BrokerError as exc:
            logger.warning(
                "Tasks that were revoked before this worker started may run, for their list cannot be read: %s", exc
            )
        finally:
            broker.client.close()


class Events(CeleryEvents):  # type: ignore[misc]
    """Celery's Events step with our dispatcher, which never waits for the broker."""

    requires = (Connection,)
    name = CeleryEvents.name

    def start(self, c: Any) -> None:
        """Begin to send; what an earlier dispatcher could not send is taken over."""
        before = c.event_dispatcher
        if before is not None:
            self.groups = before.groups  # remote control may have changed them
            before.leave()
        c.event_dispatcher = BackgroundEvents(
            c.app,
            c.hostname,
            groups=self.groups,
            enabled=self.send_events if before is None else before.enabled,
            on_silence=c.renew_connection,
        )
        c.event_dispatcher.goes_first()
        if before is not None:
            c.event_dispatcher.extend_buffer(before)
            for request in tuple(state.reserved_requests):
                request.eventer = c.event_dispatcher

    def _close(self, c: Any) -> None:
        """Send what is left, if that can be done within a second."""
        dispatcher, c.event_dispatcher = c.event_dispatcher, None
        if dispatcher is not None:
            dispatcher.disable()


class WorkerHeartbeat(heartbeat.Heart):  # type: ignore[misc]
    """Celery's sender of worker-heartbeat events; what is active is asked of the pool, at no cost for Redis."""

    def __init__(self, *args: Any, pool: Any) -> None:
        super().__init__(*args)
        self._pool = pool

    def _send(self, event: str, retry: bool = True) -> Any:
        if self._send_sent_signal is not None:
            self._send_sent_signal(sender=self)
        self._pool.count_starts()
        return self.eventer.send(
            event,
            freq=self.interval,
            active=self._pool.running(),
            processed=state.all_total_count[0],
            loadavg=load_average(),
            retry=retry,
            **state.SOFTWARE_INFO,
        )


class Heart(CeleryHeart):  # type: ignore[misc]
    """Celery's Heart step with our sender."""

    requires = (Events,)
    name = CeleryHeart.name

    def start(self, c: Any) -> None:
        """Begin to send."""
        c.heart = WorkerHeartbeat(c.timer, c.event_dispatcher, self.heartbeat_interval, pool=c.pool)
        c.heart.start()


class Control(CeleryControl):  # type: ignore[misc]
    """Celery's remote control, with a mailbox that knows of the children."""

    requires = (StreamTasks,)
    name = CeleryControl.name

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        if not self.is_green:
            self.box = Pidbox(c)
            self.start = self.box.start
            self.stop = self.box.stop
            self.shutdown = self.box.shutdown


class NoConnection:
    """In the place of a connection that was let go of: steps that close what they had on it ask it what to pass over.

    Celery 5.7 leaves None, and such a step (Gossip, or a project's ConsumerStep) fails on it when its own connection is
    silent, too: its other channels stay open, and in a shutdown the worker ends with a stack trace and exit code 1.
    """

    def __init__(self, connection_errors: tuple[type[BaseException], ...], channel_errors: Any) -> None:
        self.connection_errors = connection_errors
        self.channel_errors = channel_errors

    def __bool__(self) -> bool:
        return False


#: Celery's step -> ours.
_IN_PLACE_OF = {
    CeleryMingle: Mingle,
    CeleryTasks: StreamTasks,
    CeleryEvents: Events,
    CeleryHeart: Heart,
    CeleryControl: Control,
}


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Celery's Consumer for streams; the ``worker_consumer`` setting names it."""

    connection: Any
    connection_errors: tuple[type[BaseException], ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The connection that is to be made anew.
        self._lost: Any = None
        # READONLY, MISCONF and OOM pass; Celery takes such replies while it connects for a reason to end the worker,
        # unless broker_channel_error_retry is set, and with it would end children that are at work.
        self.connection_errors = (*self.connection_errors, *self.channel_errors)
        signals.worker_shutting_down.connect(self._hasten, sender=self.hostname)

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc]
        """Celery's steps, five of them exchanged; native delayed delivery is RabbitMQ's.

        A project's own step may name one of the five, in its ``requires`` or among the steps, by class or by string:
        ours, which has its name, stands for it. Loaded beside ours, Celery's Tasks would take the place of what the
        worker reads.
        """

        default_steps: ClassVar = [
            Connection,
            Mingle,
            Events,
            Gossip,
            Heart,
            Control,
            StreamTasks,
            Evloop,
            Agent,
        ]

        def load_step(self, step: Any) -> tuple[str, Any]:
            """Load one step, given as a class or by its path."""
            name, found = super().load_step(step)
            return name, _IN_PLACE_OF.get(found, found)

        def _finalize_steps(self, steps: dict[str, Any]) -> Any:
            # As Celery's, which takes the edges from the steps' own lists: those are left as the project wrote them.
            last = self._find_last()
            self._firstpass(steps)
            edges = [(step, [_IN_PLACE_OF.get(one, one) for one in step.requires]) for step in steps.values()]
            self.graph = DependencyGraph(edges, formatter=self.GraphFormatter(root=last))
            for step in steps.values():
                if last is not None and step is not last:
                    self.graph.add_edge(last, step)
            return self.graph.topsort()

    def update_strategies(self) -> None:
        """Take up the tasks that code of this process has registered since, as Celery's Consumer does."""
        super().update_strategies()
        # Afterwards: a strategy of its own may note whose pool it was made for last.
        self.pool.look_at_tasks()

    def on_ready(self) -> None:
        """Say "ready", once the worker hears broadcasts.

        kombu subscribes when the event loop first goes round. Celery says "ready" before: a command that is
        sent to a worker as soon as it says so would be lost.
        """
        if self.hub is not None:
            for callback in tuple(self.hub.on_tick):
                callback()
            # redis-py connects again in the middle of a read, to a broker that may be silent now.
            bound_open_connection(self.connection, _IN_LOOP)
        super().on_ready()

    def renew_connection(self) -> None:
        """Have the main thread reconnect: the broker was silent, and a subscription that died so gives no sign."""
        self._lost = self.connection
        if self.hub is not None:
            self.hub.call_soon(self._lose)

    def perform_pending_operations(self) -> None:
        """Called between two waits where there is no event loop (gevent, eventlet, a transport without one)."""
        super().perform_pending_operations()
        if self.hub is None:
            self._lose()

    def _lose(self) -> None:
        lost, self._lost = self._lost, None
        if lost is not None and self.connection is lost:
            raise ConnectionResetError("the broker was silent for too long; subscriptions may be lost")

    def _hasten(self, **_: Any) -> None:
        """Wait only a moment for each answer: a signal told the worker to stop, and the main thread may be waiting."""
        if self.connection:
            bound_open_connection(self.connection, _LEAVING)
        self.pool.hasten()

    def stop(self) -> None:
        """Stop all steps; a broker that is silent must not hold up the worker's end at each of them."""
        if self.connection:
            bound_open_connection(self.connection, _LEAVING)
        super().stop()

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        """Let the children read although Celery's connection cannot be made: Redis may be full, and only they drain it.

        kombu writes a key when it connects, which a full Redis refuses; it is asked again each second.
        """
        super().on_connection_error_before_connected(exc)
        if isinstance(exc, self.channel_errors):
            self.pool.consume(list(self.app.amqp.queues.consume_from))
            # Celery's loop comes back at once for this kind of error, and nothing tells that a Redis has room again.
            self.beside_work(lambda look: time.sleep(_REFUSED_PAUSE))

    def ensure_connected(self, conn: Any) -> Any:
        """Connect to Celery's broker, again and again, in a thread; the main thread does its other work meanwhile."""
        ensure = conn.ensure_connection

        def ensure_connection(
            errback: Any = None, max_retries: Any = None, callback: Any = None, **options: Any
        ) -> Any:
            return self.beside_work(
                lambda look: ensure(errback, max_retries, callback=look, **options), look=callback or (lambda: None)
            )

        conn.ensure_connection = ensure_connection
        try:
            return super().ensure_connected(conn)
        finally:
            del conn.ensure_connection

    def beside_work(self, work: Callable[[Callable[[], None]], T], *, look: Callable[[], None] = maybe_shutdown) -> T:
        """Have a thread do ``work``, which waits for Celery's broker, and return what it returns.

        Args:
            work: see :func:`.broker_wait.wait_beside`.
            look: called in this thread now and then; it raises when the worker is to end.
        """

        def meanwhile(ended: threading.Event) -> None:
            look()
            self.pool.work_meanwhile(ended)

        return wait_beside(work, meanwhile=meanwhile, on_end=self.pool.wake)

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Let go of a connection that broke, at once: the broker may be silent, and nothing it could say matters."""
        if self.connection:
            bound_open_connection(self.connection, _LETTING_GO)
        super().on_connection_error_after_connected(exc)
        if self.connection is None:
            self.connection = NoConnection(self.connection_errors, self.channel_errors)

    def tell_events(self) -> None:
        """Tell the children whether task events are wanted (``-E``, ``enable_events``)."""
        dispatcher = self.event_dispatcher
        wanted = bool(dispatcher and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups))
        self.pool.want_events(wanted)

    def cancel_active_requests(self) -> None:
        """Cancel what the children run (cold shutdown)."""
        self._cancel(super().cancel_active_requests)

    def cancel_all_unacked_requests(self) -> None:
        """Do the same; before Celery 5.6 it has this name."""
        self._cancel(super().cancel_all_unacked_requests)

    def _cancel(self, cancel: Callable[[], None]) -> None:
        self.pool.sync_state()
        self.pool.cancels = True
        try:
            cancel()
        except NotImplementedError:
            # Called by the handler of a signal, perhaps inside a task of this thread, which would fail with it.
            logger.warning("Running tasks are not cancelled: this pool cannot end a task.")

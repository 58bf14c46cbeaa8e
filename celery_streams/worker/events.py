"""events: task events and worker events, sent by a thread of their own.

Events are best effort and never in anybody's way. :class:`BackgroundEvents` is Celery's EventDispatcher for a child and
for the parent:

1. ``send`` keeps the event and returns; it neither connects nor waits.
2. A thread publishes what is kept, over a connection of its own, at the latest after :data:`INTERVAL`, also while a
   task runs; task events go together, as Celery's buffer sends them.
3. What a task sends itself (``self.send_event``) goes out after what is kept of it: see :meth:`goes_first`.
4. While the broker is away or silent at most :data:`MOST_KEPT` events are kept, the newest; they are sent when it is
   back, and how many were dropped is said once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from celery.events import Event, EventDispatcher, group_from
from celery.utils.time import utcoffset
from kombu.exceptions import OperationalError
from kombu.messaging import Producer

from ..redis_url import SOCKET_TIMEOUT
from .broker_bounds import close_unused
from .gates import Gate

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("MOST_KEPT", "BackgroundEvents")

logger = logging.getLogger(__name__)

#: Seconds for which task events are collected.
INTERVAL = 0.2

#: Events that are kept while the broker is away.
MOST_KEPT = 10_000

#: Task events in one message.
_BATCH = 200

#: Seconds: least and greatest pause between two attempts while the broker is away.
_PAUSES = (0.5, 5.0)

#: Seconds that the end of a process may wait for the last events.
_LAST = 1.0

#: Seconds: an attempt that failed after so long met a broker that is silent, not one that is gone.
_SILENCE = 0.8 * SOCKET_TIMEOUT


class BackgroundEvents(EventDispatcher):  # type: ignore[misc]
    """Sends the events of one process.

    Args:
        groups: the groups of events that are wanted; none of them is all.
        on_silence: called by the thread when a broker that had been silent answers again.
        on_kept: called with how many events were kept so far, not counting those that were dropped.
        on_sent: called by the thread with how many of these are out of its hands.
        patience: seconds that whoever sends an event of its own waits at most for what is kept.
    """

    def __init__(
        self,
        app: Celery,
        hostname: str,
        *,
        groups: Iterable[str] | None = None,
        enabled: bool = True,
        on_silence: Callable[[], None] = lambda: None,
        on_kept: Callable[[int], None] = lambda count: None,
        on_sent: Callable[[int], None] = lambda count: None,
        patience: float = _LAST,
    ) -> None:
        self.producer: Producer | None = None
        #: Events that were dropped because too many were kept, and because the broker refused them.
        self.dropped = 0
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._in_hand: list[tuple[str, dict[str, Any]]] = []
        self._due = threading.Event()
        self._stop = threading.Event()
        #: Set by whoever cannot wait until more task events have been collected.
        self._hurry = threading.Event()
        #: Set when everything is sent that was kept before they were put here.
        self._awaited: deque[threading.Event] = deque()
        self._on_kept, self._on_sent = on_kept, on_sent
        self._patience = patience
        self._kept = self._sent = 0
        #: What is kept is on its way to the broker.
        self._sending = False
        self._thread: threading.Thread | None = None
        self._gate = Gate()
        self._on_silence = on_silence
        self._silent = self._abandoned = self._away = False
        self._told = 0
        super().__init__(app.connection_for_write(), hostname=hostname, app=app, groups=groups, enabled=enabled)

    # -- what Celery calls

    def enable(self) -> None:
        """Take events from now on."""
        if self._stop.is_set():
            self._stop.clear()
            self._thread = None
        self._closed = False
        self.enabled = True
        for callback in self.on_enabled:
            callback()

    def send(
        self,
        type: str,
        blind: bool = False,
        utcoffset: Callable[[], int] = utcoffset,
        retry: bool = False,
        retry_policy: Any = None,
        **fields: Any,
    ) -> None:
        """Keep one event until the thread sends it; ``retry`` means nothing, for every event is tried again."""
        if not self.enabled or self._closed:
            return
        group = group_from(type)
        if self.groups and group not in self.groups:
            return
        clock = None if blind else self.clock.forward()
        event = Event(type, hostname=self.hostname, utcoffset=utcoffset(), pid=self.pid, clock=clock, **fields)
        if len(self._waiting) >= MOST_KEPT:
            with contextlib.suppress(IndexError):  # the thread took them meanwhile
                self._waiting.popleft()
                self.dropped += 1
                self._kept -= 1
        self._kept += 1
        self._on_kept(self._kept)
        self._waiting.append(("task.multi" if group == "task" else type.replace("-", "."), event))
        if not self._due.is_set():
            self._due.set()
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self.mutex:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="celery-streams-events", daemon=True)
                self._thread.start()

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Do nothing: the thread sends what is kept."""

    def extend_buffer(self, other: Any) -> None:
        """Take over what another dispatcher could not send."""
        if isinstance(other, BackgroundEvents):
            left = [*other._in_hand, *other._waiting]
            self._kept += len(left)
            self._on_kept(self._kept)
            self._waiting.extend(left)
            self.dropped += other.dropped

    def close(self) -> None:
        """Take no more events; the thread sends what is kept, a second at most is waited for it.

        While the broker is known to be away nothing is waited for.
        """
        self._closed = True
        self._stop.set()
        self._hurry.set()
        self._due.set()
        if self._thread is not None and self._thread is not threading.current_thread() and not self._away:
            self._thread.join(timeout=_LAST)

    def leave(self) -> None:
        """Take no more events and send none: another dispatcher goes on with them."""
        self._closed = self._abandoned = True
        self._stop.set()
        self._hurry.set()
        self._due.set()

    def goes_first(self) -> None:
        """Have the app's other dispatchers send after what is kept here: all of it may be of one task.

        They publish at once (``Task.send_event``), and would overtake.
        """
        events = self.app.events
        of_celery = type(events).default_dispatcher.__get__(events)

        @contextlib.contextmanager
        def default_dispatcher(*args: Any, **kwargs: Any) -> Iterator[Any]:
            self.catch_up()
            with of_celery(*args, **kwargs) as dispatcher:
                yield dispatcher

        events.default_dispatcher = default_dispatcher

    def catch_up(self) -> None:
        """Wait until everything is sent that was kept so far; not while the broker is known to be away."""
        thread = self._thread
        # In a process that a task forked the thread does not run.
        if thread is None or thread is threading.current_thread() or not thread.is_alive() or self._away:
            return
        # On its way from one list to the other an event is in neither of them.
        if not self._waiting and not self._sending and not self._in_hand:
            return
        sent = threading.Event()
        self._awaited.append(sent)
        self._hurry.set()
        self._due.set()
        sent.wait(self._patience)

    # -- the thread

    def _run(self) -> None:
        pause = _PAUSES[0]
        away = (OSError, OperationalError, *self.connection.connection_errors, *self.connection.channel_errors)
        while True:
            self._due.wait()
            if self._abandoned:
                break
            if not self._stop.is_set() and self._only_task_events():
                self._hurry.wait(INTERVAL)
            self._hurry.clear()
            self._due.clear()
            awaited = list(self._awaited)
            began = time.monotonic()
            try:
                with self._gate:
                    self._send_kept()
            except away as exc:
                self._away = True
                self._let_go(len(self._awaited))
                self._disconnect()
                if time.monotonic() - began >= _SILENCE:
                    self._silent = True
                if pause == _PAUSES[0]:
                    logger.warning(
                        "Events cannot be sent: %s. The newest %d are kept until the broker is back.", exc, MOST_KEPT
                    )
                if self._stop.is_set():
                    break
                self._due.set()
                self._stop.wait(pause)
                pause = min(pause * 2, _PAUSES[1])
                continue
            except Exception:
                # The boundary of the thread: without it no event would ever be sent again.
                logger.exception("Events could not be sent and were dropped.")
                self.dropped += len(self._in_hand)
                self._took(len(self._in_hand))
                self._in_hand = []
                self._let_go(len(self._awaited))
                self._disconnect()
                self._due.set()
                if self._stop.wait(_PAUSES[0]):
                    break
                continue
            self._away = False
            self._let_go(len(awaited))
            if pause != _PAUSES[0]:
                logger.info("Events are being sent again; %d were dropped in the meantime.", self.dropped - self._told)
                self._told, pause = self.dropped, _PAUSES[0]
            if self._silent:
                self._silent = False
                self._on_silence()
            if self._abandoned or (self._stop.is_set() and not self._waiting):
                break
        self._disconnect()

    def _let_go(self, count: int) -> None:
        """Wake the first so many of those who wait until everything is sent."""
        for _ in range(count):
            self._awaited.popleft().set()

    def _took(self, count: int) -> None:
        self._sent += count
        self._on_sent(self._sent)

    def _only_task_events(self) -> bool:
        waiting = self._waiting
        with contextlib.suppress(IndexError):
            return len(waiting) < _BATCH and waiting[0][0] == waiting[-1][0] == "task.multi"
        return False

    def _send_kept(self) -> None:
        """Publish what is kept.

        Raises:
            OperationalError, OSError, or what the transport has: the broker is away; what was not sent stays in hand.
        """
        self._sending = True
        try:
            while not self._abandoned and self._take():
                if self.producer is None:
                    self._connect()
                routing_key = self._in_hand[0][0]
                events = [event for _, event in self._in_hand]
                self._deliver(events if routing_key == "task.multi" else events[0], routing_key)
                self._took(len(self._in_hand))
                self._in_hand = []
        finally:
            self._sending = False

    def _take(self) -> bool:
        """Take in hand what goes into one message: task events that follow each other, or one other event."""
        while not self._in_hand or (self._in_hand[0][0] == "task.multi" and len(self._in_hand) < _BATCH):
            try:
                if self._in_hand and self._waiting[0][0] != "task.multi":
                    break
                self._in_hand.append(self._waiting.popleft())
            except IndexError:
                break
        return bool(self._in_hand)

    def _connect(self) -> None:
        # Once for each attempt: the pauses are kept here.
        self.connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=SOCKET_TIMEOUT)
        self.producer = Producer(
            self.connection.channel(), exchange=self.exchange, serializer=self.serializer, auto_declare=False
        )
        close_unused(self.connection)

    def _deliver(self, events: Any, routing_key: str) -> None:
        assert self.producer is not None
        self.producer.publish(
            events,
            routing_key=routing_key,
            exchange=self.exchange.name,
            retry=False,
            declare=[self.exchange],
            serializer=self.serializer,
            headers=self.headers,
            delivery_mode=self.delivery_mode,
        )

    def _disconnect(self) -> None:
        self.producer = None
        with contextlib.suppress(Exception):  # a broken connection that cannot be closed is no one's loss
            self.connection.close()

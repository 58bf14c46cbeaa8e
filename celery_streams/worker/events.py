"""events: task events and worker events, sent by a thread of their own.

Events are best effort and never in anybody's way. :class:`BackgroundEvents` is Celery's EventDispatcher for a child and
for the parent:

1. ``send`` keeps the event and returns; it neither connects nor waits.
2. A thread publishes what is kept, over a connection of its own, at the latest after :data:`INTERVAL`, also while a
   task runs; task events go together, as Celery's buffer sends them.
3. While the broker is away or silent at most :data:`MOST_KEPT` events are kept, the newest; they are sent when it is
   back, and how many were dropped is said once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from celery.events import Event, EventDispatcher, group_from
from celery.utils.time import utcoffset
from kombu.exceptions import OperationalError
from kombu.messaging import Producer

from ..redis_url import SOCKET_TIMEOUT

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
    """

    def __init__(
        self,
        app: Celery,
        hostname: str,
        *,
        groups: Iterable[str] | None = None,
        enabled: bool = True,
        on_silence: Callable[[], None] = lambda: None,
    ) -> None:
        self.producer: Producer | None = None
        #: Events that were dropped because too many were kept, and because the broker refused them.
        self.dropped = 0
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._in_hand: list[tuple[str, dict[str, Any]]] = []
        self._due = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._on_silence = on_silence
        self._silent = self._abandoned = False
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
            self._waiting.extend([*other._in_hand, *other._waiting])
            self.dropped += other.dropped

    def close(self) -> None:
        """Take no more events; the thread sends what is kept, a second at most is waited for it."""
        self._closed = True
        self._stop.set()
        self._due.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=_LAST)

    def leave(self) -> None:
        """Take no more events and send none: another dispatcher goes on with them."""
        self._closed = self._abandoned = True
        self._stop.set()
        self._due.set()

    # -- the thread

    def _run(self) -> None:
        pause = _PAUSES[0]
        away = (OSError, OperationalError, *self.connection.connection_errors, *self.connection.channel_errors)
        while True:
            self._due.wait()
            if self._abandoned:
                break
            if not self._stop.is_set() and self._only_task_events():
                self._stop.wait(INTERVAL)
            self._due.clear()
            began = time.monotonic()
            try:
                self._send_kept()
            except away as exc:
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
                logger.exception("Events could not be sent, and are dropped.")
                self.dropped += len(self._in_hand)
                self._in_hand = []
                self._disconnect()
                self._due.set()
                if self._stop.wait(_PAUSES[0]):
                    break
                continue
            if pause != _PAUSES[0]:
                logger.info("Events are sent again; %d were dropped meanwhile.", self.dropped - self._told)
                self._told, pause = self.dropped, _PAUSES[0]
            if self._silent:
                self._silent = False
                self._on_silence()
            if self._stop.is_set() and not self._waiting:
                break
        self._disconnect()

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
        while not self._abandoned and self._take():
            if self.producer is None:
                self._connect()
            routing_key = self._in_hand[0][0]
            events = [event for _, event in self._in_hand]
            self._deliver(events if routing_key == "task.multi" else events[0], routing_key)
            self._in_hand = []

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

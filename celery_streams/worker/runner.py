"""Runner: runs deliveries in this process, for the pools that have no children: its executor, settler and record.

A :class:`Record` is to a thread what a slot is to a child: what it holds, for the heartbeat, the hand-back and remote
control. Here a lock is enough: who dies, dies with all threads.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from celery.worker import state as worker_state

from ..app import streams_of
from ..broker import StreamBroker
from ..entries import Delivery, Entry
from ..exceptions import BrokerError
from ..message import Message
from .child import ChildOptions
from .collected import Collected
from .counting import executor_for
from .counts import Counts
from .own_process import guard_forks
from .set_aside import SetAside
from .settle import Settler
from .slots import Snapshot, as_given

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Record", "Runner", "put_back")

logger = logging.getLogger(__name__)


class Record:
    """What one thread is running, and what of its batch ran before and waits behind, where it takes several at once.

    Its batch number changes with every entry that starts.
    """

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer
        #: What remote control takes for the process: that of all threads, or what tells green threads apart.
        self.pid = os.getpid()
        # Reentrant: handlers of signals, a cold shutdown's, ask for snapshots in the thread that they interrupt.
        self._lock = threading.RLock()
        self._batch = 0
        self._done = 0
        self._running: Entry | None = None
        self._waiting: deque[Entry] = deque()
        self._finished: list[Entry] = []
        #: What waits was taken back; and some of this batch was settled in our place.
        self._taken_back = self._assisted = False
        self._limits: tuple[float | None, float | None] = (None, None)
        self._started_at = 0.0
        self._lost = False
        self._kept: Message | None = None
        self._retried = self._settling = False
        #: What strategies of tasks keep.
        self.kept: tuple[Entry, ...] = ()

    def load(self, batch: Sequence[Delivery]) -> None:
        """Say that these were read, to be run in this order by :meth:`begin`."""
        with self._lock:
            self._batch += 1
            self._waiting = deque(delivery.entry for delivery in batch)
            self._taken_back = self._assisted = False

    def begin(self, delivery: Delivery) -> bool:
        """Say that the next of the batch starts now; False when it was taken back, with all that follows."""
        with self._lock:
            if self._taken_back:
                return False
            self._waiting.popleft()
            self.start(delivery)
            return True

    def start(self, delivery: Delivery) -> None:
        """Say that ``delivery`` starts now."""
        with self._lock:
            self._batch += 1
            self._running = delivery.entry
            self._started_at = time.monotonic()
            self._limits, self._kept = (None, None), None
            self._lost = self._retried = self._settling = False

    def finish(self, *, unsent: bool = False) -> None:
        """Say that it ran and is settled.

        Args:
            unsent: its acknowledgement may wait to be sent with others: see :meth:`settled`.
        """
        with self._lock:
            # What a strategy keeps did not run: nobody must take it for finished and acknowledge it.
            if unsent and self._running is not None and self._running not in self.kept:
                self._finished.append(self._running)
            self._running = None
            self._done += 1

    def took(self) -> float:
        """Return how many seconds ago the last one started."""
        return time.monotonic() - self._started_at

    def drop(self) -> None:
        """Say that what waits is back in its streams."""
        with self._lock:
            self._waiting.clear()

    def settled(self) -> None:
        """Say that every acknowledgement was sent."""
        with self._lock:
            self._finished.clear()

    def assisted(self) -> bool:
        """Return whether some of this batch was taken back or settled in our place."""
        return self._assisted

    def limit(self, *, soft: float | None, hard: float | None) -> None:
        """Note the time limits of the running task."""
        self._limits = (soft, hard)

    @property
    def has_limits(self) -> bool:
        """What runs has a time limit."""
        return self._limits != (None, None)

    def keep(self, message: Message) -> None:
        """Keep the message of a task that is about to be acknowledged before it runs."""
        self._kept = message

    def kept_message(self) -> Message | None:
        """Return the message of a task that was acknowledged before it ran."""
        return self._kept

    def retried(self) -> None:
        """Note that the message was settled as retried, though its task goes on."""
        self._retried = True

    def settling(self, *, ends: bool = False) -> None:
        """Note that what the task came to is being settled; or, when that ends, that it goes on."""
        self._settling = not ends

    @property
    def batch(self) -> int:
        """The number of the batch."""
        return self._batch

    @property
    def was_retried(self) -> bool:
        """The message of what runs, or ran last, was settled as retried."""
        return self._retried

    def lost(self) -> bool:
        """Return whether the entry is known to be no longer ours."""
        return self._lost

    def mark_lost(self, batch: int) -> None:
        """Note that the entry of ``batch`` is no longer ours."""
        with self._lock:
            self._lost = self._lost or batch == self._batch

    def restrict(self) -> Snapshot:
        """Take back everything that was not started."""
        with self._lock:
            self._taken_back = self._assisted = True
            return self.snapshot()

    def returned(self, batch: int) -> None:
        """Note that what :meth:`restrict` found waiting is back in its streams, and what had finished acknowledged."""
        with self._lock:
            if batch == self._batch:
                self._waiting.clear()
                self._finished.clear()

    def snapshot(self) -> Snapshot:
        """Return what is held now."""
        with self._lock:
            return Snapshot(
                pid=self.pid,
                batch=self._batch,
                finished=tuple(self._finished),
                running=self._running,
                waiting=tuple(self._waiting),
                started_at=self._started_at,
                soft=as_given(self._limits[0]),
                hard=as_given(self._limits[1]),
                acked_early=self._kept is not None,
                exited=False,
                done=self._done,
                kept=self.kept,
                retried=self._retried and self._running is not None,
                settling=self._settling and self._running is not None,
            )


class Runner:
    """Runs one delivery at a time, in the thread that calls :meth:`run`.

    Args:
        give_up: the settler's.
        collected: where acknowledgements go that another settler sends; None sends nothing by itself either.
        counts: where it counts, if metrics are wanted.
    """

    def __init__(
        self,
        app: Celery,
        hostname: str,
        consumer: str,
        broker: StreamBroker,
        *,
        options: ChildOptions,
        eventer: Any,
        give_up: Callable[[], bool],
        collected: Collected | None = None,
        counts: Counts | None = None,
    ) -> None:
        streams = streams_of(app)
        self.record = Record(consumer)
        # Else somebody else says who holds what is in ``collected``.
        self._notes_unsent = collected is None
        self.aside = SetAside(self._tell_kept)
        self.settler = Settler(
            broker,
            consumer,
            conf=streams.conf,
            hostname=hostname,
            give_up=give_up,
            collected=collected,
            aside=self.aside,
            worker=options.worker,
        )
        self._kept: tuple[Entry, ...] = ()
        self.executor = executor_for(counts)(
            app,
            hostname,
            streams,
            self.settler,
            self.record,
            soft_limit=options.soft_limit,
            hard_limit=options.hard_limit,
            count=_count,
            in_parent=True,
            on_kept=self._keep,
        )
        self.executor.use_events(eventer)
        guard_forks()

    def _keep(self, entries: Collection[Entry]) -> None:
        self._kept = tuple(entries)
        self._tell_kept()

    def _tell_kept(self) -> None:
        self.record.kept = (*self._kept, *self.aside.entries)

    def settle_later(self) -> None:
        """Settle what strategies kept and are done with, and try what Redis refused again."""
        self.executor.settle_later()
        self.aside.try_again()

    def run(self, delivery: Delivery) -> None:
        """Run and settle ``delivery``, which the record says has started; its acknowledgement is collected.

        SystemExit and KeyboardInterrupt of the body are reported as Celery's pools in one process do: the task fails.
        """
        unsent = False
        try:
            self.executor.execute(delivery)
            unsent = self._notes_unsent and not self.settler.gave_up
            self.executor.settle_later()
        finally:
            self.record.finish(unsent=unsent)


def put_back(settler: Settler, deliveries: Sequence[Delivery]) -> None:
    """Give what was read and not started to others; what Redis does not take back they claim later."""
    try:
        settler.put_back([item.entry for item in deliveries], insist=False)
    except BrokerError as exc:
        logger.warning("Cannot put back the messages that were read last; another worker will claim them: %s", exc)


def _count(name: str, shown: str) -> None:
    worker_state.total_count.update({shown: 1})
    worker_state.all_total_count[0] += 1

"""Runner: runs deliveries in this process, for the pools that have no children: its executor, settler and record.

A :class:`Record` is to a thread what a slot is to a child: what it holds, for the heartbeat, the hand-back and remote
control. Here a lock is enough: who dies, dies with all threads.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from celery.worker import state as worker_state

from ..app import streams_of
from ..broker import Delivery, Entry, StreamBroker
from ..exceptions import BrokerError
from ..message import Message
from .child import ChildOptions
from .executor import Executor
from .own_process import guard_forks
from .settle import Settler
from .slots import Snapshot

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Record", "Runner", "put_back")

logger = logging.getLogger(__name__)


class Record:
    """What one thread is running."""

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer
        #: What remote control takes for the process: that of all threads, or what tells green threads apart.
        self.pid = os.getpid()
        # Reentrant: handlers of signals, a cold shutdown's, ask for snapshots in the thread that they interrupt.
        self._lock = threading.RLock()
        self._batch = 0
        self._done = 0
        self._running: Entry | None = None
        self._limits: tuple[float | None, float | None] = (None, None)
        self._started_at = 0.0
        self._lost = False
        self._kept: Message | None = None
        self._retried = False
        #: What strategies of tasks keep.
        self.kept: tuple[Entry, ...] = ()

    def start(self, delivery: Delivery) -> None:
        """Say that ``delivery`` starts now."""
        with self._lock:
            self._batch += 1
            self._running = delivery.entry
            self._started_at = time.monotonic()
            self._limits, self._lost, self._kept, self._retried = (None, None), False, None, False

    def finish(self) -> None:
        """Say that it ran and is settled."""
        with self._lock:
            self._running = None
            self._done += 1

    def limit(self, *, soft: float | None, hard: float | None) -> None:
        """Note the time limits of the running task."""
        self._limits = (soft, hard)

    def keep(self, message: Message) -> None:
        """Keep the message of a task that is about to be acknowledged before it runs."""
        self._kept = message

    def kept_message(self) -> Message | None:
        """Return the message of a task that was acknowledged before it ran."""
        return self._kept

    def retried(self) -> None:
        """Note that the message was settled as retried, though its task goes on."""
        self._retried = True

    def lost(self) -> bool:
        """Return whether the entry is known to be no longer ours."""
        return self._lost

    def mark_lost(self, batch: int) -> None:
        """Note that the entry of ``batch`` is no longer ours."""
        with self._lock:
            self._lost = self._lost or batch == self._batch

    def restrict(self) -> Snapshot:
        """There is never anything behind what runs."""
        return self.snapshot()

    def returned(self, batch: int) -> None:
        """Nothing was taken back."""

    def snapshot(self) -> Snapshot:
        """Return what is held now."""
        with self._lock:
            return Snapshot(
                pid=self.pid,
                batch=self._batch,
                finished=(),
                running=self._running,
                waiting=(),
                started_at=self._started_at,
                soft=self._limits[0],
                hard=self._limits[1],
                acked_early=self._kept is not None,
                exited=False,
                done=self._done,
                kept=self.kept,
                retried=self._retried and self._running is not None,
            )


class Runner:
    """Runs one delivery at a time, in the thread that calls :meth:`run`."""

    def __init__(
        self, app: Celery, hostname: str, consumer: str, broker: StreamBroker, *, options: ChildOptions, eventer: Any
    ) -> None:
        streams = streams_of(app)
        self.record = Record(consumer)
        self.settler = Settler(broker, consumer, conf=streams.conf, hostname=hostname, give_up=_must_end)
        self.executor = Executor(
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
        self.record.kept = tuple(entries)

    def run(self, delivery: Delivery, *, flush: bool = True, started: bool = False) -> None:
        """Run and settle ``delivery``; without ``flush`` its acknowledgement is left to the settler's next user.

        Args:
            started: the record says already that it starts now.

        SystemExit and KeyboardInterrupt of the body are reported as Celery's pools in one process do: the task fails.
        """
        if not started:
            self.record.start(delivery)
        try:
            self.executor.execute(delivery)
            if flush:
                self.settler.flush()
            self.executor.settle_later()
        finally:
            self.record.finish()


def put_back(settler: Settler, deliveries: Sequence[Delivery]) -> None:
    """Give what was read and not started to others; what Redis does not take back they claim later."""
    try:
        settler.put_back([item.entry for item in deliveries], insist=False)
    except BrokerError as exc:
        logger.warning("Cannot put back what was read last; it is claimed by others later: %s", exc)


def _count(name: str) -> None:
    worker_state.total_count.update({name: 1})
    worker_state.all_total_count[0] += 1


def _must_end() -> bool:
    return worker_state.should_terminate is not None and worker_state.should_terminate is not False

"""Threads: one thread reads what free threads can start at once; each task thread runs and settles for itself."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

from celery.worker import state as worker_state

from ..broker import Delivery, Entry, StreamRef
from ..worker.child import consumer_name
from ..worker.hand_back import Restrictable
from ..worker.reader import Reader
from ..worker.runner import Record, Runner, put_back
from ..worker.settle import Settler
from ..worker.slots import Snapshot
from .base import StreamsPool

__all__ = ("TaskPool",)

logger = logging.getLogger(__name__)


class Backlog:
    """What was fetched and no thread has started yet; a holder like a thread's record."""

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer
        self._items: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._waiting: dict[Entry, Delivery] = {}
        self._taken_back: list[Entry] = []
        self._lock = threading.Lock()

    def put(self, delivery: Delivery) -> None:
        """Give a delivery to the next free thread."""
        with self._lock:
            self._waiting[delivery.entry] = delivery
        self._items.put(delivery)

    def take(self, record: Record) -> Delivery | None:
        """Wait for the next delivery that was not taken back; None means that the thread shall end.

        It is in ``record`` before it is out of here, so that at every moment somebody is known to have it.
        """
        while True:
            delivery = self._items.get()
            if delivery is None:
                return None
            with self._lock:
                if delivery.entry in self._waiting:
                    record.start(delivery)
                    del self._waiting[delivery.entry]
                    return delivery

    def end(self) -> None:
        """Let one thread end."""
        self._items.put(None)

    def snapshot(self) -> Snapshot:
        """Return what waits."""
        with self._lock:
            return self._shot((*self._taken_back, *self._waiting))

    def restrict(self) -> Snapshot:
        """Take back everything that waits."""
        with self._lock:
            self._taken_back += self._waiting
            self._waiting.clear()
            return self._shot(tuple(self._taken_back))

    def returned(self, batch: int) -> None:
        """Forget what was taken back."""
        with self._lock:
            self._taken_back.clear()

    def mark_lost(self, batch: int) -> None:
        """An entry that was not started will be found lost when it is settled."""

    @staticmethod
    def _shot(waiting: tuple[Entry, ...]) -> Snapshot:
        return Snapshot(
            pid=os.getpid(),
            batch=0,
            finished=(),
            running=None,
            waiting=waiting,
            started_at=0.0,
            soft=None,
            hard=None,
            acked_early=False,
            exited=False,
            done=0,
        )


class TaskPool(StreamsPool):
    """Celery's thread pool for streams. As there, time limits cannot end a thread, and are not enforced."""

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._name = consumer_name(self.hostname, 1)
        self._backlog = Backlog(self._name)
        self._threads: dict[Runner, threading.Thread] = {}
        self._started = 0
        self._changed = threading.Condition()
        self._free = 0
        #: Entries that were taken back, while Redis did not take them.
        self._not_returned = 0
        self._stopping = False
        self._streams: list[StreamRef] = []
        self._wake_in, self._wake_out = os.pipe()
        self._reader_thread: threading.Thread | None = None

    def holders(self) -> Sequence[Restrictable]:
        """Return the threads' records, and what waits for a thread."""
        return [*(runner.record for runner in list(self._threads)), self._backlog]

    def handed_back(self) -> Sequence[Restrictable]:
        """Return what waits for a thread: a record never has anything behind what runs."""
        return [self._backlog]

    def consumer_names(self) -> Sequence[str]:
        """Return the one consumer of all threads."""
        return [self._name]

    # -- start

    def on_start(self) -> None:
        """Start the task threads, the reader and the services."""
        self._broker = self.streams.new_broker()
        for _ in range(self.limit or 1):
            self._start_thread()
        self._reader_thread = threading.Thread(target=self._read, name="celery-streams-reader", daemon=True)
        self._reader_thread.start()
        self.start_services()

    def _start_thread(self) -> None:
        runner = Runner(
            self.app, self.hostname, self._name, self._broker, options=self.child_options(), eventer=self._eventer()
        )
        thread = threading.Thread(
            target=self._work, args=(runner,), name=f"ThreadPoolExecutor-0_{self._started}", daemon=True
        )
        self._started += 1
        self._threads[runner] = thread
        thread.start()

    def announce(self, streams: Sequence[StreamRef]) -> None:
        """Have the reader read these streams from now on."""
        with self._changed:
            self._streams = list(streams)
            for runner in list(self._threads):
                runner.executor.use_events(self._eventer())
                runner.executor.use_timer(getattr(self.consumer, "timer", None))
                runner.executor.prepare()
            self._changed.notify_all()
        self._interrupt()

    def give_back(self) -> None:
        """Put back at once what waits for a thread."""
        shot = self._backlog.restrict()
        with self._changed:
            self._free += len(shot.waiting) - self._not_returned
            self._not_returned = len(shot.waiting)
        self.parent.lost.settler(self._name).put_back(shot.waiting, insist=False)
        self._backlog.returned(shot.batch)
        self._not_returned = 0

    def forward(self, *message: Any) -> None:
        """Read the options of tasks again that remote control changed; all else is shared with the threads."""
        if message[0] == "task_option":
            for runner in list(self._threads):
                runner.executor.prepare()

    def chores(self) -> None:
        """Settle what strategies did from the timer, too."""
        super().chores()
        for runner in list(self._threads):
            self.mailbox.chore(runner.executor.settle_later)
        self.mailbox.chore(self._replace_threads)

    def _replace_threads(self) -> None:
        while not self._stopping and len(self._threads) < (self.limit or 1):
            self._start_thread()

    # -- the reader thread

    def _read(self) -> None:
        settler = Settler(self._broker, self._name, conf=self.streams.conf, hostname=self.hostname)
        reader = Reader(
            self.streams.new_broker(),
            self._name,
            settler,
            wake=self._wake_in,
            on_wake=lambda: self._heard(reader),
            stopped=lambda: self._stopping or not self._streams,
            on_read=self.note_read,
            held=self._in_hands,
        )
        while not self._stopping:
            with self._changed:
                while not self._stopping and (self._free <= 0 or not self._streams):
                    self._changed.wait(timeout=1.0)
                free = self._free
                reader.streams = self._streams
            if self._stopping:
                break
            try:
                deliveries = reader.next(free)
            except Exception:
                # The boundary of the thread: without it the worker would stop reading for good.
                logger.exception("Reading from Redis failed; trying again in a second.")
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, timeout=1.0)
                continue
            if self._stopping or not self._streams:
                put_back(settler, deliveries)
                continue
            # A blocking read brings an entry of each stream that has any, whoever is free.
            # Some may have been told to end meanwhile.
            with self._changed:
                taken = deliveries[: max(self._free, 0)]
                self._free -= len(taken)
            put_back(settler, deliveries[len(taken) :])
            for delivery in taken:
                self._backlog.put(delivery)
        reader.close()

    def _in_hands(self) -> list[Entry]:
        return [
            entry
            for holder in self.holders()
            for shot in (holder.snapshot(),)
            for entry in (*shot.waiting, *shot.kept, *((shot.running,) if shot.running is not None else ()))
        ]

    def _heard(self, reader: Reader) -> None:
        os.read(self._wake_in, 4096)
        reader.streams = self._streams

    def _interrupt(self) -> None:
        os.write(self._wake_out, b".")

    # -- the task threads

    def _work(self, runner: Runner) -> None:
        try:
            self._work_on(runner)
        except Exception:
            # The boundary of the thread; the chores start another one in its place.
            logger.exception("Task thread %s failed; another one takes its place.", threading.current_thread().name)
            with self._changed:
                self._threads.pop(runner, None)

    def _work_on(self, runner: Runner) -> None:
        self.app.set_current()
        runner.executor.prepare()
        while True:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
            delivery = self._backlog.take(runner.record)
            if delivery is None:
                with self._changed:
                    del self._threads[runner]
                return
            try:
                runner.run(delivery, started=True)
            except BaseException as exc:  # noqa: BLE001
                # The boundary of the thread; SystemExit of a task ends neither the thread nor the worker.
                self._failed(runner, delivery, exc)

    def _failed(self, runner: Runner, delivery: Delivery, exc: BaseException) -> None:
        logger.error("Task of entry %s raised %r", delivery.entry_id.decode(), exc, exc_info=True)
        consumer = runner.settler.consumer
        early = runner.record.kept_message() is not None
        self.mailbox.post(lambda: self.parent.lost.settle_lost(delivery, consumer, early=early, exited=True))

    # -- size and stop

    def grow(self, n: int = 1) -> None:
        """Start ``n`` more threads."""
        self.limit = (self.limit or 0) + n
        for _ in range(n):
            self._start_thread()

    def shrink(self, n: int = 1) -> None:
        """End ``n`` threads, when they are idle."""
        self.limit = (self.limit or 0) - n
        self._end_threads(n)

    def _end_threads(self, n: int) -> None:
        with self._changed:
            # From now on: what is read for a thread that ends would wait behind the tasks of the others.
            self._free -= n
            for _ in range(n):
                self._backlog.end()
        self._interrupt()

    def on_stop(self) -> None:
        """Let running tasks finish, then stop the services."""
        self._end(wait_for=None)

    def on_terminate(self) -> None:
        """Stop without waiting: what runs stays pending, and is put back for others when this process is gone."""
        self._end(wait_for=0.5)

    def _end(self, *, wait_for: float | None) -> None:
        self._stopping = True
        with self._changed:
            self._changed.notify_all()
        self._interrupt()
        self.parent.stop(end_crew=lambda: self._wait_for_threads(wait_for))

    def _wait_for_threads(self, wait_for: float | None) -> None:
        self._end_threads(len(self._threads))
        deadline = None if wait_for is None else time.monotonic() + wait_for
        while living := next((thread for thread in list(self._threads.values()) if thread.is_alive()), None):
            if deadline is None and worker_state.should_terminate:
                deadline = time.monotonic() + 0.5
            if deadline is not None and time.monotonic() >= deadline:
                break
            living.join(timeout=0.05)
            self.mailbox.do_posted()  # the thread of the chores reads the pipe, and eventlet allows one reader
        if self._reader_thread is not None:
            self._reader_thread.join(timeout=2.0)

    @property
    def num_processes(self) -> int:
        """Threads that there should be."""
        return int(self.limit or 0)

    def _get_info(self) -> dict[str, Any]:
        info = dict(super()._get_info())
        info.update(
            {"max-concurrency": self.limit, "threads": len(self._threads),
             "processes": [os.getpid()], "max-tasks-per-child": "N/A", "put-guarded-by-semaphore": False,
             "timeouts": ()}
        )  # fmt: skip
        return info

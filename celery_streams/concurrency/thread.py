"""Threads: one thread reads for many that run; it takes their acknowledgements along (``backlog``).

Whatever else happens to a message is settled by the thread that ran it, at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from celery.worker import state as worker_state

from ..entries import Delivery, Entry, StreamRef
from ..worker.child import consumer_name
from ..worker.collected import Collected
from ..worker.hand_back import Restrictable
from ..worker.preparation import prepare
from ..worker.reader import Reader
from ..worker.runner import Record, Runner, put_back
from ..worker.set_aside import SetAside
from ..worker.settle import Settler
from ..worker.task_errors import ending_of, log_raised, shown
from .backlog import Backlog, killed_before
from .base import StreamsPool

__all__ = ("TaskPool",)

logger = logging.getLogger(__name__)


class TaskPool(StreamsPool):
    """Celery's thread pool for streams. As there, time limits cannot end a thread, and are not enforced."""

    body_can_be_buffer = True
    signal_safe = False
    #: Seconds for which a cold shutdown waits for what runs.
    grace: ClassVar[float] = 0.5

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._name = consumer_name(self.hostname, 1)
        self._done = Collected()
        #: Acknowledgements that Redis refuses for one queue, and who holds their entries.
        self._aside = SetAside(self._tell_aside)
        self._refused = Record(self._name)
        self._backlog = Backlog(
            self._name,
            self._done,
            one_at_a_time=self.child_options().max_batch == 1,
            trust=self.streams.conf.visibility_timeout / 2,
            wake=self._interrupt,
        )
        self._threads: dict[Runner, threading.Thread] = {}
        self._started = 0
        self._stopping = False
        #: Nothing runs any more that the reader could have to acknowledge.
        self._ended = False
        self._streams: list[StreamRef] = []
        self._wake_in, self._wake_out = os.pipe()
        self._reader_thread: threading.Thread | None = None
        self._reader: Reader | None = None

    def holders(self) -> Sequence[Restrictable]:
        """Return what waits for a thread or its acknowledgement, and the threads' records."""
        return [self._backlog, self._refused, *(runner.record for runner in list(self._threads))]

    def limited(self) -> Sequence[Restrictable]:
        """Return the records of the threads whose task has time limits."""
        return [runner.record for runner in list(self._threads) if runner.record.has_limits]

    def handed_back(self) -> Sequence[Restrictable]:
        """Return what waits for a thread: a record never has anything behind what runs."""
        return [self._backlog]

    def consumer_names(self) -> Sequence[str]:
        """Return the one consumer of all threads."""
        return [self._name]

    def living(self) -> int:
        """Return how many threads there are."""
        return len(self._threads)

    # -- start

    def on_start(self) -> None:
        """Start the task threads, the reader and the services."""
        self._broker = self.streams.new_broker()
        self._prepared = prepare(self.app, self.hostname, self.streams)
        for _ in range(self.limit or 1):
            self._start_thread()
        self._reader_thread = threading.Thread(target=self._read, name="celery-streams-reader", daemon=True)
        self._reader_thread.start()
        self.start_services()

    def _start_thread(self) -> None:
        runner = Runner(
            self.app,
            self.hostname,
            self._name,
            self._broker,
            options=self.child_options(),
            eventer=self._eventer(),
            give_up=self.must_end,
            collected=self._done,
            counts=self.parent.counts,
        )
        runner.executor.prepare(self._prepared)
        thread = threading.Thread(
            target=self._work, args=(runner,), name=f"ThreadPoolExecutor-0_{self._started}", daemon=True
        )
        self._started += 1
        self._threads[runner] = thread
        thread.start()

    def announce(self, streams: Sequence[StreamRef]) -> None:
        """Have the reader read these streams from now on."""
        self._streams = list(streams)
        self.look_at_tasks()
        for runner in list(self._threads):
            runner.executor.use_events(self._eventer())
            runner.executor.use_timer(getattr(self.consumer, "timer", None))
        self._backlog.poke()
        self._interrupt()

    def give_back(self) -> None:
        """Put back at once what waits for a thread."""
        shot = self._backlog.restrict()
        self.parent.lost.settler(self._name).put_back(shot.waiting, insist=False)
        self._backlog.returned(shot.batch)

    def look_at_tasks(self) -> None:
        """Have all threads read the tasks and their options again."""
        self._prepared = prepare(self.app, self.hostname, self.streams)
        for runner in list(self._threads):
            runner.executor.prepare(self._prepared)

    def forward(self, *message: Any) -> None:
        """Read the options of tasks again that remote control changed; all else is shared with the threads."""
        if message[0] in ("task_option", "limits"):
            self.look_at_tasks()
        elif message[0] in ("handed", "look") and self._reader is not None:
            act = self._reader.take_from if message[0] == "handed" else self._reader.look_again
            act(*message[1:])
            self._interrupt()

    def chores(self) -> None:
        """Settle what strategies did from the timer, too."""
        super().chores()
        for runner in list(self._threads):
            self.mailbox.chore(runner.settle_later)
        self.mailbox.chore(self._aside.try_again)
        self.mailbox.chore(self._replace_threads)
        self._backlog.spread()

    def _tell_aside(self) -> None:
        self._refused.kept = self._aside.entries

    def _replace_threads(self) -> None:
        while not self._stopping and len(self._threads) < (self.limit or 1):
            self._start_thread()

    # -- the reader thread

    def _read(self) -> None:
        settler = Settler(
            self._broker,
            self._name,
            conf=self.streams.conf,
            hostname=self.hostname,
            give_up=self.must_end,
            collected=self._done,
            aside=self._aside,
        )
        reader = self._reader = Reader(
            self.streams.new_broker(),
            self._name,
            settler,
            wake=self._wake_in,
            on_wake=lambda: self._heard(reader, settler),
            stopped=lambda: not self._reads(),
            on_read=self.note_read,
            held=self._in_hands,
        )
        reader.on_pause = lambda: self._flush(settler)
        reader.on_denied = self.parent.look_at_access
        while not self._ended:
            try:
                self._read_once(reader, settler)
            except Exception:
                # The boundary of the thread: without it the worker would stop reading for good.
                logger.exception("Reading from Redis failed; trying again in a second.")
                time.sleep(1.0)
        if settler.waiting:
            self.mailbox.guarded(settler.flush)
        reader.close()

    def _reads(self) -> bool:
        return bool(self._streams) and not self._stopping

    def _read_once(self, reader: Reader, settler: Settler) -> None:
        backlog = self._backlog
        demand = backlog.demand(reads=self._reads, stopped=lambda: self._ended)
        if not demand.entries and not settler.waiting:
            return
        reader.streams = self._streams
        deliveries = reader.next(demand.entries, block=bool(demand.idle and demand.entries))
        backlog.not_reading()
        if not demand.entries:
            return
        backlog.found(less=len(deliveries) < demand.entries)
        if not self._reads():
            put_back(settler, deliveries)
            return
        if any(killed_before(delivery) for delivery in deliveries):
            # Nothing shall wait in a process that may die of it.
            room = backlog.room()
            put_back(settler, deliveries[room:])
            deliveries = deliveries[:room]
        backlog.put(deliveries)

    def _flush(self, settler: Settler) -> None:
        while self._backlog.reading() and not settler.gave_up:
            settler.flush()

    def _in_hands(self) -> list[Entry]:
        # In the order in which entries pass, so that none is missed.
        held = [
            entry
            for holder in self.holders()
            for shot in (holder.snapshot(),)
            for entry in (*shot.waiting, *shot.kept, *((shot.running,) if shot.running is not None else ()))
        ]
        return [*held, *self._done.entries, *self._done.forbidden]

    def _heard(self, reader: Reader, settler: Settler) -> None:
        os.read(self._wake_in, 4096)
        reader.streams = self._streams
        self._flush(settler)

    def _interrupt(self) -> None:
        os.write(self._wake_out, b".")

    # -- the task threads

    def _work(self, runner: Runner) -> None:
        try:
            self._work_on(runner)
        except Exception:
            # The boundary of the thread; the chores start another one in its place.
            logger.exception("Task thread %s failed; starting another.", threading.current_thread().name)
        finally:
            self._threads.pop(runner, None)

    def _work_on(self, runner: Runner) -> None:
        self.app.set_current()
        delivery: Delivery | None = None
        while True:
            delivery = self._backlog.take(runner.record, ended=delivery)
            if delivery is None:
                return
            try:
                runner.run(delivery)
            except BaseException as exc:  # noqa: BLE001
                # The boundary of the thread; SystemExit of a task ends neither the thread nor the worker.
                self._failed(runner, delivery, exc)

    def _failed(self, runner: Runner, delivery: Delivery, exc: BaseException) -> None:
        consumer = runner.settler.consumer
        early, ran_for = runner.record.kept_message() is not None, runner.record.took()
        how = ending_of(exc)
        self.mailbox.post(
            lambda: self.parent.lost.settle_lost(delivery, consumer, early=early, exited=how, ran_for=ran_for)
        )
        try:
            log_raised(logger.error, "Task of entry %s raised %s", delivery.entry_id.decode(), shown(exc))
        except BaseException:  # noqa: BLE001
            # Whoever looks at the exception gets another one, SystemExit too, which must not end the thread.
            logger.error("Task of entry %s raised what cannot be shown.", delivery.entry_id.decode())

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
        self._backlog.end(n)
        self._interrupt()

    def on_stop(self) -> None:
        """Let running tasks finish, then stop the services."""
        self._end(hurry=False)

    def on_terminate(self) -> None:
        """Stop without waiting: what runs stays pending, and is put back for others when this process is gone."""
        self._end(hurry=True)

    def _end(self, *, hurry: bool) -> None:
        self._stopping = True
        self._backlog.poke()
        self._interrupt()
        self.parent.stop(end_crew=lambda: self._wait_for_threads(hurry=hurry))

    def _hurry(self) -> None:
        """Called once when what still runs is waited for no longer than for a moment."""

    def _wait_for_threads(self, *, hurry: bool) -> None:
        self._end_threads(len(self._threads))
        deadline: float | None = None
        while living := next((thread for thread in list(self._threads.values()) if thread.is_alive()), None):
            if deadline is None and (hurry or worker_state.should_terminate):
                self._hurry()
                deadline = time.monotonic() + self.grace
            if deadline is not None and time.monotonic() >= deadline:
                break
            living.join(timeout=0.05)
            self.mailbox.do_posted()  # the thread of the chores reads the pipe, and eventlet allows one reader
        self.mailbox.do_posted()
        self._ended = True
        self._backlog.poke()
        self._interrupt()
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

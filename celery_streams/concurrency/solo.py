"""Solo: the worker's main thread reads, runs and settles, between rounds of Celery's event loop.

It takes small tasks in batches, as a child does. The event loop must not sleep while a backlog waits: it calls what it
is asked to call soon only after its next wait, which ends early for descriptors alone, and so there is one for the next
round.

Heartbeats, claims and delayed messages go on in the services' threads while a task runs; a task that holds the GIL
holds them up as well, and with ``-P solo`` only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from celery import signals
from celery.exceptions import ImproperlyConfigured, WorkerShutdown, WorkerTerminate
from celery.worker import state as worker_state

from ..entries import Delivery, StreamRef
from ..exceptions import BrokerError
from ..poll import readable
from ..worker.child import ACK_DELAY, LEAVING, consumer_name
from ..worker.hand_back import Restrictable
from ..worker.pace import Pace
from ..worker.reader import Reader
from ..worker.runner import Runner, put_back
from ..worker.task_errors import ending_of
from .base import StreamsPool

__all__ = ("TaskPool",)

logger = logging.getLogger(__name__)

#: Seconds of tasks between two rounds of the event loop (remote control, events).
_ROUND = 0.05

#: Seconds for which the main thread waits for a message at most, and between two rounds of chores, while a thread waits
#: for Celery's broker.
_MEANWHILE = 0.5


def _must_stop() -> bool:
    """Return whether Celery's worker was told to stop; it notices between two rounds of its event loop."""
    return any(
        told is not None and told is not False for told in (worker_state.should_stop, worker_state.should_terminate)
    )


class TaskPool(StreamsPool):
    """Celery's solo pool for streams. As there, time limits are not enforced."""

    body_can_be_buffer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = 1
        self._name = consumer_name(self.hostname, 1)
        self._runner: Runner | None = None
        self._reader: Reader | None = None
        self._pace = Pace(most=self.child_options().max_batch)
        self._watched: Sequence[int] = ()
        self._scheduled = False
        self._next_in, self._next_out = os.pipe()
        self._at_work = 0
        #: When the chores are to be done next while the main thread waits for Celery's broker (monotonic seconds).
        self._chores_at = 0.0
        signals.worker_process_init.send(sender=self.hostname)

    def holders(self) -> Sequence[Restrictable]:
        """Return the one record."""
        return [self._runner.record] if self._runner is not None else []

    # -- start

    def consumer_names(self) -> Sequence[str]:
        """Return the one consumer."""
        return [self._name]

    def on_start(self) -> None:
        """Start the services; reading begins when the consumer says what."""
        broker = self.streams.new_broker()
        runner = self._runner = Runner(
            self.app,
            self.hostname,
            self._name,
            broker,
            options=self.child_options(),
            eventer=self._eventer(),
            give_up=self.must_end,
            counts=self.parent.counts,
        )
        self._reader = Reader(
            broker,
            self._name,
            self._runner.settler,
            wake=self.mailbox.descriptor,
            on_wake=self.mailbox.drain,
            stopped=lambda: False,
            held=lambda: (*runner.record.kept, *runner.settler.set_aside),
            on_read=self.note_read,
        )
        self._reader.on_denied = self.parent.look_at_access
        runner.settler.on_confirmed = runner.record.settled
        self.start_services()

    def register_with_event_loop(self, loop: Any) -> None:
        """Take part in Celery's event loop."""
        super().register_with_event_loop(loop)
        self._watched = ()
        loop.add_reader(self._next_in, self.mailbox.guarded, self._round)
        self._schedule()

    def announce(self, streams: Sequence[StreamRef]) -> None:
        """Read these streams from now on.

        Raises:
            ImproperlyConfigured: the worker has no event loop.
        """
        assert self._reader is not None
        assert self._runner is not None
        if self.options.get("threads") is True and streams:
            raise ImproperlyConfigured("-P solo needs a broker transport with an event loop; use -P threads -c 1")
        self._runner.executor.use_events(self._eventer())
        self._runner.executor.use_timer(getattr(self.consumer, "timer", None))
        self._runner.executor.prepare()
        if self._watched:
            self._reader.disarm()
            self._finish_read()
        self._reader.streams = list(streams)
        self._schedule()

    def look_at_tasks(self) -> None:
        """Read the tasks and their options again."""
        if self._runner is not None:
            self._runner.executor.prepare()

    def forward(self, *message: Any) -> None:
        """Read the options of tasks again that remote control changed; all else is shared."""
        if message[0] in ("task_option", "limits"):
            self.look_at_tasks()
        elif message[0] in ("handed", "look") and self._reader is not None:
            act = self._reader.take_from if message[0] == "handed" else self._reader.look_again
            act(*message[1:])
            if self._watched:
                self._reader.disarm()

    # -- rounds

    def _schedule(self) -> None:
        if self._hub is not None and not self._scheduled:
            self._scheduled = True
            os.write(self._next_out, b".")

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    def _round(self) -> None:
        """Run what there is for a while, then wait for more through the event loop."""
        os.read(self._next_in, 1)
        self._scheduled = False
        with self._working():
            self._run_for_a_while()

    def _run_for_a_while(self) -> None:
        assert self._reader is not None
        assert self._runner is not None
        if not self._reader.streams or self._watched or self._state != self.RUN:
            return
        if self._run_some():
            self._schedule()
            return
        self._arm()
        if not self._watched:
            self._schedule()
        for descriptor in self._watched:
            self._hub.add_reader(descriptor, self.mailbox.guarded, self._finish_read)

    def _run_some(self) -> bool:
        """Run batches for :data:`_ROUND`, and acknowledge them; returns whether there may be more."""
        assert self._reader is not None
        assert self._runner is not None
        began, found = time.monotonic(), True
        while found and time.monotonic() - began < _ROUND and self._reader.streams and not _must_stop():
            batch = self._reader.next(self._pace.count, assisted=self._runner.record.assisted(), block=False)
            found = bool(batch)
            self._run(batch)
        # The event loop may take its time, and a read that failed took nothing along.
        self._flush()
        return found

    def work_meanwhile(self, ended: threading.Event) -> None:
        """Run what there is, for a moment, or wait for it."""
        if self._reader is None or not self._reader.streams or self._state != self.RUN or self._at_work:
            super().work_meanwhile(ended)
            return
        if self._watched:
            self.wait_for_work(_MEANWHILE)
            if self._reader.due():
                self._finish_read()
        else:
            with self._working():
                found = self._run_some()
            if not found:
                self._arm()
        if time.monotonic() >= self._chores_at:
            self._chores_at = time.monotonic() + _MEANWHILE
            self.mailbox.guarded(self.chores)

    def wait_for_work(self, timeout: float) -> None:
        """Wait until something was posted, or the read that waits for a message has brought something."""
        readable([self.mailbox.descriptor, *self._watched], timeout=timeout)

    def _arm(self) -> None:
        """Send a read that waits for the next message."""
        assert self._reader is not None
        try:
            self._watched = self._reader.arm()
        except BrokerError as exc:
            self._reader.recover_from(exc)

    def _finish_read(self) -> None:
        assert self._reader is not None
        assert self._runner is not None
        if not self._watched:
            return
        if self._hub is not None:
            for descriptor in self._watched:
                self._hub.remove(descriptor)
        self._watched = ()
        with self._working():
            try:
                batch = self._reader.collect()
            except BrokerError as exc:
                self._reader.recover_from(exc)
                batch = []
            # A blocking read brings an entry of each stream that has any. They would wait here for each other.
            most = self._pace.count
            put_back(self._runner.settler, batch[most:])
            batch = batch[:most]
            try:
                self._run(batch)
                self._flush()
            finally:
                self._schedule()

    def _run(self, batch: Sequence[Delivery]) -> None:
        """Run a batch; what ran last is acknowledged with the next read, or flush."""
        assert self._runner is not None
        if not batch:
            return
        record, settler = self._runner.record, self._runner.settler
        record.load(batch)
        began = now = time.monotonic()
        ran = 0
        for index, delivery in enumerate(batch):
            suspect = delivery.message is not None and b'"crashes"' in delivery.message.history
            if settler.waiting and (suspect or settler.overdue(now=now, after=ACK_DELAY)):
                self._flush()
            # This process may have stood still: others may have claimed the rest. Or the services took it back.
            if now - began > settler.trust or settler.gave_up or _must_stop() or not record.begin(delivery):
                self._put_back(batch[index:])
                break
            if suspect and index + 1 < len(batch):
                # It killed its process before: nothing else shall be held by the process that runs it.
                self._put_back(batch[index + 1 :])
            self._run_one(delivery)
            ran += 1
            now = time.monotonic()
            if suspect:
                break
        self._pace.observe(ran=ran, seconds=now - began)

    def _put_back(self, deliveries: Sequence[Delivery]) -> None:
        assert self._runner is not None
        put_back(self._runner.settler, deliveries)
        self._runner.record.drop()

    def _flush(self) -> None:
        assert self._runner is not None
        self.mailbox.guarded(partial(self._runner.settler.flush, assisted=self._runner.record.assisted()))

    def _run_one(self, delivery: Delivery) -> None:
        assert self._runner is not None
        try:
            self._runner.run(delivery)
        except (SystemExit, KeyboardInterrupt) as exc:
            if isinstance(exc, (WorkerShutdown, WorkerTerminate)):
                raise
            self._settle_raised(delivery, exc)
        except Exception as exc:
            # A boundary of the event loop: without it the worker would read no more.
            logger.exception("Entry %s could not be run; the worker goes on.", delivery.entry_id.decode())
            self._settle_raised(delivery, exc)

    def _settle_raised(self, delivery: Delivery, exc: BaseException) -> None:
        assert self._runner is not None
        early = self._runner.record.kept_message() is not None
        ran_for = self._runner.record.took()
        settle = partial(self.parent.lost.settle_lost, delivery, self._name, exited=ending_of(exc))
        self.mailbox.guarded(partial(settle, early=early, ran_for=ran_for))

    def chores(self) -> None:
        """Notice a connection that does not answer."""
        super().chores()
        if self._runner is not None:
            self.mailbox.chore(self._runner.settle_later)
        self.mailbox.chore(self._look_at_connection)

    def _look_at_connection(self) -> None:
        if self._watched and self._reader is not None and self._reader.due():
            self._finish_read()

    # -- stop

    def hasten(self) -> None:
        """Wait only a moment for each reply; what a task that runs has to settle takes its time."""
        super().hasten()
        if self._reader is not None and not self._at_work:
            self._reader.broker.client.hasten(LEAVING)

    def on_stop(self) -> None:
        """Leave; nothing runs now, for the main thread is here, unless a signal interrupted it."""
        if self._at_work:
            # Celery's handler for a cold shutdown stops the pool, and again when its loop has ended. Here it stands
            # in the middle of a task or of a command to Redis, which must not be pulled away from under it.
            return
        self.parent.stop(end_crew=self._close)

    def _close(self) -> None:
        if self._runner is not None:
            # What ran must not be put back, whatever ended the last round.
            self._flush()
            self.mailbox.guarded(partial(self._runner.aside.try_again, at_once=True))
        if self._reader is not None:
            self._reader.close()

    on_terminate = on_stop

    @property
    def num_processes(self) -> int:
        """One."""
        return 1

    def _get_info(self) -> dict[str, Any]:
        info = dict(super()._get_info())
        info.update(
            {"max-concurrency": 1, "processes": [os.getpid()], "max-tasks-per-child": None,
             "put-guarded-by-semaphore": True, "timeouts": ()}
        )  # fmt: skip
        return info

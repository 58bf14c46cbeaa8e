"""Solo: the worker's main thread reads, runs and settles, between rounds of Celery's event loop.

Heartbeats, claims and delayed messages go on in the services' threads while a task runs; a task that holds the GIL
holds them up as well, and with ``-P solo`` only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from celery import signals
from celery.exceptions import ImproperlyConfigured, WorkerShutdown, WorkerTerminate

from ..broker import Delivery, StreamRef
from ..exceptions import BrokerError
from ..worker.child import consumer_name
from ..worker.hand_back import Restrictable
from ..worker.reader import Reader
from ..worker.runner import Runner, put_back
from .base import StreamsPool

__all__ = ("TaskPool",)

logger = logging.getLogger(__name__)

#: Seconds of tasks between two rounds of the event loop (remote control, events).
_ROUND = 0.05


class TaskPool(StreamsPool):
    """Celery's solo pool for streams. As there, time limits are not enforced."""

    body_can_be_buffer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = 1
        self._name = consumer_name(self.hostname, 1)
        self._runner: Runner | None = None
        self._reader: Reader | None = None
        self._watched = -1
        self._scheduled = False
        self._at_work = 0
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
            self.app, self.hostname, self._name, broker, options=self.child_options(), eventer=self._eventer()
        )
        self._reader = Reader(
            broker,
            self._name,
            self._runner.settler,
            wake=self.mailbox.descriptor,
            on_wake=self.mailbox.drain,
            stopped=lambda: False,
            held=lambda: runner.record.kept,
            on_read=self.note_read,
        )
        self.start_services()

    def register_with_event_loop(self, loop: Any) -> None:
        """Take part in Celery's event loop."""
        super().register_with_event_loop(loop)
        self._watched = -1
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
        if self._watched >= 0:
            self._reader.disarm()
            self._finish_read()
        self._reader.streams = list(streams)
        self._schedule()

    def forward(self, *message: Any) -> None:
        """Read the options of tasks again that remote control changed; all else is shared."""
        if message[0] == "task_option" and self._runner is not None:
            self._runner.executor.prepare()

    # -- rounds

    def _schedule(self) -> None:
        if self._hub is not None and not self._scheduled:
            self._scheduled = True
            self._hub.call_soon(self.mailbox.guarded, self._round)

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    def _round(self) -> None:
        """Run what there is for a while, then wait for more through the event loop."""
        self._scheduled = False
        with self._working():
            self._run_for_a_while()

    def _run_for_a_while(self) -> None:
        assert self._reader is not None
        assert self._runner is not None
        if not self._reader.streams or self._watched >= 0 or self._state != self.RUN:
            return
        began, found = time.monotonic(), True
        while found and time.monotonic() - began < _ROUND and self._reader.streams:
            batch = self._reader.next(1, block=False)
            found = bool(batch)
            self._run(batch, flush=False)  # the next read, which follows at once, takes the acknowledgement along
        # The event loop may take its time, and a read that failed took nothing along.
        self.mailbox.guarded(self._runner.settler.flush)
        if found:
            self._schedule()
            return
        try:
            self._watched = self._reader.arm()
        except BrokerError as exc:
            self._reader.recover_from(exc)
            self._schedule()
        else:
            self._hub.add_reader(self._watched, self.mailbox.guarded, self._finish_read)

    def _finish_read(self) -> None:
        assert self._reader is not None
        if self._watched < 0:
            return
        self._hub.remove(self._watched)
        self._watched = -1
        with self._working():
            try:
                batch = self._reader.collect()
            except BrokerError as exc:
                self._reader.recover_from(exc)
                batch = []
            try:
                self._run(batch)
            finally:
                self._schedule()

    def _run(self, batch: Sequence[Delivery], *, flush: bool = True) -> None:
        assert self._runner is not None
        # A blocking read brings an entry of each stream that has any, and the heartbeat knows only of what runs.
        put_back(self._runner.settler, batch[1:])
        for delivery in batch[:1]:
            try:
                self._runner.run(delivery, flush=flush)
            except (SystemExit, KeyboardInterrupt) as exc:
                if isinstance(exc, (WorkerShutdown, WorkerTerminate)):
                    raise
                self._settle_raised(delivery)
            except Exception:
                # A boundary of the event loop: without it the worker would read no more.
                logger.exception("Entry %s could not be run; the worker goes on.", delivery.entry_id.decode())
                self._settle_raised(delivery)

    def _settle_raised(self, delivery: Delivery) -> None:
        assert self._runner is not None
        early = self._runner.record.kept_message() is not None
        self.mailbox.guarded(partial(self.parent.lost.settle_lost, delivery, self._name, early=early, exited=True))

    def chores(self) -> None:
        """Notice a connection that does not answer."""
        super().chores()
        if self._runner is not None:
            self.mailbox.chore(self._runner.executor.settle_later)
        self.mailbox.chore(self._look_at_connection)

    def _look_at_connection(self) -> None:
        if self._watched >= 0 and self._reader is not None and self._reader.due():
            self._finish_read()

    # -- stop

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
            self.mailbox.guarded(self._runner.settler.flush)
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

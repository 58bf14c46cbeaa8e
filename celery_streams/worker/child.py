"""The child: a process that reads its queues itself, runs what it reads, and settles it.

Its loop, once round: acknowledge what is done and read what is next (one round trip); write the batch to the slot;
for each entry note that it starts, run it, note that it ended. The parent reaches it through a control pipe and no
other way: which streams to read, when to stop, which ids are revoked.

When it ends by itself it leaves nothing behind: acknowledgements are flushed, un-started entries go back, its
consumer is deleted. When it is killed the parent does that (``dead_children``).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from billiard.common import reset_signals
from billiard.compat import mem_rss
from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import EX_RECYCLE, TASK, Worker
from celery.concurrency.prefork import process_destructor, process_initializer
from celery.worker import state as worker_state

from .. import celery_private
from ..app import Streams, streams_of
from ..consumers import forget_consumer
from ..entries import Delivery, Entry, StreamRef
from ..installation import install
from ..poll import readable, writable
from . import revoked_stamps
from .counting import count_process, executor_for
from .counts import Counts, CountsTable
from .events import BackgroundEvents
from .execution import Interruption
from .fitness import Fitness
from .kept_messages import MOST_KEPT
from .own_process import guard_forks
from .pace import Pace
from .pieces import Assembly
from .reader import Reader
from .set_aside import SetAside
from .settle import Settler
from .slots import COUNTED, MAX_BATCH, Slot, SlotTable
from .task_errors import is_of, log_raised
from .untold import packed_failure

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("ChildLoop", "ChildOptions", "child_main", "consumer_name")

logger = logging.getLogger(__name__)

#: Seconds that an acknowledgement may wait for others; a crash re-runs at most what ended within this time.
ACK_DELAY = 0.005


#: Seconds that a child which was told to stop goes on trying to settle while Redis is away; then others claim it.
STOP_PATIENCE = 3.0

#: The same for a child that can open no connection any more.
UNFIT_PATIENCE = 10.0

#: Seconds that a child which leaves waits for each reply.
LEAVING = 1.0


@dataclass(frozen=True, slots=True)
class ChildOptions:
    """What the parent's command line means for its children."""

    soft_limit: float | None = None
    hard_limit: float | None = None
    max_tasks: int | None = None
    #: KiB
    max_memory: int | None = None
    #: Entries fetched at once, at most.
    max_batch: int = MAX_BATCH
    #: Where children count, if metrics are wanted.
    counts: CountsTable | None = None
    #: The name of the worker in ``presence``.
    worker: str = ""


def consumer_name(hostname: str, index: int) -> str:
    """Return a consumer name that no other process has, also with two workers of the same node name."""
    return f"{hostname}/{index}.{secrets.token_hex(4)}"


class ChildLoop:
    """Reads, runs and settles until it is told to stop.

    Args:
        control: the child's end of the control pipe (a billiard Connection).
        counts: where it counts, if metrics are wanted.
    """

    def __init__(
        self,
        app: Celery,
        hostname: str,
        consumer: str,
        slot: Slot,
        control: Any,
        *,
        options: ChildOptions,
        counts: Counts | None = None,
    ) -> None:
        self.app = app
        self.hostname = hostname
        self.consumer = consumer
        self.slot = slot
        self.streams: Streams = streams_of(app)
        self.stopping = False
        #: The signal handler of soft time limits raises only while this is set.
        self.running = False
        self.exitcode = 0
        self._control = control
        self._options = options
        self._heard = Assembly()
        #: Streams by the numbers that they have in the slot, and the other way round.
        self._known: list[StreamRef] = []
        self._numbers: dict[StreamRef, int] = {}
        #: How this child numbers the tasks that it counts, and the names that the parent was not told yet.
        self._task_numbers: dict[str, int] = {}
        self._untold_names: list[str] = []
        self._ran = 0
        self._finished = 0
        self._outgrown = False
        self._stop_by = 0.0
        self._events: BackgroundEvents | None = None
        self._kept: tuple[Entry, ...] = ()
        self._kept_told = True
        broker = self.streams.new_broker(rests=True)
        self.aside = SetAside(self._tell_anew)
        self.settler = Settler(
            broker,
            consumer,
            conf=self.streams.conf,
            hostname=hostname,
            give_up=self._must_end,
            sleep=self._sleep,
            aside=self.aside,
            worker=options.worker,
        )
        self.settler.on_confirmed = self._confirmed
        self.reader = Reader(
            broker,
            consumer,
            self.settler,
            wake=control.fileno(),
            on_wake=self.hear,
            stopped=lambda: self.stopping,
            held=lambda: (*self._kept, *self.settler.set_aside),
            on_read=slot.note_read,
        )
        if counts is not None:
            count_process(counts, self.streams)
        self.executor = executor_for(counts)(
            app,
            hostname,
            self.streams,
            self.settler,
            slot,
            soft_limit=options.soft_limit,
            hard_limit=options.hard_limit,
            count=self._count,
            on_kept=self._keep,
        )
        self.fitness = Fitness()
        self.executor.around.on_untold = self._hand_on
        self.executor.around.on_ended = self.fitness.ended
        self.reader.on_pause = self._pause
        self.reader.on_denied = lambda: self.tell("denied")
        self.pace = Pace(most=options.max_batch)
        self._commands: dict[str, Callable[..., None]] = {
            "consume": self._on_consume,
            "consume_more": self._on_consume_more,
            "stop": self.stop,
            "revoke": self._on_revoke,
            "revoke_stamps": self._on_revoke_stamps,
            "task_option": self._on_task_option,
            "events": self._on_events,
            "handed": self.reader.take_from,
            "look": self.reader.look_again,
            "limits": self._on_limits,
        }

    # -- control

    def hear(self) -> None:
        """Carry out what the parent said since the last time."""
        try:
            while self._control.poll(0):
                message = self._heard.add(self._control.recv_bytes())
                if message is None:
                    continue
                name, *args = message
                try:
                    self._commands[name](*args)
                except Exception:
                    # A boundary of the process: remote control must not end a child with tasks in its hands.
                    logger.exception("Child %s cannot carry out %s%r; it continues.", self.consumer, name, tuple(args))
        except (EOFError, OSError):
            self.stopping = True  # the parent is gone

    def _on_consume(self, new: Sequence[StreamRef], wanted: Sequence[int]) -> None:
        self._learn(new)
        self.reader.streams = [self._known[number] for number in wanted]

    def _on_consume_more(self, new: Sequence[StreamRef], added: Sequence[int]) -> None:
        self._learn(new)
        streams = [*self.reader.streams, *(self._known[number] for number in added)]
        self.reader.streams = sorted(streams, key=lambda ref: ref.step)

    def _learn(self, new: Sequence[StreamRef]) -> None:
        for ref in new:
            self._numbers[ref] = len(self._known)
            self._known.append(ref)
        self.slot.streams[:] = self._known

    def stop(self) -> None:
        """Stop after the task that runs now; outcomes that Redis does not take are given up a while later."""
        self.stopping = True
        self._stop_by = time.monotonic() + STOP_PATIENCE
        if not self.running:
            # Nothing is at stake but time. What a task that runs comes to shall have every chance to be stored.
            self.settler.broker.client.hasten(LEAVING)

    def _must_end(self) -> bool:
        if not self.stopping:
            self.fitness.lost_redis()
            if self._is_unfit():
                # What ran here may run again, if this cannot be told to Redis: so it is tried for longer.
                self.stopping = True
                self._stop_by = time.monotonic() + UNFIT_PATIENCE
        return self.stopping and time.monotonic() >= self._stop_by

    def _sleep(self, seconds: float) -> None:
        """Pause between two attempts to settle, and hear the parent all the same."""
        if readable([self._control.fileno()], timeout=seconds):
            self.hear()

    def _on_revoke(self, task_ids: Sequence[str]) -> None:
        worker_state.revoked.update(task_ids)

    def _on_revoke_stamps(self, pairs: Sequence[tuple[str, Any]]) -> None:
        revoked_stamps.add(pairs)

    def _on_task_option(self, name: str, options: dict[str, Any]) -> None:
        task = self.app.tasks.get(name)
        if task is not None:
            for option, value in options.items():
                setattr(task, option, value)
            self.executor.prepare()

    def _on_limits(self, limits: dict[str, dict[str, Any]]) -> None:
        self.streams.limits_in_redis = limits
        self.executor.prepare()

    def _on_events(self, wanted: bool) -> None:
        if wanted and self._events is None:
            slot = self.slot
            slot.events_kept(0)
            self._events = BackgroundEvents(
                self.app, self.hostname, groups=["task"], on_kept=slot.events_kept, on_sent=slot.events_sent
            )
            self._events.goes_first()
        elif not wanted and self._events is not None:
            self._events.close()
            self._events = None
        self.executor.use_events(self._events)

    def tell(self, *message: Any) -> None:
        """Tell the parent something."""
        try:
            self._control.send(message)
        except (BrokenPipeError, OSError):
            self.stopping = True

    def _hand_on(self, delivery: Delivery, einfo: ExceptionInfo) -> None:
        """Have the parent report a failure that cannot be reported here."""
        self.fitness.could_not_report()
        failure = packed_failure(delivery, einfo)
        if failure is not None:
            self.tell("untold", failure)

    # -- the loop

    def run(self) -> int:
        """Work until told to stop, or until recycled; returns the exit code."""
        self.executor.prepare()
        self.tell("ready", os.getpid())
        while not self.stopping:
            self.hear()
            if self.stopping:
                break
            self.aside.try_again()
            self._tell_kept()
            self._tell_names()
            self.executor.run_timers()
            if len(self._kept) >= MOST_KEPT:
                self._sleep(0.05)
                continue
            batch = self.reader.next(self._room(), assisted=self.slot.restricted())
            if batch and self.stopping:
                self._put_back(batch)  # it came while the reader was told to stop
            elif batch:
                self._run_batch(batch)
            else:
                self.fitness.lost_redis()
            if not self.stopping and self._is_unfit():
                self.stop()
                break
            if self._worn_out():
                self.exitcode = EX_RECYCLE
                break
        self._leave()
        return self.exitcode

    def _room(self) -> int:
        most = self.pace.count
        if self._options.max_tasks is not None:
            most = min(most, self._options.max_tasks - self._ran)
        return max(most, 1)

    def _run_batch(self, batch: Sequence[Delivery]) -> None:
        slot, settler = self.slot, self.settler
        numbers = self._numbers
        slot.load([(numbers[delivery.stream], delivery.entry_id) for delivery in batch])
        self._finished = 0
        began = now = time.monotonic()
        ran = 0
        for index, delivery in enumerate(batch):
            if now - began > settler.trust:
                # This process may have stood still: others may have claimed the rest, and what is ours goes back.
                self._put_back(batch[index:])
                break
            suspect = delivery.message is not None and b'"crashes"' in delivery.message.history
            if settler.waiting and (suspect or settler.overdue(now=now, after=ACK_DELAY)):
                settler.flush(assisted=slot.restricted())
            if settler.gave_up:
                break
            if not slot.begin(index):
                self._put_back(batch[index:])
                break
            alone = suspect and index + 1 < len(batch)
            if alone:
                # It killed its process before: nothing else shall be held by the process that runs it. Only after
                # begin(), for the parent may have taken this entry back as well.
                self._put_back(batch[index + 1 :])
                slot.shorten(index + 1)
                if settler.gave_up:
                    break
            try:
                self._run(delivery)
            except Interruption as exc:
                if not settler.gave_up:
                    raise
                logger.warning("The task of entry %s ends early: %s.", delivery.entry, exc)
            if settler.gave_up:
                # What became of it is not stored: the parent must not take it for finished and acknowledge it.
                break
            if not self._kept_told:
                # What a strategy keeps did not run: the parent must not take it for finished and acknowledge it.
                settler.flush(assisted=slot.restricted())
                slot.settled(index + 1)
            slot.finish(index)
            self._finished = index + 1
            ran += 1
            now = time.monotonic()
            if alone:
                break
            # As stock does, after a task and never in between: a child that is idle stays, however large it is.
            if self.stopping or self.fitness.reason or self._too_large():
                self._put_back(batch[index + 1 :])
                break
        if not (settler.gave_up or settler.waiting or settler.set_aside):
            # Each settled by itself (held back, retried, dead): nothing is left for which the parent must beat.
            self._confirmed()
        self._ran += ran
        self.pace.observe(ran=ran, seconds=now - began)

    def _run(self, delivery: Delivery) -> None:
        self.running = True
        try:
            self.executor.execute(delivery)
        except (SystemExit, KeyboardInterrupt) as exc:
            if not celery_private.is_ending():
                self.slot.exited(by_keyboard=is_of(exc, KeyboardInterrupt))
            raise
        finally:
            self.running = False

    def _put_back(self, entries: Sequence[Delivery]) -> None:
        self.settler.put_back([delivery.entry for delivery in entries])

    def _keep(self, entries: Collection[Entry]) -> None:
        self._kept = tuple(entries)
        self._kept_told = False

    def _tell_anew(self) -> None:
        self._kept_told = False

    def _pause(self) -> float | None:
        """Do what is due while nothing is to be read; returns seconds until the next, None when there is none."""
        self.aside.try_again()
        self._tell_kept()
        waits = [one for one in (self.executor.run_timers(), self.aside.wait()) if one is not None]
        return min(waits, default=None)

    def _tell_kept(self) -> None:
        # The parent gives them their heartbeat. Never waiting for it: what it does not take now it is told later.
        if not self._kept_told and writable(self._control.fileno()):
            self.tell("kept", (*self._kept, *self.aside.entries))
            self._kept_told = True

    def _count(self, name: str, shown: str) -> None:
        number = self._task_numbers.get(shown)
        if number is None:
            # What they are shown as may be as many as messages: the table keeps room for the names of tasks.
            number = self._number(shown if len(self._task_numbers) < COUNTED // 2 else name)
        self.slot.count(number)

    def _number(self, name: str) -> int:
        number = self._task_numbers.get(name)
        if number is None:
            number = self._task_numbers[name] = min(len(self._task_numbers), COUNTED - 1)
            self._untold_names.append(name)
            self._tell_names()
        return number

    def _tell_names(self) -> None:
        # Never waiting: a parent that is busy or stopped must not hold up its children.
        if self._untold_names and writable(self._control.fileno()):
            self.tell("tasks", {self._task_numbers[name]: name for name in self._untold_names})
            self._untold_names.clear()

    def _confirmed(self) -> None:
        self.slot.settled(self._finished)

    def _worn_out(self) -> bool:
        most = self._options.max_tasks
        return self._outgrown or (most is not None and self._ran >= most)

    def _is_unfit(self) -> bool:
        """Return whether a task has left this process so that none can run here; says so."""
        if self.fitness.reason and not self.exitcode:
            self.exitcode = 1
            logger.error(
                "Child process %s is not fit for more tasks: %s. It ends, and another one takes its place.",
                self.consumer,
                self.fitness.reason,
            )
        return bool(self.fitness.reason)

    def _too_large(self) -> bool:
        """Return whether the process is over ``--max-memory-per-child`` now."""
        limit = self._options.max_memory
        if limit and (used := mem_rss()) > limit:
            logger.warning("child process exiting after exceeding memory limit (%dKiB / %dKiB)", used, limit)
            self._outgrown = True
            if writable(self._control.fileno()):
                self.tell("outgrown")
        return self._outgrown

    def _leave(self) -> None:
        if self._events is not None:
            self._events.close()
        self.executor.settle_later()
        self.settler.flush(assisted=self.slot.restricted())
        self.aside.try_again(at_once=True)
        self._tell_names()
        broker = self.settler.broker
        broker.client.hasten(LEAVING)
        if self.settler.gave_up:
            # What this child could not tell Redis stands in its slot: the parent does it, if it lives on.
            self.exitcode = 1
            self.reader.close()
            broker.client.close()
            return
        self.slot.clear()
        known = list(self.slot.streams)

        if known:
            queues = sorted({ref.queue for ref in known})
            self.settler.insist(lambda: self.settler.put_all_back(known), "put back", "what was not started")
            if not self.settler.gave_up:  # the parent forgets it, too
                self.settler.insist(
                    lambda: forget_consumer(broker, queues, self.consumer), "leave", "the consumer group"
                )
        self.reader.close()
        broker.client.close()


class _Workloop:
    """Stands in for billiard's Worker, so that the loop runs inside ``Worker.workloop``.

    Sentry and others wrap that function to flush what they collected when a child ends.
    """

    maxtasks = 1
    max_memory_per_child = 0
    synqW_fd = inqW_fd = -1  # noqa: N815  (billiard's names)
    wait_for_syn = None
    on_ready_counter = None

    class outq:  # noqa: N801  (billiard's name)
        @staticmethod
        def put(message: Any) -> None:
            """Nobody waits for results here."""

    def __init__(self, loop: Callable[[], int]) -> None:
        self._loop = loop
        self._given = False

    def wait_for_job(self) -> Any:
        if self._given:
            raise SystemExit(0)
        self._given = True
        return TASK, (0, 0, self._loop, (), {})

    @staticmethod
    def prepare_result(result: Any) -> Any:
        return result

    def _ensure_messages_consumed(self, completed: int) -> bool:
        return True


def child_main(
    app: Celery,
    hostname: str,
    consumer: str,
    index: int,
    table: SlotTable,
    control: Any,
    options: ChildOptions,
) -> None:
    """Run a child process; never returns."""
    exitcode = 1
    try:
        slot = table.slot(index)
        slot.attach(os.getpid())
        # Of a spawned child, whose app was pickled: kombu and the results know nothing of a Redis Cluster there.
        install(app)
        process_initializer(app, hostname)
        # Not "full", as in Celery's pool: SIGUSR2 stays Celery's debugger (CELERY_RDBSIG).
        reset_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        counts = None if options.counts is None else options.counts.of_child(index)
        loop = ChildLoop(app, hostname, consumer, slot, control, options=options, counts=counts)

        def on_soft_limit(signum: int, frame: Any) -> None:
            # Once its body has ended a task has no limits any more: what settles its message is not to be interrupted.
            if loop.running and slot.limited():
                raise SoftTimeLimitExceeded()

        def on_sigterm(signum: int, frame: Any) -> None:
            # systemd and others signal the whole group: only the parent may end a task, the rest means "stop soon".
            if slot.terminate_asked():
                end_now(signum, frame)
            of_task = slot.task_terminated()
            if of_task:
                end_now(signum, frame)
            elif of_task is None:
                loop.stop()

        def run() -> int:
            try:
                return loop.run()
            except Exception:  # noqa: BLE001
                # billiard would take it for the failure of a job, and nobody would hear of it.
                loop.exitcode = 1
                log_raised(logger.critical, "Child process %s failed", consumer)
                return 1

        end_now: Any = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGUSR1, on_soft_limit)
        signal.signal(signal.SIGTERM, on_sigterm)
        guard_forks()
        try:
            Worker.workloop(_Workloop(run), pid=os.getpid())
        finally:
            exitcode = loop.exitcode
    except SystemExit as exc:
        exitcode = exc.code if isinstance(exc.code, int) else (0 if exc.code is None else 1)
    except BaseException:
        # The boundary of the process: what ended it must be seen; the parent takes care of what it held.
        logger.critical("Child process %s failed", consumer, exc_info=True)
        exitcode = 1
    finally:
        try:
            process_destructor(os.getpid(), exitcode)
        finally:
            logging.shutdown()
            os._exit(exitcode & 0xFF)

"""Prefork: children are processes that read their queues themselves; the pool starts, watches and replaces them."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import billiard
from billiard import forking_enable, set_start_method
from billiard.connection import wait
from billiard.pool import EX_RECYCLE
from celery import signals
from celery.worker import state as worker_state

from .. import celery_private
from ..entries import StreamRef
from ..message import Message
from ..partitions import queue_of
from ..poll import readable
from ..presence import ConsumerPresence
from ..worker import revoked_stamps
from ..worker.child import ChildOptions, consumer_name
from ..worker.counts import CountsTable
from ..worker.dead_children import Casualty, Cause
from ..worker.events import INTERVAL
from ..worker.gates import all_held
from ..worker.hand_back import Restrictable
from ..worker.slots import SlotTable, Snapshot
from .base import StreamsPool, parted
from .process import Child, Ending, child_target, end_by_force, send_signal

__all__ = ("TaskPool",)

logger = logging.getLogger(__name__)

#: Seconds in which a child sends what it has collected by then, and for which no child is waited for after one that
#: did not: the broker of the events is silent, or a task keeps the interpreter for itself.
_MOMENT, _UNHEARD = 0.3, 5.0

#: Seconds: a child that ends sooner than this, without having been ready, delays its successor.
_YOUNG = 1.0


class TaskPool(StreamsPool):
    """Celery's prefork pool for streams."""

    enforced = frozenset({"soft_time_limit", "time_limit"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._children: dict[int, Child] = {}
        #: Every stream that was ever read, in the order of their numbers in the slots.
        self._known: dict[StreamRef, int] = {}
        self._wanted: list[StreamRef] = []
        self._table: SlotTable | None = None
        self._free: list[int] = []
        self._stopping = False
        self._count = 0
        self._early_deaths = 0
        self._start_at = 0.0
        self._unheard_until = 0.0
        self._shares: list[frozenset[str] | None] = []
        #: Options of tasks that remote control changed, for spawned children: name -> options.
        self._task_options: dict[str, Any] = {}

    def holders(self) -> Sequence[Restrictable]:
        """Return the children."""
        return list(self._children.values())

    def readers(self) -> Sequence[ConsumerPresence]:
        """Return the children, without those that leave."""
        now = time.monotonic()
        found = []
        for child in list(self._children.values()):
            if child.leaving:
                continue
            since = now - max(child.slot.read_at(), child.born)
            busy = child.snapshot().running is not None
            queues = None if child.queues is None else tuple(sorted(child.queues))
            found.append(ConsumerPresence(child.consumer, queues, None if busy else round(since, 1)))
        return found

    def living(self) -> int:
        """Return how many children there are."""
        return len(self._children)

    def last_read(self) -> float:
        """Return when a read of any child last succeeded (monotonic seconds)."""
        return max((child.slot.read_at() for child in list(self._children.values())), default=0.0)

    def child_options(self) -> ChildOptions:
        """Return what the command line means for the children."""
        counted = self.parent.all_counts
        return replace(super().child_options(), counts=None if counted is None else counted.table)

    # -- start

    def on_start(self) -> None:
        """Fork the children, then start the services' threads."""
        spawn = not self.forking_enable
        if spawn:
            os.environ["FORKED_BY_MULTIPROCESSING"] = "1"
            set_start_method("spawn", force=True)
        else:
            forking_enable(True)
        self._table = SlotTable(shared_by_path=spawn)
        if self.parent.all_counts is not None:
            self.parent.all_counts.table = CountsTable(shared_by_path=spawn)
        self._shares = _shares(self.streams.children, int(self.limit or 1))
        for _ in range(1 if self.limit is None else self.limit):
            self._start_child()
        self.start_services()

    def did_start_ok(self) -> bool:
        """Return whether no child died before it was ready."""
        return not self._early_deaths

    def _start_child(self) -> Child:
        assert self._table is not None
        index = self._free.pop(0) if self._free else len(self._children)
        while index in self._children:
            index += 1
        self._count += 1
        slot = self._table.slot(index)
        slot.attach(0)
        if self.parent.all_counts is not None and self.parent.all_counts.table is not None:
            self.parent.all_counts.table.watch(index)
        parent_end, child_end = billiard.Pipe(duplex=True)
        consumer = consumer_name(self.hostname, index + 1)
        process = billiard.get_context("fork" if self.forking_enable else "spawn").Process(
            target=child_target,
            args=(
                self.app,
                self.hostname,
                consumer,
                index,
                self._table,
                child_end,
                self.child_options(),
                [parent_end, *self._open_for_children()] if self.forking_enable else [],
            ),
        )
        process.name = process.name.replace("Process", "PoolWorker")
        process.index = index
        process.daemon = True
        signals.worker_before_create_process.send(sender=self)
        self._fork(process)
        child_end.close()
        child = Child(index, process, slot, consumer, parent_end, Ending(process), time.monotonic())
        if index < len(self._shares):
            child.queues = self._shares[index]
        self._children[index] = child
        if self._hub is not None:
            self._watch(child)
        if self._wanted:
            self._announce_to(child)
        if self.events_wanted:
            child.tell("events", True)
        for part in parted(list(worker_state.revoked)):
            child.tell("revoke", part)
        for pairs in parted(revoked_stamps.known()):
            child.tell("revoke_stamps", pairs)
        for name, task_options in self._task_options.items():
            child.tell("task_option", name, task_options)
        return child

    def _open_for_children(self) -> list[Any]:
        return [end for child in self._children.values() for end in (child.control, child.ending)]

    def _fork(self, process: Any) -> None:
        services = self.parent.services
        if services is None:
            with all_held():
                process.start()
            return
        with services.paused(), all_held(), warnings.catch_warnings():
            # The threads are between two rounds and hold nothing: see Services.paused, and gates.
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            process.start()

    # -- what the children are told

    def announce(self, streams: Sequence[StreamRef]) -> None:
        """Tell all children what to read."""
        assert self._table is not None
        before, self._wanted = self._wanted, list(streams)
        told = set(before)
        added = [ref for ref in streams if ref not in told]
        # With thousands of queues a new one must not cost what all of them cost.
        more = bool(before and added) and not self.streams.children and len(told) + len(added) == len(streams)
        for ref in added if more else streams:
            for each in (ref, ref.at_front()):
                self._known.setdefault(each, len(self._known))
        self._table.streams[:] = self._known
        for child in list(self._children.values()):
            if more:
                child.tell("consume_more", self._news_for(child), [self._known[ref] for ref in added])
            else:
                self._announce_to(child)

    def give_back(self) -> None:
        """Put back at once what the children fetched and did not start."""
        self.parent.give_back()

    def _announce_to(self, child: Child) -> None:
        child.tell("consume", self._news_for(child), [self._known[ref] for ref in self._wanted_by(child)])

    def _news_for(self, child: Child) -> list[StreamRef]:
        """Return the streams and fronts that the child cannot tell by their numbers yet."""
        new = list(islice(self._known, child.knows, None))
        child.knows = len(self._known)
        return new

    def _wanted_by(self, child: Child) -> list[StreamRef]:
        """Return what ``child`` reads: with ``-Q name:count`` exactly so many children read a queue with a count.

        A queue without a count, perhaps one that remote control added, is read by the children that have no queue of
        their own, and by all when there are none of those.
        """
        counted = self.streams.children
        if child.queues is not None:
            others = None not in self._shares
            own = child.queues
            return [
                ref
                for ref, queue in ((ref, queue_of(ref.queue)) for ref in self._wanted)
                if queue in own or (others and queue not in counted)
            ]
        uncounted = [ref for ref in self._wanted if queue_of(ref.queue) not in counted]
        return uncounted or self._wanted

    def forward(self, *message: Any) -> None:
        """Tell all children something that remote control changed."""
        if message[0] == "task_option" and not self.forking_enable:
            # A forked child has the parent's tasks as they are by then; a spawned one imports them anew.
            self._task_options[message[1]] = message[2]
        for child in list(self._children.values()):
            child.tell(*message)

    # -- what the children say, and their end

    def register_with_event_loop(self, loop: Any) -> None:
        """Hear of children through Celery's event loop."""
        super().register_with_event_loop(loop)
        for child in self._children.values():
            self._watch(child)

    def _watch(self, child: Child) -> None:
        child.watched = (child.ending.fileno(), child.control.fileno())
        self._hub.add_reader(child.watched[0], self.mailbox.guarded, self._reap, child)
        self._hub.add_reader(child.watched[1], self.mailbox.guarded, self._hear, child)

    def _unwatch(self, child: Child) -> None:
        # Before the descriptors are closed: their numbers are given to the next child at once.
        for descriptor in child.watched:
            self._hub.remove(descriptor)
        child.watched = ()

    def _hear(self, child: Child) -> None:
        try:
            while child.control.poll(0):
                kind, *args = child.control.recv()
                if kind == "ready":
                    child.ready = True
                    self._early_deaths = 0
                elif kind == "kept":
                    child.kept = args[0]
                elif kind == "outgrown":
                    child.outgrown = True
                elif kind == "untold":
                    self.parent.untold.report(args[0])
                elif kind == "denied":
                    self.parent.look_at_access()
                elif kind == "tasks":
                    child.task_names.update(args[0])
        except (EOFError, OSError):
            # A child whose pipe was found closed once is heard again when it is reaped.
            if len(child.watched) > 1:
                self._hub.remove(child.watched[1])
                child.watched = child.watched[:1]

    def chores(self) -> None:
        """Notice children whose end nobody told of, and start successors."""
        super().chores()
        for child in list(self._children.values()):
            self.mailbox.chore(partial(self._look_at, child), f"Checking child {child.consumer}")
        self.mailbox.chore(self.maintain_pool)

    def _look_at(self, child: Child) -> None:
        if not child.process.is_alive():
            self._reap(child)
        else:
            child.send()

    def _reap(self, child: Child) -> None:
        if self._children.get(child.index) is not child:
            return
        self._hear(child)
        self._unwatch(child)
        child.process.join()
        exitcode = child.process.exitcode
        self.parent.counted(child.new_starts())
        shot = child.snapshot()
        kept = child.slot.kept_message() if shot.acked_early else None
        child.slot.clear()
        del self._children[child.index]
        self._free.append(child.index)
        child.control.close()
        child.ending.close()
        request = self.parent.requests.known.get(shot.running) if shot.running is not None else None
        cause = child.cause
        if request is not None and cause == Cause():
            cause = Cause(
                revoked=celery_private.was_revoked(request),
                cancelled=celery_private.was_cancelled(request),
                task=request.task.name,
            )
        if cause == Cause() and worker_state.should_terminate:
            cause = Cause(cancelled=True)
        if exitcode not in _CLEAN and shot.running is None and not self._stopping:
            logger.error("Child process %s (pid %s) exited: %s", child.consumer, child.process.pid, exitcode)
        self.parent.dead.take(
            Casualty(
                child.consumer,
                shot,
                exitcode,
                cause,
                kept=kept,
                streams=tuple(self._known),
                untold=child.slot.has_unsent_events(),
                ran_for=None if shot.running is None else time.monotonic() - shot.started_at,
                clean=exitcode in _CLEAN and shot.running is None and not (shot.finished or shot.waiting or shot.kept),
            )
        )
        self.parent.child_ended(self._why(child, cause, exitcode))
        if not child.ready and time.monotonic() - child.born < _YOUNG:
            self._early_deaths += 1
            self._start_at = time.monotonic() + min(2.0**self._early_deaths / 4, 30.0)
        if not child.leaving:
            self.maintain_pool()

    def _why(self, child: Child, cause: Cause, exitcode: int | None) -> str:
        """Return why a child ended, as the metrics have it."""
        if cause.hard_limit is not None:
            return "hard_limit"
        if cause.revoked:
            return "revoked"
        if exitcode == EX_RECYCLE:
            return "max_memory" if child.outgrown else "max_tasks"
        if child.leaving:
            return "autoscale"
        return "shutdown" if self._stopping or cause.cancelled or exitcode == 0 else "crash"

    def wait_for_work(self, timeout: float) -> None:
        """Wait until something was posted or a child said something or ended."""
        said = {child.control.fileno(): child for child in self._children.values()}
        ended = [child.ending.fileno() for child in said.values()]
        try:
            found = readable([self.mailbox.descriptor, *ended, *said], timeout=timeout)
        except (OSError, ValueError) as exc:  # the main thread ended a child meanwhile
            logger.debug("A child ended while the parent waited for it: %s", exc)
            return
        for descriptor in found:
            if descriptor in said:
                self._hear(said[descriptor])

    def maintain_pool(self, *args: Any, **kwargs: Any) -> None:
        """Start children until there are as many as there should be."""
        if self._stopping or time.monotonic() < self._start_at:
            return
        while len(self._children) < (self.limit or 0):
            self._start_child()

    # -- limits and termination

    def on_soft(self, holder: Restrictable, shot: Snapshot) -> None:
        """Raise SoftTimeLimitExceeded in the child."""
        assert isinstance(holder, Child)
        # First, for a task that ends at its limit is acknowledged a moment later, and nobody could tell what it was.
        report = self.report_of_soft(holder, shot)
        if _same(holder.snapshot(), shot):
            send_signal(shot.pid, signal.SIGUSR1)
            self.mailbox.post(report)

    def on_hard(self, exceeded: Sequence[tuple[Restrictable, Snapshot]]) -> None:
        """Kill the children; the parent stores the failures when they are gone."""
        children = []
        for holder, shot in exceeded:
            assert isinstance(holder, Child)
            assert shot.running is not None
            if _same(holder.snapshot(), shot):
                holder.cause = Cause(hard_limit=shot.hard, entry=shot.running)
                children.append(holder)
        end_by_force(children)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the task that the child with this process id ran when it was looked at (``revoke(terminate=True)``)."""
        entry = self.parent.requests.at_work.get(pid)
        child = next((child for child in self._children.values() if child.process.pid == pid), None)
        if child is not None:
            self._hear_out(child)
        if child is None or entry is None or not child.slot.terminate_task(entry):
            logger.info("The task to terminate in process %s has already ended; the process was left alone.", pid)
            return
        request = self.parent.requests.known.get(entry)
        if request is not None and child.slot.has_unsent_events():
            # Before Celery's Request announces it as revoked. The child had its time, and sends nothing any more.
            self.parent.lost.tell_start(request)
        send_signal(pid, signal or _SIGTERM)

    def _hear_out(self, child: Child) -> None:
        """Wait until a child has sent the events that it collected: they would come again, or after its task's end.

        For as long as it collects them, and a moment; not when the broker let a child wait for longer just now.
        """
        ends = time.monotonic() + INTERVAL + _MOMENT
        while child.slot.has_unsent_events() and time.monotonic() >= self._unheard_until:
            if time.monotonic() >= ends:
                self._unheard_until = time.monotonic() + _UNHEARD
                return
            time.sleep(0.01)

    def count_starts(self) -> None:
        """Add what the children started to Celery's totals."""
        for child in list(self._children.values()):
            self.parent.counted(child.new_starts())

    # -- size

    def grow(self, n: int = 1) -> None:
        """Start ``n`` more children."""
        self.limit = (self.limit or 0) + n
        self.maintain_pool()

    def shrink(self, n: int = 1) -> None:
        """Stop ``n`` children, idle ones first.

        Raises:
            ValueError: all children are busy (Celery's autoscaler then tries again later).
        """
        idle = [child for child in self._children.values() if child.snapshot().running is None and not child.leaving]
        if not idle:
            raise ValueError("Can't shrink pool. All processes busy!")
        for child in sorted(idle, key=lambda item: -item.index)[:n]:
            child.leaving = True
            self.limit -= 1
            child.tell("stop")

    def restart(self) -> None:
        """Replace all children, each when its task is done."""
        for child in list(self._children.values()):
            child.tell("stop")

    # -- stop

    def on_close(self) -> None:
        """Tell the children to stop, while Celery closes what it has open itself."""
        super().on_close()
        self._tell_to_stop()

    def _tell_to_stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            for child in list(self._children.values()):
                child.tell("stop")

    def on_stop(self) -> None:
        """Let running tasks finish (warm), or what is left of them end (cold); then stop the services."""
        self._tell_to_stop()  # Celery's handler for a cold shutdown stops a pool that was not closed
        self._end(self._wait_for_end)

    def on_terminate(self) -> None:
        """End all children now; what they ran goes back."""
        self._stopping = True
        self._end(self._terminate_all)

    def _end(self, end_crew: Callable[[], None]) -> None:
        self.parent.stop(end_crew=end_crew)
        if self._table is not None:
            self._table.close()

    def _wait_for_end(self) -> None:
        while self._children and not worker_state.should_terminate:
            self._wait_for_children(0.1)
        if self._children:
            self._terminate_all()

    def _terminate_all(self) -> None:
        children = list(self._children.values())
        for child in children:
            if child.cause == Cause():
                child.cause = Cause(cancelled=True)
            child.terminate()
        deadline = time.monotonic() + 1.0
        while self._children and time.monotonic() < deadline:
            self._wait_for_children(0.05)
        for child in list(self._children.values()):
            send_signal(child.process.pid, signal.SIGKILL)
        while self._children:
            self._wait_for_children(0.1)

    def _wait_for_children(self, timeout: float) -> None:
        wait([child.ending.fileno() for child in self._children.values()], timeout=timeout)
        for child in list(self._children.values()):
            if not child.process.is_alive():
                self.mailbox.guarded(self._reap, child)
            else:
                child.send()
        self.mailbox.drain()

    # -- what is asked

    def kept_message(self, holder: Restrictable) -> Message | None:
        """Return the message of a task that was acknowledged before it ran."""
        return holder.slot.kept_message() if isinstance(holder, Child) else None

    @property
    def num_processes(self) -> int:
        """Children that there should be."""
        return int(self.limit or 0)

    def _get_info(self) -> dict[str, Any]:
        info = super()._get_info()
        options = self.child_options()
        info.update(
            {
                "max-concurrency": self.limit,
                "processes": [child.process.pid for child in self._children.values()],
                "max-tasks-per-child": options.max_tasks or "N/A",
                "put-guarded-by-semaphore": False,
                "timeouts": (options.soft_limit or 0, options.hard_limit or 0),
                "writes": "N/A",
            }
        )
        return dict(info)


_SIGTERM = signal.SIGTERM

#: Exit codes of children that left by themselves: stopped, or recycled (billiard's EX_RECYCLE).
_CLEAN = (0, EX_RECYCLE)


def _same(now: Snapshot, then: Snapshot) -> bool:
    """Return whether the same task runs, and still has its limits: it has none while its message is settled."""
    return (now.pid, now.batch, now.running, now.soft, now.hard) == (
        then.pid, then.batch, then.running, then.soft, then.hard
    )  # fmt: skip


def _shares(children: Any, limit: int) -> list[frozenset[str] | None]:
    """Return for each child the queues it reads: first those of ``-Q name:count``, then all."""
    shares: list[frozenset[str] | None] = []
    pairs: Iterable[tuple[str, int]] = (children or {}).items()
    for queue, count in pairs:
        shares += [frozenset((queue,))] * count
    return (shares + [None] * limit)[:limit] if shares else []

"""Backlog: what was read and no thread has started yet, and who waits for it: the threads, and their reader.

It owns the hand-over between one thread that reads and many that run, and decides when the reader reads, how much, and
how many threads are woken. A thread that ends a task takes the next one itself, under one lock and without waking
anybody:

1. The reader keeps about twenty milliseconds' worth of starts here, by how often tasks started lately; nothing when
   tasks are long, when there is nothing more to read, when one at a time was asked for, or while a message is in hand
   that killed its process before. What waits for longer all the same is handed back (``worker.hand_back``).
2. Acknowledgements that threads collected go along with its next read, ten milliseconds later at most. While it waits
   for messages they go at once.
3. Small tasks are left to few threads: each more of them would wait for the GIL. The reader looks every two
   milliseconds whether they get on, and wakes the others if they do not.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..entries import Delivery, Entry
from ..worker.collected import Collected
from ..worker.runner import Record
from ..worker.slots import MAX_BATCH, Snapshot

__all__ = ("Backlog", "Demand", "killed_before")

#: Seconds' worth of starts that are read ahead.
AHEAD = 0.020

#: Seconds that a collected acknowledgement waits for others; a crash re-runs at most what ended within this time.
ACK_DELAY = 0.010

#: Seconds of work that one thread is woken for, and between two looks whether it gets on.
_SHARE = 0.002

#: Seconds of a task, divided by those that run, under which more threads do not help.
_SMALL = 0.0001

#: Seconds over which the rate of starts is averaged, and between two measurements.
_MEMORY, _SPAN = 0.1, 0.005

#: Seconds after which the reader looks around, whatever it was told.
_LOOK = 1.0


class Demand(NamedTuple):
    """What the reader shall do now: acknowledge what is done, and read."""

    #: To read; 0 is nothing.
    entries: int
    #: Threads that wait: the read may wait for messages, too.
    idle: int


def killed_before(delivery: Delivery) -> bool:
    """Return whether an earlier delivery of the message ended with its process."""
    return delivery.message is not None and b'"crashes"' in delivery.message.history


class Backlog:
    """A holder as a thread's record is.

    Args:
        done: the acknowledgements of all threads.
        one_at_a_time: nothing is read ahead.
        trust: seconds after which what waits here may belong to another worker.
        wake: called, from a thread, when the reader waits for messages and something is to be acknowledged.
    """

    def __init__(
        self, consumer: str, done: Collected, *, one_at_a_time: bool, trust: float, wake: Callable[[], None]
    ) -> None:
        self.consumer = consumer
        self._done = done
        self._one_at_a_time = one_at_a_time
        self._trust = trust
        self._wake_reader = wake
        # Reentrant, as a record's: handlers of signals ask for snapshots in the thread that they interrupt.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._news = threading.Condition(self._lock)
        #: With the time at which each came (monotonic seconds).
        self._waiting: OrderedDict[Entry, tuple[Delivery, float]] = OrderedDict()
        #: Entries that were taken back and are not in their streams yet, with the number of the restriction.
        self._taken_back: dict[Entry, int] = {}
        self._restrictions = 0
        #: What is in hand and killed its process before.
        self._suspects: set[Entry] = set()
        #: Threads that wait, those of them that were woken, those that run, and those that shall end.
        self._idle = self._woken = self._running = self._ending = 0
        self._started = 0
        #: Seconds that a task took lately.
        self._mean = 0.0
        self._rate = 0.0
        self._measured_at = time.monotonic()
        self._measured = 0
        #: The last read brought less than was asked for.
        self._dry = False
        #: What the reader waits for: news, or messages.
        self._reader_waits = self._reader_reads = False
        #: It was told, or knows, that something is to be acknowledged.
        self._told = False

    # -- the threads

    def take(self, record: Record, *, ended: Delivery | None) -> Delivery | None:
        """Wait for the next delivery; None means that the thread shall end.

        It is in ``record`` before it is out of here, so that at every moment somebody is known to have it.

        Args:
            ended: what the thread ran last.
        """
        with self._lock:
            if ended is not None:
                self._learn(record, ended)
            self._tell_reader()
            while True:
                if self._ending:
                    self._ending -= 1
                    return None
                if self._waiting:
                    entry, (delivery, came_at) = self._waiting.popitem(last=False)
                    if time.monotonic() - came_at > self._trust:
                        # This process stood still: another worker may run it. What is still ours goes back.
                        self._taken_back[entry] = self._restrictions
                        continue
                    record.start(delivery)
                    self._started += 1
                    self._running += 1
                    if self._reader_waits and len(self._waiting) <= self._target() // 4:
                        self._news.notify()
                    return delivery
                self._idle += 1
                if self._reader_waits:
                    self._news.notify()
                self._work.wait()
                self._idle -= 1
                self._woken -= 1

    def _learn(self, record: Record, ended: Delivery) -> None:
        self._running -= 1
        self._mean += (record.took() - self._mean) / 16
        if self._suspects:
            self._suspects.discard(ended.entry)

    def _tell_reader(self) -> None:
        if self._done.entries:
            if self._reader_reads:
                self._reader_reads = False
                self._wake_reader()
            elif self._reader_waits and not self._told:
                self._told = True
                self._news.notify()

    def end(self, count: int = 1) -> None:
        """Let so many threads end, when they are idle."""
        with self._lock:
            self._ending += count
            self._rouse(count)

    def _rouse(self, count: int) -> None:
        count = min(count, self._idle - self._woken)
        if count > 0:
            self._woken += count
            self._work.notify(count)

    def _helpers(self) -> int:
        """Return how many more threads what waits is worth."""
        each = self._mean / max(self._running, 1)
        if each >= _SMALL:
            return len(self._waiting)
        return max(math.ceil(len(self._waiting) * each / _SHARE) - self._woken - self._running, 0)

    # -- the reader

    def put(self, deliveries: Iterable[Delivery]) -> None:
        """Give deliveries to the threads."""
        now = time.monotonic()
        with self._lock:
            for delivery in deliveries:
                self._waiting[delivery.entry] = (delivery, now)
                if killed_before(delivery):
                    self._suspects.add(delivery.entry)
            alone = not self._running and not self._woken
            self._rouse(max(self._helpers(), int(alone)))

    def room(self) -> int:
        """Return how many threads could start something at once."""
        with self._lock:
            return max(self._idle - self._ending - len(self._waiting), 0)

    def found(self, *, less: bool) -> None:
        """Note what a read brought: less than was asked for, or not."""
        with self._lock:
            self._dry = less

    def demand(self, *, reads: Callable[[], bool], stopped: Callable[[], bool]) -> Demand:
        """Wait until the reader has something to do, for a second at most.

        Args:
            reads: asked whether there are streams to read.
            stopped: asked whether to wait no longer.
        """
        with self._lock:
            deadline = time.monotonic() + _LOOK
            while not stopped():
                now = time.monotonic()
                self._measure(now)
                target = self._target() if reads() else 0
                have = len(self._waiting)
                overdue = bool(self._done.entries) and now - self._done.since >= ACK_DELAY
                if overdue or (have <= target // 4 and target):
                    return Demand(max(target - have, 0), max(self._idle - self._ending, 0))
                if now >= deadline:
                    break
                self._await_news(now, deadline)
            return Demand(0, 0)

    def _await_news(self, now: float, deadline: float) -> None:
        until = deadline
        if self._done.entries:
            until = min(until, self._done.since + ACK_DELAY)
        helped = self._waiting and self._idle > self._woken
        if helped:
            until = min(until, now + _SHARE)
        seen = self._started
        self._told = bool(self._done.entries)
        self._reader_waits = True
        self._news.wait(max(until - now, 0.0))
        self._reader_waits = False
        if helped and time.monotonic() - now >= _SHARE:
            self._rouse(len(self._waiting) if self._started == seen else self._helpers())

    def spread(self) -> None:
        """Wake threads for whatever waits; for whoever sees that the reader is held up."""
        with self._lock:
            self._rouse(len(self._waiting))

    def reading(self) -> bool:
        """Note that the reader is about to wait for messages; returns whether it has to acknowledge something first."""
        with self._lock:
            self._rouse(len(self._waiting))  # it does not look meanwhile whether the others get on
            self._reader_reads = not self._done.entries
            return not self._reader_reads

    def not_reading(self) -> None:
        """Note that it waits no longer."""
        with self._lock:
            self._reader_reads = False

    def poke(self) -> None:
        """Have the reader look around."""
        with self._lock:
            self._news.notify()

    def _measure(self, now: float) -> None:
        span = now - self._measured_at
        if span >= _SPAN:
            rate = (self._started - self._measured) / span
            self._rate += (rate - self._rate) * (1.0 - math.exp(-span / _MEMORY))
            self._measured_at, self._measured = now, self._started

    def _target(self) -> int:
        """Return how many shall wait here at most."""
        ready = max(self._idle - self._ending, 0)
        careful = self._one_at_a_time or self._dry or self._suspects
        return min(max(ready, 0 if careful else int(self._rate * AHEAD)), MAX_BATCH)

    # -- a holder

    def snapshot(self) -> Snapshot:
        """Return what waits for a thread, and what waits for its acknowledgement."""
        with self._lock:
            return self._shot(finished=(*self._done.entries, *self._done.forbidden))

    def restrict(self) -> Snapshot:
        """Take back everything that waits; nothing is read ahead until tasks start again."""
        with self._lock:
            self._restrictions += 1
            self._taken_back.update(dict.fromkeys(self._waiting, self._restrictions))
            self._suspects.difference_update(self._waiting)
            self._waiting.clear()
            self._rate, self._measured = 0.0, self._started
            # What is done is acknowledged by the reader, which nothing holds up.
            return self._shot(finished=())

    def returned(self, batch: int) -> None:
        """Forget what was taken back."""
        with self._lock:
            self._taken_back = {entry: number for entry, number in self._taken_back.items() if number > batch}

    def mark_lost(self, batch: int) -> None:
        """An entry that was not started will be found lost when it is settled."""

    def _shot(self, *, finished: tuple[Entry, ...]) -> Snapshot:
        since = next((came_at for _, came_at in self._waiting.values()), None)
        return Snapshot(
            pid=os.getpid(),
            batch=self._restrictions,
            finished=finished,
            running=None,
            waiting=(*self._taken_back, *self._waiting),
            started_at=0.0,
            soft=None,
            hard=None,
            acked_early=False,
            exited=False,
            done=0,
            waiting_since=0.0 if self._taken_back else since,
        )

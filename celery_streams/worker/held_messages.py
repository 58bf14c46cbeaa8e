"""HeldMessages: releases messages that were held back when their time comes, and gives back places that nobody holds.

1. A thread releases what has its time, and sleeps until the next one has. Those look that have a turn with the delayed
   messages of a queue, the deputy a little later; whoever puts something there that comes earlier wakes them.
2. Every few seconds places are compared with the entries that they belong to: XDEL, XTRIM and XACK by hand, FLUSHALL,
   or a group made anew leave no script that would free them; nor does whoever settles a task that is limited no more.
   The places of entries that were acknowledged before their tasks ran are compared with what this worker runs, and with
   who beats (``silent_workers``).
3. Now and then locks of unique tasks whose messages are gone are freed: nobody believes them, but they take memory.
4. Limits that were set at run time are read then, and told to the crew.

Places that are given back when a task ends release the next message by themselves: nothing here is on that way. While
no task that the worker knows is limited, and nothing is held, it only looks for limits and held messages now and then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..app import Streams
from ..broker import StreamBroker
from ..celery_private import registered_task
from ..entries import Entry
from ..exceptions import BrokerError, BrokerFull, BrokerUnavailable, ConfigurationError
from ..lanes import Released, has_places, held_lanes, holds_any, limits_in_redis, place_of, reconcile, release
from ..limits import limits_of
from ..locks import sweep
from ..partitions import one_of
from .silent_workers import SilentWorkers
from .task_options import limits_in_force

__all__ = ("HeldMessages",)

logger = logging.getLogger(__name__)

#: Seconds between two looks for messages that others hold back, of tasks that are not limited here.
_SELDOM = 10.0

#: Seconds between two looks of a deputy at least: the leader will have been there.
_DEPUTY = 1.0

#: Milliseconds after which a queue is looked at again of which Redis refuses to release anything.
_REFUSED_MS = 1_000


@contextmanager
def _noted(refusals: list[BrokerError]) -> Iterator[None]:
    """Add what Redis says when it refuses what concerns one queue to ``refusals``: the others shall not wait for it."""
    try:
        yield
    except (BrokerUnavailable, BrokerFull):
        raise
    except BrokerError as exc:
        refusals.append(exc)


class HeldMessages:
    """Looks after what is held on the queues that ``queues`` names at each look.

    Args:
        turns: returns the queues in which this worker has a turn, and by how many seconds it looks after the leader.
        on_limits: called when limits were set, or dropped, at run time.
        worker: the name of this worker in ``presence``.
        runs: returns the entries that it acknowledged before their tasks ran, and whose tasks run now.
        quiet: returns a number while all streams are empty, another one when anything came meanwhile; None while it is
            not known. In a quiet nothing is held back either.
    """

    def __init__(
        self,
        streams: Streams,
        broker: StreamBroker,
        queues: Callable[[], Sequence[str]],
        *,
        turns: Callable[[], Mapping[str, float]],
        on_limits: Callable[[dict[str, dict[str, Any]]], None],
        worker: str = "",
        runs: Callable[[], Iterable[Entry]] = lambda: (),
        quiet: Callable[[], int | None] = lambda: None,
    ) -> None:
        #: Messages released so far.
        self.released = 0
        self._streams = streams
        self._broker = broker
        self._queues = queues
        self._turns = turns
        self._on_limits = on_limits
        self._quiet = quiet
        self._worker = worker
        self._runs = runs
        self._silent = SilentWorkers(broker, streams.conf.visibility_timeout)
        #: The quiet in which the last survey found nothing.
        self._surveyed: int | None = None
        self._told: dict[str, dict[str, Any]] = {}
        #: Limits set at run time that mean nothing, by task.
        self._odd: dict[str, dict[str, Any]] = {}
        #: Tasks of which messages were held when nobody knew why.
        self._found: set[str] = set()
        self._changed = False
        #: Queue -> what Redis said when it refused to release what that holds back.
        self._refused: dict[str, str] = {}
        #: Where the next sweep of a queue's locks begins.
        self._cursors: dict[str, int] = {}
        self._next_survey = 0.0
        self._woken = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celery-streams-held", daemon=True)

    # -- every few seconds

    def run_once(self) -> None:
        """Read the limits that were set at run time, and give back the places of entries that are gone.

        Raises:
            BrokerError: Redis is away, or refused what concerns one queue; the others were looked after.
        """
        refusals: list[BrokerError] = []
        with _noted(refusals):
            found = self._limits_in_redis()
            if found != self._streams.limits_in_redis:
                self._streams.limits_in_redis = found
                self._on_limits(found)
        queues = list(self._queues())
        now = time.monotonic()
        quiet = self._quiet()
        surveys = now >= self._next_survey and (quiet is None or quiet != self._surveyed)
        try:
            if surveys:
                self._survey(queues, quiet, refusals)
                self._next_survey = now + _SELDOM
        finally:
            self.refresh()
        if (self._told or surveys) and has_places(self._broker, queues):
            for queue in queues:
                with _noted(refusals):
                    reconcile(self._broker, queue, self._told, ended=self._ended)
        if refusals:
            raise refusals[0]

    def _survey(self, queues: Sequence[str], quiet: int | None, refusals: list[BrokerError]) -> None:
        holds = holds_any(self._broker, queues)
        self._surveyed = None if holds else quiet
        if holds:
            for queue in one_of(queues):
                with _noted(refusals):
                    self._found |= {lane.task for lane in held_lanes(self._broker, queue)}
            self._sweep(refusals)

    def _ended(self, early: Mapping[str, str]) -> list[str]:
        """Return the places whose task runs no longer, of those whose entries were acknowledged before."""
        others = {worker for worker in early.values() if worker != self._worker}
        silent = self._silent.among(others) if others else set()
        # Asked after the places were read: what began since has none among these.
        here = {place_of(self._broker, entry) for entry in self._runs()}
        return [
            place
            for place, worker in early.items()
            if worker in silent or (worker == self._worker and place not in here)
        ]

    def _limits_in_redis(self) -> dict[str, dict[str, Any]]:
        """Return the limits that were set at run time, without those that mean nothing to a task that is known here.

        One of them must not keep all others from being followed.
        """
        found = limits_in_redis(self._broker)
        odd: dict[str, dict[str, Any]] = {}
        for name in list(found):
            task = registered_task(self._streams.app, name)
            try:
                if task is not None:
                    limits_of(task, self._streams.conf.limits.get(name, {}), found[name])
            except ConfigurationError as exc:
                odd[name] = found.pop(name)
                if odd[name] != self._odd.get(name):
                    logger.warning("Limits set at run time are ignored: %s", exc)
        self._odd = odd
        return found

    def _sweep(self, refusals: list[BrokerError]) -> None:
        """Free locks of unique tasks that nobody believes any more, of the queues in which this worker has a turn."""
        for queue in self._turns():
            with _noted(refusals):
                self._cursors[queue], freed = sweep(self._broker, queue, self._cursors.get(queue, 0))
                if freed:
                    logger.debug("Freed %d locks of messages that are gone from queue %s.", freed, queue)

    @property
    def told(self) -> Mapping[str, Any]:
        """The numbers of the tasks that are limited, or were; see ``limits.Limits.told``."""
        return self._told

    @property
    def watches(self) -> bool:
        """Whether messages may be held: some task is limited, or some were found."""
        return bool(self._told or self._found)

    def refresh(self) -> None:
        """Have limits that were changed in this process count for what is held already; without a round trip."""
        told = self._limits()
        if told != self._told:
            self._told, self._changed = told, True
            self.poke()

    def _limits(self) -> dict[str, dict[str, Any]]:
        """Return the numbers of all tasks that are limited, and of those that were: messages of them may be held."""
        told: dict[str, dict[str, Any]] = {}
        for name, task in list(self._streams.app.tasks.items()):
            try:
                limits = limits_in_force(task, self._streams)
            except ConfigurationError as exc:
                logger.debug("Limits of task %s are not in force: %s", name, exc)
                continue
            if limits or name in self._told or name in self._found:
                told[name] = limits.told()
        return told

    # -- when the time has come

    def look(self) -> float | None:
        """Release what has its time; returns seconds until the next look, None when nothing waits for a time.

        Raises:
            BrokerError: Redis is away.
        """
        turns = self._turns()
        if not (self._told or self._found) or not turns:
            return None
        changed, self._changed = self._changed, False
        while True:
            try:
                found = self._release(list(turns), everything=changed)
            except BrokerError:
                self._changed = self._changed or changed
                raise
            changed = False
            self.released += found.count
            if found.next_ms is None:
                return None
            if found.next_ms > 0:
                least = _DEPUTY if min(turns.values()) else 0.0
                return max(found.next_ms / 1000, least)

    def _release(self, queues: list[str], *, everything: bool) -> Released:
        """Release from all queues in one step; where Redis refuses one of them, from each by itself, until it does not.

        Raises:
            BrokerUnavailable, BrokerFull: it is away, or takes nothing.
        """
        if not self._refused:
            try:
                return release(self._broker, queues, self._told, everything=everything)
            except (BrokerUnavailable, BrokerFull):
                raise
            except BrokerError as exc:
                logger.debug("Redis refused to release what a queue holds back; asking for each by itself: %s", exc)
        count, waits = 0, []
        before, self._refused = self._refused, {}
        for queue in queues:
            try:
                found = release(self._broker, [queue], self._told, everything=everything or queue in before)
            except (BrokerUnavailable, BrokerFull):
                self._refused = before
                raise
            except BrokerError as exc:
                self._refused[queue] = str(exc)
                waits.append(_REFUSED_MS)
                if before.get(queue) != str(exc):
                    logger.error("What queue %s holds back waits until Redis permits to release it: %s", queue, exc)
            else:
                count += found.count
                waits += [] if found.next_ms is None else [found.next_ms]
        return Released(count, min(waits, default=None))

    def poke(self) -> None:
        """End the sleep: something may have its time earlier."""
        self._woken.set()

    def start(self) -> None:
        """Run in a thread until :meth:`stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop.set()
        self.poke()

    def _run(self) -> None:
        failing = False
        while not self._stop.is_set():
            try:
                sleep = self.look()
                failing = False
            except BrokerError as exc:
                if not failing:
                    logger.error("Messages that are held back wait until Redis answers: %s", exc)
                failing, sleep = True, 1.0
            except Exception:
                # The boundary of the thread: without it what is held would stay so.
                logger.exception("Releasing held messages failed; trying again in a second.")
                sleep = 1.0
            self._woken.wait(timeout=_SELDOM if sleep is None else min(sleep, _SELDOM))
            self._woken.clear()

"""TimeLimits and Handback: what the parent does about tasks that take long, from what the slots say.

1. A soft limit sends SIGUSR1 to the child once; a hard limit asks the pool to kill it, once.
2. When a task turns out long, what its child fetched behind it goes back to the stream with no delivery counted, and
   what it had finished is acknowledged in its place: nobody waits behind a long task.

Called by the services thread of the parent about ten times a second; while no child is busy it costs no Redis command.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from ..broker import StreamBroker
from .heartbeat import Holder
from .slots import Snapshot

__all__ = ("Handback", "Restrictable", "TimeLimits", "without_effect")

logger = logging.getLogger(__name__)

#: Seconds that a task may run before what was fetched behind it goes back.
HOLD = 0.05


class Restrictable(Holder, Protocol):
    """A holder whose un-started entries can be taken back."""

    def restrict(self) -> Snapshot:
        """Let it start nothing more of its batch; returns what it holds."""

    def returned(self, batch: int) -> None:
        """Note that what was restricted of ``batch`` is back in its streams."""


def without_effect(
    tasks: Iterable[Any], *, soft: float | None, hard: float | None, enforced: Collection[str]
) -> list[str]:
    """Name the time limits of the worker and of its tasks that a pool does not enforce, for a warning at its start.

    Args:
        soft: the limits of the worker, in seconds.
        hard: the same.
        enforced: options of a task that the pool heeds.
    """
    kinds = [kind for kind in ("soft_time_limit", "time_limit") if kind not in enforced]
    given = {"soft_time_limit": soft, "time_limit": hard}
    found = [f"task_{kind}" for kind in kinds if given[kind]]
    for task in sorted(tasks, key=lambda task: str(task.name)):
        found += [f"{kind} of {task.name}" for kind in kinds if getattr(task, kind, None)]
    return found


class TimeLimits:
    """Watches the running tasks of ``holders``."""

    def __init__(
        self,
        holders: Callable[[], Iterable[Holder]],
        *,
        on_soft: Callable[[Holder, Snapshot], None],
        on_hard: Callable[[Holder, Snapshot], None],
    ) -> None:
        self._holders = holders
        self._on_soft = on_soft
        self._on_hard = on_hard
        #: By consumer, which green threads share, and pid.
        self._told: dict[tuple[str, int], tuple[bytes, bool]] = {}

    def run_once(self, *, now: float | None = None) -> float | None:
        """Enforce what is due; returns seconds until the next limit, None when there is none."""
        now = time.monotonic() if now is None else now
        nearest: float | None = None
        limited: set[tuple[str, int]] = set()
        for holder in self._holders():
            shot = holder.snapshot()
            key = (holder.consumer, shot.pid)
            if shot.running is None or not (shot.soft or shot.hard):
                continue
            limited.add(key)
            entry_id, hard_told = self._told.get(key, (b"", False))
            same = entry_id == shot.running.entry_id
            took = now - shot.started_at
            if shot.hard and took >= shot.hard:
                if not (same and hard_told):
                    self._told[key] = (shot.running.entry_id, True)
                    self._on_hard(holder, shot)
                continue
            if shot.soft and took >= shot.soft:
                if not same:
                    self._told[key] = (shot.running.entry_id, False)
                    self._on_soft(holder, shot)
                left = None if not shot.hard else shot.hard - took
            else:
                left = min(limit - took for limit in (shot.soft, shot.hard) if limit)
            if left is not None:
                nearest = left if nearest is None else min(nearest, left)
        # Those of children that are gone, too, which no holder stands for any more.
        self._told = {key: told for key, told in self._told.items() if key in limited}
        return nearest


class Handback:
    """Takes back what waits behind tasks that run longer than :data:`HOLD`."""

    def __init__(self, broker: StreamBroker, holders: Callable[[], Iterable[Restrictable]]) -> None:
        #: Entries put back so far.
        self.released = 0
        self._broker = broker
        self._holders = holders

    def run_once(self, *, now: float | None = None, everything: bool = False) -> int:
        """Take back what waits behind long tasks; with ``everything``, whatever was not started. Returns how many.

        Raises:
            BrokerError: Redis is away, or refused; what was restricted is released at the next call.
        """
        now = time.monotonic() if now is None else now
        count = 0
        for holder in self._holders():
            shot = holder.snapshot()
            long = shot.running is not None and now - shot.started_at >= HOLD
            if not (shot.waiting or shot.finished) or not (long or everything):
                continue
            shot = holder.restrict()
            self._broker.ack(holder.consumer, [(held.stream, held.entry_id) for held in shot.finished])
            if shot.waiting:
                count += self._broker.release(holder.consumer, [(held.stream, held.entry_id) for held in shot.waiting])
            holder.returned(shot.batch)
        if count:
            self.released += count
            logger.debug("Put back %d entries that waited behind long tasks.", count)
        return count

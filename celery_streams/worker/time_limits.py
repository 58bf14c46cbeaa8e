"""Time limits: what the parent does about tasks that run for longer than they may, from what the slots say.

The pool is told once of a soft limit, and sends SIGUSR1 to the child; once of a hard limit, and kills the child.
Called by a thread of the parent about ten times a second, which waits for nothing else; it costs no Redis command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ..entries import Entry
from .heartbeat import Holder
from .slots import Snapshot

__all__ = ("TimeLimits", "without_effect")


def without_effect(
    tasks: Iterable[Any],
    *,
    soft: float | None,
    hard: float | None,
    enforced: Collection[str],
    reaches: Callable[[Any], bool] = lambda task: True,
    inherited: Mapping[str, Any] | None = None,
) -> list[str]:
    """Name the time limits of the worker and of its tasks that a pool does not enforce, for a warning at its start.

    Args:
        soft: the limits of the worker, in seconds.
        hard: the same.
        enforced: options of a task that the pool heeds.
        reaches: asked whether it heeds them for a task.
        inherited: what tasks take over that have no limit of their own, which goes without saying where the worker's
            is not enforced, and for Celery's own tasks.
    """
    kinds = ("soft_time_limit", "time_limit")
    given = {"soft_time_limit": soft, "time_limit": hard}
    found = [f"task_{kind}" for kind in kinds if given[kind] and kind not in enforced]
    for task in sorted(tasks, key=lambda task: str(task.name)):
        reached = reaches(task)
        for kind in kinds:
            limit = getattr(task, kind, None)
            if not limit or (reached and kind in enforced):
                continue
            taken_over = limit == (inherited or {}).get(kind)
            if not (taken_over and (f"task_{kind}" in found or str(task.name).startswith("celery."))):
                found.append(f"{kind} of {task.name}")
    return found


class TimeLimits:
    """Watches the running tasks of ``holders``."""

    def __init__(
        self,
        holders: Callable[[], Iterable[Holder]],
        *,
        on_soft: Callable[[Holder, Snapshot], None],
        on_hard: Callable[[list[tuple[Holder, Snapshot]]], None],
    ) -> None:
        self._holders = holders
        self._on_soft = on_soft
        self._on_hard = on_hard
        #: By consumer, which green threads share, and pid.
        self._told: dict[tuple[str, int], tuple[Entry | None, bool]] = {}

    def run_once(self, *, now: float | None = None) -> float | None:
        """Enforce what is due; returns seconds until the next limit, None when there is none."""
        now = time.monotonic() if now is None else now
        nearest: float | None = None
        limited: set[tuple[str, int]] = set()
        exceeded: list[tuple[Holder, Snapshot]] = []
        for holder in self._holders():
            shot = holder.snapshot()
            key = (holder.consumer, shot.pid)
            if shot.running is None or not (shot.soft or shot.hard):
                continue
            limited.add(key)
            entry, hard_told = self._told.get(key, (None, False))
            same = entry == shot.running
            took = now - shot.started_at
            if shot.hard and took >= shot.hard:
                if not (same and hard_told):
                    self._told[key] = (shot.running, True)
                    exceeded.append((holder, shot))
                continue
            if shot.soft and took >= shot.soft:
                if not same:
                    self._told[key] = (shot.running, False)
                    self._on_soft(holder, shot)
                left = None if not shot.hard else shot.hard - took
            else:
                left = min(limit - took for limit in (shot.soft, shot.hard) if limit)
            if left is not None:
                nearest = left if nearest is None else min(nearest, left)
        if exceeded:
            # Together, for ending one may take a moment, in which the thread looks after nothing else.
            self._on_hard(exceeded)
        # Those of children that are gone, too, which no holder stands for any more.
        self._told = {key: told for key, told in self._told.items() if key in limited}
        return nearest

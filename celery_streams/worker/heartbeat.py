"""Heartbeat: says that what the children hold is being worked on, so that no claimer takes it.

1. Every :attr:`Heartbeat.interval` (a fifth of the visibility timeout) the idle time of every entry that a child
   holds is set to zero, and only if the child still owns it.
2. A child whose running entry was claimed by another worker is told so through its slot.

Called by a thread of the parent that does nothing else but say that it lives (``services``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from ..broker import StreamBroker
from ..entries import Entry
from ..pages import STEP_WORDS
from .slots import Snapshot

__all__ = ("Heartbeat", "Holder")

logger = logging.getLogger(__name__)


#: Entries extended in one step, so that Redis is never held up.
_STEP = STEP_WORDS // 4


class Holder(Protocol):
    """Whoever holds entries: a child's slot, or the record of a pool's threads."""

    consumer: str

    def snapshot(self) -> Snapshot:
        """Return what it holds now."""

    def mark_lost(self, batch: int) -> None:
        """Tell it that the entry of ``batch`` that it is running is no longer its own."""


class Heartbeat:
    """Extends what all ``holders`` hold."""

    def __init__(
        self, broker: StreamBroker, holders: Callable[[], Iterable[Holder]], *, visibility_timeout: float
    ) -> None:
        #: Seconds between two rounds.
        self.interval = visibility_timeout / 5
        #: Entries that were found to be no longer ours.
        self.lost = 0
        self._broker = broker
        self._holders = holders
        #: What was found lost and runs on: it is counted and said once, not at each round.
        self._told: set[tuple[str, Entry]] = set()

    def run_once(self) -> int:
        """Extend everything once; returns the number of entries.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        held: list[tuple[str, Entry]] = []
        owners: list[tuple[Holder, int]] = []
        for holder in self._holders():
            shot = holder.snapshot()
            entries = [*shot.finished, *shot.waiting, *shot.kept]
            if shot.running is not None and not (shot.acked_early or shot.retried):
                entries.append(shot.running)
            for entry in entries:
                held.append((holder.consumer, entry))
                owners.append((holder, shot.batch))
        if not held:
            return 0
        lost: list[int] = []
        for start in range(0, len(held), _STEP):
            lost += (start + position for position in self._broker.extend(held[start : start + _STEP]))
        still_lost: set[tuple[str, Entry]] = set()
        for position in lost:
            (consumer, entry), (holder, batch) = held[position], owners[position]
            shot = holder.snapshot()
            # It may be settled or handed back meanwhile: only what the child is still running was taken from it.
            if (shot.batch, shot.running) == (batch, entry) and not (shot.retried or shot.settling):
                holder.mark_lost(batch)
                still_lost.add((consumer, entry))
                if (consumer, entry) not in self._told:
                    self.lost += 1
                    logger.warning(
                        "Entry %s is no longer held by %s: it was claimed, or deleted, while its task runs. "
                        "It may run twice.",
                        entry,
                        consumer,
                    )
        self._told = still_lost
        return len(held)

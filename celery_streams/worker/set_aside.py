"""SetAside: outcomes that Redis refuses for one queue (an ACL, a key of another type), kept until it permits them.

Their entries stay pending under the heartbeat of their consumer, and nothing else waits for them: neither other queues
nor the next message. Whoever runs the messages of the consumer calls :meth:`SetAside.try_again` now and then. What is
left when the process ends stays pending, and is recovered as what dead workers held.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..entries import Entry
from ..exceptions import BrokerError, BrokerFull, BrokerUnavailable, GroupMissing, KeyOfOtherType, NotPermitted

__all__ = ("MOST", "OF_ONE_QUEUE", "SetAside", "each_queue", "of_queues")

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Refusals that may concern one queue alone.
OF_ONE_QUEUE = (NotPermitted, KeyOfOtherType)

#: Entries that one consumer sets aside at most; with more it insists, and runs nothing else meanwhile.
MOST = 1_000

#: Seconds between two tries.
_EVERY = 2.0

#: Seconds for which a refusal of what goes back to its stream is not said again.
_QUIET = 60.0


@dataclass(frozen=True, slots=True)
class _Refused:
    """One outcome: ``verb`` and the queue of its entries name the kind of refusal that it shares with others."""

    verb: str
    entries: tuple[Entry, ...]
    action: Callable[[], object]
    goes_back: bool

    @property
    def kind(self) -> tuple[str, str]:
        return self.verb, self.entries[0].stream.queue


class SetAside:
    """What one consumer has set aside; ``on_change`` is called when other entries are than before."""

    def __init__(self, on_change: Callable[[], object] = lambda: None) -> None:
        self._on_change = on_change
        self._refused: list[_Refused] = []
        self._told: dict[tuple[str, str], str] = {}
        #: Kind of what goes back to its stream -> when it was refused last.
        self._going_back: dict[tuple[str, str], float] = {}
        self._due = 0.0
        self._lock = threading.RLock()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries that are set aside."""
        return tuple(entry for one in list(self._refused) for entry in one.entries)

    def has_room(self) -> bool:
        """Return whether more may be set aside."""
        return len(self._refused) < MOST

    def add(
        self,
        verb: str,
        entries: Sequence[Entry],
        exc: BrokerError,
        action: Callable[[], object],
        *,
        goes_back: bool = False,
    ) -> None:
        """Set entries of one queue aside until ``action`` is not refused any more.

        Args:
            goes_back: that puts back what could not start: whoever reads it next tries ``verb``, which was refused.
        """
        one = _Refused(verb, tuple(entries), action, goes_back)
        with self._lock:
            if goes_back:
                self._going_back[one.kind] = time.monotonic()
            if not self._refused:
                self._due = time.monotonic() + _EVERY
            self._refused.append(one)
            if self._told.get(one.kind) != str(exc):
                self._told[one.kind] = str(exc)
                logger.error(
                    "Cannot %s entries of queue %s: %s. They are set aside, and tried every few seconds until Redis "
                    "permits it; everything else goes on.",
                    *one.kind,
                    str(exc).rstrip("."),
                )
            self._on_change()

    def wait(self) -> float | None:
        """Return seconds until the next try; None when nothing is set aside."""
        return max(self._due - time.monotonic(), 0.0) if self._refused else None

    def try_again(self, *, at_once: bool = False) -> None:
        """Try what is due; one refusal of a kind is enough to know that it lasts."""
        if not self._refused or (time.monotonic() < self._due and not at_once):
            return
        with self._lock:
            self._due = time.monotonic() + _EVERY
            before = list(self._refused)
            refused: set[tuple[str, str]] = set()
            for one in before:
                if one.kind in refused:
                    continue
                try:
                    one.action()
                except (BrokerUnavailable, BrokerFull) as exc:
                    logger.debug("What was set aside waits on: %s", exc)
                    break
                except GroupMissing:
                    self._refused.remove(one)  # then nothing was ours any more
                except BrokerError:
                    refused.add(one.kind)
                    # At the end, for the next one of its kind may be permitted: a retry to another queue. Not so what
                    # goes back, which keeps its order.
                    if not one.goes_back:
                        self._refused.remove(one)
                        self._refused.append(one)
                else:
                    self._refused.remove(one)
            if len(before) == len(self._refused):
                return
            # What went back is most likely refused again, and was not settled: no news, until it comes no more.
            since = time.monotonic() - _QUIET
            self._going_back = {kind: at for kind, at in self._going_back.items() if at > since}
            kept = {one.kind for one in self._refused} | self._going_back.keys()
            self._told = {kind: said for kind, said in self._told.items() if kind in kept}
            settled = sum(not one.goes_back for one in before) - sum(not one.goes_back for one in self._refused)
            if settled:
                logger.info("Redis permits it again: settled %d entries that had been set aside.", settled)
            self._on_change()


def of_queues(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Return ``entries`` by their queue."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.stream.queue, []).append(entry)
    return found


def each_queue(act: Callable[[list[T]], int], queues: Mapping[str, list[T]]) -> int:
    """Do something about all queues at once; where Redis refuses one, about each: the others do not wait for it.

    Raises:
        BrokerError: Redis is away, or refused one; the others were done.
    """
    if len(queues) > 1:
        try:
            return act([one for part in queues.values() for one in part])
        except OF_ONE_QUEUE as exc:
            logger.debug("Redis refused one queue; asking for each by itself: %s", exc)
    count = 0
    refusal: BrokerError | None = None
    for part in queues.values():
        try:
            count += act(part)
        except OF_ONE_QUEUE as exc:
            refusal = refusal or exc
    if refusal is not None:
        raise refusal
    return count

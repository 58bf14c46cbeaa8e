"""Collected: acknowledgements of tasks that ran, which wait to go to Redis together; ``settle`` sends them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .. import notes
from ..entries import Entry

__all__ = ("Collected",)


class Collected:
    """Acknowledgements that wait to be sent together; many threads may collect, one at a time may send."""

    __slots__ = ("_forbidden_due", "asked", "entries", "forbidden", "notes", "since")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        #: Those that Redis does not take for now: it forbids them for their queue, or their node is away.
        self.forbidden: list[Entry] = []
        self._forbidden_due = 0.0
        #: What is noted of tracked tasks when they are sent.
        self.notes: dict[Entry, notes.Note] = {}
        #: Those that were sent before, and nobody knows whether they arrived: what is then no longer ours was settled.
        self.asked: set[Entry] = set()
        #: When the oldest of them was collected (monotonic seconds).
        self.since = 0.0

    def add(self, entry: Entry) -> None:
        """Collect one more."""
        if not self.entries:
            self.since = time.monotonic()
        self.entries.append(entry)

    def overdue(self, *, now: float, after: float) -> bool:
        """Return whether the oldest has waited for ``after`` seconds."""
        return bool(self.entries) and now - self.since >= after

    def put_off(self, entries: Sequence[Entry], *, seconds: float) -> None:
        """Keep entries that cannot be sent for now."""
        self.forbidden += entries
        self._forbidden_due = time.monotonic() + seconds

    def bring_back(self) -> None:
        """Send what was put off with the others, once its time has come."""
        if self.forbidden and time.monotonic() >= self._forbidden_due:
            self.entries += self.forbidden
            self.forbidden.clear()

    def noted(self, entries: Sequence[Entry]) -> list[notes.Note]:
        """Return what is noted with ``entries``, by the order in which the script counts them: stream by stream."""
        if not self.notes:
            return []
        by_key: dict[str, list[Entry]] = {}
        for entry in entries:
            by_key.setdefault(entry.stream.key, []).append(entry)
        in_order = [entry for those in by_key.values() for entry in those]
        known = self.notes
        return [known[entry].when(str(position)) for position, entry in enumerate(in_order) if entry in known]

    def sent(self, count: int, *, but: Sequence[Entry] = ()) -> None:
        """Forget the oldest so many, but not those that are still to be sent."""
        if self.notes:
            kept = {*self.forbidden, *but}
            for entry in self.entries[:count]:
                if entry not in kept:
                    self.notes.pop(entry, None)
        self.entries[:count] = but
        if self.entries:
            self.since = time.monotonic()

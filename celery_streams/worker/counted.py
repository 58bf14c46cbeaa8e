"""Counted: all that the processes of a worker count, as one, for metrics and for the history of its queues."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest

from ..tallies import Tally
from .counts import RUNTIME_BUCKETS, WAIT_BUCKETS, Counts, CountsTable, ErrorsRow, QueueRow, TaskRow
from .outcome import Event

__all__ = ("Counted",)

#: Outcomes of a task that did what it should, and of one that did not. The others say nothing about it: its message was
#: not run, or goes on elsewhere.
_DONE = (Event.SUCCEEDED, Event.EXPECTED, Event.IGNORED)
_FAILED = (
    Event.FAILED, Event.REJECTED, Event.UNKNOWN, Event.MALFORMED, Event.NAMELESS, Event.NOT_ACCEPTED, Event.INVALID,
    Event.TIMED_OUT, Event.EXITED, Event.LOST,
)  # fmt: skip
_RETRIED = (Event.RETRIED, Event.REQUEUED)


class Counted:
    """What one worker counts, in its own process and in its children's."""

    def __init__(self) -> None:
        #: What this process counts, whatever else its children do.
        self.own = Counts()
        #: What children count; None where there are none.
        self.table: CountsTable | None = None

    def rows(self) -> Iterator[TaskRow | QueueRow | ErrorsRow]:
        """Yield what each process counted; the same label comes once for each."""
        for counts in (self.own, *(() if self.table is None else self.table.pieces())):
            yield from counts.rows()

    def by_queue(self) -> dict[str, Counter[str]]:
        """Return all that was counted of each queue since the worker began, as :meth:`Tally.names` has it."""
        found: dict[str, Counter[str]] = {}
        for row in self.rows():
            if not isinstance(row, ErrorsRow):
                tally = _of_task(row) if isinstance(row, TaskRow) else _of_queue(row)
                found.setdefault(row.queue, Counter()).update(tally.names())
        return found

    def close(self) -> None:
        """Give up the memory of the children."""
        if self.table is not None:
            self.table.close()


def _of_task(row: TaskRow) -> Tally:
    return Tally(
        done=sum(row.outcomes[event] for event in _DONE),
        failed=sum(row.outcomes[event] for event in _FAILED),
        retried=sum(row.outcomes[event] for event in _RETRIED),
        runs=dict(zip_longest(RUNTIME_BUCKETS, row.runtimes, fillvalue=math.inf)),  # type: ignore[arg-type]
        run_sum=row.runtime_sum,
    )


def _of_queue(row: QueueRow) -> Tally:
    waits = dict(zip_longest(WAIT_BUCKETS, row.waits, fillvalue=math.inf))
    return Tally(waits=waits, wait_sum=row.wait_sum)  # type: ignore[arg-type]

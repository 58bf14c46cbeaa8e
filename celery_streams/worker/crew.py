"""Crew: whoever runs the tasks of a worker, children or threads, as services and remote control see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..entries import StreamRef
from ..presence import ConsumerPresence
from .hand_back import Restrictable
from .slots import Snapshot

__all__ = ("Crew",)


class Crew(Protocol):
    """What a pool does that is special to it."""

    def holders(self) -> Sequence[Restrictable]:
        """Return whoever holds entries now."""

    def limited(self) -> Sequence[Restrictable]:
        """Return the holders whose tasks may have time limits."""

    def handed_back(self) -> Sequence[Restrictable]:
        """Return the holders in which entries may wait behind a task that runs."""

    def readers(self) -> Sequence[ConsumerPresence]:
        """Return whoever reads now, for the services thread to tell Redis."""

    def consumer_names(self) -> Sequence[str]:
        """Return the names under which this process reads itself."""

    def living(self) -> int:
        """Return how many children or threads there are to run tasks."""

    def last_read(self) -> float:
        """Return when a read last succeeded, as ``time.monotonic`` has it; 0.0 for never."""

    def announce(self, streams: Sequence[StreamRef]) -> None:
        """Tell them what to read."""

    def forward(self, *message: Any) -> None:
        """Tell them something else."""

    def give_back(self) -> None:
        """Put back at once what was fetched and not started."""

    def kept_message(self, holder: Restrictable) -> Any:
        """Return the message of a task that was acknowledged before it ran."""

    def count_starts(self) -> None:
        """Add what was started elsewhere since the last time to Celery's totals."""

    def on_soft(self, holder: Restrictable, shot: Snapshot) -> None:
        """Tell a task that its soft time limit is over (called by the services thread)."""

    def on_hard(self, exceeded: Sequence[tuple[Restrictable, Snapshot]]) -> None:
        """End the tasks whose hard time limit is over (called by the services thread)."""

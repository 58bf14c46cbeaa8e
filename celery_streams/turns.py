"""Turns: which workers watch the delayed messages of a queue; one leads, a deputy looks behind it, the others rest.

Whoever has a turn promotes what is due: ``worker.delayed``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import scripts
from .broker import StreamBroker

__all__ = ("Turn", "take_turns")


@dataclass(frozen=True, slots=True)
class Turn:
    """A worker's place among those that watch the delayed messages of a queue."""

    #: 0 leads, 1 is the deputy, who looks behind the leader; 2 rests.
    place: int
    #: Milliseconds until the next message is due; None: nothing is delayed.
    next_due_ms: int | None


def take_turns(
    broker: StreamBroker, queues: Sequence[str], worker: str, *, length_ms: int, overdue_ms: int, leave: bool = False
) -> tuple[int, list[Turn]]:
    """Take turns at watching the delayed messages of ``queues``; see :class:`Turn`, one for each of them.

    Returns Redis' time in milliseconds since the epoch as well.

    Args:
        length_ms: for how long this worker keeps its places without looking again.
        overdue_ms: a message that is late by more shows that whoever leads stands still.
        leave: give the places to others.
    """
    names = [key for one in map(broker.queue_keys, queues) for key in (one.turns, one.delayed)]
    clock_ms, places, waits = broker.client.run(scripts.TAKE_TURNS, names, [worker, length_ms, overdue_ms, int(leave)])
    found = zip(places, waits, strict=True)
    return int(clock_ms), [Turn(place, None if wait < 0 else int(wait)) for place, wait in found]

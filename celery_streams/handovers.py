"""Handovers: an entry that a worker cannot run goes to one that can, without going round through the stream.

The entry stays where it is, pending: first for the worker that takes it (:func:`receiver`), then for whichever of its
readers takes it over. What that worker has not taken over when it dies comes back with no crash counted, for nobody has
started it (``lua/recover``).
"""

from __future__ import annotations

from collections.abc import Sequence

from . import keys, scripts
from .broker import StreamBroker
from .entries import Delivery, Entry, StreamRef
from .reads import parse_read

__all__ = ("hand_over", "receiver", "take_over")

HAND_OVER = scripts.load("hand_over")
RECEIVE = scripts.load("receive")


def receiver(worker: str) -> str:
    """Return the consumer name for what is handed over to ``worker``; ``lua/recover`` knows it by its end."""
    return f"{worker}.handed"


def hand_over(broker: StreamBroker, consumer: str, to: str, entries: Sequence[Entry]) -> int:
    """Hand entries of ``consumer`` over to ``to``; returns how many were still its own. One round trip."""
    count = 0
    for part in broker.entries_by_slot(entries):
        order: dict[str, int] = {}
        at: list[object] = []
        for entry in part:
            at += [order.setdefault(entry.stream.key, len(order) + 1), entry.id]
        count += int(broker.client.run(HAND_OVER, list(order), [keys.GROUP, consumer, to, *at]))
    return count


def take_over(
    broker: StreamBroker, receiving: str, consumer: str, streams: Sequence[StreamRef], *, count: int
) -> list[Delivery]:
    """Take up to ``count`` entries that were handed over to ``receiving`` on ``streams`` and their fronts."""
    found: list[Delivery] = []
    for part in broker.streams_by_slot(streams):
        if len(found) >= count:
            break
        names = [key for ref in part for key in (ref.front, ref.key)]
        reply = broker.client.run(RECEIVE, names, [keys.GROUP, receiving, consumer, count - len(found)])
        found += [one._replace(handed=True) for one in parse_read(part, reply)]
    return found

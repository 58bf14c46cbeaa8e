"""Reading order: which streams a read names, and in which order; what cannot be read is left out for a while.

Each queue comes first in its turn, behind none of a lower priority, and with it each of its partitions in turn; so does
each slot of a Redis Cluster, for one read cannot name several. What Redis refuses to read (a key of another type), and
what lies on a node that is away, is left out until it is time to try again, so that the others are read on. It reads
nothing: the reader does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TypeVar

from ..broker import StreamBroker
from ..entries import StreamRef
from ..exceptions import BrokerUnavailable, KeyOfOtherType
from ..partitions import queue_of

__all__ = ("AWAY", "ReadingOrder")

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds after which streams that Redis refused to read are tried again, and those of a cluster's node that is away.
_ASIDE = 5.0
AWAY = 0.5


def _grouped(items: Sequence[T], names: Sequence[str]) -> Sequence[Sequence[T]]:
    """Return ``items`` by the queues of which their names are partitions."""
    found: dict[str, list[T]] = {}
    for item, name in zip(items, names, strict=True):
        found.setdefault(queue_of(name), []).append(item)
    return list(found.values())


def _in_turn(groups: Sequence[Sequence[T]], turn: int) -> list[T]:
    """Return the items so that each group comes first in its turn, and in each group each item."""
    found: list[T] = []
    for number in range(len(groups)):
        group = groups[(turn + number) % len(groups)]
        at = turn // len(groups) % len(group)
        found += [*group[at:], *group[:at]]
    return found


class ReadingOrder:
    """The order for one reader."""

    def __init__(self, broker: StreamBroker) -> None:
        self._broker = broker
        #: Whether any stream is left out.
        self.leaves_out = False
        #: Streams whose keys hold something else, and until when nobody listens to them.
        self.aside: frozenset[StreamRef] = frozenset()
        self._aside_until = 0.0
        #: Streams of nodes that are away, and until when nobody asks them.
        self.away: frozenset[StreamRef] = frozenset()
        self._away_until = 0.0
        #: Their queues, until they answer again.
        self._told_away: set[str] = set()
        #: The streams in parts that one command may read, and of which list of streams they were made.
        self._parts: Sequence[Sequence[StreamRef]] = ()
        self._parted: Sequence[StreamRef] = ()
        #: The parts by their queues, and the columns of each part (by its ``id``) likewise: a queue has one turn,
        #: however many partitions it has.
        self._by_queue: Sequence[Sequence[Sequence[StreamRef]]] = ()
        self._columns: dict[int, Sequence[Sequence[int]]] = {}
        #: Whether they lie apart: one command cannot read all of them.
        self.is_parted = False
        self._turn = 0

    # -- in which order

    def parts(self, streams: Sequence[StreamRef]) -> Sequence[Sequence[StreamRef]]:
        """Return the streams so that each queue comes first in its turn; the order of priorities stays.

        They are in parts that one command may read; of several, in turns, those that are away are left out.
        """
        if self._parted is not streams:
            self._parts, self._parted = self._broker.streams_by_slot(streams), streams
            self.is_parted = len(self._parts) > 1
            self._by_queue = _grouped(self._parts, [part[0].queue if part else "" for part in self._parts])
            self._columns = {id(part): self._columns_of(part) for part in self._parts}
        parts = self._parts
        if len(parts) == 1:
            return [self._turned(parts[0])]
        self._turn += 1
        turned = [self._turned(part) for part in _in_turn(self._by_queue, self._turn)]
        return [part for part in turned if not self.away.issuperset(part)] or turned

    def _turned(self, streams: Sequence[StreamRef]) -> Sequence[StreamRef]:
        width = len(streams) // len(self._broker.steps)
        if width < 2:
            return streams
        self._turn += 1
        order = _in_turn(self._columns[id(streams)], self._turn)
        return [streams[start + column] for start in range(0, len(streams), width) for column in order]

    def _columns_of(self, streams: Sequence[StreamRef]) -> Sequence[Sequence[int]]:
        width = len(streams) // len(self._broker.steps)
        return _grouped(range(width), [ref.queue for ref in streams[:width]])

    # -- what is left out

    def try_again(self) -> None:
        """Leave out nothing any more that was left out for long enough."""
        now = time.monotonic()
        if now >= self._aside_until:
            self.aside = frozenset()
        if now >= self._away_until:
            self.away = frozenset()
        self.leaves_out = bool(self.aside or self.away)

    def listened_to(self, streams: Sequence[StreamRef]) -> Sequence[StreamRef]:
        """Return the streams without those that are left out; what is away stays when there is nothing else."""
        permitted = [ref for ref in streams if ref not in self.aside]
        return [ref for ref in permitted if ref not in self.away] or permitted

    def leave_out(self, part: Sequence[StreamRef], exc: BrokerUnavailable) -> None:
        """Ask the others for a while: the node of these streams is away."""
        queues = {ref.queue for ref in part}
        if not self._told_away.issuperset(queues):
            logger.warning(
                "Cannot read queues %s: %s. The others are read; trying again until it is back.",
                ", ".join(sorted(queues)),
                exc,
            )
        self._told_away |= queues
        self.away |= frozenset(part)
        self._away_until = time.monotonic() + AWAY
        self.leaves_out = True

    def answered(self, part: Sequence[StreamRef]) -> None:
        """Say that streams which were away can be read again."""
        if not self._told_away:
            return
        back = self._told_away.intersection(ref.queue for ref in part)
        if back:
            self._told_away -= back
            logger.info("Queues %s can be read again.", ", ".join(sorted(back)))

    def set_aside(self, streams: Sequence[StreamRef]) -> list[StreamRef]:
        """Leave out the keys that hold something else, which would end each read; one round trip.

        Returns them; none when that is known already, or nothing would be left to read.
        """
        replies = self._broker.client.pipeline([("XLEN", ref.key) for ref in streams])
        found = [ref for ref, said in zip(streams, replies, strict=True) if isinstance(said, KeyOfOtherType)]
        if not found or len(found) == len(streams) or self.aside.issuperset(found):
            return []
        self.aside, self._aside_until = frozenset(found), time.monotonic() + _ASIDE
        self.leaves_out = True
        return found

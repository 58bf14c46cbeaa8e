"""History: how many messages each queue held, once a minute for a day; written by one worker, read by monitors.

Bounded: a day of one queue takes some 60 kB. What stays the same is written every five minutes. Of a time in which no
worker lived nothing is known. Arrivals, as Redis counts them, are there from Redis 7 on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from . import keys
from .broker import StreamBroker
from .connection import pairs
from .exceptions import BrokerError, NotPermitted
from .inspect import known_partitions
from .pages import each_part
from .redis_errors import explained
from .scripts import load

__all__ = ("DAY", "EVERY", "STANDS", "Sample", "record", "samples")

logger = logging.getLogger(__name__)

SAMPLE = load("sample")

#: Seconds between two samples, and for which they are kept.
EVERY, DAY = 60.0, 86_400.0

#: Seconds for which a sample stands for those after it that say the same.
STANDS = 300.0

#: Seconds for which one worker has the turn: a little less than a minute, so that none is left out.
_TURN_MS = 50_000

#: Queues that one step looks at, so that Redis is never held up.
_STEP = 50


@dataclass(frozen=True, slots=True)
class Sample:
    """What a queue held at one moment."""

    #: Seconds since the epoch, by Redis' clock.
    at: float
    waiting: int
    pending: int
    delayed: int
    dead: int
    #: Entries that were ever added to its streams, retries and what became due included; None where Redis does not say.
    added: int | None = None


def record(broker: StreamBroker, queues: Iterable[str]) -> int | None:
    """Write a sample of each queue that is not as it was, if nobody has done so in this minute; returns how many.

    None says that somebody has. A worker whose user may use the keys of its queues only leaves this to others.

    Raises:
        BrokerError: Redis is away, or refuses something else; what lies on other nodes of a cluster was written.
    """
    found = list(queues)
    try:
        if not broker.client.call("SET", keys.history_turn(broker.prefix, found), "1", "NX", "PX", _TURN_MS):
            return None
    except NotPermitted as exc:
        logger.debug("This worker keeps no history: %s", exc)
        return None

    def record_part(part: Sequence[str]) -> int:
        names = iter(part)
        count = 0
        while some := list(islice(names, _STEP)):
            count += _record(broker, some)
        return count

    return sum(each_part(broker.by_slot(found), record_part))


def _record(broker: StreamBroker, queues: Sequence[str]) -> int:
    names = [
        key
        for one in map(broker.queue_keys, queues)
        for key in (one.history, one.delayed, one.dead, *one.streams, *one.fronts)
    ]
    kept, expiry = int(DAY / EVERY), int((DAY + 3_600) * 1000)
    written, refusal = broker.client.run(
        SAMPLE, names, [keys.GROUP, len(broker.steps), kept, expiry, int(EVERY * 1000), int(STANDS * 1000)]
    )
    if refusal:
        raise BrokerError(f"The history of a queue cannot be written: {explained(SAMPLE, refusal.decode())}")
    return int(written)


def samples(
    broker: StreamBroker, queues: Sequence[str], *, seconds: float = 3_600.0, limit: int = 1_500
) -> dict[str, list[Sample]]:
    """Return the samples of the last ``seconds`` of each queue, the oldest first, at most the newest ``limit``.

    What stood when this time began is the first of them.
    """
    if not queues:
        return {}
    clock = broker.client.call("TIME")
    start = max(int(clock[0]) - seconds, 0.0)
    first = max(int((start - STANDS - EVERY) * 1000), 0)
    known = known_partitions(broker)
    names = [(queue, name) for queue in queues for name in known.get(queue, (queue,))]
    looks = [("XREVRANGE", broker.queue_keys(name).history, "+", first, "COUNT", limit) for _, name in names]
    found: dict[str, list[list[Sample]]] = {queue: [] for queue in queues}
    for (queue, _), entries in zip(names, broker.client.call_all(looks), strict=True):
        found[queue].append([_sample(*one) for one in reversed(entries)])
    return {queue: _since(start, _together(parts)) for queue, parts in found.items()}


def _together(parts: Sequence[list[Sample]]) -> list[Sample]:
    """Return the samples of the partitions of a queue as its own: each stands until the next one of its partition.

    They are written one after the other: what is less than half of the time between two samples apart is one.
    """
    if len(parts) == 1:
        return parts[0]
    found: list[Sample] = []
    latest: dict[int, Sample] = {}
    ordered = sorted(
        ((one.at, number, one) for number, part in enumerate(parts) for one in part), key=lambda one: one[:2]
    )
    for at, number, sample in ordered:
        latest[number] = sample
        whole = Sample(
            at=at,
            waiting=sum(one.waiting for one in latest.values()),
            pending=sum(one.pending for one in latest.values()),
            delayed=sum(one.delayed for one in latest.values()),
            dead=sum(one.dead for one in latest.values()),
            added=None if None in (added := [one.added for one in latest.values()]) else sum(filter(None, added)),
        )
        if found and at - found[-1].at < EVERY / 2:
            whole = replace(whole, at=found.pop().at)
        found.append(whole)
    return found


def _since(start: float, found: list[Sample]) -> list[Sample]:
    before = [one for one in found if one.at < start]
    return [*(replace(one, at=start) for one in before[-1:]), *found[len(before) :]]


def _sample(entry_id: bytes, flat: Sequence[bytes]) -> Sample:
    said = pairs(flat)
    added = said.get(b"a")
    return Sample(
        at=int(entry_id.partition(b"-")[0]) / 1000,
        waiting=_number(said.get(b"w")),
        pending=_number(said.get(b"p")),
        delayed=_number(said.get(b"d")),
        dead=_number(said.get(b"x")),
        added=None if added is None else _number(added),
    )


def _number(raw: bytes | None) -> int:
    """Return a number of a sample; 0 for what a later version, or somebody else, wrote there."""
    return int(raw) if raw is not None and raw.isdigit() else 0

"""Recovery: what consumers held that gave no heartbeat goes back, or to the caller once it crashed too often.

One look, one round trip; who looks, when, and for how long a worker may be silent is the business of
``worker.claimer``. Here, too, is what has to be set right when Redis' clock was set, and when somebody took entries
from their consumers by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import keys, scripts
from .broker import StreamBroker
from .entries import Delivery, delivery
from .pages import STEP_BYTES
from .redis_errors import explained

__all__ = (
    "LONGEST_WAIT_MS",
    "MAX_BACKOFF_MS",
    "BusyQueues",
    "Recovery",
    "busy_queues",
    "clock_was_set",
    "gather",
    "recover",
)

GATHER = scripts.load("gather")

#: Entries that one step looks at for those that nobody holds.
_GATHERED = 500

#: Entries and delayed messages that one step looks at after the clock was set, and delayed messages in all.
_CLOCK_STEP, _CLOCK_MOST = 500, 100_000

#: Greatest pause in ms between re-deliveries of a message whose processes keep dying.
MAX_BACKOFF_MS = 60_000

#: Kinds of waits that are counted from now on, and not until a date: the longest of each in ms. The kind stands in the
#: member of the delayed set. (``limit`` is that of older versions.)
LONGEST_WAIT_MS = {"crash": MAX_BACKOFF_MS, "limit": 10_000, "unknown": 30_000}


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one look for entries of dead consumers did."""

    moved: int
    #: Pending entries that had been deleted or trimmed by someone else.
    vanished: int
    #: Entries over the delivery limit, now pending for the caller, with the consumer that had them last.
    exhausted: tuple[tuple[Delivery, str], ...]
    #: It ended at the limit of a step; the next look may come at once.
    more: bool = False
    #: Redis' time in milliseconds since the epoch.
    clock_ms: int = field(default=0, compare=False)
    #: Holders of which the caller did not say how long they may be silent; what they hold was left alone.
    strangers: tuple[bytes, ...] = ()
    #: What Redis said of the first entry that it refused to put back; it stays pending. Empty: none.
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class BusyQueues:
    """Which queues have pending entries."""

    queues: tuple[str, ...]
    #: Redis' time in milliseconds since the epoch.
    clock_ms: int
    #: Nothing lies on any stream, and so nothing can be pending before somebody adds to one.
    all_empty: bool = False
    #: An entry that was put back or became due waits for a reader, who may not listen there.
    front_waits: bool = False


def busy_queues(broker: StreamBroker, queues: Sequence[str]) -> BusyQueues:
    """Return those of ``queues`` that have pending entries, and Redis' time."""
    names = [broker.queue_keys(queue) for queue in queues]
    streams = [key for one in names for key in (*one.streams, *one.fronts)]
    if not streams:
        return BusyQueues((), broker.clock_ms())
    clock_ms, found, empty, waits = broker.client.run(scripts.BUSY, streams, [keys.GROUP, len(broker.steps)])
    return BusyQueues(tuple(queues[int(index)] for index in found), int(clock_ms), bool(empty), bool(waits))


def clock_was_set(broker: StreamBroker, queue: str, *, step: int = _CLOCK_STEP) -> tuple[int, int]:
    """Set right what was measured before Redis' clock was set back, or by another clock; safe to call twice.

    Returns the number of pending entries whose idle time begins anew, and of delayed messages that are due earlier. One
    round trip for each ``step`` entries and delayed messages; of these the last :data:`_CLOCK_MOST` are looked at.
    """
    names = broker.queue_keys(queue)
    looked_at = [names.delayed, names.claims, *names.streams, *names.fronts]
    anew, index, position = 0, 3, b""
    waits: dict[bytes, bytes] = {}
    while index:
        fresh, clock_ms, index, position, found = broker.client.run(
            scripts.CLOCK_WAS_SET, looked_at, [keys.GROUP, step, index, position, *LONGEST_WAIT_MS]
        )
        anew += int(fresh)
        waits.update(zip(found[::2], found[1::2], strict=True))
        if index > len(looked_at) and int(position) >= _CLOCK_MOST:
            break
    moved = _brought_near(waits, int(clock_ms))
    earlier = sum(
        int(broker.client.run(scripts.ADVANCE, [names.delayed, names.wake], [word for one in some for word in one]))
        for some in (moved[start : start + step] for start in range(0, len(moved), step))
    )
    return anew, earlier


def _brought_near(waits: Mapping[bytes, bytes], clock_ms: int) -> list[tuple[bytes, bytes, int]]:
    """Return what waits for longer than its kind may: member, when it is due, and when it shall be due.

    Those of a kind keep their order and their distances; the first ones come first.
    """
    moved: list[tuple[bytes, bytes, int]] = []
    for kind, longest_ms in LONGEST_WAIT_MS.items():
        mark = b":%b:" % kind.encode()
        found = sorted((float(due), member, due) for member, due in waits.items() if mark in member)
        latest = clock_ms + longest_ms
        furthest = max((at for at, _, _ in found if math.isfinite(at)), default=0.0)
        if furthest > latest or any(math.isinf(at) for at, _, _ in found):
            back = max(furthest - latest, 0.0)
            moved += [(member, due, int(at - back) if math.isfinite(at) else latest) for at, member, due in found]
    return moved


def gather(
    broker: StreamBroker, queues: Sequence[str], *, go_on: Callable[[], bool] = lambda: True
) -> tuple[dict[str, int], str]:
    """Have what was delivered on ``queues`` and is in nobody's list be pending for :data:`keys.NOBODY`.

    :func:`recover` puts it back from there, unless whoever runs it takes it before. In steps; ``go_on`` is asked after
    each. Returns how many were found, by queue, and what Redis said of the first stream that it refused.
    """
    names = {
        key: queue for queue in queues for key in (*broker.queue_keys(queue).streams, *broker.queue_keys(queue).fronts)
    }
    all_keys = list(names)
    found: dict[str, int] = {}
    index, behind, said = 0, b"", ""
    while index >= 0 and all_keys:
        args = [keys.GROUP, index, behind, _GATHERED, STEP_BYTES]
        index, behind, counts, refusal = broker.client.run(GATHER, all_keys, args)
        for at, count in zip(counts[::2], counts[1::2], strict=True):
            queue = names[all_keys[at]]
            found[queue] = found.get(queue, 0) + count
        said = said or explained(GATHER, refusal.decode())
        if not go_on():
            break
    return found, said


def recover(
    broker: StreamBroker,
    queue: str,
    consumer: str,
    *,
    idle_ms: int,
    turn_ms: int,
    pauses_ms: Sequence[int],
    limit: int = 100,
    patience: Mapping[bytes, int | None] | None = None,
    expected_ms: int | None = None,
    tolerance_ms: int = 0,
    limits: Mapping[str, Any] | None = None,
) -> Recovery:
    """Put back what consumers held that gave no heartbeat for ``idle_ms``, at most ``limit`` entries.

    Args:
        patience: for how many milliseconds a holder may be silent, None is for ever; by default all holders for
            ``idle_ms``. What holders hold that it does not name is left alone: see :attr:`Recovery.strangers`.
        limits: what the caller knows of the limits of tasks, for whoever waits for the places of what is put back; see
            ``limits.Limits.told``.
        expected_ms: what Redis' clock should say; when it is more than ``tolerance_ms`` off, nothing is done.

    One caller looks per ``turn_ms``, whoever comes first; after as many entries as ``limit``, or as
    :data:`STEP_BYTES` take, the next look may come at once. An entry goes back after the pause
    for as many crashes as it has then (milliseconds, 0 is at once; ``outcome`` decided them); one with more crashes
    than there are pauses becomes pending for ``consumer``, which must settle it.
    """
    names = broker.queue_keys(queue)
    # In one word: there may be thousands. A name with a NUL is none of ours, and its holder is left alone.
    pairs = [(name, b"" if ms is None else b"%d" % ms) for name, ms in (patience or {}).items() if b"\0" not in name]
    said = b"".join(b"%b\0%b\0" % pair for pair in pairs)
    moved, vanished, exhausted, more, clock_ms, strangers, refusal = broker.client.run(
        scripts.RECOVER,
        [
            names.delayed,
            names.delayed_messages,
            names.wake,
            names.claims,
            *names.streams,
            *names.fronts,
            *names.marks,
            *names.shelf,
        ],
        [
            *(keys.GROUP, consumer, idle_ms, limit, STEP_BYTES, turn_ms, json.dumps(list(pauses_ms))),
            *("" if expected_ms is None else expected_ms, tolerance_ms, "" if patience is None else 1, said),
            json.dumps(limits or {}),
        ],
    )
    places = [*(streams := broker.streams([queue])), *(ref.at_front() for ref in streams)]
    return Recovery(
        moved,
        vanished,
        tuple(
            (
                delivery(places[index], entry_id, fields),
                holder.decode(errors="replace"),
            )
            for index, entry_id, fields, holder in exhausted
        ),
        bool(more),
        int(clock_ms),
        tuple(strangers),
        explained(scripts.RECOVER, refusal.decode()),
    )

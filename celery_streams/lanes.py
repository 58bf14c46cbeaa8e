"""Holding: messages of limited tasks that may not start yet: moved aside once, in order, released when there is room.

=================  ===================================================================================================
lane               messages that wait in line with each other: of one task, one key of each of its limits, one priority
rate               the tokens of a rate limit: one number, taken when a message is released or starts
place              what counts against a number that may run at once; it belongs to an entry and is free when that is
                   gone: settled, recovered, purged, moved to a list (in the same script), or deleted by anybody (at the
                   next look). An entry that is put back before it started takes it along. That of an entry which is
                   acknowledged before its task runs belongs to the worker that runs it
=================  ===================================================================================================

What waits costs one field of a hash, and no command. Lanes that wait for a time are looked at when it comes, those that
wait for a token of the same rate, or for a place, in turn when there is one, those of a higher priority first. It knows
neither Celery nor what a task is: ``limits`` does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import keys, notes
from .broker import StreamBroker
from .connection import pairs
from .entries import Entry
from .news import spread
from .pages import STEP_BYTES, each_part
from .scripts import load

__all__ = (
    "HELD_REASONS",
    "Admission",
    "HeldLane",
    "Lane",
    "Released",
    "admit",
    "give_back",
    "has_places",
    "held_lanes",
    "held_reasons",
    "holds_any",
    "keeping_place",
    "lane_at",
    "let_go",
    "limits_in_redis",
    "place_of",
    "reconcile",
    "release",
    "reset_limits",
    "set_limits",
    "some_held_lanes",
    "vacating",
)

ADMIT, RELEASE, FREE, UNHOLD = load("admit"), load("release"), load("free"), load("unhold")
KEEP_PLACE = load("keep_place")

#: What parts the name of a lane from its priority step, which that of the highest one does not say.
_STEP_OF = "\1"

#: Where a place says which worker runs its task, whose entry is acknowledged already.
_WORKER = 4

#: Why a message is held back.
HELD_REASONS = ("rate", "concurrency", "mixed")

#: Lanes that are looked at to tell why messages are held.
_MOST_LANES = 10_000

#: Messages that one step releases, or puts back, so that Redis is never held up for long.
_STEP = 50


@dataclass(frozen=True, slots=True)
class Lane:
    """What messages wait in line with each other, and what the scripts have to know of it."""

    name: str
    #: JSON: see ``lua/admit``.
    limits: str
    #: Its entries have places, which must be given back when they are gone.
    lasting: bool
    #: What waits when a task raises RateLimited: what has this key of a concurrency limit. Empty: what has its rate.
    penalised: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a message that wanted to start."""

    admitted: bool
    #: It has places, which must be given back in the step that settles it.
    placed: bool = False
    #: It was no longer the consumer's.
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Released:
    """What one look at held messages did."""

    count: int
    #: Milliseconds until the next one has its time; None: nothing waits for a time.
    next_ms: int | None


@dataclass(frozen=True, slots=True)
class HeldLane:
    """Messages that wait in line with each other."""

    queue: str
    name: str
    task: str
    held: int


def _keys(broker: StreamBroker, queue: str) -> list[str]:
    return list(broker.queue_keys(queue).shelf_and_streams)


def place_of(broker: StreamBroker, entry: Entry) -> str:
    """Return what the place of an entry is told by."""
    return f"{broker.where(entry.stream)}:{entry.id.decode()}"


def lane_at(lane: Lane, step: int) -> str:
    """Return what a lane of messages of this priority step is called in Redis."""
    return f"{lane.name}{_STEP_OF}{step}" if step else lane.name


def admit(
    broker: StreamBroker,
    consumer: str,
    entry: Entry,
    lane: Lane,
    *,
    ahead: bool = False,
    published: str = "",
    penalty_ms: int | None = None,
    noted: Sequence[notes.Note] = (),
) -> Admission:
    """Let a message start, or move it aside, in one step.

    Args:
        ahead: it stood further in front before: it was put back, or has started once.
        published: the id of its first entry, by which one that was put back before it ever waited in its lane goes
            behind those that do.
        penalty_ms: it must not start, and nothing of its rate for so long.
        noted: the states that a tracked task gets, by what becomes of it.
    """
    said = broker.client.run(
        *notes.behind(
            ADMIT,
            [entry.stream.key, *_keys(broker, entry.stream.queue)],
            [
                *(keys.GROUP, consumer, entry.id, place_of(broker, entry), entry.stream.step),
                *(lane_at(lane, entry.stream.step), lane.limits),
                *(int(ahead), "" if penalty_ms is None else penalty_ms, len(broker.steps)),
                *(published, lane.penalised),
            ],
            noted,
        )
    )
    if isinstance(said, bytes):
        return Admission(False)
    return Admission(said > 0, placed=said == 1, lost=said < 0)


def release(
    broker: StreamBroker, queues: Sequence[str], limits: Mapping[str, Any], *, everything: bool = False
) -> Released:
    """Release what has its time; with ``everything`` look at every lane, for limits have changed.

    Args:
        limits: what the caller knows of the limits of tasks; see ``limits.Limits.told``.

    Raises:
        BrokerError: Redis is away, or refused; what lies on other nodes of a cluster was released.
    """
    parts = broker.by_slot(queues)
    if len(parts) != 1:
        each = each_part(parts, lambda part: release(broker, part, limits, everything=everything))
        waits = [one.next_ms for one in each if one.next_ms is not None]
        return Released(sum(one.count for one in each), min(waits, default=None))
    count, wait = broker.client.run(
        RELEASE,
        [key for queue in queues for key in _keys(broker, queue)],
        [keys.GROUP, len(broker.steps), _STEP, json.dumps(limits), int(everything)],
    )
    return Released(count, None if wait < 0 else 0 if count >= _STEP else int(wait))


def reconcile(
    broker: StreamBroker,
    queue: str,
    limits: Mapping[str, Any],
    *,
    ended: Callable[[Mapping[str, str]], Collection[str]] = lambda early: (),
) -> int:
    """Give back the places of entries that are gone; returns how many. Two round trips; one where no entry has any.

    Args:
        ended: is given the places of entries that were acknowledged before their tasks ran, each with the worker that
            runs it, and returns those whose task runs no longer. Not called where there are none.
    """
    early: dict[str, str] = {}
    places: list[str] = []
    for name, said in pairs(broker.client.call("HGETALL", broker.queue_keys(queue).shelf[5])).items():
        place = name.decode(errors="replace")
        try:
            known = json.loads(said)
        except (ValueError, RecursionError):
            known = None  # somebody else's field
        if isinstance(known, list) and len(known) > _WORKER:
            early[place] = str(known[_WORKER])
        else:
            places.append(place)
    if early:
        places += [f"!{place}" for place in ended(early)]
    return sum(
        _give_back(broker, queue, places[start : start + _STEP], limits) for start in range(0, len(places), _STEP)
    )


def give_back(broker: StreamBroker, entry: Entry, limits: Mapping[str, Any]) -> bool:
    """Give back the places of an entry that is gone, and whose task has ended; returns whether it had any."""
    return bool(_give_back(broker, entry.stream.queue, [f"!{place_of(broker, entry)}"], limits))


def _give_back(broker: StreamBroker, queue: str, places: Sequence[Any], limits: Mapping[str, Any]) -> int:
    args = [keys.GROUP, len(broker.steps), json.dumps(limits), *places]
    return int(broker.client.run(FREE, _keys(broker, queue), args))


def holds_any(broker: StreamBroker, queues: Sequence[str]) -> bool:
    """Return whether anything is held, or a lock taken, on any of ``queues``. One round trip, however many they are."""
    names = [broker.queue_keys(queue) for queue in queues]
    return _exist(broker, [key for one in names for key in (one.shelf[0], one.unique)])


def has_places(broker: StreamBroker, queues: Sequence[str]) -> bool:
    """Return whether any entry of ``queues`` has a place. One round trip, however many they are."""
    return _exist(broker, [broker.queue_keys(queue).shelf[5] for queue in queues])


def _exist(broker: StreamBroker, names: Sequence[str]) -> bool:
    return bool(broker.client.exist(names))


def let_go(broker: StreamBroker, queue: str) -> int:
    """Put everything that is held to the end of its stream, where nothing limits it; returns how many."""
    count = 0
    while step := broker.client.run(UNHOLD, _keys(broker, queue), [len(broker.steps), _STEP, STEP_BYTES]):
        count += step
    return count


def held_lanes(broker: StreamBroker, queue: str) -> list[HeldLane]:
    """Return the lanes of ``queue`` in which messages wait, the longest first. Two round trips at least."""
    return _whole(
        [
            _read(queue, pairs(broker.client.call("HGETALL", broker.queue_keys(name).shelf[1])))
            for name in broker.partitions(queue)
        ]
    )


def some_held_lanes(broker: StreamBroker, queue: str, most: int) -> tuple[list[HeldLane], bool]:
    """Return lanes of ``queue`` in which messages wait, the longest first, and whether there are more.

    Args:
        most: look at no more than about so many of each partition; they are any, where there are more.

    Two round trips at least, and one for each thousand lanes.
    """
    found = [_some(broker, queue, name, most) for name in broker.partitions(queue)]
    return _whole([lanes for lanes, _ in found]), any(more for _, more in found)


def _some(broker: StreamBroker, queue: str, name: str, most: int) -> tuple[list[HeldLane], bool]:
    lanes = broker.queue_keys(name).shelf[1]
    some: dict[bytes, bytes] = {}
    cursor = b"0"
    while True:
        cursor, part = broker.client.call("HSCAN", lanes, cursor, "COUNT", min(most, 1_000))
        some.update(pairs(part))
        if cursor == b"0" or len(some) >= most:
            return _read(queue, some), cursor != b"0"


def _whole(parts: Sequence[list[HeldLane]]) -> list[HeldLane]:
    """Return the lanes of all partitions and priorities as one for each key."""
    found: dict[str, HeldLane] = {}
    for lane in (lane for lanes in parts for lane in lanes):
        before = found.get(lane.name)
        found[lane.name] = lane if before is None else replace(lane, held=lane.held + before.held)
    return sorted(found.values(), key=lambda lane: (-lane.held, lane.name))


def held_reasons(broker: StreamBroker, queue: str) -> dict[str, int]:
    """Return how many messages are held back by what: ``rate`` (they wait for a time), ``concurrency`` (for a place).

    At most three round trips. Where very many lanes wait for either, those beyond 10,000 are ``mixed``: nobody counted
    them.
    """
    found: Counter[str] = Counter(dict.fromkeys(HELD_REASONS, 0))
    for name in broker.partitions(queue):
        found.update(_held_reasons(broker, name))
    return dict(found)


def _held_reasons(broker: StreamBroker, name: str) -> dict[str, int]:
    held, lanes, ready, ring = broker.queue_keys(name).shelf[:4]
    # For the number of the task, or of the key.
    waits = [(f"[{kind}", f"({chr(ord(kind) + 1)}") for kind in "TK"]
    total, timed, *each = broker.client.call_all(
        [("HLEN", held), ("ZCARD", ready), *(("ZLEXCOUNT", ring, *bounds) for bounds in waits)]
    )
    placed = sum(each)
    found = dict.fromkeys(HELD_REASONS, 0)
    # The few are counted, and the others are the rest.
    few, many = ("rate", "concurrency") if timed <= placed else ("concurrency", "rate")
    count = min(timed, placed)
    if total and count:
        if few == "rate":
            names = broker.client.call("ZRANGE", ready, 0, _MOST_LANES - 1)
        else:
            bounded = [("ZRANGEBYLEX", ring, *bounds, "LIMIT", 0, _MOST_LANES) for bounds in waits]
            turns = [turn for some in broker.client.call_all(bounded) for turn in some]
            names = [turn.split(b"\0", 2)[-1] for turn in turns[:_MOST_LANES]]
        said = broker.client.call("HMGET", lanes, *names) if names else []
        found[few] = min(sum(_length(one) for one in said if one), total)
    found["mixed" if count > _MOST_LANES else many] = total - found[few]
    return found


def _count(lane: Mapping[str, Any]) -> int:
    # Those in a row, and those that were put back.
    return int(lane["last"] - lane["first"] + 1 + lane.get("back", 0))


def _length(said: bytes) -> int:
    try:
        known = json.loads(said)
        return _count(known)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0  # somebody else's field


def _read(queue: str, lanes: Mapping[bytes, bytes]) -> list[HeldLane]:
    found = []
    for name, said in lanes.items():
        if name:
            shown = name.decode(errors="replace").partition(_STEP_OF)[0]
            try:
                known = json.loads(said)
                found.append(HeldLane(queue, shown, str(known["task"]), _count(known)))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue  # somebody else's field
    return found


# -- settling


def vacating(broker: StreamBroker, entries: Iterable[Entry], limits: Mapping[str, Any]) -> StreamBroker:
    """Return a broker whose verbs give back the places of ``entries`` of one queue in the step that settles them.

    For one verb: the places are looked at each time.
    """
    found = list(entries)
    args = [keys.GROUP, len(broker.steps), json.dumps(limits), *(f"!{place_of(broker, entry)}" for entry in found)]
    return broker.followed_by(FREE, _keys(broker, found[0].stream.queue), args)


def keeping_place(broker: StreamBroker, entry: Entry, worker: str) -> StreamBroker:
    """Return a broker that acknowledges ``entry`` before its task runs: its places stay, as long as ``worker`` runs it.

    ``worker`` is its name in ``presence``.
    """
    names = [entry.stream.key, broker.queue_keys(entry.stream.queue).shelf[5]]
    return broker.followed_by(KEEP_PLACE, names, [entry.id, place_of(broker, entry), worker])


# -- what was set at run time


def limits_in_redis(broker: StreamBroker) -> dict[str, dict[str, Any]]:
    """Return the limits that were set at run time, by task. One round trip."""
    found: dict[str, dict[str, Any]] = {}
    for task, said in pairs(broker.client.call("HGETALL", keys.limits(broker.prefix))).items():
        try:
            known = json.loads(said)
        except (ValueError, RecursionError):
            continue
        if isinstance(known, dict):
            found[task.decode(errors="replace")] = known
    return found


def set_limits(broker: StreamBroker, task: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Set limits of a task at run time, beside those that were set before; returns them all. Three round trips."""
    said = {**limits_in_redis(broker).get(task, {}), **numbers}
    broker.client.call("HSET", keys.limits(broker.prefix), task, json.dumps(said))
    spread(broker, "limits")
    return said


def reset_limits(broker: StreamBroker, task: str) -> bool:
    """Drop what was set at run time for a task; returns whether there was anything."""
    was_set = bool(broker.client.call("HDEL", keys.limits(broker.prefix), task))
    spread(broker, "limits")
    return was_set

"""Tallies: what workers counted of each queue, by the minute and by ten minutes, and when their version changed.

The other half of ``history``: that says what a queue held, which anybody can see; this what became of its messages,
which only workers know (those that count: ``--metrics-port``, or ``streams_count_tasks``). Each adds what it counted
within the last minute, and at its end.

Bounded: a queue has at most an hour of minutes and a day of ten minutes, each a field of some 100 bytes, and 50 marks:
some 40 kB in all where tasks are much alike, 140 kB at most. It is a picture and no ledger: a worker that is killed
takes a minute with it, and one that did not hear Redis' answer adds a minute twice.

The text of a field is ``name=number`` again and again. A version that counts more adds names; one that counts less adds
up what it does not know and leaves it out when it reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from . import presence
from .broker import StreamBroker
from .exceptions import BrokerError
from .redis_errors import explained
from .scripts import Script, load

__all__ = ("COARSE", "FINE", "Mark", "Tally", "add", "mark", "marks", "tallies")

TALLY, MARK = load("tally"), load("mark")


@dataclass(frozen=True, slots=True)
class _Steps:
    #: Seconds.
    length: float
    #: Steps that are kept, the one that goes on included.
    kept: int


FINE, COARSE = _Steps(60.0, 61), _Steps(600.0, 145)

#: Seconds for which the last mark is known: a worker of the same version that starts later is none.
_MARKED = 90 * 86_400.0

_MOST_MARKS = 50

#: Queues that one step writes, so that Redis is never held up.
_STEP = 50

#: Before the upper bound of a bucket, in milliseconds; beyond all bounds it is ``+``.
_WAIT, _RUN = "w", "r"

#: The sums of both, in milliseconds.
_WAITED, _RAN = "waited", "ran"


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the messages of a queue within one step; times in seconds."""

    #: When the step began, in seconds since the epoch, and how long it is.
    at: float = 0.0
    seconds: float = 0.0
    #: Deliveries whose task did what it should, that failed, and that will be tried again.
    done: int = 0
    failed: int = 0
    retried: int = 0
    #: How many messages waited, and tasks ran, up to so many seconds: by bucket, not cumulative.
    waits: Mapping[float, int] = field(default_factory=dict)
    runs: Mapping[float, int] = field(default_factory=dict)
    wait_sum: float = 0.0
    run_sum: float = 0.0

    def names(self) -> dict[str, int]:
        """Return it as named numbers, as they are added up in Redis."""
        found = {"done": self.done, "failed": self.failed, "retried": self.retried}
        found |= {_bucket(_WAIT, bound): count for bound, count in self.waits.items()}
        found |= {_bucket(_RUN, bound): count for bound, count in self.runs.items()}
        return found | {_WAITED: round(self.wait_sum * 1000), _RAN: round(self.run_sum * 1000)}


@dataclass(frozen=True, slots=True)
class Mark:
    """A worker of another version than before began to read a queue."""

    #: Seconds since the epoch, by Redis' clock.
    at: float
    version: str


def add(broker: StreamBroker, counted: Mapping[str, Mapping[str, int]]) -> int:
    """Add what was counted of queues to the step that goes on; returns of how many something was written.

    Args:
        counted: by queue, as :meth:`Tally.names` has it; what is not greater than zero is left out. All of these queues
            are in one part of :meth:`StreamBroker.by_slot`.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    texts = {queue: _packed(numbers) for queue, numbers in counted.items()}
    steps = [word for one in (FINE, COARSE) for word in (int(one.length * 1000), one.kept)]
    names = iter([queue for queue, text in texts.items() if text])
    count = 0
    while some := list(islice(names, _STEP)):
        keys = [key for queue in some for key in broker.queue_keys(queue).tallies]
        count += _written(TALLY, broker, keys, [*steps, *(texts[queue] for queue in some)])
    return count


def mark(broker: StreamBroker, queues: Iterable[str], *, worker: str, version: str) -> int:
    """Note that a worker of this version began, where that is news; returns of how many queues it is.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    others = [one for one in presence.workers(broker) if one.worker != worker and one.version == version]
    known = {queue for one in others if one.is_alive for queue in one.queues}
    count = 0
    for part in broker.by_slot(list(queues)):
        names = iter(part)
        while some := list(islice(names, _STEP)):
            args = [version, int(_MARKED * 1000), _MOST_MARKS, *("1" if queue in known else "0" for queue in some)]
            count += _written(MARK, broker, [broker.queue_keys(queue).versions for queue in some], args)
    return count


def _written(script: Script, broker: StreamBroker, keys: Sequence[str], args: Sequence[object]) -> int:
    written, refusal = broker.client.run(script, keys, args)
    if refusal:
        raise BrokerError(f"The history of a queue cannot be written: {explained(script, refusal.decode())}")
    return int(written)


def tallies(broker: StreamBroker, queues: Sequence[str], *, seconds: float = 3_600.0) -> dict[str, list[Tally]]:
    """Return what was counted within the last ``seconds`` of each queue, the oldest first.

    By the minute up to an hour, else by ten minutes; steps in which nothing was counted are left out.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    if not queues:
        return {}
    at = 0 if seconds <= FINE.length * (FINE.kept - 1) else 1
    length = (FINE, COARSE)[at].length
    looks: list[tuple[str, ...]] = [("HGETALL", broker.queue_keys(queue).tallies[at]) for queue in queues]
    clock, *found = broker.client.call_all([("TIME",), *looks])
    now = int(clock[0])
    return {
        queue: sorted(
            (
                _tally(int(step) * length, length, text)
                for step, text in zip(flat[::2], flat[1::2], strict=True)
                if step.isdigit() and now - seconds - length < int(step) * length <= now
            ),
            key=lambda one: one.at,
        )
        for queue, flat in zip(queues, found, strict=True)
    }


def marks(broker: StreamBroker, queues: Sequence[str], *, seconds: float = 3_600.0) -> dict[str, list[Mark]]:
    """Return when a worker of another version began to read each queue within the last ``seconds``, the oldest first.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    if not queues:
        return {}
    first = max(int((int(broker.client.call("TIME")[0]) - seconds) * 1000), 0)
    found = broker.client.call_all([("XRANGE", broker.queue_keys(queue).versions, first, "+") for queue in queues])
    return {
        queue: [
            Mark(int(entry_id.partition(b"-")[0]) / 1000, fields[1].decode(errors="replace"))
            for entry_id, fields in entries
            if fields[0] == b"v"
        ]
        for queue, entries in zip(queues, found, strict=True)
    }


def _packed(numbers: Mapping[str, int]) -> str:
    return " ".join(f"{name}={number}" for name, number in numbers.items() if number > 0)


def _tally(at: float, length: float, text: bytes) -> Tally:
    said: dict[str, int] = {}
    for word in text.decode(errors="replace").split():
        name, _, number = word.partition("=")
        if number.isascii() and number.isdigit():
            said[name] = int(number)
    return Tally(
        at,
        length,
        done=said.get("done", 0),
        failed=said.get("failed", 0),
        retried=said.get("retried", 0),
        waits=_buckets(_WAIT, said),
        runs=_buckets(_RUN, said),
        wait_sum=said.get(_WAITED, 0) / 1000,
        run_sum=said.get(_RAN, 0) / 1000,
    )


def _bucket(prefix: str, bound: float) -> str:
    return f"{prefix}{'+' if math.isinf(bound) else round(bound * 1000)}"


def _buckets(prefix: str, said: Mapping[str, int]) -> dict[float, int]:
    """Return the buckets of a histogram by their upper bounds; bounds are whatever the version that counted has."""
    found: dict[float, int] = {}
    for name, count in said.items():
        bound = name[len(prefix) :] if name.startswith(prefix) else ""
        if bound == "+":
            found[math.inf] = count
        elif bound.isascii() and bound.isdigit():
            found[int(bound) / 1000] = count
    return dict(sorted(found.items()))

"""Course: how a queue fared within an hour or a day, step by step, out of what was recorded and counted of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..broker import StreamBroker
from ..history import EVERY, STANDS, Sample, samples
from ..tallies import COARSE, FINE, Mark, Tally, marks, tallies

__all__ = ("DAY", "HOUR", "Course", "Pace", "Spread", "Step", "course", "lay_out", "pace", "spread")

#: Seconds.
HOUR, DAY = 3_600.0, 86_400.0

#: Seconds after which a sample says nothing more: what stays the same is written again before that.
_STALE = STANDS + 2 * EVERY

#: Of 100 messages so many took no longer.
_MOST = 0.95

#: Seconds over which a pace is told: shorter than a sample stands, and long enough that one message is no flood.
_PACE = 300.0


@dataclass(frozen=True, slots=True)
class Spread:
    """How long something took, of ``count`` that were measured; in seconds."""

    count: int
    mean: float
    #: 95 of 100 took no longer than this: the upper bound of a bucket of the histogram. Of what is beyond all bounds it
    #: is the greatest that is known, or the mean: they took longer.
    most: float


@dataclass(frozen=True, slots=True)
class Step:
    """A queue within one step. None is what nobody recorded, or counted."""

    #: When it begins, in seconds since the epoch.
    at: float
    #: What it held at the end of the step.
    waiting: int | None
    dead: int | None
    #: Entries that were added to its streams: messages, retries, and what became due.
    arrived: int | None
    done: int | None
    failed: int | None
    retried: int | None
    wait: Spread | None
    run: Spread | None

    def as_dict(self) -> dict[str, Any]:
        """Return the step for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Course:
    """The steps of a queue, the oldest first; the last one goes on."""

    queue: str
    #: Seconds of a step.
    length: float
    steps: tuple[Step, ...]
    #: When workers of another version began.
    marks: tuple[Mark, ...]

    @property
    def is_counted(self) -> bool:
        """Whether any worker counted what became of messages."""
        return any(step.done is not None for step in self.steps)

    @property
    def begins(self) -> float:
        """Seconds since the epoch."""
        return self.steps[0].at

    @property
    def ends(self) -> float:
        """Seconds since the epoch, behind the last step."""
        return self.steps[-1].at + self.length


@dataclass(frozen=True, slots=True)
class Pace:
    """Entries a minute, in the mean of the last minutes: messages, retries, and what became due."""

    #: That came into the streams of a queue.
    arrived: float
    #: That left them: done, failed, put off, or held back.
    left: float


def course(broker: StreamBroker, queue: str, *, seconds: float = HOUR) -> Course:
    """Return how a queue fared: the last hour by the minute, or the last day by ten minutes.

    Args:
        seconds: :data:`HOUR`; anything longer is a day.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    length, count = (FINE.length, FINE.kept - 1) if seconds <= HOUR else (COARSE.length, COARSE.kept - 1)
    now = broker.clock_ms() / 1000
    back = length * (count + 1)
    return lay_out(
        queue,
        samples(broker, [queue], seconds=back)[queue],
        tallies(broker, [queue], seconds=min(back, HOUR if length == FINE.length else DAY))[queue],
        marks(broker, [queue], seconds=back)[queue],
        length=length,
        count=count,
        now=now,
    )


def lay_out(
    queue: str,
    held: Sequence[Sample],
    counted: Sequence[Tally],
    marked: Sequence[Mark],
    *,
    length: float,
    count: int,
    now: float,
) -> Course:
    """Return the last ``count`` steps up to ``now``, each ``length`` seconds long and beginning at a multiple of it."""
    last = now // length * length
    starts = [last - length * back for back in reversed(range(count))]
    of_step = {one.at: one for one in counted}
    ends = [_at(held, min(start + length, now)) for start in (starts[0] - length, *starts)]
    steps = tuple(
        _step(start, before, after, of_step.get(start))
        for start, before, after in zip(starts, ends, ends[1:], strict=False)
    )
    return Course(queue, length, steps, tuple(one for one in marked if one.at >= starts[0]))


def pace(held: Sequence[Sample], *, now: float) -> Pace | None:
    """Return how fast a queue fills and empties; None where nobody wrote it down, or Redis does not say (before 7)."""
    start = now - _PACE
    end = _at(held, now)
    begin = _at(held, start) or next((one for one in held if one.at > start), None)
    if end is None or begin is None or (begin is end and end.at > start):
        return None
    if begin.added is None or end.added is None or end.added < begin.added:
        return None
    minutes = min(now - begin.at, _PACE) / 60
    arrived = end.added - begin.added
    grown = (end.waiting + end.pending) - (begin.waiting + begin.pending)
    return Pace(arrived / minutes, max(arrived - grown, 0) / minutes)


def _at(held: Sequence[Sample], moment: float) -> Sample | None:
    """Return what stood at a moment; None when nobody wrote for longer than a sample stands."""
    found = None
    for one in held:
        if one.at > moment:
            break
        found = one
    return found if found is not None and moment - found.at <= _STALE else None


def _step(start: float, before: Sample | None, after: Sample | None, tally: Tally | None) -> Step:
    arrived = None
    if before is not None and after is not None and before.added is not None and after.added is not None:
        # Less than before: the streams were made anew.
        arrived = after.added - before.added if after.added >= before.added else None
    return Step(
        at=start,
        waiting=None if after is None else after.waiting,
        dead=None if after is None else after.dead,
        arrived=arrived,
        done=None if tally is None else tally.done,
        failed=None if tally is None else tally.failed,
        retried=None if tally is None else tally.retried,
        wait=None if tally is None else spread(tally.waits, tally.wait_sum),
        run=None if tally is None else spread(tally.runs, tally.run_sum),
    )


def spread(buckets: Mapping[float, int], total: float) -> Spread | None:
    """Return what a histogram says, by the upper bounds of its buckets (not cumulative); None when it has nothing."""
    count = sum(buckets.values())
    if not count:
        return None
    mean = total / count
    left = math.ceil(_MOST * count)
    for bound in sorted(buckets):
        left -= buckets[bound]
        if left <= 0 and not math.isinf(bound):
            return Spread(count, mean, bound)
    known = [bound for bound in buckets if not math.isinf(bound)]
    return Spread(count, mean, max([mean, *known]))

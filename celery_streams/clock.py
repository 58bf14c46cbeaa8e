"""Clock: telling time where clocks disagree and are set; it talks to nobody.

Redis' clock decides about messages, for no two others can be compared. It is set now and then all the same (NTP, a
suspended machine, a fail-over to another host), so whoever measures with it watches it by its own monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ("ClockWatch", "RedisClock", "steady_time")

#: Seconds since the epoch when the monotonic clock was zero, as this process saw it when it started.
_ZERO = time.time() - time.monotonic()

#: Seconds for which a reply to TIME is good enough to guess the time with.
_FRESH = 5.0


def steady_time() -> float:
    """Return seconds since the epoch by a clock that nobody sets: that of this process' start, and what went by since.

    A bound for what must not be deleted because another clock is ahead for a moment.
    """
    return _ZERO + time.monotonic()


class ClockWatch:
    """Notices that Redis' clock was set, forth or back, between two looks at it.

    Args:
        tolerance: seconds that count as nothing: a slow reply looks like a clock that was set.
    """

    def __init__(self, *, tolerance: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.tolerance = tolerance
        self._monotonic = monotonic
        self._offset: float | None = None

    def expected_ms(self) -> int | None:
        """Return what Redis' clock should say now, in milliseconds since the epoch; None before the first look."""
        return None if self._offset is None else int((self._offset + self._monotonic()) * 1000)

    def observe(self, clock_ms: int) -> float:
        """Take a look; returns by how many seconds the clock was set since the last one, 0.0 for not at all."""
        offset = clock_ms / 1000 - self._monotonic()
        before, self._offset = self._offset, offset
        jump = 0.0 if before is None else offset - before
        return jump if abs(jump) > self.tolerance else 0.0


class RedisClock:
    """Redis' time as a process guesses it between two questions.

    Args:
        ask: returns Redis' time in seconds since the epoch; None when Redis does not answer.
    """

    def __init__(
        self,
        ask: Callable[[], float | None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._ask = ask
        self._monotonic = monotonic
        self._wall = wall
        self._offset: float | None = None
        self._asked_at = float("-inf")

    def guess(self) -> float:
        """Return the time, at most some seconds after Redis was asked for it."""
        if self._monotonic() - self._asked_at > _FRESH:
            return self.now()
        return self._wall() if self._offset is None else self._offset + self._monotonic()

    def now(self) -> float:
        """Ask for the time; while Redis is away it is guessed, at first by this host's clock."""
        said = self._ask()
        if said is not None:
            self._offset, self._asked_at = said - self._monotonic(), self._monotonic()
        return self._wall() if self._offset is None else self._offset + self._monotonic()

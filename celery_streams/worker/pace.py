"""Pace: how many entries a child fetches at once; it reads nothing, and no clock."""

from __future__ import annotations

__all__ = ("Pace",)


class Pace:
    """How many entries to fetch at once: about ten milliseconds' worth, by what tasks took lately.

    Small tasks are fetched by the hundred, where the round trip would cost more than the tasks; tasks of ten
    milliseconds and more one at a time, so that nothing waits behind them.
    """

    def __init__(self, *, most: int, budget: float = 0.010) -> None:
        self._most = most
        self._budget = budget
        self._count = 1
        self._mean = budget

    @property
    def count(self) -> int:
        """Entries to fetch next."""
        return self._count

    def observe(self, *, ran: int, seconds: float) -> None:
        """Learn from a batch: ``ran`` tasks took ``seconds``."""
        if not ran:
            return
        mean = seconds / ran
        # Down at once, up by half of the way: a long task says more than many short ones.
        self._mean = mean if mean > self._mean else (self._mean + mean) / 2
        wanted = int(self._budget / self._mean) if self._mean > 0 else self._most
        self._count = max(1, min(wanted, self._count * 4, self._most))

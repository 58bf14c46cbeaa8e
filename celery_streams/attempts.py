"""Attempts: how the starts of a message ended, one line each, in the history that travels with it; no Redis here.

Whoever puts a message back, or stores its retry, adds a line to the text ``attempts`` of its history: a task that
succeeds at once never has one. Six columns, a tab between them::

    number  began  ended  outcome  worker  detail

Times are milliseconds since the epoch, by the clock of whoever wrote them, and empty where nobody knows.
``recover.lua`` writes the line of a worker that disappeared, and knows the same bounds. It is text, so that workers of
older versions, which know nothing of it, pass it on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ("FIELD", "MOST", "MOST_BYTES", "Attempt", "and_this", "of_history", "parse")

#: Its name in a history.
FIELD = "attempts"

#: Attempts that a message knows, and the bytes that they take: the oldest are forgotten.
MOST, MOST_BYTES = 15, 2_000

#: Characters of a worker's name and of a detail.
_LONGEST = 120

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_LINE = re.compile(r"([0-9]{1,9})\t([0-9]{0,13})\t([0-9]{0,13})\t([^\t]*)\t([^\t]*)\t([^\t]*)")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a message that is over."""

    #: retried, put back, interrupted, crashed, lost (the whole worker), or the reason of a dead letter.
    outcome: str
    #: The consumer: the worker's node name, and which of its children it was.
    worker: str
    #: The class of an exception, or how the process ended; never what an exception says, which may be arguments.
    detail: str = ""
    #: Seconds since the epoch; None: nobody knows.
    began: float | None = None
    ended: float | None = None
    #: From 1 on; 0: not yet known.
    number: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {name: getattr(self, name) for name in ("number", "began", "ended", "outcome", "worker", "detail")}


def and_this(known: object, attempt: Attempt, *, least: int = 1) -> str:
    """Return the text ``known``, as a history has it, with one more line.

    Args:
        least: its number at least; the number is one more than the last, which an older worker may have left out.
    """
    lines = [line for line in known.split("\n") if line] if isinstance(known, str) else []
    last = parse(lines[-1]) if lines else ()
    number = attempt.number or min(max(last[0].number + 1 if last else 1, least), 999_999_999)
    columns = (str(number), _ms(attempt.began), _ms(attempt.ended), attempt.outcome, attempt.worker, attempt.detail)
    lines = [*lines[1 - MOST :], "\t".join(_CONTROL.sub(" ", column)[:_LONGEST] for column in columns)]
    sizes = [len(line.encode(errors="replace")) + 1 for line in lines]
    while sum(sizes) > MOST_BYTES:
        del lines[0], sizes[0]
    return "\n".join(lines)


def parse(known: object) -> tuple[Attempt, ...]:
    """Return the attempts of a text, the oldest first; what makes no sense is left out, for anybody can write it."""
    if not isinstance(known, str):
        return ()
    found = (_LINE.fullmatch(line) for line in known.split("\n")[-MOST:])
    return tuple(
        Attempt(outcome, worker, detail, _seconds(began), _seconds(ended), int(number))
        for number, began, ended, outcome, worker, detail in (one.groups() for one in found if one)
    )


def of_history(history: Mapping[str, Any]) -> tuple[Attempt, ...]:
    """Return the attempts that a history knows."""
    return parse(history.get(FIELD))


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else str(max(int(seconds * 1000), 0))


def _seconds(ms: str) -> float | None:
    return int(ms) / 1000 if ms else None

"""Charts: lines over time as what a template needs to draw them (SVG without scripts and styles). It knows no queue."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone as clock

from django.utils import timezone

__all__ = ("FLOOR", "HEIGHT", "LEFT", "WIDTH", "Chart", "Line", "Tick", "chart", "mark", "ticks")

#: The drawing, in its own units.
WIDTH, HEIGHT = 640, 150

#: Room for the figures on the left, and for the hours below.
LEFT, _TOP, _BOTTOM = 56, 10, 20

#: Where zero is.
FLOOR = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class Tick:
    """A place on one of the axes, with what stands there; or a mark."""

    at: str
    text: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Line:
    """One line: pieces of connected points, for what nobody knows is a gap."""

    name: str
    #: One of the line styles of the style sheet.
    kind: str
    pieces: tuple[str, ...]
    #: Single points between gaps.
    dots: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Chart:
    """One drawing; ``said`` tells somebody who does not see it what is in it."""

    title: str
    said: str
    lines: tuple[Line, ...]
    levels: tuple[Tick, ...]


def ticks(begins: float, ends: float, *, every: float) -> tuple[Tick, ...]:
    """Return the hours below a drawing, in the project's time zone."""
    first = math.ceil(begins / every) * every
    found = []
    while first < ends:
        local = timezone.localtime(datetime.fromtimestamp(first, clock.utc))
        found.append(Tick(_x(first, begins, ends), local.strftime("%H:%M")))
        first += every
    return tuple(found)


def mark(at: float, text: str, begins: float, ends: float) -> Tick:
    """Return a mark at a moment."""
    where = _x(at, begins, ends)
    return Tick(where, text, "end" if float(where) > WIDTH / 2 else "start")


def chart(
    title: str,
    lines: Sequence[tuple[str, Sequence[float | None]]],
    *,
    shown: Callable[[float], str],
    said: str,
    least: float,
) -> Chart:
    """Return a drawing of lines whose values are evenly apart.

    Args:
        shown: how a value is written at the axis.
        least: the least that the scale goes up to; greater than zero.
    """
    known = [value for _, values in lines for value in values if value is not None]
    top = _round_up(max([*known, least]))
    return Chart(
        title=title,
        said=said,
        lines=tuple(_line(name, str(number), values, top) for number, (name, values) in enumerate(lines)),
        levels=tuple(Tick(_y(top * part, top), shown(top * part), "end") for part in (0.0, 0.5, 1.0)),
    )


def _line(name: str, kind: str, values: Sequence[float | None], top: float) -> Line:
    pieces: list[list[tuple[str, str]]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((_x(number + 1, 0, len(values)), _y(value, top)))
    return Line(
        name,
        kind,
        tuple(" ".join(f"{x},{y}" for x, y in piece) for piece in pieces if len(piece) > 1),
        tuple(piece[0] for piece in pieces if len(piece) == 1),
    )


def _x(at: float, begins: float, ends: float) -> str:
    return f"{LEFT + (WIDTH - LEFT - 4) * (at - begins) / (ends - begins):.1f}"


def _y(value: float, top: float) -> str:
    return f"{FLOOR - (FLOOR - _TOP) * value / top:.1f}"


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 10, 20, 40 ...: its half is a round figure, too."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 10, 20) if power * step >= value * (1 - 1e-9))

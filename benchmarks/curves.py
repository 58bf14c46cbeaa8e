"""Curves: draws the results of ``scale`` as an SVG picture; it measures nothing, and needs nothing to draw with."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

__all__ = ("draw",)

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _GAP = 190, 150, 46, 44, 46, 18

#: A panel with values this many times those of the lowest one has a scale of its own: beside it, others would be lines
#: at the bottom.
_APART = 5.0

#: What is drawn: figure, title, colour.
_LINES = (("worker_us", "worker", "#2563eb"), ("redis_us", "Redis", "#dc2626"))


def draw(data: dict[str, Any]) -> str:
    """Return the picture: a panel for each curve; medians, and bars from the least to the most.

    They share one scale, but for a curve that goes far beyond the others.
    """
    panels = [curve for curve in data["curves"] if curve["points"]]
    most = [_most(curve) for curve in panels]
    shared = [one for one in most if one <= _APART * min(most)]
    top = _rounded_up(max(shared, default=1.0))
    tops = [top if one in shared else _rounded_up(one) for one in most]
    lefts, width = [], _LEFT
    for own, before in zip(tops, [tops[0] if tops else None, *tops], strict=False):
        # Figures stand left of a panel whose scale is not that of the one before.
        lefts.append(width if own == before else width + _LEFT - _GAP)
        width = lefts[-1] + _WIDTH + _GAP
    height = _TOP + _HEIGHT + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11" role="img">',
        "<title>CPU time of a task as a system grows</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="16" font-size="13" fill="#111827">CPU of a noop task in microseconds</text>',
    ]
    for number, (_, title, colour) in enumerate(_LINES):
        x = _LEFT + 90 * number
        parts.append(f'<line x1="{x}" y1="29" x2="{x + 18}" y2="29" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 23}" y="33" fill="#374151">{title}</text>')
    for curve, left, own, before in zip(panels, lefts, tops, [None, *tops], strict=False):
        parts += _grid(left, own, named=own != before)
        parts += _panel(curve, left, own)
    return "\n".join([*parts, "</svg>", ""])


def _most(curve: dict[str, Any]) -> float:
    rounds = [one for point in curve["points"] for one in point["rounds"]]
    return max((one.get(name, 0.0) for one in rounds for name, _, _ in _LINES), default=1.0)


def _grid(left: float, top: float, *, named: bool) -> list[str]:
    """Return the lines behind a panel; ``named``: with their values, for it has not the scale of the one before."""
    parts = []
    for step in range(5):
        value = top * step / 4
        y = _y(value, top)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + _WIDTH}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        if named:
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#6b7280">{value:g}</text>')
    return parts


def _panel(curve: dict[str, Any], left: float, top: float) -> list[str]:
    points: Sequence[dict[str, Any]] = curve["points"]
    # The points stand at equal distances: they grow by factors, and one may be zero.
    xs = [left + 22 + (_WIDTH - 44) * at / max(len(points) - 1, 1) for at in range(len(points))]
    bottom = _TOP + _HEIGHT
    title, middle = escape(curve["title"]), left + _WIDTH / 2
    parts = [f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle" fill="#111827">{title}</text>']
    for x, point in zip(xs, points, strict=True):
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#6b7280">{_short(point["x"])}</text>'
        )
    for name, _, colour in _LINES:
        if any(name not in point for point in points):
            continue
        line = " ".join(f"{x:.1f},{_y(point[name], top):.1f}" for x, point in zip(xs, points, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, point in zip(xs, points, strict=True):
            values = [one[name] for one in point["rounds"]]
            parts.append(
                f'<line x1="{x:.1f}" y1="{_y(min(values), top):.1f}" x2="{x:.1f}" y2="{_y(max(values), top):.1f}" '
                f'stroke="{colour}" stroke-opacity="0.5"/>'
            )
            parts.append(f'<circle cx="{x:.1f}" cy="{_y(point[name], top):.1f}" r="2.5" fill="{colour}"/>')
    return parts


def _y(value: float, top: float) -> float:
    return _TOP + _HEIGHT * (1 - min(value, top) / top)


def _rounded_up(value: float) -> float:
    step = 1.0
    while True:
        for factor in (1, 2, 4, 8):
            if value <= step * factor:
                return step * factor
        step *= 10


def _short(value: int) -> str:
    for unit, sign in ((1_000_000, "M"), (1_000, "k")):
        if value >= unit:
            return f"{value / unit:g}{sign}"
    return str(value)

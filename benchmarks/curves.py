"""Curves: draws the results of ``scale`` as an SVG picture; it measures nothing, and needs nothing to draw with."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

__all__ = ("draw",)

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _GAP = 190, 150, 46, 44, 46, 18

#: What is drawn: figure, title, colour.
_LINES = (("worker_us", "worker", "#2563eb"), ("redis_us", "Redis", "#dc2626"))


def draw(data: dict[str, Any]) -> str:
    """Return the picture: a panel for each curve, on one scale; medians, and bars from the least to the most."""
    panels = [curve for curve in data["curves"] if curve["points"]]
    most = max(
        (
            one.get(name, 0.0)
            for curve in panels
            for point in curve["points"]
            for one in point["rounds"]
            for name, _, _ in _LINES
        ),
        default=1.0,
    )
    top = _rounded_up(most)
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
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
    for step in range(5):
        y = _y(top * step / 4, top)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{width - _GAP}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#6b7280">{top * step / 4:g}</text>'
        )
    for number, curve in enumerate(panels):
        parts += _panel(curve, _LEFT + number * (_WIDTH + _GAP), top)
    return "\n".join([*parts, "</svg>", ""])


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

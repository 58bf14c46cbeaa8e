"""The report: the same results as tables, as JSON and as Markdown; and back from JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

import celery_streams
from celery_streams.embedded import EmbeddedRedis

from .measures import FIGURES, Figure
from .peers import PEERS
from .rounds import Options, Results
from .systems import STOCK, STREAMS, SYSTEMS, TRACED, System

__all__ = ("as_dict", "from_dict", "machine", "markdown", "print_tables", "update")

#: The lines of a Markdown file between which :func:`update` writes.
BEGIN = "<!-- benchmarks: begin (python -m benchmarks --update README.md) -->"
END = "<!-- benchmarks: end -->"

#: The rows that the README shows.
_SHORT = (
    "publish_wall_us",
    "publish_cpu_us",
    "publish_bytes",
    "bulk_wall_us",
    "bulk_cpu_us",
    "drain_rate",
    "drain_cpu_us",
    "drain_commands",
    "drain_reads",
    "latency_p50_ms",
    "latency_p99_ms",
    "delayed_p50_ms",
    "delayed_p99_ms",
    "result_p50_ms",
    "idle_commands",
    "idle_requests",
    "idle_connections",
    "memory_parent_mb",
    "memory_child_mb",
)

_NOTES = """\
Figures are medians of {rounds}, in which the systems take turns; the last columns are ours divided by others,
round by round (median, and the range in brackets). Ratios carry over to other machines, absolute rates do not.
The publisher is one process. The bare loop has no tracer, retries, signals or heartbeats: it is the limit of the
machine, not a task queue; with Celery's tracer it is the limit of what runs Celery's tasks. Faster systems get longer
backlogs, made up of copies of what was published, so that each drain takes seconds. Redis commands include those
inside scripts; a request is what Redis reads from a connection at once, one command or many in a pipeline. A round of
the latency has {samples} tasks, so that its 99 % is the second or third worst."""


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        info: dict[str, Any] = dict(client.info("server"))
    name = "valkey" if "valkey_version" in info else "redis"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "server": f"{name} {info.get('valkey_version') or info['redis_version']}",
        "celery-streams": celery_streams.__version__,
        **{package: _version(package) for package in ("celery", "kombu", "redis", "hiredis")},
    }


def as_dict(results: Results, options: Options, about: dict[str, Any]) -> dict[str, Any]:
    """Return everything for JSON; ``values`` has the single rounds."""
    systems = _measured(results)
    return {
        "machine": about,
        "options": {"rounds": options.rounds, "tasks": options.tasks, "samples": options.samples},
        "seconds": round(results.seconds, 1),
        "foreign_load": results.foreign_load,
        "figures": {
            figure.name: {
                "title": figure.title,
                "unit": figure.unit,
                **{system.name: results.median(system, figure.name) for system in systems},
                "ratio": _middle(results.ratios(figure.name)),
                "ratio_traced": _middle(results.ratios(figure.name, TRACED)),
                "spread": {system.name: results.spread(system, figure.name) for system in systems},
            }
            for figure in FIGURES
            if results.median(STREAMS, figure.name) is not None
        },
        "values": results.values,
    }


def from_dict(data: dict[str, Any]) -> tuple[Results, Options, dict[str, Any]]:
    """Read what :func:`as_dict` wrote."""
    results = Results(data["values"], data["foreign_load"], data["seconds"])
    return results, Options(**data["options"]), data["machine"]


def print_tables(results: Results, options: Options, about: dict[str, Any], console: Console) -> None:
    """Print everything, side by side."""
    table = Table(title="Stock Celery, streams, and the limit", title_justify="left")
    table.add_column("")
    systems = _measured(results)
    for system in systems:
        table.add_column(system.title, justify="right")
    table.add_column("streams / stock", justify="right")
    table.add_column("streams / traced", justify="right")
    before = ""
    for figure in FIGURES:
        cells = [_cell(results, system, figure) for system in systems]
        if any(cells):
            if before and figure.measure != before:
                table.add_section()
            before = figure.measure
            good = _is_good(results, figure)
            style = "" if good is None else "[green]" if good else "[yellow]"
            table.add_row(
                f"{figure.title}, {figure.unit}",
                *(cell or "-" for cell in cells),
                style + _ratio(results, figure, STOCK),
                _ratio(results, figure, TRACED),
            )
    console.print(table)
    console.print(f"Better than stock is green. {_NOTES.format(rounds=_rounds(options), samples=options.samples)}")
    console.print(_about(results, options, about))


def markdown(results: Results, options: Options, about: dict[str, Any]) -> str:
    """Return the table of the README."""
    titles = " | ".join(system.title for system in SYSTEMS)
    lines = [f"| | {titles} | streams / stock |", "|---|" + "---:|" * (len(SYSTEMS) + 1)]
    for figure in FIGURES:
        if figure.name in _SHORT and results.median(STREAMS, figure.name) is not None:
            cells = [_plain(results.median(system, figure.name)) for system in SYSTEMS]
            middle = _middle(results.ratios(figure.name))
            ratio = "-" if middle is None else _digits(middle)
            lines.append(f"| {_titled(figure)} | {' | '.join(cells)} | {ratio} |")
    return "\n".join([*lines, "", _about(results, options, about)])


def update(path: Path, text: str, *, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Write ``text`` between the two marks of a Markdown file.

    Raises:
        ValueError: the marks are not there.
    """
    whole = path.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"{path} has no lines {marks[0]!r} and {marks[1]!r}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _measured(results: Results) -> tuple[System, ...]:
    """Return the columns: our systems, and the peers of this run."""
    known = {system.name for system in SYSTEMS}
    peers = [System(name, PEERS[name].title, (), is_celery=False) for name in results.values if name not in known]
    return (*SYSTEMS, *peers)


# -- words and numbers


def _cell(results: Results, system: Any, figure: Figure) -> str:
    middle = results.median(system, figure.name)
    if middle is None:
        return ""
    spread = results.spread(system, figure.name)
    return _digits(middle) + (f" [dim]±{spread / 2:.0%}[/dim]" if spread is not None else "")


def _plain(value: float | None) -> str:
    return "-" if value is None else _digits(value)


def _titled(figure: Figure) -> str:
    return figure.title if figure.unit == "1" else f"{figure.title}, {figure.unit}"


def _ratio(results: Results, figure: Figure, other: System) -> str:
    found = results.ratios(figure.name, other)
    if not found:
        return "-"
    middle = _digits(_middle(found) or 0.0)
    return middle if len(found) == 1 else f"{middle} ({_digits(min(found))} to {_digits(max(found))})"


def _is_good(results: Results, figure: Figure) -> bool | None:
    middle = _middle(results.ratios(figure.name))
    return None if middle is None else (middle >= 1) == figure.more_is_better or middle == 1


def _middle(values: list[float]) -> float | None:
    ordered = sorted(values)
    half = len(ordered) // 2
    if not ordered:
        return None
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _digits(value: float) -> str:
    """Write a number with about three digits that count."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _about(results: Results, options: Options, about: dict[str, Any]) -> str:
    return " ".join(_sentences(results, options, about))


def _sentences(results: Results, options: Options, about: dict[str, Any]) -> Iterator[str]:
    hiredis = f", hiredis {about['hiredis']}" if about["hiredis"] else ", without hiredis"
    yield (
        f"{about['processor']}, {about['cores']} cores, {about['system']}; Python {about['python']}, "
        f"{about['server']} on loopback without persistence, celery {about['celery']}, kombu {about['kombu']}, "
        f"redis-py {about['redis']}{hiredis}, celery-streams {about['celery-streams']}."
    )
    yield f"{_rounds(options).capitalize()}, backlogs of {options.tasks:,} tasks."
    if results.foreign_load is not None:
        yield f"Other processes used {results.foreign_load:.2f} cores meanwhile" + (
            ": take the figures with caution." if results.foreign_load > 0.2 else "."
        )


def _rounds(options: Options) -> str:
    return "one round" if options.rounds == 1 else f"{options.rounds} rounds"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return ""

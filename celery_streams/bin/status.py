"""``celery-streams status``: all queues in a table or as JSON, with an exit code for scripts."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from celery.exceptions import CeleryCommandException
from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..amqp import Streams, streams_of
from ..exceptions import BrokerError, ConfigurationError
from ..monitoring.status import Status, collect

__all__ = ("EXIT_CONFIG", "EXIT_CRITICAL", "EXIT_OK", "EXIT_UNAVAILABLE", "EXIT_WARNING", "status")

#: The first three are the codes of Nagios plugins, the others come from sysexits.h.
EXIT_OK = 0
EXIT_WARNING = 1
EXIT_CRITICAL = 2
#: Redis is away, or refuses.
EXIT_UNAVAILABLE = 69
#: A setting is wrong, or the URL is not one of a Redis.
EXIT_CONFIG = 78

_EXIT_CODES = {"ok": EXIT_OK, "warning": EXIT_WARNING, "critical": EXIT_CRITICAL}
_STYLES = {"ok": "green", "warning": "yellow", "critical": "bold red"}

#: Columns of a table that does not go to a terminal, so that a pipe or log gets whole lines.
_PLAIN_WIDTH = 200

_EPILOG = """\b
Exit codes:
  0   no alert
  1   at least one warning
  2   at least one critical alert
  69  Redis cannot be reached, or refuses
  78  a setting is wrong, or the URL is not one of a Redis

\b
Examples:
  celery-streams -A proj status
  celery-streams -A proj status send_message mark_as_read
  celery-streams -A proj status --watch --interval 1
  celery-streams -A proj status --json | jq '.queues[] | {queue, waiting}'
"""


@click.command(cls=CeleryCommand, epilog=_EPILOG)
@click.argument("queues", nargs=-1, metavar="[QUEUE...]")
@click.option(
    "--json", "as_json", is_flag=True, cls=CeleryOption, help_group="Status Options", help="Print JSON, not a table."
)
@click.option(
    "--watch",
    is_flag=True,
    cls=CeleryOption,
    help_group="Status Options",
    help="Go on until Ctrl-C; with --json, print one line for each look.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    cls=CeleryOption,
    help_group="Status Options",
    help="Time between two looks with --watch.",
)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def status(
    ctx: click.Context, queues: tuple[str, ...], as_json: bool, watch: bool, interval: float, **kwargs: Any
) -> None:
    """Show what waits, runs, is delayed and is dead in each queue.

    All queues that were ever used, and those that streams_queues names, unless QUEUEs are given. The alerts below the
    table come from streams_alerts.
    """
    streams = streams_of(ctx.obj.app)
    names = queues or None
    try:
        if watch:
            _watch(streams, names, as_json=as_json, interval=interval, no_color=ctx.obj.no_color)
            return
        found = collect(streams, names)
    except BrokerError as exc:
        raise CeleryCommandException(_one_line(exc), EXIT_UNAVAILABLE) from exc
    except ConfigurationError as exc:
        raise CeleryCommandException(_one_line(exc), EXIT_CONFIG) from exc
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _console(no_color=ctx.obj.no_color).print(render(found))
    ctx.exit(_EXIT_CODES[found.level])


def render(found: Status) -> RenderableType:
    """Lay a status out for the terminal."""
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, show_footer=len(found.queues) > 1)
    totals = found.totals
    table.add_column("queue", "total", overflow="fold")
    for header, footer in (
        ("waiting", f"{totals.waiting:,}"),
        ("pending", f"{totals.pending:,}"),
        ("delayed", f"{totals.delayed:,}"),
        ("dead", f"{totals.dead:,}"),
        ("consumers", f"{totals.consumers:,}"),
        ("oldest", age(totals.oldest_waiting)),
    ):
        table.add_column(header, footer, justify="right", no_wrap=True)
    for report in found.queues:
        state = report.state
        table.add_row(
            Text(state.queue, style=_STYLES[report.alerts[0].level] if report.alerts else ""),
            f"{state.waiting:,}",
            f"{state.pending:,}",
            f"{state.delayed:,}",
            f"{state.dead:,}",
            f"{state.consumers:,}",
            age(state.oldest_waiting),
        )
    clock = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(found.time))
    switch = "streams are on" if found.enabled else "streams are off: publishes go to Celery's lists"
    lines: list[RenderableType] = [Text(f"{found.server}   {clock}   {switch}", style="dim"), Text()]
    lines.append(table if found.queues else Text("No queue was used yet."))
    if found.alerts:
        lines.append(Text())
    lines += [
        Text.assemble((alert.level, _STYLES[alert.level]), f"  {alert.queue}: {alert.message}")
        for alert in found.alerts
    ]
    return Group(*lines)


def age(seconds: float | None) -> str:
    """Write an age in its two greatest units; ``-`` for none."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for unit, smaller, size, part in (("d", "h", 86_400, 3_600), ("h", "m", 3_600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // part}{smaller}"
    return f"{whole}s"


def _watch(streams: Streams, queues: tuple[str, ...] | None, *, as_json: bool, interval: float, no_color: bool) -> None:
    # Redis may go away and come back while somebody watches; a wrong setting does not mend itself.
    try:
        if as_json:
            while True:
                click.echo(json.dumps(_look(streams, queues)))
                time.sleep(interval)
        with Live(console=_console(no_color=no_color), auto_refresh=False, screen=sys.stdout.isatty()) as live:
            while True:
                live.update(_picture(streams, queues), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return


def _look(streams: Streams, queues: tuple[str, ...] | None) -> dict[str, Any]:
    try:
        return collect(streams, queues).as_dict()
    except BrokerError as exc:
        return {"error": _one_line(exc)}


def _picture(streams: Streams, queues: tuple[str, ...] | None) -> RenderableType:
    try:
        return render(collect(streams, queues))
    except BrokerError as exc:
        return Text(_one_line(exc), style=_STYLES["critical"])


def _console(*, no_color: bool) -> Console:
    terminal = sys.stdout.isatty()
    return Console(no_color=no_color, highlight=False, width=None if terminal else _PLAIN_WIDTH)


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())

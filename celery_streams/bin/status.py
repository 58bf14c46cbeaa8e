"""``celery-streams status``: all queues in a table or as JSON, with an exit code for scripts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..app import Streams, streams_of
from ..exceptions import BrokerError
from ..hints import command
from ..inspect import QueueStatus
from ..monitoring.alerts import Alert
from ..monitoring.status import Status, collect
from ..printable import printable
from .tables import Rows, console
from .terminal import (
    EXIT_CRITICAL,
    EXIT_OK,
    EXIT_WARNING,
    Seconds,
    age,
    echo_json,
    one_line,
    one_line_errors,
    plural,
)

__all__ = ("render", "status")

_EXIT_CODES = {"ok": EXIT_OK, "warning": EXIT_WARNING, "critical": EXIT_CRITICAL}
_STYLES = {"ok": "green", "warning": "yellow", "critical": "bold red"}

_EPILOG = """\b
Exit codes:
  0   no alert
  1   at least one warning
  2   at least one critical alert, or the command line is wrong
  69  Redis cannot be reached, or refuses the commands
  78  a setting is wrong, or the URL is not a Redis URL

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
    help="Refresh until Ctrl-C; with --json, print one line each time.",
)
@click.option(
    "--interval",
    type=Seconds(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    cls=CeleryOption,
    help_group="Status Options",
    help="Time between two refreshes with --watch.",
)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def status(
    ctx: click.Context, queues: tuple[str, ...], as_json: bool, watch: bool, interval: float, **kwargs: Any
) -> None:
    """Show waiting, running, delayed and dead messages by queue.

    Without QUEUEs: all queues that were ever used, and those that streams_queues or task_queues name. Consumers are
    those of live workers. "list" counts the messages on Celery's own list of the queue. "to" says where publishers
    write: to the stream, to the list, or a share of the messages to the stream. streams_alerts sets the thresholds of
    the alerts below the table.
    """
    streams = streams_of(ctx.obj.app)
    names = queues or None
    if watch:
        _watch(streams, names, as_json=as_json, interval=interval, no_color=ctx.obj.no_color)
        return
    found = collect(streams, names)
    if as_json:
        echo_json(found.as_dict())
    else:
        console(no_color=ctx.obj.no_color).print(render(found))
    ctx.exit(_EXIT_CODES[found.level])


def render(found: Status) -> RenderableType:
    """Lay a status out for the terminal."""
    totals = found.totals
    several = len(found.queues) > 1
    headers = ("queue", "waiting", "pending", "delayed", "dead", "consumers", "oldest", "list", "to")
    counts = (totals.waiting, totals.pending, totals.delayed, totals.dead, totals.consumers)
    footer = ("total", *(f"{count:,}" for count in counts), age(totals.oldest_waiting), f"{totals.listed:,}", "")
    table = Rows(headers, right=headers[1:-1], footer=footer if several else None)
    for report in found.queues:
        state, side = report.state, report.side
        counts = (state.waiting, state.pending, state.delayed, state.dead, state.consumers)
        table.add(
            state.queue,
            *(f"{count:,}" for count in counts),
            age(state.oldest_waiting),
            "-" if side.length is None else f"{side.length:,}",
            _target(side.share),
            style=_STYLES[report.alerts[0].level] if report.alerts else "",
        )
    clock = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(found.time))
    switch = "streams are on" if found.enabled else "streams are off: publishes go to Celery's lists"
    lines: list[RenderableType] = [Text(f"{found.server}   {clock}   {switch}", style="dim"), Text()]
    lines.append(table if found.queues else Text("No queue has been used yet."))
    paused = [report.state for report in found.queues if report.state.paused is not None]
    held = [report.state for report in found.queues if report.state.held]
    locked = [report.state for report in found.queues if report.state.locks]
    if paused or held or locked or found.alerts or found.lists_trouble:
        lines.append(Text())
    lines += [Text.assemble(("paused", "cyan"), f"  {_said_of_pause(state)}") for state in paused]
    lines += [Text.assemble(("held", "cyan"), f"  {_said_of_held(state)}") for state in held]
    lines += [Text.assemble(("unique", "cyan"), f"  {_said_of_locks(state)}") for state in locked]
    lines += [Text.assemble((alert.level, _STYLES[alert.level]), f"  {_said(alert)}") for alert in found.alerts]
    if found.lists_trouble:
        lines.append(Text(printable(found.lists_trouble), style="dim"))
    return Group(*lines)


def _said_of_pause(state: QueueStatus) -> str:
    reason = f" ({state.pause_reason})" if state.pause_reason else ""
    return printable(f"{state.queue}: for {age(state.paused)}{reason}; its tasks do not start")


def _said_of_held(state: QueueStatus) -> str:
    are = "is" if state.held == 1 else "are"
    return printable(f"{state.queue}: {plural(state.held, 'message')} {are} held back by limits: {command('limits')}")


def _said_of_locks(state: QueueStatus) -> str:
    return printable(f"{state.queue}: {plural(state.locks, 'lock')} of unique tasks")


def _said(alert: Alert) -> str:
    return printable(f"{alert.queue}: {alert.message}" if alert.queue else alert.message)


def _target(share: float) -> str:
    """Say where publishers write: to the stream, to Celery's list, or to the stream in so many cases of a hundred."""
    if 0.0 < share < 1.0:
        return f"{share * 100:.3g} %"
    return "stream" if share else "list"


def _watch(streams: Streams, queues: tuple[str, ...] | None, *, as_json: bool, interval: float, no_color: bool) -> None:
    # Redis may go away and come back while somebody watches; a wrong setting does not mend itself.
    out = console(no_color=no_color)
    try:
        if as_json:
            _each(interval, lambda: echo_json(_look(streams, queues), indent=None))
        if not sys.stdout.isatty():
            _each(interval, lambda: _print(out, _picture(streams, queues)))
        with Live(console=out, auto_refresh=False, screen=True) as live:
            _each(interval, lambda: live.update(_picture(streams, queues), refresh=True))
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # Whoever read has seen enough (``| head``). Python would complain when it flushes at its end.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _print(out: Console, picture: RenderableType) -> None:
    """Print one look after the other, each at once: nobody wants to wait for a full buffer."""
    with out.capture() as look:  # rich itself would end the process with 1 when the pipe is closed
        out.print(picture)
    click.echo(look.get())
    sys.stdout.flush()


def _each(interval: float, show: Callable[[], None]) -> NoReturn:
    while True:
        show()
        time.sleep(interval)  # the interval that was asked for


def _look(streams: Streams, queues: tuple[str, ...] | None) -> dict[str, Any]:
    try:
        return collect(streams, queues).as_dict()
    except BrokerError as exc:
        return {"error": one_line(exc)}


def _picture(streams: Streams, queues: tuple[str, ...] | None) -> RenderableType:
    try:
        return render(collect(streams, queues))
    except BrokerError as exc:
        return Text(one_line(exc), style=_STYLES["critical"])

"""``celery-streams doctor``: what is wrong, or soon will be, and what to do; ``monitoring.doctor`` does the looking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..app import streams_of
from ..monitoring.checks import CHECKS, LEVELS
from ..monitoring.doctor import Diagnosis, diagnose
from ..printable import printable
from ..spelling import nearest
from .tables import console
from .terminal import EXIT_CRITICAL, EXIT_OK, EXIT_WARNING, Seconds, bad_input, echo_json, one_line_errors

__all__ = ("doctor",)

_EXIT_CODES = {"ok": EXIT_OK, "info": EXIT_OK, "warning": EXIT_WARNING, "critical": EXIT_CRITICAL}
_STYLES = {"ok": "green", "info": "cyan", "warning": "yellow", "critical": "bold red"}


@click.command(
    cls=CeleryCommand,
    epilog="""\b
Exit codes:
  0   no findings, or only notes and accepted ones
  1   at least one warning
  2   at least one critical finding, or the command line is wrong
  69  Redis cannot be reached, or refuses the commands
  78  a setting is wrong, or the URL is not a Redis URL

\b
Examples:
  celery-streams -A proj doctor
  celery-streams -A proj doctor send_message mark_as_read
  celery-streams -A proj doctor --accept persistence --accept memory
  celery-streams -A proj doctor --no-workers --json | jq '.findings[] | select(.level == "critical")'
""",
)
@click.argument("queues", nargs=-1, metavar="[QUEUE...]")
@click.option(
    "--no-workers",
    is_flag=True,
    cls=CeleryOption,
    help_group="Doctor Options",
    help="Do not ask running workers which queues they consume.",
)
@click.option(
    "--timeout",
    type=Seconds(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    cls=CeleryOption,
    help_group="Doctor Options",
    help="How long to wait for workers to answer.",
)
@click.option(
    "--accept",
    multiple=True,
    metavar="CHECK",
    cls=CeleryOption,
    help_group="Doctor Options",
    help="Accept the findings of this check: they do not affect the exit code. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, cls=CeleryOption, help_group="Doctor Options", help="Print JSON.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def doctor(
    ctx: click.Context,
    queues: tuple[str, ...],
    no_workers: bool,
    timeout: float,
    accept: tuple[str, ...],
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Check the server, its settings, permissions and clock, and both sides of each queue.

    Without QUEUEs: all queues that were ever used, and those that streams_queues or task_queues name. Nothing is
    changed.
    """
    found = diagnose(
        streams_of(ctx.obj.app),
        queues or None,
        ask_workers=not no_workers,
        timeout=timeout,
        accept=_accepted(accept),
    )
    if as_json:
        echo_json(found.as_dict())
    else:
        console(no_color=ctx.obj.no_color).print(render(found))
    ctx.exit(_EXIT_CODES[found.level])


def _accepted(words: Sequence[str]) -> frozenset[str]:
    """Return the names of checks out of words that may hold several, with dashes for spaces."""
    names = {part.strip().replace("-", " ") for word in words for part in word.split(",") if part.strip()}
    for name in names:
        if name not in CHECKS:
            raise bad_input(f"Unknown check {name!r}{nearest(name, CHECKS)} (the checks are {', '.join(CHECKS)})")
    return frozenset(names)


def render(found: Diagnosis) -> RenderableType:
    """Lay a diagnosis out for the terminal."""
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found.findings:
        said = Text(printable(f"{finding.queue}: {finding.what}" if finding.queue else finding.what))
        if finding.why:
            said.append(f"\n{printable(finding.why)}", style="dim")
        if finding.todo:
            said.append(f"\n-> {printable(finding.todo)}")
        level = Text("accepted", style="dim") if finding.accepted else Text(finding.level, style=_STYLES[finding.level])
        table.add_row(level, finding.check, said)
    open_ones = [finding for finding in found.findings if not finding.accepted]
    counts: list[tuple[str, int]] = [(level, sum(one.level == level for one in open_ones)) for level in LEVELS]
    counts.append(("accepted", len(found.findings) - len(open_ones)))
    summary = ", ".join(f"{count} {level}" for level, count in counts if count)
    return Group(Text(found.server, style="dim"), Text(), table, Text(), Text(summary))

"""``python -m benchmarks``: the one command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from celery_streams.exceptions import CeleryStreamsError

from . import report
from .measures import MEASURES
from .peers import PEERS, PeerError
from .rounds import Options, run
from .systems import BenchmarkError, System, peer

_DEFAULTS = Options()


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return MEASURES
    names = tuple(part.strip() for part in value.split(","))
    for name in names:
        if name not in MEASURES:
            raise click.BadParameter(f"{name!r} is none of {', '.join(MEASURES)}")
    return names


def _peers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(PEERS) if value == "all" else tuple(filter(None, (value or "").split(",")))
    for name in names:
        if name not in PEERS:
            raise click.BadParameter(f"{name!r} is none of all, {', '.join(PEERS)}")
    return names


def _install(names: tuple[str, ...], terminal: Console, say: Callable[[str], None]) -> tuple[System, ...]:
    found = []
    for name in names:
        say(f"an environment for {name}")
        try:
            found.append(peer(name, Path(".bench") / "peers"))
        except PeerError as exc:
            terminal.print(f"Left out: {exc}")
    return tuple(found)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--rounds", default=_DEFAULTS.rounds, type=click.IntRange(1), help="Rounds; figures are their medians.")
@click.option("--tasks", default=_DEFAULTS.tasks, type=click.IntRange(500), help="Tasks in the backlog of a round.")
@click.option("--samples", default=_DEFAULTS.samples, type=click.IntRange(50), help="Tasks for latency and lateness.")
@click.option("--only", metavar="NAME,...", callback=_names, help=f"Some of: {', '.join(MEASURES)}.")
@click.option("--peers", metavar="NAME,...", callback=_peers, help=f"Other task queues: all, or {', '.join(PEERS)}.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every round.")
@click.option("--markdown", is_flag=True, help="Print the table of the README.")
@click.option("--update", type=click.Path(path_type=Path, exists=True), help="Write that table into a Markdown file.")
@click.option("--save", type=click.Path(path_type=Path), help="Keep the results as JSON in this file.")
@click.option("--load", type=click.Path(path_type=Path, exists=True), help="Show results that were kept; run nothing.")
def main(
    rounds: int,
    tasks: int,
    samples: int,
    only: tuple[str, ...],
    peers: tuple[str, ...],
    as_json: bool,
    markdown: bool,
    update: Path | None,
    save: Path | None,
    load: Path | None,
) -> None:
    """Compare a stock Celery worker, a stream worker and a bare Redis loop on this machine.

    \b
    python -m benchmarks                         everything, in about four minutes
    python -m benchmarks --only drain --rounds 5
    python -m benchmarks --save run.json --update README.md
    """
    terminal = Console(stderr=True, highlight=False)
    if load is not None:
        results, options, about = report.from_dict(json.loads(load.read_text()))
    else:
        try:
            with terminal.status("starting") as status:
                about = report.machine()
                installed = _install(peers, terminal, status.update)
                options = Options(rounds=rounds, tasks=tasks, samples=samples, only=only, peers=installed)
                results = run(options, say=status.update)
        except (BenchmarkError, CeleryStreamsError) as exc:
            click.echo(f"Error: {exc}", err=True)
            sys.exit(1)
    data = json.dumps(report.as_dict(results, options, about), indent=2)
    if save is not None:
        save.write_text(data + "\n")
    if update is not None:
        try:
            report.update(update, report.markdown(results, options, about))
        except ValueError as exc:
            raise click.UsageError(str(exc)) from exc
    if as_json:
        click.echo(data)
    elif markdown:
        click.echo(report.markdown(results, options, about))
    else:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
        report.print_tables(results, options, about, console)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")

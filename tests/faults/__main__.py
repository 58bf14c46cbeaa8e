"""``python -m tests.faults``: a load run under faults, its figures, and PASS or FAIL (the exit code says it too)."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tests.faults import load


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--profile", type=click.Choice(list(load.PROFILES)), default="medium", show_default=True)
@click.option("--minutes", type=float, help="Length of the load, instead of the profile's.")
@click.option("--seed", type=int, help="Repeats the order of tasks and faults of an earlier run.")
@click.option("--pool", type=click.Choice(["prefork", "threads", "solo"]), default="prefork", show_default=True)
@click.option("--server", type=click.Path(exists=True), help="The redis-server or valkey-server to run.")
@click.option("--side", type=click.Choice(["streams", "lists"]), default="streams", show_default=True,
              help="lists: a stock Celery worker with acks_late, for comparison; it never fails the run.")  # fmt: skip
@click.option("--broken", type=click.Choice(["ack-first", "no-ownership"]), help="A build that must fail.")
@click.option("--rate", type=float, help="Publishes a second.")
@click.option("--workers", type=int, help="Worker processes.")
@click.option("--visibility-timeout", type=float, help="Seconds; small ones make recovery quick.")
@click.option("--appendfsync", type=click.Choice(["always", "everysec"]), default="always", show_default=True)
@click.option("--cluster", is_flag=True, default=None, help="On a Redis Cluster of three masters.")
@click.option("--json", "json_path", type=click.Path(), help="Write the figures there, - for standard output.")
@click.option("--logs", "directory", type=click.Path(), help="Where the logs of the processes go.")
def main(profile: str, minutes: float | None, seed: int | None, json_path: str | None, **options: Any) -> None:
    """Publish under faults and check that nothing is lost, little runs twice, and all is back in seconds."""
    load.end_with_the_caller()
    console = Console(stderr=json_path == "-")
    broken = options.get("broken")
    profiles = load.BROKEN if broken else load.PROFILES
    plan = load.with_minutes(profiles[str(broken or profile)], minutes)
    plan = replace(plan, seed=random.randrange(1_000_000) if seed is None else seed)
    plan = replace(plan, **{name: value for name, value in options.items() if value is not None})
    console.print(f"seed {plan.seed}, {plan.seconds:g} s of load, {plan.side}, {plan.pool}")
    report = load.run(plan, say=lambda line: console.print(line, style="dim"))
    show(report, console)
    if json_path:
        text = json.dumps(report.as_dict(), indent=2)
        if json_path == "-":
            click.echo(text)
        else:
            Path(json_path).write_text(text + "\n", encoding="utf-8")
    sys.exit(0 if report.ok or plan.side == "lists" else 1)


def show(report: load.Report, console: Console) -> None:
    """Print the figures and the verdict."""
    table = Table(title=f"Faults, seed {report.plan.seed}, {report.plan.side}", title_justify="left")
    table.add_column("figure")
    table.add_column("value")
    for name, value in report.verdict.figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_text(part)}" for key, part in value.items()) or "none"
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)
    for check in report.verdict.checks:
        console.print(f"  {'ok  ' if check.ok else 'FAIL'}  {check.letter}  {check.text}", markup=False)
    console.print(f"logs: {report.directory}", style="dim")
    console.print(f"seed {report.plan.seed}: {'PASS' if report.ok else 'FAIL'}")


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {part}" for key, part in value.items()) + ")"
    return str(value)


if __name__ == "__main__":
    main()

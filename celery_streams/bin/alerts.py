"""``celery-streams alerts``: only what needs attention, one line each, with an exit code; for cron and people."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options

from ..app import streams_of
from ..exceptions import BrokerError
from ..monitoring.alerts import Alert
from ..monitoring.growth import watch
from ..printable import printable
from ..signals import alerts_seen
from .terminal import AGE, EXIT_CRITICAL, EXIT_OK, EXIT_WARNING, echo, echo_json, one_line, one_line_errors

__all__ = ("alerts",)


@click.command(
    cls=CeleryCommand,
    epilog="""\b
Exit codes:
  0   nothing needs attention
  1   at least one warning
  2   at least one critical alert, Redis cannot be reached, or the command line is wrong
  78  a setting is wrong, or the URL is not a Redis URL

\b
Examples:
  celery-streams -A proj alerts
  celery-streams -A proj alerts send_message --since 10m
  celery-streams -A proj alerts --json | jq -r '.alerts[].message'
""",
)
@click.argument("queues", nargs=-1, metavar="[QUEUE...]")
@click.option(
    "--since",
    type=AGE,
    default=600.0,
    metavar="AGE",
    cls=CeleryOption,
    help_group="Alerts Options",
    help="Compare with this long ago: seconds, or 10m, 2h. Default: 10m.",
)
@click.option("--json", "as_json", is_flag=True, cls=CeleryOption, help_group="Alerts Options", help="Print JSON.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def alerts(ctx: click.Context, queues: tuple[str, ...], since: float, as_json: bool, **kwargs: Any) -> None:
    """Print what needs attention, and nothing when all is well.

    These are the alerts of status, and what has grown since --since: dead letters and waiting messages. streams_alerts
    sets the thresholds.
    """
    try:
        found = watch(streams_of(ctx.obj.app), queues or None, since=since)
        if not queues:
            alerts_seen.send(sender=ctx.obj.app, alerts=found)
    except BrokerError as exc:
        found = [Alert("critical", "", "redis", one_line(exc), 0, 0)]
    level = next((alert.level for alert in found), "ok")
    if as_json:
        echo_json({"level": level, "alerts": [alert.as_dict() for alert in found]})
    else:
        for alert in found:
            where = f"{printable(alert.queue)}: " if alert.queue else ""
            echo(f"{alert.level} {where}{printable(alert.message)}")
    ctx.exit({"ok": EXIT_OK, "warning": EXIT_WARNING, "critical": EXIT_CRITICAL}[level])

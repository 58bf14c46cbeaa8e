"""``celery-streams health``: a probe for supervisors; it reads one key of Redis, and broadcasts nothing.

``probe`` runs it without loading everything else.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from celery.utils.nodenames import default_nodename, gethostname, host_format

from .. import presence
from ..app import streams_of
from ..monitoring.health import judge_health
from .terminal import EXIT_UNHEALTHY, Seconds, echo, echo_json, one_line_errors

__all__ = ("health",)

#: Seconds for Redis to accept the connection, and again to answer.
_PATIENCE = 0.4


@click.command(
    cls=CeleryCommand,
    epilog="""\b
Exit codes:
  0   every worker is alive and reads its queues (or is busy with tasks)
  1   one is dead, does not read its queues, or was never started
  2   the command line is wrong
  69  Redis cannot be reached, or refuses the commands: the state is unknown
  78  a setting is wrong, or the URL is not a Redis URL

\b
Examples:
  celery-streams -A proj health
  celery-streams -A proj health -n worker1@%h
  python manage.py celery_streams health

\b
Docker:
  HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD celery-streams -A proj health

\b
Kubernetes:
  livenessProbe:
    exec: {command: [sh, -c, "celery-streams -A proj health; [ $? -ne 1 ]"]}  # restart for 1 alone
    initialDelaySeconds: 30
    periodSeconds: 30
    timeoutSeconds: 5
""",
)
@click.option(
    "-n",
    "--hostname",
    metavar="NODE",
    cls=CeleryOption,
    help_group="Health Options",
    help="The worker's node name, as in its own -n; default: all workers of this host.",
)
@click.option(
    "--timeout",
    type=Seconds(min=0.05),
    default=_PATIENCE,
    show_default=True,
    metavar="SECONDS",
    cls=CeleryOption,
    help_group="Health Options",
    help="How long to wait for a connection to Redis, and for its answer.",
)
@click.option("--json", "as_json", is_flag=True, cls=CeleryOption, help_group="Health Options", help="Print JSON.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def health(ctx: click.Context, hostname: str | None, timeout: float, as_json: bool, **kwargs: Any) -> None:
    """Report by exit code whether this host's workers are alive: each sends its heartbeat, and reads its queues.

    The state comes from the heartbeats that workers write to Redis: nothing is broadcast, and no worker has to answer.
    """
    broker = streams_of(ctx.obj.app).new_broker(timeout=timeout)
    node = None if hostname is None else default_nodename(host_format(hostname))
    found = judge_health(presence.workers(broker), node=node, host=gethostname())
    if as_json:
        echo_json([asdict(one) for one in found])
    else:
        for one in found:
            echo(f"{one.node} {one.said}")
    ctx.exit(0 if all(one.is_healthy for one in found) else EXIT_UNHEALTHY)

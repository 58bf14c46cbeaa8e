"""``pause`` and ``resume``: whether the messages of a queue are started."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand, CeleryOption

from .. import pausing
from ..app import streams_of
from .base import require_installed
from .terminal import echo, one_line_errors, select_queues

__all__ = ("pause", "resume")


@click.command(cls=CeleryCommand)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@click.option(
    "--reason",
    default="",
    metavar="TEXT",
    cls=CeleryOption,
    help_group="Streams Options",
    help="Why; shown by status and in logs.",
)
@click.pass_context
@one_line_errors
def pause(ctx: click.Context, queues: tuple[str, ...], reason: str) -> None:
    """Pause queues: workers start none of their tasks until the queues are resumed.

    Running tasks finish, and publishing continues; delayed messages that become due wait with the others. A pause
    survives restarts of workers and of Redis, and the order of messages is kept.

    \b
    Examples
    --------

    \b
    $ celery-streams -A proj pause send_message --reason "the provider is down"
    $ celery-streams -A proj resume send_message
    """
    app = ctx.obj.app
    require_installed(app)
    for name in select_queues(streams_of(app), queues):
        pausing.pause(app, name, reason=" ".join(reason.split()))
        echo(f"Queue {name} is paused.")


@click.command(cls=CeleryCommand)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@click.pass_context
@one_line_errors
def resume(ctx: click.Context, queues: tuple[str, ...]) -> None:
    """Resume paused queues where they stopped.

    \b
    Examples
    --------

    \b
    $ celery-streams -A proj resume send_message
    """
    app = ctx.obj.app
    require_installed(app)
    for name in select_queues(streams_of(app), queues):
        was_paused = pausing.resume(app, name)
        echo(f"Queue {name} is resumed." if was_paused else f"Queue {name} was not paused.")

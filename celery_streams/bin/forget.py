"""``forget``: removes queues that nobody uses any more from Redis, and so from ``status``."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand, CeleryOption
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE

from ..app import streams_of
from ..hints import command
from ..inspect import queue_status
from ..presence import workers
from ..printable import printable
from ..removal import forget_queue
from .base import require_installed
from .terminal import echo, one_line_errors, plural, select_queues

__all__ = ("forget",)


@click.command(cls=CeleryCommand)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@click.option(
    "--with-messages",
    is_flag=True,
    cls=CeleryOption,
    help_group="Streams Options",
    help="Also discard its waiting, delayed and dead messages; without this, a queue that holds any is kept.",
)
@click.pass_context
@one_line_errors
def forget(ctx: click.Context, queues: tuple[str, ...], with_messages: bool) -> None:
    """Remove queues that are no longer used.

    A queue is remembered once it was used, even if a worker was only started with a misspelt name. A queue that a live
    worker reads, or that holds a message, is kept. There is no undo.

    \b
    Examples
    --------

    \b
    $ celery-streams -A proj forget send_mesage
    $ celery-streams -A proj forget old-queue --with-messages
    """
    app = ctx.obj.app
    require_installed(app)
    streams = streams_of(app)
    broker = streams.broker
    said = workers(broker)
    wanted = select_queues(streams, queues)
    for name in wanted:
        shown = printable(name)
        consumers = queue_status(broker, name, workers=said).consumers
        if consumers:
            raise CeleryCommandException(
                f"Queue {shown} is read by live workers ({plural(consumers, 'consumer')}): stop them first, or run "
                + printable(command("control", "cancel_consumer", name)),
                EX_FAILURE,
            )
    for name in wanted:
        shown = printable(name)
        held = forget_queue(broker, name, with_messages=with_messages)
        if held and not with_messages:
            raise CeleryCommandException(
                f"Queue {shown} was kept: it holds {plural(held, 'message')} (waiting, running, delayed or dead). See "
                f"{printable(command('status', name))}, or discard them with --with-messages",
                EX_FAILURE,
            )
        lost = f" and its {plural(held, 'message')}" if held else ""
        echo(f"Removed queue {name}{lost}.")
        if name in streams.named_queues():
            echo(f"The settings still name {name}, so status still shows it.")

"""``forget``: removes queues that nobody uses any more from Redis, and so from ``status``."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand, CeleryOption
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE

from ..app import streams_of
from ..inspect import queue_status
from ..presence import workers
from ..printable import printable
from ..removal import forget_queue
from .base import require_installed
from .terminal import echo, one_line_errors, select_queues

__all__ = ("forget",)


@click.command(cls=CeleryCommand)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@click.option(
    "--with-messages",
    is_flag=True,
    cls=CeleryOption,
    help_group="Streams Options",
    help="Discard what waits, is delayed or dead, too; without it a queue that holds anything stays.",
)
@click.pass_context
@one_line_errors
def forget(ctx: click.Context, queues: tuple[str, ...], with_messages: bool) -> None:
    """Remove queues that nobody uses any more.

    A queue stays known once it was used, or a worker was started with its name by mistake. A queue that a living worker
    reads, or that holds a message, stays: there is no undo.

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
                f"Queue {shown} is read by living workers ({consumers} of their children): stop them first, or "
                f"celery-streams control cancel_consumer {shown}",
                EX_FAILURE,
            )
    for name in wanted:
        shown = printable(name)
        held = forget_queue(broker, name, with_messages=with_messages)
        if held and not with_messages:
            raise CeleryCommandException(
                f"Queue {shown} stays: it holds messages ({held} that wait, run, are delayed or dead). Look with "
                "celery-streams status, or discard them, too: --with-messages",
                EX_FAILURE,
            )
        lost = f", and the messages that it held ({held})" if held else ""
        echo(f"Queue {name} is forgotten{lost}.")
        if name in streams.named_queues():
            echo(f"The settings still name {name}: status goes on showing it.")

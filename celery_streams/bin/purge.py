"""``purge``: Celery's own command for the lists, and then the same queues' streams."""

from __future__ import annotations

import copy
from typing import Any

import click
from celery.bin.purge import purge as celery_purge

from ..amqp import streams_of
from ..inspect import purge as purge_stream
from .base import require_installed

__all__ = ("purge",)


def _run(*, queues: list[str] | None, exclude_queues: list[str] | None, **options: Any) -> None:
    ctx = click.get_current_context()
    app = ctx.obj.app
    require_installed(app)
    assert celery_purge.callback is not None
    celery_purge.callback(queues=queues, exclude_queues=exclude_queues, **options)  # asks first, and aborts on "no"
    streams = streams_of(app)
    names = sorted(set(queues or app.amqp.queues.keys()) - set(exclude_queues or ()))
    count = sum(purge_stream(streams.broker, name) for name in names if queues or streams.on_streams(name))
    ctx.obj.echo(f"Purged {count} waiting and delayed messages from the streams of {', '.join(names)}.")


purge: click.Command = copy.copy(celery_purge)
purge.params = list(celery_purge.params)
purge.callback = _run
purge.help = """Erase all messages that wait or are delayed, on the lists and on the streams; running tasks go on.

There is no undo for this command. Dead letters stay: see "dead purge".

\b
Examples
--------

\b
$ celery-streams -A proj purge
$ celery-streams -A proj purge -f -Q send_message,mark_as_read
"""

"""``purge``: Celery's own command for the lists, and then the same queues' streams."""

from __future__ import annotations

import copy
from typing import Any

import click
from celery.bin.purge import purge as celery_purge

from ..app import streams_of
from ..inspect import purge as purge_stream
from ..printable import printable
from ..spelling import nearest
from .base import require_installed
from .queue_names import check_no_patterns, read_queue_names
from .terminal import bad_input, one_line_errors

__all__ = ("purge",)


@one_line_errors
def _run(*, queues: list[str] | None, exclude_queues: list[str] | None, **options: Any) -> None:
    ctx = click.get_current_context()
    app = ctx.obj.app
    if ctx.args:  # Celery's command takes them, ignores them, and erases everything
        raise bad_input(f"purge {' '.join(ctx.args)}: name queues with -Q {','.join(ctx.args)}")
    wanted, excluded = read_queue_names("-Q", queues), read_queue_names("-X", exclude_queues)
    require_installed(app)
    streams = streams_of(app)
    known = streams.known_queues()  # also before the lists are emptied: a wrong setting, or Redis away, empties nothing
    everything = {*app.amqp.queues, *known}
    for option, given in (("-Q", wanted), ("-X", excluded)):
        check_no_patterns(option, given, lambda: everything)
    _check_spelling(sorted({*wanted, *excluded} - everything), everything)
    names = sorted(set(wanted or everything) - set(excluded))
    if not names:  # Celery's command takes no names for all of them
        raise bad_input("-X leaves no queue to purge")
    assert celery_purge.callback is not None
    celery_purge.callback(queues=names, exclude_queues=excluded, **options)  # asks first, and aborts on "no"
    on_streams = [name for name in names if name in (wanted or known)]
    count = sum(purge_stream(streams.broker, name) for name in on_streams)
    ctx.obj.echo(printable(f"Purged {count} waiting and delayed messages from the streams of {', '.join(on_streams)}."))


def _check_spelling(unknown: list[str], known: set[str]) -> None:
    """Refuse a name that nobody knows and that is almost another one: nothing of the queue that was meant would go."""
    for name in unknown:
        if near := nearest(name, known, 0.75):
            raise bad_input(f"Queue {name!r} was never used, and the project does not define it{near}")


purge: click.Command = copy.copy(celery_purge)
purge.params = list(celery_purge.params)
purge.callback = _run
purge.help = """Erase all waiting and delayed messages, on lists and on streams.

There is no undo for this command. Running tasks continue. Dead letters stay: see "dead purge".

\b
Examples
--------

\b
$ celery-streams -A proj purge
$ celery-streams -A proj purge -f -Q send_message,mark_as_read
"""

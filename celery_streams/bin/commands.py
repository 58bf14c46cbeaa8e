"""``celery -A proj streams COMMAND``: our commands as a plugin of Celery's program.

Celery loads it while its own command line is being made, so nothing here may import ``celery.bin.celery``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .dead import dead
from .demo import demo
from .django_projects import follow_apps
from .doctor import doctor
from .forget import forget
from .health import health
from .migrate import migrate
from .purge import purge
from .status import status
from .worker import worker

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("COMMANDS", "add_user_options", "streams")

#: Ours, here and in the root group.
COMMANDS: tuple[click.Command, ...] = (worker, status, health, dead, migrate, doctor, purge, forget, demo)


#: What lists of commands say, where the first sentence of the help is too long for a line of a terminal.
_IN_SHORT = {
    worker: "Start a worker on Redis Streams.",
    health: "Tell by the exit code whether this worker lives.",
    dead: "List, show, replay and purge dead letters.",
    migrate: "Move what is queued between lists and streams.",
    doctor: "Check the server and the project.",
    purge: "Erase what waits, on lists and on streams.",
    demo: "Show that nothing is lost, on a Redis of its own.",
}


@click.group()
@click.pass_context
def streams(ctx: click.Context) -> None:
    """Celery on Redis Streams: the commands of celery-streams."""
    add_user_options(ctx.obj.app)


def add_user_options(app: Celery) -> None:
    """Give our worker the options of ``app.user_options``, as Celery has given them to its own."""
    worker.params.extend([*app.user_options.get("worker", ()), *app.user_options.get("preload", ())])


for _command, _text in _IN_SHORT.items():
    _command.short_help = _text
for _command in COMMANDS:
    streams.add_command(_command)

# Before the project is loaded: `celery -A proj call` imports nothing else of ours.
follow_apps()

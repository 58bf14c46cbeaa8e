"""``celery -A proj streams COMMAND``: our commands as a plugin of Celery's program.

Celery loads it while its own command line is being made, so nothing here may import ``celery.bin.celery``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..installation import connect_to_clusters
from .adopt import adopt
from .alerts import alerts
from .dead import dead
from .demo import demo
from .django_projects import follow_apps
from .doctor import doctor
from .forget import forget
from .health import health
from .limits import limits
from .migrate import migrate
from .pause import pause, resume
from .purge import purge
from .status import status
from .worker import worker

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("COMMANDS", "add_user_options", "streams")

#: Ours, here and in the root group.
COMMANDS: tuple[click.Command, ...] = (
    worker,
    status,
    alerts,
    health,
    dead,
    migrate,
    adopt,
    limits,
    doctor,
    pause,
    resume,
    purge,
    forget,
    demo,
)


#: What lists of commands say: what is longer than some sixty characters is cut at eighty columns.
_IN_SHORT = {
    worker: "Start a worker on Redis Streams.",
    alerts: "Print what needs attention, with an exit code.",
    health: "Report by exit code whether this host's workers are alive.",
    dead: "List, show, replay and purge dead letters.",
    migrate: "Move queued messages between lists and streams.",
    adopt: "Turn a stream of your own code into messages of a task.",
    doctor: "Check the server and the project.",
    limits: "Show and set the limits of tasks.",
    pause: "Start no tasks of a queue until it is resumed.",
    purge: "Erase waiting and delayed messages.",
    demo: "Kill a worker on a private Redis, and lose nothing.",
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

# Before the project is loaded: `celery -A proj call` imports nothing else of ours, `celery -b URL flower` no project.
follow_apps()
connect_to_clusters()

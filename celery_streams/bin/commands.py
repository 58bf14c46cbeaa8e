"""``celery -A proj streams COMMAND``: our commands as a plugin of Celery's program.

Celery loads it while its own command line is being made, so nothing here may import ``celery.bin.celery``; and each
``celery`` of a project with this package loads it, so nothing here imports a command that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from ..installation import connect_to_clusters
from .base import GroupOfModules, InModule
from .django_projects import follow_apps

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("COMMANDS", "add_user_options", "streams")

#: Ours, here and in the root group. Lists of commands cut what is longer than some sixty characters at eighty columns:
#: such a command has a text for them.
COMMANDS: Mapping[str, InModule] = {
    "worker": InModule("worker", "Start a worker on Redis Streams."),
    "status": InModule("status"),
    "alerts": InModule("alerts", "Print what needs attention, with an exit code."),
    "health": InModule("health", "Report by exit code whether this host's workers are alive."),
    "dead": InModule("dead", "List, show, replay and purge dead letters."),
    "migrate": InModule("migrate", "Move queued messages between lists and streams."),
    "adopt": InModule("adopt", "Turn a stream of your own code into messages of a task."),
    "limits": InModule("limits", "Show and set the limits of tasks."),
    "doctor": InModule("doctor", "Check the server and the project."),
    "pause": InModule("pause", "Start no tasks of a queue until it is resumed."),
    "resume": InModule("pause"),
    "purge": InModule("purge", "Erase waiting and delayed messages."),
    "forget": InModule("forget"),
    "demo": InModule("demo", "Kill a worker on a private Redis, and lose nothing."),
}


@click.group(cls=GroupOfModules, modules=COMMANDS)
@click.pass_context
def streams(ctx: click.Context) -> None:
    """Celery on Redis Streams: the commands of celery-streams."""
    add_user_options(ctx)


def add_user_options(ctx: click.Context) -> None:
    """Give our worker, if it is what runs, the options of ``app.user_options``, as Celery has given them to its own."""
    assert isinstance(ctx.command, click.Group)
    app: Celery = ctx.obj.app
    if ctx.invoked_subcommand == "worker":
        worker = ctx.command.commands["worker"]
        worker.params.extend([*app.user_options.get("worker", ()), *app.user_options.get("preload", ())])


# Before the project is loaded: `celery -A proj call` imports nothing else of ours, `celery -b URL flower` no project.
follow_apps()
connect_to_clusters()

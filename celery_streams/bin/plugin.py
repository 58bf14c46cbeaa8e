"""``celery -A proj streams COMMAND``: our commands as a plugin of Celery's program.

Celery loads it while its own command line is being made, so nothing here may import ``celery.bin.celery``.
"""

from __future__ import annotations

import click

from .dead import dead
from .demo import demo
from .doctor import doctor
from .migrate import migrate
from .purge import purge
from .status import status
from .worker import worker

__all__ = ("COMMANDS", "streams")

#: Ours, here and in the root group.
COMMANDS: tuple[click.Command, ...] = (worker, status, dead, migrate, doctor, purge, demo)


@click.group()
def streams() -> None:
    """Celery on Redis Streams: the commands of celery-streams."""


for _command in COMMANDS:
    streams.add_command(_command)

"""The tasks for huey."""

from __future__ import annotations

import os
from typing import Any

from huey import RedisHuey

from ..marks import mark, mark_start
from ..project.settings import URL

__all__ = ("huey", "send")

huey = RedisHuey("bench", url=os.environ.get(URL, "redis://"), results=False)


@huey.task()  # type: ignore[untyped-decorator]
def noop(number: int, padding: str) -> None:
    """Do nothing."""
    mark()


@huey.task()  # type: ignore[untyped-decorator]
def stamp(since_ns: int) -> None:
    """Say how long after ``since_ns`` it was started."""
    mark_start(since_ns)


def send(task: str, *args: Any) -> None:
    """Publish a task."""
    {"noop": noop, "stamp": stamp}[task](*args)

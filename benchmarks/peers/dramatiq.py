"""The tasks for dramatiq."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from ..marks import mark, mark_start
from ..project.settings import URL

__all__ = ("send",)

dramatiq.set_broker(RedisBroker(url=os.environ.get(URL, "redis://")))


@dramatiq.actor
def noop(number: int, padding: str) -> None:
    """Do nothing."""
    mark()


@dramatiq.actor
def stamp(since_ns: int) -> None:
    """Say how long after ``since_ns`` it was started."""
    mark_start(since_ns)


def send(task: str, *args: Any) -> None:
    """Publish a task."""
    {"noop": noop, "stamp": stamp}[task].send(*args)

"""The tasks for taskiq, on a Redis list."""

from __future__ import annotations

import asyncio
import os
from functools import cache
from typing import Any

from taskiq_redis import ListQueueBroker

from ..marks import mark, mark_start
from ..project.settings import URL

__all__ = ("broker", "send")

broker = ListQueueBroker(os.environ.get(URL, "redis://"))


@broker.task  # type: ignore[untyped-decorator]
async def noop(number: int, padding: str) -> None:
    """Do nothing."""
    mark()


@broker.task  # type: ignore[untyped-decorator]
async def stamp(since_ns: int) -> None:
    """Say how long after ``since_ns`` it was started."""
    mark_start(since_ns)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(broker.startup())
    return loop


def send(task: str, *args: Any) -> None:
    """Publish a task."""
    _loop().run_until_complete({"noop": noop, "stamp": stamp}[task].kiq(*args))

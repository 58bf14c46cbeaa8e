"""The tasks; each leaves its mark."""

from __future__ import annotations

import asyncio
import time

from celery import shared_task

from ..marks import mark, mark_start

__all__ = ("echo", "noop", "pause", "pause_async", "stamp")


@shared_task(ignore_result=True)  # type: ignore[untyped-decorator]
def noop(number: int, padding: str) -> None:
    """Do nothing."""
    mark()


@shared_task(ignore_result=True)  # type: ignore[untyped-decorator]
def pause(seconds: float) -> None:
    """Wait, as for somebody's answer."""
    time.sleep(seconds)
    mark()


@shared_task(ignore_result=True)  # type: ignore[untyped-decorator]
async def pause_async(seconds: float) -> None:
    """Wait on the event loop."""
    await asyncio.sleep(seconds)
    mark()


@shared_task(ignore_result=True)  # type: ignore[untyped-decorator]
def stamp(since_ns: int) -> None:
    """Say how long after ``since_ns`` it was started."""
    mark_start(since_ns)


@shared_task  # type: ignore[untyped-decorator]
def echo(number: int) -> int:
    """Return its argument through the result backend."""
    return number

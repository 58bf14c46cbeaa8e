"""The tasks; each leaves its mark in a file, so that measuring costs no Redis command (about 3 us a task)."""

from __future__ import annotations

import functools
import os
import time

from celery import shared_task

__all__ = ("RECORDS", "echo", "noop", "stamp")

#: Environment variable: the file to which tasks append what they did.
RECORDS = "BENCHMARKS_RECORDS"


@functools.cache
def _records() -> int:
    return os.open(os.environ[RECORDS], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def mark() -> None:
    """Append one byte: a task ran."""
    os.write(_records(), b".")


def mark_start(since_ns: int) -> None:
    """Append the nanoseconds that passed since ``since_ns`` of the machine's clock."""
    os.write(_records(), b"%d\n" % (time.time_ns() - since_ns))


@shared_task(ignore_result=True)  # type: ignore[untyped-decorator]
def noop(number: int, padding: str) -> None:
    """Do nothing."""
    mark()


@shared_task(ignore_result=True)  # type: ignore[untyped-decorator]
def stamp(since_ns: int) -> None:
    """Say how long after ``since_ns`` it was started."""
    mark_start(since_ns)


@shared_task  # type: ignore[untyped-decorator]
def echo(number: int) -> int:
    """Return its argument through the result backend."""
    return number

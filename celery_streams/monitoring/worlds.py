"""Worlds: what both sides of a queue, its stream and Celery's list, mean together; a pure function, no Redis."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from ..hints import command
from ..inspect import QueueStatus
from ..said import Said, say
from .checks import Finding, Workers

__all__ = ("check_worlds",)


def check_worlds(
    name: str, status: QueueStatus, *, listed: int, share: float, workers: Workers | None
) -> Iterable[Finding]:
    """No message waits on the side that nobody consumes.

    Args:
        listed: messages on Celery's lists.
        share: how much of what publishers of this configuration write goes to the stream, 0.0 to 1.0.
        workers: None when they were not asked.
    """
    on = share > 0.0
    stock = workers.stock.get(name, ()) if workers else ()
    ours = workers.ours.get(name, ()) if workers else ()
    held = status.length + status.delayed
    to_streams = Said(command("migrate", name, "--to", "streams"))
    start = Said(command("worker", "-Q", name))
    if on and listed:
        what = say(
            "%(n)s message is on Celery's list while publishers write to the stream",
            "%(n)s messages are on Celery's list while publishers write to the stream",
            n=listed,
        )
        if stock:
            yield Finding(
                "both worlds",
                "info",
                _drained(what, stock),
                say("Order between the two sides is not kept."),
                say("Stop the stock worker when the list is empty."),
                name,
            )
        else:
            yield Finding(
                "both worlds",
                "critical" if workers else "warning",
                what,
                say("No stock worker consumes the list: these tasks never run.")
                if workers
                else say("If no stock worker consumes the list, these tasks never run."),
                to_streams,
                name,
            )
    elif share >= 1.0 and stock:
        yield Finding(
            "both worlds",
            "warning",
            say(
                "The stock worker %(workers)s consumes Celery's list, which gets no new messages",
                workers=", ".join(stock),
            ),
            say("It sits idle, and its capacity is missing."),
            say("Replace it: %(command)s", command=start),
            name,
        )
    if not on and listed and workers is not None and not stock:
        yield Finding(
            "both worlds",
            "critical",
            say(
                "%(n)s message waits on Celery's list, where publishers write, and no stock worker consumes it",
                "%(n)s messages wait on Celery's list, where publishers write, and no stock worker consumes it",
                n=listed,
            ),
            say("These tasks never run."),
            say(
                "Start a stock worker (%(stock)s), or turn streams on and %(command)s",
                stock=f"celery worker -Q {shlex.quote(name)}",
                command=to_streams,
            ),
            name,
        )
    if not on and held:
        what = say(
            "%(n)s message is on the stream while publishers write to Celery's list",
            "%(n)s messages are on the stream while publishers write to Celery's list",
            n=held,
        )
        if ours or status.workers or (workers is None and status.consumers):
            yield Finding(
                "both worlds",
                "info",
                _drained(what, ours) if ours else what,
                say("Order between the two sides is not kept."),
                say("Stop the stream worker when the stream is empty."),
                name,
            )
        else:
            yield Finding(
                "both worlds",
                "critical",
                what,
                say("No stream worker consumes the stream: these tasks never run."),
                say(
                    "%(back)s, or until it is empty %(command)s",
                    back=command("migrate", name, "--to", "lists"),
                    command=start,
                ),
                name,
            )
    if status.consumers or ours:
        return
    if on and status.length:
        what = say(
            "%(n)s message waits and no worker consumes the stream",
            "%(n)s messages wait and no worker consumes the stream",
            n=status.length,
        )
        yield Finding("consumers", "critical", _died(what, status), say("These tasks do not run."), start, name)
    elif status.dead_workers:
        yield Finding(
            "consumers",
            "warning",
            _died(say("No worker consumes the stream"), status),
            say("It was killed, or cannot reach Redis; new messages will wait."),
            start,
            name,
        )


def _drained(what: Said, workers: Iterable[str]) -> Said:
    return say("%(what)s; %(workers)s drains it", what=what, workers=", ".join(workers))


def _died(what: Said, status: QueueStatus) -> Said:
    if not status.dead_workers:
        return what
    return say("%(what)s; %(workers)s died", what=what, workers=", ".join(status.dead_workers))

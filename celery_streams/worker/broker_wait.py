"""Broker wait: what waits for Celery's own broker does so in a thread, and the main thread goes on with its work.

The main thread replaces children that died and settles what they held, and with ``-P solo`` it runs the tasks: where
the streams are on another Redis, none of it may wait for a broker that is away, or accepts connections and is silent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ("wait_beside",)

T = TypeVar("T")


class _Abandoned(BaseException):
    """Nobody waits for the thread any more."""


def wait_beside(
    work: Callable[[Callable[[], None]], T],
    *,
    meanwhile: Callable[[threading.Event], Any],
    on_end: Callable[[], Any] = lambda: None,
) -> T:
    """Return what ``work`` returns, or raise what it raises; a thread does it.

    Args:
        work: it is given something to call now and then, which ends it when nobody waits for it any more.
        meanwhile: called in this thread again and again, with what is set when ``work`` has ended. What it raises ends
            the wait.
        on_end: called by the thread after that was set, to end the wait of ``meanwhile``.
    """
    ended, abandoned = threading.Event(), threading.Event()
    returned: list[T] = []
    raised: list[BaseException] = []

    def look() -> None:
        if abandoned.is_set():
            raise _Abandoned

    def run() -> None:
        try:
            returned.append(work(look))
        except _Abandoned:
            return
        except BaseException as exc:  # noqa: BLE001
            # It is raised where it is waited for.
            raised.append(exc)
        finally:
            ended.set()
            on_end()

    threading.Thread(target=run, name="celery-streams-broker-wait", daemon=True).start()
    try:
        while not ended.is_set():
            meanwhile(ended)
    finally:
        abandoned.set()
    if raised:
        raise raised[0]
    return returned[0]

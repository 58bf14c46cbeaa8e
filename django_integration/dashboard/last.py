"""Last: what this process saw last of Redis, for pages that would show nothing while it is away; never arguments."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from celery_streams import BrokerError

from .look import Look
from .sentences import error_text

__all__ = ("Seen", "see")

T = TypeVar("T")

#: Things that are kept; a page of each queue would be too many.
_MOST = 100

_lock = threading.Lock()
#: What was seen, and when, by server and name; the oldest goes first.
_seen: dict[tuple[str, str], tuple[Any, float]] = {}


@dataclass(frozen=True)
class Seen(Generic[T]):
    """What there is, or was before Redis went away."""

    value: T
    #: Why it is not of now, and of when it is, in seconds since the epoch.
    error: str = ""
    at: float | None = None

    @property
    def context(self) -> dict[str, Any]:
        """What the template ``stale.html`` needs."""
        return {"error": self.error, "seen": self.at}


def see(look: Look, name: str, ask: Callable[[], T], *, keep: Callable[[T], T] = lambda found: found) -> Seen[T]:
    """Return what ``ask`` returns; what it returned last under this name, and the error, when Redis is away.

    Args:
        keep: returns what may be kept of it.

    Raises:
        BrokerError: Redis is away, and this process has not seen it before.
    """
    key = (look.streams.url, name)
    try:
        found = ask()
    except BrokerError as exc:
        with _lock:
            if key not in _seen:
                raise
            value, at = _seen[key]
        return Seen(value, error_text(exc), at)
    with _lock:
        _seen.pop(key, None)
        _seen[key] = keep(found), time.time()
        while len(_seen) > _MOST:
            del _seen[next(iter(_seen))]
    return Seen(found)

"""Poll: wait until one of some descriptors is readable.

With poll, which unlike select has no greatest descriptor; eventlet takes poll away and leaves a select of its own.
"""

from __future__ import annotations

import math
import select
from collections.abc import Iterable

__all__ = ("readable", "writable")


def readable(descriptors: Iterable[int], *, timeout: float) -> list[int]:
    """Return those of ``descriptors`` that are readable, or closed, within ``timeout`` seconds."""
    wanted = list(descriptors)
    if not hasattr(select, "poll"):
        return select.select(wanted, [], [], max(timeout, 0.0))[0]
    return _poll(wanted, select.POLLIN | select.POLLPRI, timeout)


def writable(descriptor: int) -> bool:
    """Return whether a small message can be written to ``descriptor`` now."""
    if not hasattr(select, "poll"):
        return bool(select.select([], [descriptor], [], 0)[1])
    return bool(_poll([descriptor], select.POLLOUT, 0.0))


def _poll(descriptors: list[int], events: int, timeout: float) -> list[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, events)
    return [descriptor for descriptor, _ in poll.poll(max(math.ceil(timeout * 1000), 0))]

"""Gates: what threads of the parent hold while they send something, so that no child is forked in the middle of it.

A child inherits locks as they are at the fork, and nobody there releases one that another thread held: kombu and
redis-py lock their pools for moments, and after a fork wait for these very locks without bound. The threads of the
services have gates of their own (``Services.paused``); these are for all others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakSet

__all__ = ("Gate", "all_held")

#: Seconds that a fork waits for all of them. Who takes longer waits for a reply, and has no lock meanwhile.
_PATIENCE = 0.2

_gates: WeakSet[Gate] = WeakSet()


class Gate:
    """What one thread holds while it sends something."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        _gates.add(self)

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self.lock.release()


@contextmanager
def all_held(*, patience: float = _PATIENCE) -> Iterator[None]:
    """Keep all threads with a gate from sending, for a fork; after ``patience`` seconds it goes on all the same."""
    deadline = time.monotonic() + patience
    with ExitStack() as held:
        for gate in list(_gates):
            if gate.lock.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
                held.callback(gate.lock.release)
        yield

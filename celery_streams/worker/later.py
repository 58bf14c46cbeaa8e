"""Later: does one thing after the other, in a thread that nobody waits for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from .gates import Gate

__all__ = ("Later",)

#: Seconds that the end of the worker may wait for what is left.
_LAST = 1.0

T = TypeVar("T")


class Later(Generic[T]):
    """What waits to be done; its thread is made when there is something.

    Args:
        name: of the thread.
        do: does one thing; raises nothing.
        most: how many may wait; the oldest give way. None: whoever puts one makes room.
    """

    def __init__(self, name: str, do: Callable[[T], object], *, most: int | None = None) -> None:
        self.waiting: deque[T] = deque(maxlen=most)
        self._name = name
        self._do = do
        self._gate = Gate()
        self._due = threading.Event()
        self._stop = False
        self._thread: threading.Thread | None = None

    def put(self, one: T) -> None:
        """Do one thing soon."""
        self.waiting.append(one)
        self._due.set()
        if self._thread is None:
            self._stop = False
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Do what is left, if that can be done within a second."""
        thread, self._thread = self._thread, None
        self._stop = True
        self._due.set()
        if thread is not None:
            thread.join(timeout=_LAST)

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            while self.waiting:
                with self._gate:
                    self._do(self.waiting.popleft())
            if self._stop:
                return

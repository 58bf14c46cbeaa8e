"""endable: a coroutine into which a soft time limit can be raised, and which can be given up for good.

asyncio reaches a coroutine only by cancelling its task, and cancelling is what everything that a coroutine may wait for
understands: ``gather``, ``shield``, ``TaskGroup``, ``timeout()``, ``wait_for``. So a soft limit cancels, and what
arrives in the coroutine instead is an exception that is both a CancelledError, for what stands in between, and Celery's
SoftTimeLimitExceeded, for the code of the task. Who runs the coroutine, and when its limits are over, others know.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import sys
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from billiard import exceptions

__all__ = ("EndableCoroutine", "SoftTimeLimitExceeded")

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Since Python 3.11.
_GROUPS: tuple[type[BaseException], ...] = tuple(filter(None, [getattr(builtins, "BaseExceptionGroup", None)]))


class SoftTimeLimitExceeded(exceptions.SoftTimeLimitExceeded, asyncio.CancelledError):  # type: ignore[misc]
    """The soft time limit of the task is over."""


class EndableCoroutine(Coroutine[Any, Any, T]):
    """What an asyncio task runs in the place of ``coroutine``; all its methods are for the thread of its event loop."""

    __slots__ = ("_coroutine", "_given_up", "_task", "send")

    #: What asyncio calls for each step. The coroutine's own, until a limit is over: it costs a task nothing.
    send: Callable[[Any], Any]

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        #: The task that is being cancelled for the soft limit, until the exception was raised in its coroutine.
        self._task: asyncio.Task[Any] | None = None
        self._given_up = False
        self.send = coroutine.send

    def raise_soft(self, task: asyncio.Task[Any]) -> None:
        """Raise SoftTimeLimitExceeded at what the coroutine waits for; it may catch it, and go on.

        Also where what it waits for swallows the cancellation: then as soon as that lets it go on.

        Args:
            task: the one that runs this coroutine.
        """
        self._task = task
        self.send = self._send_soft
        task.cancel()

    @property
    def soft_is_due(self) -> bool:
        """:meth:`raise_soft` was called, and the coroutine did not run on since."""
        return self._task is not None

    def end(self) -> None:
        """Let a cancellation be one from now on, and no soft limit."""
        self._task = None
        self.send = self._send_on

    def give_up(self) -> None:
        """Close the coroutine, which did not end when it was cancelled: it does not run on, whatever wakes it."""
        self._task = None
        self._given_up = True
        self.send = self._refuse
        try:
            self._coroutine.close()
        except BaseException as exc:  # noqa: BLE001
            # A boundary: the code of a task, which ignored GeneratorExit, too, or raised something else.
            logger.warning("Coroutine %r did not end when it was closed: %r", self._coroutine, exc)

    def throw(self, *raised: Any) -> Any:
        """Raise in the coroutine; in the place of a cancellation for the soft limit, that limit."""
        if self._given_up:
            return self._refuse()
        if self._task is not None:
            return self._raise_soft(raised[0])
        return self._step(self._coroutine.throw, *raised)

    def close(self) -> None:
        """Close the coroutine."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        # cr_frame, cr_code, __qualname__: asyncio and error trackers show them.
        return getattr(self._coroutine, name)

    def _send_on(self, value: Any) -> Any:
        return self._step(self._coroutine.send, value)

    def _send_soft(self, value: Any) -> Any:
        return self._raise_soft(None)

    def _raise_soft(self, instead_of: BaseException | None) -> Any:
        task, self._task = self._task, None
        self.send = self._send_on
        if sys.version_info >= (3, 11):
            # The code of the task catches a limit and no cancellation: it would not take it back.
            assert task is not None
            task.uncancel()
        soft = SoftTimeLimitExceeded()
        soft.__context__ = instead_of
        return self._step(self._coroutine.throw, soft)

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        """Run on to the next await; a limit that leaves the coroutine is Celery's own exception."""
        try:
            return step(*args)
        except SoftTimeLimitExceeded as exc:
            left = exc
        except _GROUPS as group:
            # A TaskGroup puts what its body raises into one, though nothing else went wrong.
            found = _only_limit(group)
            if found is None:
                raise
            left = found
        plain = exceptions.SoftTimeLimitExceeded(*left.args)
        plain.__cause__, plain.__context__ = left.__cause__, left.__context__
        plain.__suppress_context__ = True
        raise plain.with_traceback(left.__traceback__)

    @staticmethod
    def _refuse(*_: Any) -> Any:
        raise asyncio.CancelledError


def _only_limit(group: Any) -> SoftTimeLimitExceeded | None:
    """Return the limit in a group of exceptions; None when there is anything else in it, too."""
    while isinstance(group, _GROUPS) and len(group.exceptions) == 1:  # type: ignore[attr-defined]
        group = group.exceptions[0]  # type: ignore[attr-defined]
    return group if isinstance(group, SoftTimeLimitExceeded) else None

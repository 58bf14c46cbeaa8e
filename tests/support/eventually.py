"""eventually: the one way in which a test waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    condition: Callable[..., T | None], *, timeout: float = 10.0, message: str = "", interval: float = 0.01
) -> T:
    """Call ``condition`` until it returns something true, and return that.

    An AssertionError raised by the condition counts as "not yet". Raises AssertionError with the last value, or with
    the last assertion, after ``timeout`` seconds. It looks less and less often, up to twenty times ``interval``, which
    is short where what is waited for is soon over.
    """
    longest = min(20 * interval, 0.2)
    deadline = time.monotonic() + timeout
    while True:
        failure: AssertionError | None = None
        value: T | None = None
        try:
            value = condition()
            if value:
                return value
        except AssertionError as exc:
            failure = exc
        if time.monotonic() > deadline:
            what = message or getattr(condition, "__name__", "the condition")
            seen = f"it failed: {failure}" if failure is not None else f"the last value was {value!r}"
            raise AssertionError(f"{what}: not so within {timeout:g} s; {seen}") from failure
        time.sleep(interval)
        interval = min(interval * 1.5, longest)

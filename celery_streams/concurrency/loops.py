"""loops: a running event loop for each green thread, where asyncio knows one for each thread of the system.

Without it two green threads could not run ``async def`` tasks at once, and a task that is not asynchronous would be
told, by Django among others, that it runs inside an event loop while another one waits.
"""

from __future__ import annotations

from asyncio import _get_running_loop, _set_running_loop
from typing import Any
from weakref import WeakKeyDictionary

import greenlet

__all__ = ("keep_loops",)

#: The loops of green threads that do not run at the moment.
_loops: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def keep_loops() -> None:
    """Exchange asyncio's running loop with each switch between green threads of this thread."""
    greenlet.settrace(_on_switch)


def _on_switch(event: str, switch: tuple[Any, Any]) -> None:
    origin, target = switch
    loop = _get_running_loop()
    kept = _loops.pop(target, None)
    if loop is not None:
        _loops[origin] = loop
    if loop is not kept:
        _set_running_loop(kept)

"""Async tasks: ``async def`` tasks in pools that call tasks as functions; it knows neither Redis nor Celery.

A task's function is called by Celery's tracer and must return its result. :func:`as_function` makes such a function
of an ``async def``: it hands the coroutine to the :data:`runner` of the pool (``-P asyncio``: one loop for all), or
runs it on an event loop that the thread keeps. So the same task works in every pool, and under a stock Celery worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import FunctionType, MethodType
from typing import Any, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded

from .endable import EndableCoroutine

__all__ = ("as_function", "is_function_of_async", "run", "runner")

T = TypeVar("T")

#: Who runs coroutines in this context; None is this thread itself.
runner: ContextVar[Callable[[Coroutine[Any, Any, Any]], Any] | None] = ContextVar("celery_streams_runner", default=None)

_local = threading.local()

#: Seconds that a coroutine has to clean up.
_PATIENCE = 5.0


def as_function(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs the ``async def`` function ``fun``; any other function is returned as it is.

    Decorators may stand before the ``async def``, with ``functools.wraps`` or without it.
    """
    if not _leads_to_async(fun):
        return fun

    @functools.wraps(fun)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = fun(*args, **kwargs)
        # A decorator may have awaited it, or have answered in its place.
        return run(result) if inspect.iscoroutine(result) else result

    call.__celery_streams__ = True  # type: ignore[attr-defined]

    call.__signature__ = inspect.signature(fun)  # type: ignore[attr-defined]
    return call


def _leads_to_async(fun: Any) -> bool:
    seen: set[int] = set()
    waiting = [fun]
    while waiting:
        one = waiting.pop()
        if inspect.iscoroutinefunction(one):
            return True
        if id(one) not in seen and not is_function_of_async(one):
            seen.add(id(one))
            waiting += _called_by(one)
    return False


def _called_by(fun: Any) -> Iterator[Any]:
    """Yield what ``fun`` may stand before: by ``__wrapped__``, or by the functions that it encloses."""
    if isinstance(fun, functools.partial):
        yield fun.func
    elif isinstance(fun, MethodType):
        yield fun.__func__
    elif hasattr(fun, "__wrapped__"):
        yield fun.__wrapped__
    if isinstance(fun, FunctionType):
        for cell in fun.__closure__ or ():
            # A cell may be empty yet; other things that a function refers to are not its own function.
            with contextlib.suppress(ValueError):
                # By type(): isinstance asks a task that is declared and not made yet for its class, which makes it.
                if issubclass(type(cell.cell_contents), (FunctionType, MethodType, functools.partial)):
                    yield cell.cell_contents


def is_function_of_async(fun: Callable[..., Any]) -> bool:
    """Return whether :func:`as_function` made ``fun``."""
    return hasattr(fun, "__celery_streams__")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` to its end and return its result, from code that is not asynchronous.

    Inside a running event loop (``task_always_eager`` in an asynchronous view, a coroutine that calls another task as
    a function) it runs in a thread of its own.
    SoftTimeLimitExceeded that strikes from outside is raised in the coroutine, at what it waits for; any other
    exception (SystemExit, a hard limit of green threads) cancels it, lets it clean up for five seconds, and goes on.
    """
    # get_running_loop raises, which would be the context of what tasks raise.
    if asyncio._get_running_loop() is not None:
        # Also in a coroutine that the runner runs, which shares its context: to wait for its loop here would stop it.
        with ThreadPoolExecutor(1, thread_name_prefix="celery-streams-eager") as executor:
            return executor.submit(asyncio.run, coroutine).result()
    chosen = runner.get()
    if chosen is None:
        return _run_here(coroutine)
    return chosen(coroutine)  # type: ignore[no-any-return]


def _run_here(coroutine: Coroutine[Any, Any, T]) -> T:
    loop = _loop_of_this_thread()
    endable = EndableCoroutine(coroutine)
    # Not by the loop, which is kept, and whose way of making tasks an earlier task may have replaced.
    task = asyncio.Task(endable, loop=loop)
    try:
        try:
            return _run_until_done(loop, task)
        except SoftTimeLimitExceeded:
            if task.done():
                raise
            endable.raise_soft(task)
            # A signal may have struck between two bytecodes of the loop, and a wake-up be lost for good.
            loop.run_until_complete(asyncio.wait([task], timeout=_PATIENCE))
            if endable.soft_is_due:
                raise
            return _run_until_done(loop, task)
    except BaseException:
        if not task.done():
            endable.end()
            task.cancel()
            loop.run_until_complete(asyncio.wait([task], timeout=_PATIENCE))
            if not task.done():
                # The loop is kept, and would let it run on beside the next task of this thread.
                endable.give_up()
        raise


class _Kept:
    """The loop of a thread, which is closed when the thread ends: one that nobody closes warns of it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        weakref.finalize(self, _close, self.loop, os.getpid())


def _close(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    # In a process that a task forked it would take the descriptors out of the selector that both share.
    if os.getpid() == pid and not loop.is_running():
        loop.close()


def _loop_of_this_thread() -> asyncio.AbstractEventLoop:
    kept: _Kept | None = getattr(_local, "kept", None)
    if kept is None or kept.loop.is_closed():
        kept = _local.kept = _Kept()
    return kept.loop


def _run_until_done(loop: asyncio.AbstractEventLoop, task: asyncio.Task[T]) -> T:
    """Run the loop until ``task`` is done, though somebody stops the loop, be it the task that ran on it before."""
    while True:
        try:
            return loop.run_until_complete(task)
        except RuntimeError:
            if task.done() or loop.is_closed() or loop.is_running():
                raise

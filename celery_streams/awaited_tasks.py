"""awaited_tasks: has Celery call an ``async def`` task as a function, whichever decorator declared it; it runs none.

Celery calls what a task is made of in workers, in ``.apply()``, with ``task_always_eager``, and when a task is called
directly. It awaits nothing: the outcome would be a coroutine that nobody runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import celery_private
from .async_tasks import as_function, is_function_of_async

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("is_async", "make_all_callable", "make_callable")


def make_all_callable(app: Celery) -> None:
    """Make the tasks of ``app`` callable, those that it gets from now on too; it is not finalized by this."""
    celery_private.on_new_tasks(app, make_callable)
    app.on_after_finalize.connect(_make_known_callable, weak=False, dispatch_uid=f"celery-streams-async-{id(app)}")
    _make_known_callable(app)


def _make_known_callable(sender: Any = None, **kwargs: Any) -> None:
    for task in celery_private.registered_tasks(sender).values():
        make_callable(task)


def make_callable(task: Any) -> None:
    """Let an ``async def`` task that was declared with Celery's own decorator run wherever Celery calls it."""
    wrapped = celery_private.autoretried_function(task)
    fun = task.run if wrapped is None else wrapped
    if is_function_of_async(fun):
        return
    cell = celery_private.pydantic_cell(fun)
    if cell is not None:  # Celery's wrapper dumps what the function returns, which must not be a coroutine
        cell.cell_contents = as_function(cell.cell_contents)
        return
    made = as_function(fun)
    if made is fun:
        return
    if wrapped is None:
        task.run = made
    else:
        celery_private.set_autoretried_function(task, made)


def is_async(task: Any) -> bool:
    """Return whether the task is an ``async def`` one, before :func:`make_callable` and after it."""
    wrapped = celery_private.autoretried_function(task)
    fun = task.run if wrapped is None else wrapped
    cell = celery_private.pydantic_cell(fun)
    if cell is not None:
        fun = cell.cell_contents
    return is_function_of_async(fun) or as_function(fun) is not fun

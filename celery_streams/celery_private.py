"""Celery's insides: every private name of Celery, kombu and billiard that this package uses, and nothing else uses.

An upgrade may take any of them away. ``tests/unit/test_celery_private.py`` has a test for each, which says what breaks
then, and where to look for what took its place.
"""

from __future__ import annotations

import sys
from types import CellType
from typing import TYPE_CHECKING, Any

from billiard import common
from celery import _state

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "active_apps",
    "autoretried_function",
    "chord_claims_are_known",
    "config_source",
    "consumes_from_chosen",
    "context_of",
    "current_task",
    "default_app",
    "exchange_task_stack",
    "forget_producer_pool",
    "is_ending",
    "preferred_apps",
    "pydantic_cell",
    "raise_decoding_error",
    "real_app",
    "set_autoretried_function",
    "success_was_stored",
    "was_cancelled",
    "was_revoked",
)


# -- apps (celery._state, celery.app.base)


def active_apps() -> list[Celery]:
    """Return all apps of this process that are still referred to."""
    return list(_state._get_active_apps())


def default_app() -> Celery | None:
    """Return the app that was made default, None when there is none yet."""
    return _state.default_app


def preferred_apps() -> list[Celery]:
    """Return the current app of this thread and the default app, as far as there are any; none is made."""
    return [app for app in (_state._tls.current_app, _state.default_app) if app is not None]


def real_app(proxy: Any) -> Celery:
    """Return the app behind ``celery.current_app``."""
    return proxy._get_current_object()


def config_source(app: Celery) -> Any:
    """Return what ``app.config_from_object`` was given; it is not read here."""
    return app._config_source


# -- publishing (celery.app.amqp)


def forget_producer_pool(amqp: Any) -> None:
    """Have ``app.amqp`` make its pool of producers again at the next use."""
    amqp._producer_pool = None


def consumes_from_chosen(queues: Any) -> bool:
    """Return whether ``app.amqp.queues`` were narrowed (``-Q``)."""
    return queues._consume_from is not None


# -- tasks (celery.app.task, celery.app.autoretry, celery._state)


def current_task() -> Any:
    """Return the task that runs in this thread, None outside of one."""
    return _state.get_current_task()


def autoretried_function(task: Any) -> Any:
    """Return the function that Celery wrapped for ``autoretry_for``; None when it wrapped none."""
    return getattr(task, "_orig_run", None)


def set_autoretried_function(task: Any, fun: Any) -> None:
    """Have Celery's wrapper call ``fun``."""
    task._orig_run = fun


def pydantic_cell(fun: Any) -> CellType | None:
    """Return what holds the function that Celery wrapped for ``pydantic=True``; None when it wrapped none."""
    plain = getattr(fun, "__func__", fun)
    code = getattr(plain, "__code__", None)
    if code is None or not {"task_fun", "dump_kwargs"} <= set(code.co_freevars):
        return None
    cell: CellType = plain.__closure__[code.co_freevars.index("task_fun")]
    return cell


def exchange_task_stack(new: Any) -> None:
    """Put ``new`` in the place of the stack behind ``current_task``, wherever Celery's modules refer to it."""
    old = _state._task_stack
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("celery.") and getattr(module, "_task_stack", None) is old:
            module._task_stack = new  # type: ignore[attr-defined]


# -- requests (celery.worker.request)


def context_of(request: Any) -> Any:
    """Return the task's context (``self.request``) of a Request."""
    return request._context


def was_revoked(request: Any) -> bool:
    """Return whether a Request has announced that it was revoked."""
    return bool(request._already_revoked)


def was_cancelled(request: Any) -> bool:
    """Return whether a Request was cancelled (a cold shutdown)."""
    return bool(request._already_cancelled)


def success_was_stored(request: Any) -> Any:
    """Return the stored result of a task whose process was lost after it had succeeded; None before Celery 5.7."""
    stored = getattr(request, "_success_was_stored", None)
    return stored() if stored is not None else None


# -- messages, results, processes (kombu, celery.backends, billiard)


def raise_decoding_error(message: Any) -> None:
    """Raise the error that a kombu Message met when it was made, for one that has errors."""
    message._reraise_error()


def chord_claims_are_known(backend: Any) -> bool:
    """Return whether a result backend lets one process claim the dispatch of a chord's body (Redis, Celery 5.7)."""
    return hasattr(backend, "_chord_claim_extend_script")


def is_ending() -> bool:
    """Return whether billiard's handler of SIGTERM has run in this process (``terminate_handler_fired`` from 4.3.1)."""
    return bool(common._should_have_exited[0])

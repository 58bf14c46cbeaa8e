"""Who may see the status and use the dashboard: the defaults, and the project's own tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.utils.module_loading import import_string

__all__ = (
    "ACTIONS",
    "HOOKS",
    "LOOKS",
    "dashboard_permission",
    "hook",
    "is_staff",
    "may",
    "status_permission",
    "task_permission",
)

#: What can be allowed one by one on the dashboard: the permissions ``celery_streams.X`` of Django.
ACTIONS = ("view_queues", "view_arguments", "replay", "purge", "pause", "run_now", "cancel", "revoke", "terminate")

#: Those that only look.
LOOKS = ("view_queues", "view_arguments")

#: Django settings that name a callable, or hold one.
HOOKS = (
    "CELERY_STREAMS_STATUS_PERMISSION",
    "CELERY_STREAMS_DASHBOARD_PERMISSION",
    "CELERY_STREAMS_REDACT_ARGUMENTS",
    "CELERY_STREAMS_TASK_PERMISSION",
)


def is_staff(request: HttpRequest) -> bool:
    """Return whether an active staff user is logged in; nobody is without Django's authentication middleware."""
    user = getattr(request, "user", None)
    return user is not None and bool(user.is_active and user.is_staff)


def may(request: HttpRequest, action: str) -> bool:
    """Return whether the user may do ``action`` in the admin: active staff with the permission of that name."""
    return is_staff(request) and bool(request.user.has_perm(f"celery_streams.{action}"))


def may_outside(request: HttpRequest, action: str) -> bool:
    """Return whether the user may do ``action`` on the pages outside the admin: there staff may look at queues."""
    return may(request, action) or (action == "view_queues" and is_staff(request))


def status_permission() -> Callable[[HttpRequest], Any]:
    """Return the test that ``CELERY_STREAMS_STATUS_PERMISSION`` names: a callable, or its dotted path.

    Raises:
        ImproperlyConfigured: see :func:`hook`.
    """
    return hook("CELERY_STREAMS_STATUS_PERMISSION") or is_staff


def task_permission() -> Callable[[HttpRequest, str, dict[str, Any]], Any]:
    """Return the test that ``CELERY_STREAMS_TASK_PERMISSION`` names: of a request, a task id and its message's headers.

    Raises:
        ImproperlyConfigured: see :func:`hook`.
    """
    return hook("CELERY_STREAMS_TASK_PERMISSION") or _staff_alone


def _staff_alone(request: HttpRequest, task_id: str, headers: dict[str, Any]) -> bool:
    return is_staff(request)


def dashboard_permission(*, in_admin: bool) -> Callable[[HttpRequest, str], Any]:
    """Return the test that ``CELERY_STREAMS_DASHBOARD_PERMISSION`` names: of a request and one of :data:`ACTIONS`.

    Raises:
        ImproperlyConfigured: see :func:`hook`.
    """
    return hook("CELERY_STREAMS_DASHBOARD_PERMISSION") or (may if in_admin else may_outside)


def hook(name: str) -> Callable[..., Any] | None:
    """Return the callable that the setting ``name`` holds, or names by its dotted path; None when it is not set.

    Raises:
        ImproperlyConfigured: it cannot be imported, it is not callable, or calling it returns a coroutine.
    """
    found: Any = getattr(settings, name, None)
    if found is None:
        return None
    if isinstance(found, str):
        try:
            found = import_string(found)
        except ImportError as exc:
            raise ImproperlyConfigured(f"{name} cannot be imported: {exc}.") from exc
    if not callable(found):
        raise ImproperlyConfigured(f"{name} must be callable, got {found!r}.")
    # The pages are not asynchronous: nobody would await it, and a coroutine is true.
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__):
        raise ImproperlyConfigured(f"{name} must not be async def, got {found!r}.")
    return found  # type: ignore[no-any-return]

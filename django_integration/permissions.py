"""Who may see the status: the default, and the project's own test."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.utils.module_loading import import_string

__all__ = ("is_staff", "status_permission")


def is_staff(request: HttpRequest) -> bool:
    """Return whether an active staff user is logged in; nobody is without Django's authentication middleware."""
    user = getattr(request, "user", None)
    return user is not None and bool(user.is_active and user.is_staff)


def status_permission() -> Callable[[HttpRequest], Any]:
    """Return the test that ``CELERY_STREAMS_STATUS_PERMISSION`` names: a callable, or its dotted path.

    Raises:
        ImproperlyConfigured: it cannot be imported, it is not callable, or calling it returns a coroutine.
    """
    test: Any = getattr(settings, "CELERY_STREAMS_STATUS_PERMISSION", None)
    if test is None:
        return is_staff
    if isinstance(test, str):
        try:
            test = import_string(test)
        except ImportError as exc:
            raise ImproperlyConfigured(f"CELERY_STREAMS_STATUS_PERMISSION cannot be imported: {exc}.") from exc
    if not callable(test):
        raise ImproperlyConfigured(f"CELERY_STREAMS_STATUS_PERMISSION must be callable, got {test!r}.")
    # The pages are not asynchronous: nobody would await it, and a coroutine is true.
    if inspect.iscoroutinefunction(test) or inspect.iscoroutinefunction(type(test).__call__):
        raise ImproperlyConfigured(f"CELERY_STREAMS_STATUS_PERMISSION must not be async def, got {test!r}.")
    return test  # type: ignore[no-any-return]

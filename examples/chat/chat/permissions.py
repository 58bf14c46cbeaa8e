"""Who may see the state of a task: whoever sent it, as the header of its message says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest

__all__ = ("may_see_task",)


def may_see_task(request: HttpRequest, task_id: str, headers: Mapping[str, Any]) -> bool:
    """Return whether the user of ``request`` published the task (``CELERY_STREAMS_TASK_PERMISSION``)."""
    return bool(request.user.is_authenticated) and headers.get("owner") == request.user.pk

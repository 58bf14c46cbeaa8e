"""Audit: who did what, once for each action with its count: a signal, a log line, and the admin's log."""

from __future__ import annotations

import logging

from django.apps import apps

from ..signals import dashboard_action
from .look import Look

__all__ = ("note",)

logger = logging.getLogger("celery_streams.dashboard")


def note(look: Look, action: str, what: str, *, count: int, deletes: bool = False) -> None:
    """Note an action that was confirmed, before it is carried out.

    Args:
        what: a sentence about it with the filter, never with arguments.
        count: how many messages or tasks it is about.
        deletes: whether it deletes something.
    """
    user = getattr(look.request, "user", None)
    if user is not None and not user.is_authenticated:
        user = None
    logger.info("%s: %s", user or "Somebody", what, extra={"action": action, "count": count})
    dashboard_action.send(sender=Look, user=user, action=action, what=what, count=count)
    if user is not None and apps.is_installed("django.contrib.admin"):
        _log(user.pk, what, deletes=deletes)


def _log(user_id: object, what: str, *, deletes: bool) -> None:
    from django.contrib.admin.models import CHANGE, DELETION, LogEntry

    from ..models import Dashboard

    flag = DELETION if deletes else CHANGE
    manager = LogEntry.objects
    if hasattr(manager, "log_actions"):  # Django 5.1 and newer
        manager.log_actions(user_id, [Dashboard()], flag, what, single_object=True)
        return
    from django.contrib.contenttypes.models import ContentType

    manager.log_action(
        user_id=user_id,
        content_type_id=ContentType.objects.get_for_model(Dashboard, for_concrete_model=False).pk,
        object_id="",
        object_repr=str(Dashboard()),
        action_flag=flag,
        change_message=what,
    )

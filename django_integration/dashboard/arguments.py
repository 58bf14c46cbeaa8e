"""Arguments: what a task was called with, as it may be shown to this user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _

from celery_streams.dead_letters import decode_arguments
from celery_streams.dead_search import shown
from celery_streams.message import Message

from ..permissions import hook
from .look import Look

__all__ = ("Shown", "are_hidden", "show")

#: Characters of arguments in a list, and on the page of one message.
SHORT, LONG = 120, 200_000


@dataclass(frozen=True)
class Shown:
    """Arguments as text, or why there are none to see."""

    args: str = ""
    kwargs: str = ""
    #: Why they are not shown; empty when they are.
    why_not: str = ""


def are_hidden(look: Look) -> bool:
    """Return whether arguments are not shown until somebody asks for them: a setting, or a missing permission."""
    return not look.may("view_arguments") or (
        bool(getattr(settings, "CELERY_STREAMS_HIDE_ARGUMENTS", False)) and look.text("arguments") != "shown"
    )


def show(look: Look, task: str | None, message: Message | None, *, most: int = SHORT) -> Shown:
    """Return the arguments of a message, redacted by ``CELERY_STREAMS_REDACT_ARGUMENTS``, cut to ``most`` characters.

    What the project's own function raises hides them: they are never shown by mistake.
    """
    if are_hidden(look):
        return Shown(why_not=_("hidden"))
    if message is None:
        return Shown(why_not=_("not a task message"))
    called = decode_arguments(message, accept=look.streams.app.conf.accept_content)
    if called.error is not None:
        return Shown(why_not=called.error)
    args, kwargs = called.args, called.kwargs
    redact = hook("CELERY_STREAMS_REDACT_ARGUMENTS")
    if redact is not None:
        try:
            args, kwargs = redact(task, args, kwargs)
        except Exception as exc:  # noqa: BLE001  (the project's own function)
            return Shown(why_not=_("not redacted: %(error)s") % {"error": type(exc).__name__})
    return Shown(_cut(args, most), _cut(kwargs, most))


def _cut(value: Any, most: int) -> str:
    text = shown(value)
    return text if len(text) <= most else text[: most - 1] + "…"

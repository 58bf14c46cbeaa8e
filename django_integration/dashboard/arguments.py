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

__all__ = ("Shown", "are_hidden", "are_raw_hidden", "not_kept", "show", "show_called")

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


def are_raw_hidden(look: Look) -> bool:
    """Return whether what may hold arguments in a form that nobody can redact stays hidden: headers, raw fields."""
    return are_hidden(look) or hook("CELERY_STREAMS_REDACT_ARGUMENTS") is not None


def not_kept() -> Shown:
    """Return what is shown in the place of arguments while Redis is away."""
    return Shown(why_not=_("not kept while Redis is away"))


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
    return _redacted(task, called.args, called.kwargs, most=most)


def show_called(look: Look, task: str, args: Any, kwargs: Any) -> Shown:
    """Return the arguments that a worker says a task runs with, likewise.

    What it says as text, since it could not send more, cannot be redacted.
    """
    if are_hidden(look):
        return Shown(why_not=_("hidden"))
    if isinstance(args, (list, tuple)) and isinstance(kwargs, dict):
        return _redacted(task, list(args), kwargs, most=SHORT)
    if are_raw_hidden(look):
        return Shown(why_not=_("hidden"))
    return Shown(_cut(args, SHORT), "" if kwargs is None else _cut(kwargs, SHORT))


def _redacted(task: str | None, args: Any, kwargs: Any, *, most: int) -> Shown:
    redact = hook("CELERY_STREAMS_REDACT_ARGUMENTS")
    if redact is not None:
        try:
            args, kwargs = redact(task, args, kwargs)
        except Exception as exc:  # noqa: BLE001  (the project's own function)
            return Shown(why_not=_("not redacted: %(error)s") % {"error": type(exc).__name__})
    return Shown(_cut(args, most), _cut(kwargs, most))


def _cut(value: Any, most: int) -> str:
    text = shown(value)
    if len(text) <= most:
        return text
    # Whoever reads so much believes that it is all.
    left_out = _(" (%(n)s characters in all)") % {"n": len(text)} if most == LONG else ""
    return f"{text[: most - 1]}…{left_out}"

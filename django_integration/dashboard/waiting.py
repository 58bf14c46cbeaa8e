"""Waiting: one message in full that is no dead letter: due later (a retry, for example), or held by a worker.

Attempts, of dead letters too: how the starts of a message ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.http import HttpResponse
from django.utils.translation import gettext as _

from celery_streams.attempts import Attempt
from celery_streams.delayed_messages import delayed_message
from celery_streams.exceptions import MessageError
from celery_streams.message import Message
from celery_streams.obstacles import task_id_of
from celery_streams.running_messages import held_message

from .arguments import LONG, are_hidden, show
from .look import Look
from .sentences import error_text

__all__ = ("attempts_of", "delayed_in_full", "family_of", "parse_member", "running_in_full")


def parse_member(key: str) -> tuple[str, str] | None:
    """Read the name that a delayed message has in forms: queue and member; None for what is none."""
    queue, _, member = key.partition(" ")
    try:
        return tuple(bytes.fromhex(part).decode(errors="surrogateescape") for part in (queue, member))  # type: ignore[return-value]
    except ValueError:
        return None


def attempts_of(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Return attempts as they are shown, the newest first."""
    known = {
        "retried": _("retried"),
        "put back": _("put back by the task"),
        "interrupted": _("interrupted, for its worker ended"),
        "crashed": _("its process died"),
        "lost": _("its worker disappeared"),
        "time-limit": _("took too long"),
        "rejected": _("rejected by the task"),
        "failed": _("failed"),
    }
    return [
        {
            "number": one.number or "",
            "ended": one.ended,
            "took": None if one.began is None or one.ended is None else max(one.ended - one.began, 0.0),
            "outcome": known.get(one.outcome, one.outcome),
            "detail": one.detail,
            "worker": one.worker,
        }
        for one in reversed(attempts)
    ]


def family_of(look: Look, headers: dict[str, Any], task_id: str | None) -> list[tuple[str, Any, str]]:
    """Return parent, root and group of a task, each with the address of what died of it."""
    return [
        (label, value, look.place.url("dead", family=str(value)))
        for label, value in (
            (_("Parent"), headers.get("parent_id")),
            (_("Root"), headers.get("root_id")),
            (_("Group"), headers.get("group")),
        )
        if value and value != task_id
    ]


def delayed_in_full(look: Look) -> HttpResponse:
    """Show one delayed message in full."""
    key = look.text("key", most=10_000)
    place = parse_member(key)
    found = delayed_message(look.streams.broker, *place) if place is not None else None
    if found is None:
        back = look.place.url("delayed")
        return look.gone(_("Message"), _("This message is no longer delayed: it is due, or was cancelled."), back)
    context = {
        "state": _("delayed"),
        "due": found.due,
        "act": look.place.url("change_delayed"),
        "key": key,
        "back": look.place.url("delayed", queue=found.queue),
        "back_to": _("Delayed messages of this queue"),
    }
    return _show(look, found.queue, found.message, found.attempts, context, again={"key": key}, state=[key, found.due])


def running_in_full(look: Look) -> HttpResponse:
    """Show the message of one task that a worker holds."""
    queue, task_id = look.text("queue"), look.text("id")
    found = held_message(look.streams.broker, queue, task_id) if queue and task_id else None
    if found is None:
        back = look.place.url("workers", running="yes")
        return look.gone(_("Message"), _("No worker holds the message of this task: it has ended, or waits."), back)
    context = {
        "state": _("held by a worker, which runs it or will next"),
        "consumer": found.consumer,
        "act": look.place.url("change_task"),
        "revocable": task_id,
        "back": look.place.url("workers", running="yes"),
        "back_to": _("Workers"),
    }
    state = [found.delivery.entry_id.decode(), found.consumer]
    return _show(
        look, queue, found.delivery.message, found.attempts, context, again={"queue": queue, "id": task_id}, state=state
    )


def _show(
    look: Look,
    queue: str,
    message: Message | None,
    attempts: Sequence[Attempt],
    context: dict[str, Any],
    *,
    again: dict[str, str],
    state: list[Any],
) -> HttpResponse:
    headers: dict[str, Any] = {}
    task_id, trouble = None, ""
    if message is not None:
        try:
            headers, task_id = message.decode_headers(), task_id_of(message)
        except MessageError as exc:
            trouble = error_text(exc)
    task = headers.get("task") if isinstance(headers.get("task"), str) else None
    arguments = "shown" if look.text("arguments") == "shown" else ""
    context = {
        **context,
        "queue": queue,
        "task": task,
        "task_id": task_id,
        "retries": headers.get("retries"),
        "family": family_of(look, headers, task_id),
        "attempts": attempts_of(attempts),
        "arguments": show(look, task, message, most=LONG),
        "hidden": are_hidden(look),
        "show_arguments": look.place.url(look.page, **again, arguments="shown"),
        "trouble": trouble,
    }
    return look.answer("waiting.html", task or _("Message"), context, state=[*state, arguments, len(attempts)])

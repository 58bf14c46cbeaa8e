"""Workers: who lives and what they read, from Redis; what they run, from the workers when somebody asks for it."""

from __future__ import annotations

import time
from collections.abc import Container
from typing import Any

from django.http import HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _

from celery_streams import presence
from celery_streams.monitoring.workers import WORKERS_AWAY
from celery_streams.printable import printable

from .arguments import show_called
from .audit import note
from .exports import FORMATS, as_file
from .last import see
from .look import Look
from .sentences import error_text

__all__ = ("change_task", "workers")

COLUMNS = ("worker", "alive", "silent", "queues", "unread", "consumers", "crashes", "pid", "version")

#: Seconds for workers to answer.
PATIENCE = 1.0


def workers(look: Look) -> HttpResponse:
    """Show all workers, the dead too; with ``?running=yes`` what they run, which asks each of them."""
    seen = see(look, "workers", lambda: (presence.workers(look.streams.broker), time.time()))
    found, at = seen.value
    kind = look.exported(seen.error)
    if kind:
        return as_file(kind, "workers", COLUMNS, map(_flat, found))
    asked = look.text("running") == "yes" and not seen.error
    running, trouble = _running(look) if asked else ([], "")
    context = {
        "rows": [
            {
                "worker": worker,
                "since": at - max(worker.silent, 0.0),
                "unread": worker.unread_queues(),
                "consumers": len(worker.consumers),
            }
            for worker in found
        ],
        **seen.context,
        "asked": asked,
        "running": running,
        "trouble": trouble,
        "export": {kind: look.place.url("workers", format=kind) for kind in FORMATS},
        "ask": look.place.url("workers", running="yes"),
        "act": look.place.url("change_task"),
        "note": _("The command was sent to all workers.") if look.text("done") else "",
    }
    state = (
        None
        if asked
        else [seen.error, *([one.worker, one.is_alive, one.queues, len(one.consumers), one.crashes] for one in found)]
    )
    return look.answer("workers.html", _("Workers"), context, state=state)


def _flat(worker: presence.WorkerPresence) -> dict[str, Any]:
    return {
        "worker": worker.node,
        "alive": worker.is_alive,
        "silent": round(worker.silent, 1),
        "queues": ", ".join(worker.queues),
        "unread": ", ".join(worker.unread_queues()),
        "consumers": len(worker.consumers),
        "crashes": worker.crashes,
        "pid": worker.pid,
        "version": worker.version,
    }


def _running(look: Look) -> tuple[list[dict[str, Any]], str]:
    """Return what workers run, those of longest standing first, and why they could not be asked."""
    app = look.streams.app
    try:
        with app.connection_for_write() as connection:
            answers = app.control.inspect(timeout=PATIENCE, connection=connection).active() or {}
    except WORKERS_AWAY as exc:
        return [], error_text(exc)
    known = set(look.streams.known_queues())
    found = [
        {
            "worker": node,
            "id": str(task.get("id")),
            "name": str(task.get("name")),
            "started": task.get("time_start") if isinstance(task.get("time_start"), (int, float)) else None,
            "arguments": show_called(look, str(task.get("name")), task.get("args"), task.get("kwargs")),
            "pid": task.get("worker_pid"),
            "url": _url(look, task, known),
        }
        for node, tasks in answers.items()
        for task in tasks or ()
    ]
    return sorted(found, key=lambda one: one["started"] or 0.0), ""


def _url(look: Look, task: Any, known: Container[str]) -> str:
    """Return the address of the message of a task that runs; empty for one of a list."""
    about = task.get("delivery_info")
    queue = about.get("routing_key") if isinstance(about, dict) else None
    if not isinstance(queue, str) or queue not in known:
        return ""
    return look.place.url("running_message", queue=queue, id=str(task.get("id")))


def change_task(look: Look) -> HttpResponse:
    """Revoke a task, or terminate it where it runs: asked first, then done."""
    verb, task_id = look.text("verb"), look.text("id")
    if verb not in ("revoke", "terminate") or not task_id:
        return _say(look, _("No such action."), 400)
    if not look.may(verb):
        return _say(look, _("You may not do this."), 403)
    if look.text("confirmed") != "yes":
        question = (
            _("Revoke task %(id)s? Workers will discard it instead of running it.")
            if verb == "revoke"
            else _("Terminate task %(id)s? The process that runs it is killed; the task does not run again.")
        ) % {"id": task_id}
        context = {
            "question": question,
            "hidden": [("verb", verb), ("id", task_id), ("confirmed", "yes")],
            "act": look.place.url("change_task"),
            "back": look.place.url("workers"),
            "danger": True,
        }
        return look.answer("ask.html", _("Workers"), context)
    note(look, verb, f"{verb.capitalize()} task {printable(task_id)}", count=1, deletes=verb == "terminate")
    try:
        look.streams.app.control.revoke(task_id, terminate=verb == "terminate")
    except WORKERS_AWAY as exc:
        return _say(look, _("The workers cannot be reached: %(error)s") % {"error": exc}, 503)
    return HttpResponseRedirect(look.place.url("workers", running="yes", done="yes"))


def _say(look: Look, text: str, status: int) -> HttpResponse:
    return look.answer(
        "message_only.html", _("Workers"), {"text": text, "back": look.place.url("workers")}, status=status
    )

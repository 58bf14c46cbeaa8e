"""Queues: the first page, a table of all queues with what is wrong; with the last figures while Redis is away."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from django.http import HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _

from celery_streams import BrokerError, pause, resume
from celery_streams.history import Sample, samples
from celery_streams.monitoring.course import Pace, pace
from celery_streams.monitoring.status import QueueReport, Status, collect
from celery_streams.printable import printable

from .audit import note
from .exports import as_file
from .figures import localized
from .last import see
from .look import Look
from .sentences import error_text

__all__ = ("change_queue", "last_status", "queues")

#: Queues up to which their history is shown as lines.
MOST_LINES = 60

COLUMNS = (
    "queue", "waiting", "pending", "delayed", "held", "locks", "dead", "consumers", "workers", "oldest_waiting",
    "overdue", "listed", "share",
)  # fmt: skip


def last_status(look: Look) -> tuple[Status | None, str]:
    """Return the status; the one that this process saw last, and the error, when Redis is away."""
    try:
        found = see(look, "status", lambda: collect(look.streams, ask_workers=False))
    except BrokerError as exc:
        return None, error_text(exc)
    return found.value, found.error


def queues(look: Look) -> HttpResponse:
    """Show the table."""
    found, error = last_status(look)
    reports = list(found.queues) if found else []
    wanted = look.text("name").lower()
    if wanted:
        reports = [report for report in reports if wanted in report.state.queue.lower()]
    kind = look.exported(error)
    if kind:
        rows = [{name: value for name, value in report.as_dict().items() if name in COLUMNS} for report in reports]
        return as_file(kind, "queues", COLUMNS, rows)
    level = found.level if found else "critical"
    held = _held(look, [report.state.queue for report in reports]) if not error else {}
    lines = {queue: line for queue, history in held.items() if (line := _line(history))}
    now = look.streams.broker.clock_ms() / 1000 if held else 0.0
    paces = {queue: _pace(fast) for queue, history in held.items() if (fast := pace(history, now=now))}
    context = {
        "status": found,
        "rows": [
            {**_row(look, report), "line": lines.get(report.state.queue), "pace": paces.get(report.state.queue)}
            for report in reports
        ],
        "with_lines": bool(lines),
        "with_paces": bool(paces),
        "totals": found.totals if found else None,
        "with_held": any(report.state.held for report in reports),
        "with_locks": any(report.state.locks for report in reports),
        "with_lists": any(report.side.length or report.side.share < 1 for report in reports),
        "error": error,
        "seen": found.time if found and error else None,
        "level": level,
        "wanted": wanted,
        "alerts": found.alerts if found else (),
        "act": look.place.url("change_queue"),
        "note": {"pause": _("The queue is paused."), "resume": _("The queue is resumed.")}.get(look.text("done"), ""),
        "export": {"csv": look.place.url("queues", name=wanted, format="csv"),
                   "json": look.place.url("queues", name=wanted, format="json")},
    }  # fmt: skip
    state = [lines, paces, error, found and [_steady(report) for report in reports], found and found.enabled]
    return look.answer("queues.html", _("Queues"), context, state=state, status=503 if error and not found else 200)


def _held(look: Look, names: list[str]) -> dict[str, list[Sample]]:
    """Return what the queues held within the last hour; not of very many."""
    return {} if len(names) > MOST_LINES else samples(look.streams.broker, names, seconds=3_600.0)


def _line(history: Sequence[Sample]) -> dict[str, Any] | None:
    """Return what waited as points of a line 60 wide and 16 high; None where one moment is all that is known."""
    if len(history) < 2:
        return None
    most = max(max(one.waiting for one in history), 1)
    end = history[-1].at
    points = (f"{60 - (end - one.at) / 60:.1f},{15 - 14 * one.waiting / most:.1f}" for one in history)
    return {"points": " ".join(points), "most": max(one.waiting for one in history)}


def _pace(found: Pace) -> dict[str, str]:
    return {"arrived": per_minute(found.arrived), "left": per_minute(found.left)}


def per_minute(value: float) -> str:
    """Return a rate as people read it."""
    return localized(f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.1f}")


def change_queue(look: Look) -> HttpResponse:
    """Pause a queue, or resume it: asked first, then done."""
    verb = look.text("verb")
    try:
        queue = bytes.fromhex(look.text("key", most=4_000)).decode(errors="surrogateescape")
    except ValueError:
        queue = ""
    if verb not in ("pause", "resume") or not queue:
        return _say(look, _("No such action."), 400)
    if not look.may("pause"):
        return _say(look, _("You may not do this."), 403)
    if look.text("confirmed") != "yes":
        question = (
            _("Pause queue %(queue)s? What runs finishes, and nothing of it is started until it is resumed.")
            if verb == "pause"
            else _("Resume queue %(queue)s?")
        ) % {"queue": queue}
        context = {
            "question": question,
            "hidden": [("verb", verb), ("key", look.text("key", most=4_000)), ("confirmed", "yes")],
            "act": look.place.url("change_queue"),
            "back": look.place.url("queues"),
            "danger": verb == "pause",
        }
        return look.answer("ask.html", _("Queues"), context)
    note(look, "pause", f"{verb.capitalize()} queue {printable(queue)}", count=1)
    if verb == "pause":
        pause(look.streams.app, queue, reason=_("on the dashboard"))
    else:
        resume(look.streams.app, queue)
    return HttpResponseRedirect(look.place.url("queues", done=verb))


def _say(look: Look, text: str, status: int) -> HttpResponse:
    return look.answer(
        "message_only.html", _("Queues"), {"text": text, "back": look.place.url("queues")}, status=status
    )


def _row(look: Look, report: QueueReport) -> dict[str, Any]:
    state = report.state
    return {
        "report": report,
        "state": state,
        "since": None if state.oldest_waiting is None else time.time() - state.oldest_waiting,
        "level": report.alerts[0].level if report.alerts else "ok",
        "dead_url": look.place.url("dead", queue=state.queue),
        "delayed_url": look.place.url("delayed", queue=state.queue),
        "held_url": look.place.url("held", queue=state.queue),
        "history_url": look.place.url("history", queue=state.queue),
        "share": round(report.side.share * 100),
        "paused_since": None if state.paused is None else time.time() - state.paused,
        "key": state.queue.encode(errors="surrogateescape").hex(),
    }


def _steady(report: QueueReport) -> list[Any]:
    """Return what is shown of a queue, without what changes by the clock alone."""
    state = report.state
    return [
        state.queue, state.waiting, state.pending, state.delayed, state.held, state.locks, state.dead,
        state.consumers, state.workers, state.oldest_waiting is None, state.paused is None, state.dead_workers,
        report.side.length, report.side.share,
        [(alert.level, alert.name) for alert in report.alerts],
        # Ages are told by the page's clock; once in a minute they come from here.
        int((state.oldest_waiting or 0) // 60), int(state.overdue // 60),
    ]  # fmt: skip

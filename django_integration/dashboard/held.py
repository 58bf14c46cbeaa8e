"""Held: messages that the limits of their tasks hold back, by lane: who waits in line with whom, and how many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.http import HttpResponse
from django.utils.translation import gettext as _

from celery_streams.lanes import HeldLane, some_held_lanes

from ..permissions import hook
from .arguments import are_hidden
from .exports import as_file
from .last import see
from .look import Look

__all__ = ("held",)

PAGE = 50

#: Lanes of one queue that a page looks at; a key for each customer may make hundreds of thousands.
MOST = 10_000

#: Lanes that are kept for while Redis is away.
MOST_KEPT = 500

COLUMNS = ("queue", "task", "lane", "held")

#: Lanes, whether there are more, and the names of all queues.
Lines = tuple[list[HeldLane], bool, list[str]]


def held(look: Look) -> HttpResponse:
    """Show the longest lanes of one queue, or of all."""
    queue = look.text("queue")
    skip = look.number("skip", most=MOST)

    def ask() -> Lines:
        known = look.streams.known_queues()
        found: list[HeldLane] = []
        cut = False
        for name in [queue] if queue else known:
            lanes, more = some_held_lanes(look.streams.broker, name, MOST)
            found += lanes
            cut = cut or more
        return sorted(found, key=lambda lane: (-lane.held, lane.queue, lane.name)), cut, known

    seen = see(look, f"held {queue}", ask, keep=_without_keys)
    found, cut, known = seen.value
    kind = look.exported(seen.error)
    rows = [_row(look, lane) for lane in found]
    if kind:
        return as_file(kind, "held", COLUMNS, rows)
    shown = rows[skip : skip + PAGE]
    context = {
        **seen.context,
        "listed": True,
        "rows": shown,
        "queue": queue,
        "queues": known,
        "looked_at": len(found) if cut else 0,
        "next": look.place.url("held", queue=queue, skip=skip + PAGE) if len(rows) > skip + PAGE else "",
        "first": look.place.url("held", queue=queue) if skip else "",
        "export": {kind: look.place.url("held", queue=queue, format=kind) for kind in ("csv", "json")},
    }
    return look.answer("held.html", _("Held messages"), context, state=[seen.error, *shown])


def _without_keys(seen: Lines) -> Lines:
    """Return what may be kept of a list: no key, which is an argument, and the longest lines only."""
    found, cut, known = seen
    return [replace(lane, name=lane.task) for lane in found[:MOST_KEPT]], cut or len(found) > MOST_KEPT, known


def _row(look: Look, lane: HeldLane) -> dict[str, Any]:
    # A key is an argument: whoever may not see these does not see it, and the project's hook cannot redact a part.
    hidden = are_hidden(look) or hook("CELERY_STREAMS_REDACT_ARGUMENTS") is not None
    key = lane.name.removeprefix(lane.task).lstrip(" |@")
    return {"queue": lane.queue, "task": lane.task, "lane": _("hidden") if hidden and key else key, "held": lane.held}

"""History: how a queue fared within an hour or a day, drawn, and the same figures as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.http import HttpResponse
from django.utils.translation import gettext as _

from celery_streams.monitoring.course import DAY, HOUR, Course, Spread, Step, course
from celery_streams.printable import printable

from ..templatetags.celery_streams_dashboard import seconds
from .charts import FLOOR, HEIGHT, LEFT, WIDTH, Chart, chart, mark, ticks
from .exports import as_file
from .figures import localized
from .last import see
from .look import Look

__all__ = ("history",)

COLUMNS = ("at", "waiting", "dead", "arrived", "done", "failed", "retried", "wait_count", "wait_mean", "wait_most",
           "run_count", "run_mean", "run_most")  # fmt: skip

#: Seconds between two hours that stand below a drawing.
_TICKS = {HOUR: 600.0, DAY: 4 * 3_600.0}


def history(look: Look) -> HttpResponse:
    """Show the history of one queue: the one that is asked for, or the first."""
    queues = see(look, "queues", look.streams.known_queues)
    names = queues.value
    wanted = look.text("queue")
    # An address has a name without spaces around it.
    queue = next((name for name in names if not wanted or name.strip() == wanted), "")
    span = DAY if look.text("span") == "day" else HOUR
    if not queue:
        text = _("No queue has been used yet.") if not wanted else _("There is no such queue.")
        context = {"text": text, "back": look.place.url("queues")}
        return look.answer("message_only.html", _("History"), context, status=404 if wanted else 200)
    seen = see(look, f"history {span:.0f} {queue}", lambda: course(look.streams.broker, queue, seconds=span))
    found = seen.value
    kind = look.exported(seen.error)
    if kind:
        rows = [_flat(step) for step in found.steps]
        return as_file(kind, "history", COLUMNS, rows)
    context = {
        **seen.context,
        "queues": names,
        "queue": queue,
        "spans": [("hour", _("Hour"), span == HOUR), ("day", _("Day"), span == DAY)],
        "charts": list(_charts(found)),
        "ticks": ticks(found.begins, found.ends, every=_TICKS[span]),
        "marks": [mark(one.at, printable(one.version), found.begins, found.ends) for one in found.marks],
        "size": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "labels": LEFT - 6, "floor": FLOOR},
        "rows": list(_rows(found)),
        "is_counted": found.is_counted,
        "minutes": round(found.length / 60),
        "export": {
            name: look.place.url("history", queue=queue, span=look.text("span"), format=name)
            for name in ("csv", "json")
        },
    }
    return look.answer("history.html", _("History"), context, state=[queue, names, found, seen.error])


def _charts(found: Course) -> Iterator[Chart]:
    steps = found.steps
    minutes = found.length / 60
    yield _chart(_("Waiting"), [(_("Waiting"), [step.waiting for step in steps])], _count, least=1.0)
    flow = [(_("Arrived"), [_each(step.arrived, minutes) for step in steps])]
    if found.is_counted:
        flow.append((_("Done"), [_each(step.done, minutes) for step in steps]))
        flow.append((_("Failed"), [_each(step.failed, minutes) for step in steps]))
    for _name, values in flow:
        values[-1] = None  # it goes on: a part of a minute would look like a fall
    yield _chart(_("Messages a minute"), flow, _count, least=1.0)
    if found.is_counted:
        for title, spreads in (
            (_("Wait before the first start"), [step.wait for step in steps]),
            (_("Run time"), [step.run for step in steps]),
        ):
            lines = [
                (_("Mean"), [None if one is None else one.mean for one in spreads]),
                (_("95 of 100 within"), [None if one is None else one.most for one in spreads]),
            ]
            yield _chart(title, lines, seconds)


def _chart(
    title: str,
    lines: Sequence[tuple[str, Sequence[float | None]]],
    shown: Callable[[float], str],
    *,
    least: float = 0.001,
) -> Chart:
    said = [title]
    for name, values in lines:
        known = [value for value in values if value is not None]
        about = (
            _("%(name)s: from %(least)s to %(most)s, at the end %(last)s")
            % {"name": name, "least": shown(min(known)), "most": shown(max(known)), "last": shown(known[-1])}
            if known
            else _("%(name)s: nothing is known") % {"name": name}
        )
        said.append(about)
    return chart(title, lines, shown=shown, least=least, said=". ".join(said) + ".")


def _rows(found: Course) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table, the newest first, of the steps of which anything is known."""
    for step in reversed(found.steps):
        versions = [printable(one.version) for one in found.marks if step.at <= one.at < step.at + found.length]
        if versions or step.waiting is not None or step.done is not None:
            yield {"step": step, "versions": ", ".join(versions)}


def _flat(step: Step) -> dict[str, Any]:
    row = step.as_dict()
    for name in ("wait", "run"):
        one: Spread | None = getattr(step, name)
        del row[name]
        for part in ("count", "mean", "most"):
            row[f"{name}_{part}"] = None if one is None else getattr(one, part)
    return row


def _each(count: int | None, minutes: float) -> float | None:
    return None if count is None else count / minutes


def _count(value: float) -> str:
    return localized(f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.2g}")

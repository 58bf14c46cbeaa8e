"""Doctor: the alerts, and what the doctor finds when somebody asks it."""

from __future__ import annotations

from django.http import HttpResponse
from django.utils.translation import gettext as _

from celery_streams.monitoring.alerts import Alert
from celery_streams.monitoring.doctor import diagnose
from celery_streams.monitoring.growth import with_growth
from celery_streams.monitoring.status import collect

from .exports import FORMATS, as_file
from .last import see
from .look import Look

__all__ = ("doctor",)

COLUMNS = ("level", "queue", "name", "message")


def doctor(look: Look) -> HttpResponse:
    """Show the alerts of all queues; with ``?examine=yes`` also the doctor's findings, which takes seconds."""
    asked = look.text("examine") == "yes"
    seen = see(look, "alerts", lambda: with_growth(look.streams, collect(look.streams, ask_workers=asked)))
    away = Alert("critical", "", "redis", seen.error, 0, 0)
    alerts = [away, *seen.value] if seen.error else seen.value
    context = {
        **seen.context,
        "alerts": alerts,
        "asked": asked and not seen.error,
        "findings": diagnose(look.streams).findings if asked and not seen.error else (),
        "export": {name: look.place.url("doctor", format=name) for name in FORMATS},
        "examine": look.place.url("doctor", examine="yes"),
    }
    kind = look.exported(seen.error)
    if kind:
        return as_file(kind, "alerts", COLUMNS, ({name: getattr(one, name) for name in COLUMNS} for one in alerts))
    state = None if asked else [[one.level, one.queue, one.name] for one in alerts]
    return look.answer("doctor.html", _("Alerts"), context, state=state)

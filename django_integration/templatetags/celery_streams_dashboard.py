"""Filters of the dashboard's templates: ages, moments, and text from messages."""

from __future__ import annotations

from datetime import datetime
from datetime import timezone as clock
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from celery_streams.monitoring.alerts import Alert
from celery_streams.printable import printable, printable_lines

from ..dashboard.alert_texts import text_of
from ..dashboard.sentences import check_text, reason_text, said_text

__all__ = ("register",)

register = template.Library()


@register.filter
def alert_text(alert: Alert) -> str:
    """Return what an alert says, in the language of the page."""
    return printable(text_of(alert))


@register.filter
def said(text: str) -> str:
    """Return what the doctor and others say, in the language of the page."""
    return printable(said_text(text))


@register.filter
def reason(text: str) -> str:
    """Return why a message is a dead letter, in the language of the page."""
    return printable(reason_text(text))


@register.filter
def check(text: str) -> str:
    """Return the name of one of the doctor's checks, in the language of the page."""
    return printable(check_text(text))


@register.filter
def visible(value: Any) -> str:
    """Return text from a message on one line, control characters and the like escaped as Python does."""
    return "" if value is None else printable(value)


@register.filter
def visible_lines(value: Any) -> str:
    """Return text of several lines, a traceback for example, likewise."""
    return "" if value is None else printable_lines(value)


@register.filter
def since(seconds: float | None) -> SafeString:
    """Return how long ago a moment is (seconds since the epoch), which the script keeps up to date."""
    return _time(seconds, "since")


@register.filter
def moment(seconds: float | None) -> SafeString:
    """Return a moment (seconds since the epoch) as date and time in the project's time zone."""
    return _time(seconds, "moment")


@register.filter
def seconds(value: float | None) -> str:
    """Return a duration in seconds, in the unit that suits it."""
    return "" if value is None else _age(value)


def _time(at: float | None, kind: str) -> SafeString:
    if at is None:
        return SafeString("")
    try:
        found = datetime.fromtimestamp(at, clock.utc)
        local = timezone.localtime(found)
    except (ValueError, OverflowError, OSError):
        return format_html("{}", at)
    exact = local.strftime("%Y-%m-%d %H:%M:%S")
    shown = _age(max(timezone.now().timestamp() - at, 0.0)) if kind == "since" else exact
    return format_html(
        '<time datetime="{}" data-cs-{} title="{}">{}</time>', found.isoformat(timespec="seconds"), kind, exact, shown
    )


def _age(value: float) -> str:
    if value < 1:
        return str(_("%(n)s ms") % {"n": round(value * 1000)})
    for least, unit in ((86_400.0, _("%(n)s d")), (3_600.0, _("%(n)s h")), (60.0, _("%(n)s min"))):
        if value >= 2 * least:
            return str(unit % {"n": int(value // least)})
    return str(_("%(n)s s") % {"n": int(value)})

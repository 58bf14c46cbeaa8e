"""Alert texts: what an alert says, in the language of who reads it; what is not known here stays as it is."""

from __future__ import annotations

from collections.abc import Callable

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_streams.monitoring.alerts import Alert, shown_number

from .figures import localized
from .sentences import said_text

__all__ = ("text_of",)

#: By the name of the alert; in English the sentences of ``monitoring.alerts`` and ``monitoring.growth``.
_TEXTS: dict[str, Callable[[int], str]] = {
    "no_consumer": lambda n: _("%(value)s waiting, and no worker consumes the queue"),
    "dead_worker": lambda n: _("%(value)s of its workers died, and no worker consumes the queue"),
    "restart_loop": lambda n: ngettext(
        "%(value)s child of its workers crashed within ten minutes",
        "%(value)s children of its workers crashed within ten minutes",
        n,
    ),
    "no_stock_worker": lambda n: _("%(value)s waiting on Celery's list, and no stock worker consumes it"),
    "list_backlog": lambda n: _("%(value)s waiting on Celery's list"),
    "list_filling": lambda n: _(
        "%(value)s on Celery's list, and all should go to the stream: does an old publisher write there?"
    ),
    "backlog": lambda n: _("%(value)s waiting"),
    "age": lambda n: _("the oldest message has waited %(value)s s"),
    "pending": lambda n: _("%(value)s running or held by consumers"),
    "overdue": lambda n: _("the earliest delayed message is %(value)s s late; is a worker running?"),
    "paused": lambda n: _("has been paused for %(value)s s"),
    "dead": lambda n: ngettext("%(value)s dead letter", "%(value)s dead letters", n),
    "dead_growing": lambda n: ngettext(
        "%(value)s more dead letter than before", "%(value)s more dead letters than before", n
    ),
    "backlog_growing": lambda n: _("%(value)s more waiting than before"),
}


def text_of(alert: Alert) -> str:
    """Return what ``alert`` says, with the threshold that its value has reached."""
    text = _TEXTS.get(alert.name)
    if text is None:
        return said_text(alert.message)
    return str(
        _("%(what)s (%(level)s from %(threshold)s)")
        % {
            "what": text(1 if alert.value == 1 else 2) % {"value": localized(shown_number(alert.value))},
            "level": _("critical") if alert.level == "critical" else _("warning"),
            "threshold": localized(shown_number(alert.threshold)),
        }
    )

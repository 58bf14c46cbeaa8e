"""Alerts: what the state of a queue means, measured against ``streams_alerts``; pure functions, no Redis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..conf import Alerts
from ..inspect import QueueStatus
from .lists import ListSide

__all__ = ("Alert", "Level", "judge", "misspelt_setting", "never_used", "unknown_queue")

Level = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing about one queue that a person should know."""

    level: Level
    queue: str
    #: As the thresholds are called (``backlog``, ``age``, ``dead`` ...), or ``never_used``.
    name: str
    message: str
    value: float
    threshold: float

    def as_dict(self) -> dict[str, Any]:
        """Return the alert for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Rule:
    """One pair of thresholds: ``name_warning`` and ``name_critical`` of ``streams_alerts``."""

    name: str
    #: What is measured; None means that there is nothing to measure.
    value: Callable[[QueueStatus, ListSide], float | None]
    #: The sentence without the threshold.
    message: str


#: A list that nobody looked at.
NOTHING = ListSide()

_RULES: tuple[_Rule, ...] = (
    _Rule(
        "no_consumer",
        lambda queue, side: None if queue.consumers else queue.length,
        "{value} wait and no worker consumes",
    ),
    _Rule(
        "dead_worker",
        lambda queue, side: None if queue.consumers else len(queue.dead_workers),
        "{value} of its workers died and no worker consumes",
    ),
    _Rule(
        "no_stock_worker",
        lambda queue, side: side.length if side.stock_workers == () else None,
        "{value} wait on Celery's list and no stock worker consumes it",
    ),
    _Rule(
        "list_backlog",
        lambda queue, side: side.length if side.stock_workers != () and side.share < 1.0 else None,
        "{value} wait on Celery's list",
    ),
    _Rule("backlog", lambda queue, side: queue.waiting, "{value} wait"),
    _Rule("age", lambda queue, side: queue.oldest_waiting, "the oldest message has waited {value} s"),
    _Rule("pending", lambda queue, side: queue.pending, "{value} {are} being run or held by consumers"),
    _Rule(
        "overdue", lambda queue, side: queue.overdue, "the earliest delayed message is {value} s late; is a worker up?"
    ),
    _Rule("dead", lambda queue, side: queue.dead, "{value} dead letter{s}"),
)


def judge(queue: QueueStatus, thresholds: Alerts, side: ListSide = NOTHING) -> list[Alert]:
    """Return the alerts of one queue and of Celery's list of it, the critical ones first.

    A threshold is met when the value is equal to it or greater, and only if the value is not zero. Of a pair, only
    the higher level that is met counts.
    """
    found: list[Alert] = []
    for rule in _RULES:
        value = rule.value(queue, side)
        if not value:
            continue
        for level in _LEVELS:
            threshold = getattr(thresholds, f"{rule.name}_{level}")
            if threshold is not None and value >= threshold:
                said = rule.message.format(
                    value=_number(value), s="" if value == 1 else "s", are="is" if value == 1 else "are"
                )
                message = f"{said} ({level} from {_number(threshold)})"
                found.append(Alert(level, queue.queue, rule.name, message, value, threshold))
                break
    return sorted(found, key=lambda alert: _LEVELS.index(alert.level))


def never_used(queue: str) -> Alert:
    """Return the alert for a queue that was asked for by name, and that Redis has never heard of."""
    return Alert("warning", queue, "never_used", "was never used: no message, no worker; is the name right?", 0, 0)


def unknown_queue(queue: str, near: str) -> Alert:
    """Return the alert for a name in ``streams_queues`` that is most likely a misspelt one."""
    message = f"no queue, route or message has this name of streams_queues; did you mean {near!r}?"
    return Alert("warning", queue, "unknown_queue", message, 0, 0)


def misspelt_setting(message: str) -> Alert:
    """Return the alert for a setting that nobody reads, and that looks like one of ours."""
    return Alert("warning", "", "setting", message, 0, 0)


#: Worst first.
_LEVELS: tuple[Level, ...] = ("critical", "warning")


def _number(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) and value < 100 and value % 1 else f"{value:,.0f}"

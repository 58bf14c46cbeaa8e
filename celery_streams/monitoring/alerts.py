"""Alerts: what the state of a queue means, measured against ``streams_alerts``; pure functions, no Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..conf import Alerts
from ..inspect import QueueStatus
from ..said import Said, say
from .lists import ListSide

__all__ = (
    "LEVELS",
    "Alert",
    "Level",
    "exceeded",
    "judge",
    "misspelt_setting",
    "never_used",
    "odd_key",
    "shown_number",
    "unknown_queue",
)

Level = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing about one queue that a person should know."""

    level: Level
    queue: str
    #: As the thresholds are called (``backlog``, ``age``, ``dead`` ...), ``never_used``, ``odd_key`` and others.
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
        lambda queue, side: None if queue.consumers else queue.length + queue.held,
        "{value} waiting, and no worker consumes the queue",
    ),
    _Rule(
        "dead_worker",
        lambda queue, side: None if queue.consumers else len(queue.dead_workers),
        "{value} of its workers died, and no worker consumes the queue",
    ),
    _Rule(
        "restart_loop",
        lambda queue, side: queue.crashes,
        "{value} child{ren} of its workers crashed within ten minutes",
    ),
    _Rule(
        "no_stock_worker",
        lambda queue, side: side.length if side.stock_workers == () else None,
        "{value} waiting on Celery's list, and no stock worker consumes it",
    ),
    _Rule(
        "list_backlog",
        lambda queue, side: side.length if side.stock_workers != () and side.share < 1.0 else None,
        "{value} waiting on Celery's list",
    ),
    _Rule(
        "list_filling",
        lambda queue, side: side.length if side.stock_workers != () and side.share >= 1.0 else None,
        "{value} on Celery's list, and all should go to the stream: does an old publisher write there?",
    ),
    _Rule("backlog", lambda queue, side: queue.waiting, "{value} waiting"),
    _Rule("age", lambda queue, side: queue.oldest_waiting, "the oldest message has waited {value} s"),
    _Rule("pending", lambda queue, side: queue.pending, "{value} running or held by consumers"),
    _Rule(
        "overdue",
        lambda queue, side: queue.overdue,
        "the earliest delayed message is {value} s late; is a worker running?",
    ),
    _Rule("paused", lambda queue, side: queue.paused, "has been paused for {value} s"),
    _Rule("dead", lambda queue, side: queue.dead, "{value} dead letter{s}"),
)


def judge(queue: QueueStatus, thresholds: Alerts, side: ListSide = NOTHING) -> list[Alert]:
    """Return the alerts of one queue and of Celery's list of it, the critical ones first.

    A threshold is met when the value is equal to it or greater, and only if the value is not zero. Of a pair, only
    the higher level that is met counts.
    """
    found = [odd_key(queue.queue, queue.odd_keys)] if queue.odd_keys else []
    for rule in _RULES:
        value = rule.value(queue, side)
        if value:
            found += exceeded(rule.name, value, rule.message, queue.queue, thresholds)
    return sorted(found, key=lambda alert: LEVELS.index(alert.level))


def exceeded(name: str, value: float, message: str, queue: str, thresholds: Alerts) -> list[Alert]:
    """Return the alert of the highest level whose threshold ``value`` has reached, if any."""
    for level in LEVELS:
        threshold = getattr(thresholds, f"{name}_{level}")
        if threshold is not None and value >= threshold:
            s, ren = ("", "") if value == 1 else ("s", "ren")
            said = message.format(value=shown_number(value), s=s, ren=ren)
            return [Alert(level, queue, name, f"{said} ({level} from {shown_number(threshold)})", value, threshold)]
    return []


def never_used(queue: str) -> Alert:
    """Return the alert for a queue that was asked for by name, and that Redis has never heard of."""
    message = say("has never been used: no messages, no workers; is the name right?")
    return Alert("warning", queue, "never_used", message, 0, 0)


def odd_key(queue: str, names: Sequence[str]) -> Alert:
    """Return the alert for keys of a queue that hold a value of another type."""
    message = say("somebody else wrote to %(keys)s: what needs it is refused (doctor)", keys=", ".join(names))
    return Alert("critical", queue, "odd_key", message, len(names), 0)


def unknown_queue(queue: str, near: str) -> Alert:
    """Return the alert for a name in ``streams_queues`` that is most likely a misspelt one."""
    message = say(
        "streams_queues names it, but no queue, route or message does; did you mean %(near)s?", near=repr(near)
    )
    return Alert("warning", queue, "unknown_queue", message, 0, 0)


def misspelt_setting(message: Said) -> Alert:
    """Return the alert for a setting that nobody reads, and that looks like one of ours."""
    return Alert("warning", "", "setting", message, 0, 0)


#: Worst first.
LEVELS: tuple[Level, ...] = ("critical", "warning")


def shown_number(value: float) -> str:
    """Return a value or a threshold as alerts say it."""
    return f"{value:,.1f}" if isinstance(value, float) and value < 100 and value % 1 else f"{value:,.0f}"

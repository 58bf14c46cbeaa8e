"""Status: all queues at one moment, with totals and alerts; the one source of every display."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from .. import presence
from ..app import Streams
from ..conf import misspelt_settings
from ..inspect import QueueStatus, known_partitions, queue_status
from ..installation import is_installed
from ..redis_url import safe_url
from ..said import Said
from .alerts import Alert, judge, misspelt_setting, never_used, unknown_queue
from .lists import ListSide, look_at_lists
from .names import queues_in_use, unknown_names

__all__ = ("QueueReport", "Status", "Totals", "collect")


@dataclass(frozen=True, slots=True)
class QueueReport:
    """One queue: its state, and what is wrong with it."""

    state: QueueStatus
    #: Whether (a share of) its messages is chosen for streams by ``streams_queues``, whatever the switch says.
    chosen: bool
    #: Critical ones first.
    alerts: tuple[Alert, ...]
    #: Celery's own list of the queue.
    side: ListSide

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON; ages are in seconds."""
        return {
            **asdict(self.state),
            "length": self.state.length,
            "lag": self.state.lag,
            "scale": {"backlog": self.state.backlog},
            "chosen": self.chosen,
            "listed": self.side.length,
            "share": self.side.share,
            "stock_workers": self.side.stock_workers,
            "alerts": [alert.as_dict() for alert in self.alerts],
        }


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums over the queues of a status. A worker that consumes two queues counts in both."""

    waiting: int
    pending: int
    delayed: int
    dead: int
    consumers: int
    #: Of limited tasks: they wait until they may start.
    held: int
    #: Of unique tasks.
    locks: int
    #: Messages on Celery's lists, as far as they could be looked at.
    listed: int
    #: The greatest age in seconds; None when nothing waits.
    oldest_waiting: float | None


@dataclass(frozen=True, slots=True)
class Status:
    """All queues at one moment."""

    #: Seconds since the epoch, by the clock of this machine.
    time: float
    #: URL of the Redis, its password hidden.
    server: str
    #: ``streams_enabled`` at this moment, as this process sees it; False for an app that is not installed.
    enabled: bool
    #: By name.
    queues: tuple[QueueReport, ...]
    #: Why Celery's lists could not be looked at.
    lists_trouble: Said | None = None
    #: About settings that look like ours and that nobody reads.
    settings: tuple[Alert, ...] = ()

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """The alerts of all queues, critical ones first."""
        found = [*(alert for queue in self.queues for alert in queue.alerts), *self.settings]
        return tuple(sorted(found, key=lambda alert: alert.level != "critical"))

    @property
    def level(self) -> Literal["ok", "warning", "critical"]:
        """The worst level of all alerts."""
        alerts = self.alerts
        return alerts[0].level if alerts else "ok"

    @property
    def totals(self) -> Totals:
        """The sums over all queues."""
        states = [report.state for report in self.queues]
        return Totals(
            waiting=sum(state.waiting for state in states),
            pending=sum(state.pending for state in states),
            delayed=sum(state.delayed for state in states),
            dead=sum(state.dead for state in states),
            held=sum(state.held for state in states),
            locks=sum(state.locks for state in states),
            consumers=sum(state.consumers for state in states),
            listed=sum(report.side.length or 0 for report in self.queues),
            oldest_waiting=max((s.oldest_waiting for s in states if s.oldest_waiting is not None), default=None),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON; ``time`` is ISO 8601 in UTC, ``alerts`` of all queues stand at the end too."""
        return {
            "time": datetime.fromtimestamp(self.time, timezone.utc).isoformat(timespec="milliseconds"),
            "server": self.server,
            "enabled": self.enabled,
            "level": self.level,
            "lists_trouble": self.lists_trouble,
            "queues": [queue.as_dict() for queue in self.queues],
            "totals": asdict(self.totals),
            "alerts": [alert.as_dict() for alert in self.alerts],
        }


def collect(
    streams: Streams, queues: Iterable[str] | None = None, *, now: float | None = None, ask_workers: bool = True
) -> Status:
    """Ask Redis for the state of ``queues``: by default all of :meth:`Streams.known_queues`.

    A queue that was asked for and is none of these is reported with zeros and an alert. Three round trips for each
    queue; each queue is consistent in itself, not all of them together. Works whether or not streams are enabled. While
    messages are on Celery's lists, running workers are asked which of these they consume; that may take a second.
    Without ``ask_workers`` they are not, and a list without a stock worker is not noticed.

    Raises:
        BrokerError: Redis is away, or refuses.
        ConfigurationError: a setting is wrong, or the URL is not one of a Redis.
    """
    conf = streams.conf
    broker = streams.broker
    spread = known_partitions(broker)
    known = sorted({*spread, *streams.named_queues()})
    workers = presence.workers(broker)
    reports = []
    names = known if queues is None else sorted(set(queues))
    sides, trouble = look_at_lists(streams, names, ask_workers=ask_workers)
    unknown = unknown_names(streams, used=queues_in_use(streams))
    for name in names:
        state = queue_status(broker, name, workers=workers, names=spread.get(name, (name,)))
        side = sides[name]
        near = unknown.get(name) if not side.length else None
        alerts = judge(state, conf.alerts, side) if name in known or side.length else [never_used(name)]
        alerts += [unknown_queue(name, near)] if near else []
        reports.append(QueueReport(state, streams.on_streams(name), tuple(alerts), side))
    return Status(
        time=time.time() if now is None else now,
        server=safe_url(streams.url),
        enabled=is_installed(streams.app) and streams.enabled(),
        queues=tuple(reports),
        lists_trouble=trouble,
        settings=(
            *map(misspelt_setting, misspelt_settings(streams.app.conf).values()),
            *(unknown_queue(name, near) for name, near in unknown.items() if near and name not in known),
        ),
    )

"""Growth: what became more within some minutes, out of the history; and all alerts of a project together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..app import Streams
from ..conf import Alerts
from ..history import Sample, samples
from ..inspect import QueueStatus
from .alerts import LEVELS, Alert, exceeded
from .status import Status, collect

__all__ = ("judge_growth", "watch", "with_growth")


def judge_growth(queue: QueueStatus, before: Sequence[Sample], thresholds: Alerts) -> list[Alert]:
    """Return the alerts about what grew since the first of these samples; nothing where nothing is known.

    A backlog that grew and is shorter than ``backlog_warning`` is none: it comes and goes.
    """
    if not before:
        return []
    since = before[0]
    found: list[Alert] = []
    dead = queue.dead - since.dead
    if dead > 0:
        text = "{value} more dead letter{s} than before"
        found += exceeded("dead_growing", dead, text, queue.queue, thresholds)
    least = thresholds.backlog_warning
    if least is not None and queue.waiting >= least:
        grown = queue.waiting - since.waiting
        if grown > 0:
            found += exceeded("backlog_growing", grown, "{value} more waiting than before", queue.queue, thresholds)
    return found


def watch(streams: Streams, queues: Iterable[str] | None = None, *, since: float = 600.0) -> list[Alert]:
    """Return all alerts, those about growth within ``since`` seconds too, the critical ones first.

    Raises:
        BrokerError: Redis is away, or refuses.
        ConfigurationError: a setting is wrong.
    """
    return with_growth(streams, collect(streams, queues), since=since)


def with_growth(streams: Streams, status: Status, *, since: float = 600.0) -> list[Alert]:
    """Return the alerts of a status, and those about growth within ``since`` seconds, the critical ones first.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    names = [report.state.queue for report in status.queues]
    before = samples(streams.broker, names, seconds=since)
    found = list(status.alerts)
    for report in status.queues:
        found += judge_growth(report.state, before[report.state.queue], streams.conf.alerts)
    return sorted(found, key=lambda alert: LEVELS.index(alert.level))

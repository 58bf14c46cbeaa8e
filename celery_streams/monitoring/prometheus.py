"""StreamsCollector: the status as Prometheus gauges, read from Redis at each scrape; needs ``prometheus_client``.

In a process that serves metrics already, one line adds them::

    from prometheus_client import REGISTRY
    from celery_streams import streams_of
    from celery_streams.monitoring.prometheus import StreamsCollector

    REGISTRY.register(StreamsCollector(streams_of(app)))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from ..app import Streams
from ..exceptions import BrokerError, ConfigurationError
from ..inspect import QueueStatus
from .status import collect

try:
    from prometheus_client.core import CollectorRegistry, GaugeMetricFamily
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.registry import Collector
except ImportError as exc:
    raise ImportError(
        "Prometheus metrics need the package prometheus_client: pip install 'celery-streams[prometheus]'"
    ) from exc

__all__ = ("CONTENT_TYPE", "StreamsCollector", "exposition")

logger = logging.getLogger(__name__)

#: The ``Content-Type`` of :func:`exposition`.
CONTENT_TYPE: str = CONTENT_TYPE_LATEST

#: Name after ``celery_streams_queue_``, help, value.
_GAUGES: tuple[tuple[str, str, Callable[[QueueStatus], float]], ...] = (
    ("waiting", "Messages that wait.", lambda queue: queue.waiting),
    ("pending", "Messages that are being run or held by consumers.", lambda queue: queue.pending),
    ("delayed", "Messages that are due later.", lambda queue: queue.delayed),
    ("dead", "Dead letters.", lambda queue: queue.dead),
    ("consumers", "Consumers of living workers.", lambda queue: queue.consumers),
    ("workers", "Workers that live and consume it.", lambda queue: queue.workers),
    ("dead_workers", "Workers of it whose heart stopped beating.", lambda queue: len(queue.dead_workers)),
    (
        "oldest_waiting_seconds",
        "Age of the oldest message that waits; 0: none.",
        lambda queue: queue.oldest_waiting or 0,
    ),
    ("overdue_seconds", "How late the earliest delayed message is.", lambda queue: queue.overdue),
)


class StreamsCollector(Collector):
    """Gauges per queue, and ``celery_streams_up``: 0 when Redis could not be asked (then nothing else is there).

    A scrape never fails, because a registry is shared with metrics that are still good.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def describe(self) -> list[Any]:
        """Return nothing: registering the collector must not ask Redis."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the metrics as they are now."""
        up = GaugeMetricFamily("celery_streams_up", "Whether Redis answered.")
        try:
            status = collect(self._streams)
        except (BrokerError, ConfigurationError) as exc:
            logger.warning("Metrics of the streams are missing from this scrape: %s", exc)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield GaugeMetricFamily("celery_streams_enabled", "Whether streams_enabled is on.", value=int(status.enabled))
        for name, text, value in _GAUGES:
            family = GaugeMetricFamily(f"celery_streams_queue_{name}", text, labels=["queue"])
            for report in status.queues:
                family.add_metric([report.state.queue], value(report.state))
            yield family
        share = GaugeMetricFamily(
            "celery_streams_queue_share", "Share of new messages that goes to the stream.", labels=["queue"]
        )
        listed = GaugeMetricFamily("celery_streams_queue_listed", "Messages on Celery's list.", labels=["queue"])
        for report in status.queues:
            share.add_metric([report.state.queue], report.side.share)
            if report.side.length is not None:
                listed.add_metric([report.state.queue], report.side.length)
        yield share
        yield listed
        alerts = GaugeMetricFamily("celery_streams_queue_alerts", "Alerts by level.", labels=["queue", "level"])
        for report in status.queues:
            for level in ("warning", "critical"):
                count = sum(alert.level == level for alert in report.alerts)
                alerts.add_metric([report.state.queue, level], count)
        yield alerts


def exposition(streams: Streams) -> bytes:
    """Return the metrics of the streams alone, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(StreamsCollector(streams))
    return bytes(generate_latest(registry))

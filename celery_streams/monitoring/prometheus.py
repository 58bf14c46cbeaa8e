"""StreamsCollector: the status as Prometheus gauges, read from Redis at each scrape; needs ``prometheus_client``.

In a process that serves metrics already, one line adds them::

    from prometheus_client import REGISTRY
    from celery_streams import streams_of
    from celery_streams.monitoring.prometheus import StreamsCollector

    REGISTRY.register(StreamsCollector(streams_of(app)))
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ..app import Streams
from ..broker import StreamBroker
from ..exceptions import BrokerError, ConfigurationError
from ..inspect import QueueStatus, entries_added, queue_bytes
from ..lanes import HELD_REASONS, held_reasons
from .status import collect

try:
    from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily
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

#: Seconds for which the memory of a queue is not asked for again.
_SIZES = 60.0

_known_sizes: WeakKeyDictionary[Streams, tuple[float, dict[str, dict[str, int]]]] = WeakKeyDictionary()

#: Name after ``celery_streams_queue_``, help, value.
_GAUGES: tuple[tuple[str, str, Callable[[QueueStatus], float]], ...] = (
    ("waiting", "Messages waiting.", lambda queue: queue.waiting),
    ("pending", "Messages running or held by consumers.", lambda queue: queue.pending),
    ("delayed", "Messages due later.", lambda queue: queue.delayed),
    ("locks", "Locks of unique tasks.", lambda queue: queue.locks),
    ("dead", "Dead letters.", lambda queue: queue.dead),
    ("consumers", "Consumers of live workers.", lambda queue: queue.consumers),
    ("workers", "Live workers of the queue.", lambda queue: queue.workers),
    ("dead_workers", "Dead workers of the queue: their heartbeat stopped.", lambda queue: len(queue.dead_workers)),
    (
        "oldest_waiting_seconds",
        "Age of the oldest waiting message; 0 if none waits.",
        lambda queue: queue.oldest_waiting or 0,
    ),
    ("paused_seconds", "How long the queue has been paused; 0 if it is not.", lambda queue: queue.paused or 0),
    ("paused", "1 while the queue is paused.", lambda queue: int(queue.paused is not None)),
    ("due_soon", "Delayed messages due within 60 seconds.", lambda queue: queue.due_soon),
    (
        "backlog",
        "Waiting, running, or due within 60 seconds; what is held is one: for a scaler.",
        lambda queue: queue.backlog,
    ),
    ("overdue_seconds", "How late the earliest delayed message is; 0 if none is late.", lambda queue: queue.overdue),
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
        began = time.monotonic()
        try:
            status = collect(self._streams)
            # By now: what fails later would break a scrape that has begun.
            broker = self._streams.broker
            held = {one.state.queue: _reasons(broker, one.state) for one in status.queues}
            added = {one.state.queue: entries_added(broker, one.state.queue) for one in status.queues}
        except (BrokerError, ConfigurationError) as exc:
            logger.warning("Metrics of the streams are missing from this scrape: %s", exc)
            up.add_metric([], 0)
            yield up
            return
        took = time.monotonic() - began
        up.add_metric([], 1)
        yield up
        yield GaugeMetricFamily("celery_streams_enabled", "Whether streams_enabled is on.", value=int(status.enabled))
        for name, text, value in _GAUGES:
            family = GaugeMetricFamily(f"celery_streams_queue_{name}", text, labels=["queue"])
            for report in status.queues:
                family.add_metric([report.state.queue], value(report.state))
            yield family
        yield from _of_held(held)
        arrived = CounterMetricFamily(
            "celery_streams_queue_entries_added",
            "Entries that were ever added to the streams of the queue; no sample before Redis 7.",
            labels=["queue"],
        )
        for queue, total in added.items():
            if total is not None:
                arrived.add_metric([queue], total)
        yield arrived
        due = GaugeMetricFamily(
            "celery_streams_queue_due_in_seconds",
            "Seconds until the earliest delayed message is due; no sample when none is delayed.",
            labels=["queue"],
        )
        for report in status.queues:
            if report.state.due_in_seconds is not None:
                due.add_metric([report.state.queue], report.state.due_in_seconds)
        yield due
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
        size = GaugeMetricFamily(
            "celery_streams_queue_bytes",
            "Memory that a part of a queue takes in Redis, sampled once a minute; no sample where that is forbidden.",
            labels=["queue", "part"],
        )
        for queue, parts in _sizes(self._streams, [report.state.queue for report in status.queues]).items():
            for part, count in parts.items():
                size.add_metric([queue, part], count)
        yield size
        if self._streams.conf.celery_queue_length:
            length = GaugeMetricFamily(
                "celery_queue_length", "Messages waiting on the stream and on Celery's list.", labels=["queue_name"]
            )
            for report in status.queues:
                length.add_metric([report.state.queue], report.state.waiting + (report.side.length or 0))
            yield length
        alerts = GaugeMetricFamily("celery_streams_queue_alerts", "Alerts by level.", labels=["queue", "level"])
        for report in status.queues:
            for level in ("warning", "critical"):
                count = sum(alert.level == level for alert in report.alerts)
                alerts.add_metric([report.state.queue, level], count)
        yield alerts
        cost = GaugeMetricFamily("celery_streams_collect_seconds", "How long collecting these figures from Redis took.")
        cost.add_metric([], took)
        yield cost


def _reasons(broker: StreamBroker, state: QueueStatus) -> dict[str, int]:
    """Return why messages are held; nobody has to be asked where none is."""
    return held_reasons(broker, state.queue) if state.held else dict.fromkeys(HELD_REASONS, 0)


def _of_held(held: Mapping[str, Mapping[str, int]]) -> Iterator[Any]:
    family = GaugeMetricFamily(
        "celery_streams_queue_held", "Messages held back by the limits of their tasks.", labels=["queue", "reason"]
    )
    for queue, reasons in held.items():
        for reason, count in reasons.items():
            family.add_metric([queue, reason], count)
    yield family


def _sizes(streams: Streams, queues: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the bytes of each queue's parts, asked for once a minute at most: on large keys it takes Redis a while."""
    due, sizes = _known_sizes.get(streams, (0.0, {}))
    now = time.monotonic()
    if now >= due or not sizes.keys() >= set(queues):
        sizes = {}
        try:
            for queue in queues:
                sizes[queue] = queue_bytes(streams.broker, queue)
        except BrokerError as exc:
            logger.debug("The memory of queues is missing from this scrape: %s", exc)
            sizes = {queue: {} for queue in queues}
        _known_sizes[streams] = (now + _SIZES, sizes)
    return {queue: sizes[queue] for queue in queues}


def exposition(streams: Streams) -> bytes:
    """Return the metrics of the streams alone, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(StreamsCollector(streams))
    return bytes(generate_latest(registry))

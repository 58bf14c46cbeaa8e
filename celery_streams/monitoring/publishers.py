"""Publishers: what a process that only publishes counts for Prometheus, if told to; needs ``prometheus_client``."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from celery import Celery

from ..app import streams_of

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter
except ImportError as exc:
    raise ImportError(
        "Prometheus metrics need the package prometheus_client: pip install 'celery-streams[prometheus]'"
    ) from exc

__all__ = ("count_published",)

#: Queues that have a label of their own; what comes later is counted as others.
_MOST_QUEUES, _OTHER = 200, "other"

#: For each registry its counter, which all apps of a process share.
_counters: WeakKeyDictionary[CollectorRegistry, _Published] = WeakKeyDictionary()
_lock = threading.Lock()


class _Published:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._queues: set[str] = set()
        self._counter = Counter(
            "celery_streams_published",
            "Messages that this process published, by the side of their queue.",
            ["queue", "side"],
            registry=registry,
        )

    def add(self, queue: str, count: int, *, to_stream: bool) -> None:
        if queue not in self._queues:
            if len(self._queues) >= _MOST_QUEUES:
                queue = _OTHER
            else:
                self._queues.add(queue)
        # A label is UTF-8; a name need not be.
        name = queue.encode(errors="surrogateescape").decode(errors="replace")
        self._counter.labels(name, "stream" if to_stream else "list").inc(count)


def count_published(app: Celery, registry: CollectorRegistry = REGISTRY) -> None:
    """Count what this process publishes as ``celery_streams_published_total`` from now on; again, it changes nothing.

    Retries are not counted, for they are outcomes of their tasks; nor is what a worker with ``--metrics-port``
    publishes, which counts it itself.
    """
    with _lock:
        found = _counters.get(registry)
        if found is None:
            found = _counters[registry] = _Published(registry)
    streams_of(app).count_published(found.add)

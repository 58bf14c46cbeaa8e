"""Metrics: what a worker says of itself to Prometheus: what was counted, and what runs now.

It needs ``prometheus_client``. All of it stands in memory (``counts``, the slots): a scrape asks Redis for nothing, and
works while Redis is away. Facts of a queue are not here, for each worker would repeat them: ``monitoring.prometheus``.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import celery
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from ..clock import steady_time
from ..partitions import queue_of
from ..redis_errors import ERROR_KINDS
from .counted import Counted
from .counts import MOST_TASKS, OTHER, RUNTIME_BUCKETS, WAIT_BUCKETS, ErrorsRow, QueueRow, TaskRow
from .crew import Crew
from .metrics_server import MetricsServer
from .outcome import Event, Reason

__all__ = ("CHILD_EXITS", "WorkerMetrics")

#: Why a child ended.
CHILD_EXITS = ("crash", "hard_limit", "revoked", "max_tasks", "max_memory", "autoscale", "shutdown")

#: Pairs of queue and task, and queues, that are exposed; what comes later is counted as others.
_MOST_PAIRS = 512
_MOST_QUEUES = 200

#: Outcomes and reasons that are exposed at zero as soon as a task is seen: what begins at 1 has not grown.
_FROM_ZERO = (Event.SUCCEEDED, Event.FAILED)
_DEAD_FROM_ZERO = (Reason.FAILED, Reason.CRASHED)


class WorkerMetrics(Collector):
    """The metrics of one worker, and the port on which they are read.

    Args:
        server: bound already, and not started.
        version: this package's.
    """

    def __init__(self, server: MetricsServer, *, version: str) -> None:
        self.server = server
        self.counted = Counted()
        #: What this process counts, whatever else its children do.
        self.own = self.counted.own
        self._version = version
        self._redis_server = ""
        self._exits: Counter[str] = Counter()
        self._crew: Crew | None = None
        self._queues: Callable[[], Sequence[str]] = tuple
        self._labels: dict[tuple[str, str], tuple[str, str]] = {}
        self._tasks: set[str] = set()
        self._known_queues: set[str] = set()
        self._lock = threading.Lock()

    # -- its worker

    def start(self, crew: Crew, queues: Callable[[], Sequence[str]]) -> None:
        """Serve the metrics of a crew from now on.

        Args:
            queues: returns those that are being read.
        """
        self._crew, self._queues = crew, queues
        registry = CollectorRegistry()
        registry.register(self)
        self.server.start(registry)

    def server_is(self, version: str) -> None:
        """Note the version of Redis, which somebody asks now and then; a scrape asks for nothing."""
        self._redis_server = version

    def child_ended(self, reason: str) -> None:
        """Count the end of a child, by one of :data:`CHILD_EXITS`."""
        self._exits[reason] += 1

    def close(self) -> None:
        """Close the port."""
        self.server.close()

    # -- a scrape

    def describe(self) -> list[Any]:
        """Return nothing: what there is depends on the queues and tasks that were seen."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the metrics as they are now."""
        with self._lock:
            tasks, queues, errors = self._merged()
        yield from _of_tasks(tasks)
        yield from _of_queues(queues)
        yield from self._of_crew()
        exits = CounterMetricFamily(
            "celery_streams_child_exits", "Child processes that ended, by reason.", labels=["reason"]
        )
        for reason in CHILD_EXITS:
            exits.add_metric([reason], self._exits[reason])
        yield exits
        refused = CounterMetricFamily(
            "celery_streams_redis_errors", "Errors that this worker met with the Redis of the streams.", labels=["kind"]
        )
        for kind in ERROR_KINDS:
            refused.add_metric([kind], errors[kind])
        yield refused
        build = GaugeMetricFamily(
            "celery_streams_build_info",
            "Versions of this worker, and of the Redis that it reads (empty until it is known); always 1.",
            labels=["version", "celery", "python", "redis_server"],
        )
        build.add_metric([self._version, celery.__version__, platform.python_version(), self._redis_server], 1)
        yield build

    def _merged(self) -> tuple[dict[tuple[str, str], list[TaskRow]], dict[str, list[QueueRow]], Counter[str]]:
        for queue in self._queues():
            self.own.see_queue(queue)
        tasks: dict[tuple[str, str], list[TaskRow]] = {}
        queues: dict[str, list[QueueRow]] = {}
        errors: Counter[str] = Counter()
        for row in self.counted.rows():
            if isinstance(row, TaskRow):
                tasks.setdefault(self._task_label(row.queue, row.task), []).append(row)
            elif isinstance(row, ErrorsRow):
                errors.update(row.kinds)
            else:
                queues.setdefault(self._queue_label(row.queue), []).append(row)
        return tasks, queues, errors

    def _task_label(self, queue: str, task: str) -> tuple[str, str]:
        """Return under which labels a pair is exposed: always the same, however many come after it."""
        label = self._labels.get((queue, task))
        if label is None:
            if task != OTHER and len(self._tasks) >= MOST_TASKS and task not in self._tasks:
                task = OTHER
            shown = self._queue_label(queue)
            label = (shown, task) if len(self._labels) < _MOST_PAIRS else (OTHER, OTHER)
            self._tasks.add(label[1])
            self._labels[queue, task] = label
        return label

    def _queue_label(self, queue: str) -> str:
        if queue not in self._known_queues:
            if len(self._known_queues) >= _MOST_QUEUES:
                return OTHER
            self._known_queues.add(queue)
        return queue

    def _of_crew(self) -> Iterator[Any]:
        crew = self._crew
        if crew is None:
            return
        now = time.monotonic()
        running: Counter[str] = Counter()
        longest: dict[str, float] = {}
        for queue in self._queues():
            running[self._queue_label(queue)] += 0
        for holder in crew.holders():
            shot = holder.snapshot()
            if shot.running is not None:
                queue = self._queue_label(queue_of(shot.running.stream.queue))
                running[queue] += 1
                longest[queue] = max(longest.get(queue, 0.0), now - shot.started_at)
        bodies = GaugeMetricFamily("celery_streams_running", "Tasks that run now.", labels=["queue"])
        oldest = GaugeMetricFamily(
            "celery_streams_longest_running_seconds",
            "How long the task has been running that began first; 0 if none runs.",
            labels=["queue"],
        )
        for queue, count in running.items():
            bodies.add_metric([queue], count)
            oldest.add_metric([queue], longest.get(queue, 0.0))
        yield bodies
        yield oldest
        yield GaugeMetricFamily(
            "celery_streams_children", "Child processes or threads that run tasks.", value=crew.living()
        )
        read = GaugeMetricFamily(
            "celery_streams_last_read_timestamp_seconds", "When this worker last got an answer to a read."
        )
        at = crew.last_read()
        if at:
            read.add_metric([], steady_time() - (now - at))
        yield read


def _of_tasks(tasks: dict[tuple[str, str], list[TaskRow]]) -> Iterator[Any]:
    ended = CounterMetricFamily(
        "celery_streams_tasks", "Deliveries that ended, by what became of them.", labels=["queue", "task", "outcome"]
    )
    runtime = HistogramMetricFamily(
        "celery_streams_task_runtime_seconds", "Time in the bodies of tasks.", labels=["queue", "task"]
    )
    dead = CounterMetricFamily(
        "celery_streams_dead_letters", "Messages that became dead letters.", labels=["queue", "task", "reason"]
    )
    for label, rows in tasks.items():
        for event in Event:
            count = sum(row.outcomes[event] for row in rows)
            if count or event in _FROM_ZERO:
                ended.add_metric([*label, event.value], count)
        runtimes = [sum(counts) for counts in zip(*(row.runtimes for row in rows), strict=True)]
        if any(runtimes):
            runtime.add_metric(label, _buckets(RUNTIME_BUCKETS, runtimes), sum(row.runtime_sum for row in rows))
        for reason in Reason:
            count = sum(row.dead_letters[reason] for row in rows)
            if count or reason in _DEAD_FROM_ZERO:
                dead.add_metric([*label, reason.value], count)
    yield ended
    yield runtime
    yield dead


def _of_queues(queues: dict[str, list[QueueRow]]) -> Iterator[Any]:
    wait = HistogramMetricFamily(
        "celery_streams_task_wait_seconds",
        "Time from a message's entry to its first start; delayed messages enter when they are due.",
        labels=["queue"],
    )
    recovered = CounterMetricFamily(
        "celery_streams_recovered",
        "Entries taken over from a child that died, or from another worker.",
        labels=["queue", "source"],
    )
    lost = CounterMetricFamily(
        "celery_streams_lost_ownership",
        "Entries that were another's when their task had run here: it may run twice.",
        labels=["queue"],
    )
    published = CounterMetricFamily(
        "celery_streams_published",
        "Messages that this worker's tasks published, by the side of their queue.",
        labels=["queue", "side"],
    )
    for queue, rows in queues.items():
        waits = [sum(counts) for counts in zip(*(row.waits for row in rows), strict=True)]
        wait.add_metric([queue], _buckets(WAIT_BUCKETS, waits), sum(row.wait_sum for row in rows))
        recovered.add_metric([queue, "child"], sum(row.from_children for row in rows))
        recovered.add_metric([queue, "worker"], sum(row.from_workers for row in rows))
        lost.add_metric([queue], sum(row.lost_ownership for row in rows))
        published.add_metric([queue, "stream"], sum(row.to_stream for row in rows))
        published.add_metric([queue, "list"], sum(row.to_list for row in rows))
    yield wait
    yield recovered
    yield lost
    yield published


def _buckets(bounds: Sequence[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    """Return what Prometheus calls buckets: cumulative, the last without a bound."""
    found: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*(f"{bound:g}" for bound in bounds), "+Inf"), counts, strict=True):
        total += count
        found.append((bound, total))
    return found

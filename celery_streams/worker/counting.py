"""Counting: where a worker with ``--metrics-port`` counts: around executor and broker, and behind our own signals.

An :class:`Executor` without it has no trace of this; what is counted, and how it is kept, is the matter of ``counts``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ..app import Streams
from ..entries import Delivery
from ..partitions import queue_of
from ..redis_errors import count_errors
from ..signals import entry_lost, message_dead_lettered
from .counts import OTHER, Counts
from .execution import PASSING_BY, Execution, Report
from .executor import Executor
from .outcome import Event
from .settle import Settler

__all__ = ("CountingExecutor", "count_process", "executor_for")

#: Under which our receivers are known: a forked child takes the place of its parent.
_RECEIVER = "celery-streams-counts"

#: To look a member up takes longer than to compare it.
_KEPT = Event.KEPT

#: The history that lua/put_back writes, and that of a retry.
_NOT_STARTED = re.compile(rb'\{(?:"first":"([0-9]+-[0-9]+)",?)?(?:"attempts":"(?:[^"\\]|\\.)*")?\}')

#: Seconds for which Redis' time is taken from its last answer. Waits are measured by it, since entry ids are.
_CLOCK = 60.0


class CountingExecutor(Executor):
    """Counts each delivery that ends, once it is settled; arguments as the executor's, and where it counts."""

    def __init__(self, *args: Any, counts: Counts, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counts = counts
        self._delivery: Delivery | None = None
        self._began = 0.0
        #: Redis' time when the monotonic clock was 0, and until when that is taken for right.
        self._clock, self._clock_due = 0.0, float("-inf")
        around = self.around
        self._started, self._request_started = around.count, around.count_request
        around.count, around.count_request = self._on_start, self._on_request

    def _run(self, execution: Execution) -> Report:
        self._delivery = execution.delivery
        try:
            return super()._run(execution)
        except PASSING_BY:
            self._began = 0.0  # whoever settles it counts it
            raise
        finally:
            self._delivery = None

    def _on_start(self, name: str, shown: str) -> None:
        self._begin(name)
        self._started(name, shown)

    def _on_request(self, name: str, shown: str) -> None:
        self._begin(name)
        self._request_started(name, shown)

    def _begin(self, name: str) -> None:
        delivery = self._delivery
        if delivery is None:  # kept by its strategy, which runs it later
            return
        entry = delivery.entry
        now = time.monotonic()
        if now >= self._clock_due:
            self._clock, self._clock_due = self.around.clock.now() - time.monotonic(), now + _CLOCK
            now = time.monotonic()
        waited = None
        entry_id = entry.id if delivery.message is None or not delivery.message.history else _first_id(delivery)
        if entry_id:
            waited = self._clock + now - int(entry_id.partition(b"-")[0]) / 1000
        self._counts.started(queue_of(entry.stream.queue), name, waited)
        self._began = now

    def _settle(self, execution: Execution, report: Report, *, settler: Settler | None = None) -> None:
        seconds = None
        if settler is None and self._began:
            seconds, self._began = time.monotonic() - self._began, 0.0
        super()._settle(execution, report, settler=settler)
        if report.event is _KEPT or (self.around.settler if settler is None else settler).gave_up:
            return  # its strategy settles it later, or whoever takes it over
        options = report.options or execution.options
        name = OTHER if options is None else options.task.name
        self._counts.ended(queue_of(execution.delivery.entry.stream.queue), name, report.event, seconds)


def _first_id(delivery: Delivery) -> bytes:
    """Return the id with which a message entered its queue; nothing when it was started before.

    What was put back without having been started knows the id that it had, and a retry the attempts before it; neither
    knows anything else. What raised ``RateLimited`` knows that it was started.
    """
    assert delivery.message is not None
    found = _NOT_STARTED.fullmatch(delivery.message.history)
    return b"" if found is None else found[1] or delivery.entry_id


def executor_for(counts: Counts | None) -> Callable[..., Executor]:
    """Return what makes an executor: Celery's steps alone, or with each delivery counted."""
    return Executor if counts is None else partial(CountingExecutor, counts=counts)


def count_process(counts: Counts, streams: Streams) -> None:
    """Count in this process what is published, what becomes a dead letter, entries that were another's, and errors.

    What it does is a child's own once it is forked: it takes the place of what its parent did.
    """
    tasks = streams.app.tasks

    count_errors(counts.redis_error)
    streams.count_published(counts.published)

    def on_dead_letter(queue: str, reason: str, task: str | None = None, **_: Any) -> None:
        counts.dead_letter(queue, task if task is not None and task in tasks else OTHER, reason)

    def on_lost(queue: str, **_: Any) -> None:
        counts.lost_ownership(queue)

    for signal, receiver in ((message_dead_lettered, on_dead_letter), (entry_lost, on_lost)):
        signal.disconnect(dispatch_uid=_RECEIVER)
        signal.connect(receiver, weak=False, dispatch_uid=_RECEIVER)

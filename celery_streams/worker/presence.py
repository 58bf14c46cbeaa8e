"""Presence: says in Redis, with each heartbeat, that this worker lives, what it reads, and whether it does.

``celery_streams.presence`` says what that is for. Called by the services thread of the parent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from .. import __version__, presence
from ..broker import StreamBroker
from ..news import spread
from ..partitions import one_of
from ..presence import ConsumerPresence, WorkerPresence

__all__ = ("Presence",)

#: Beats between two looks for workers that are long dead.
_SWEEP = 20


class Presence:
    """Beats for one worker.

    Args:
        worker: a name that no other worker has.
        readers: returns whoever reads for it now.
        queues: returns what they are to read.
        tasks: returns the names of the tasks that it knows.
        takes: returns whether it takes messages of tasks that others do not know.
        crashes: returns how many of its children crashed within the last ten minutes.
    """

    def __init__(
        self,
        broker: StreamBroker,
        worker: str,
        node: str,
        *,
        readers: Callable[[], Sequence[ConsumerPresence]],
        queues: Callable[[], Sequence[str]],
        visibility_timeout: float,
        tasks: Callable[[], Iterable[str]] = lambda: (),
        takes: Callable[[], bool] = lambda: False,
        crashes: Callable[[], int] = lambda: 0,
    ) -> None:
        self.worker = worker
        self._broker = broker
        self._node = node
        self._readers = readers
        self._queues = queues
        self._visibility_timeout = visibility_timeout
        self._tasks = tasks
        self._takes = takes
        self._crashes = crashes
        self._beats = self._rounds = 0
        #: The tasks that others were told of.
        self._news: tuple[str, tuple[str, ...]] | None = None
        #: What was said last, while nothing ran.
        self._said: WorkerPresence | None = None

    def run_once(self) -> None:
        """Beat once.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        about = WorkerPresence(
            worker=self.worker,
            node=self._node,
            pid=os.getpid(),
            version=__version__,
            visibility_timeout=self._visibility_timeout,
            queues=tuple(one_of(self._queues())),
            consumers=tuple(self._readers()),
            pauses=True,
            tasks="".join(map(presence.task_mark, sorted(self._tasks()))),
            takes=self._takes(),
            crashes=self._crashes(),
        )
        # What is idle and says the same beats at every other round: its voice is missed after five.
        said = replace(about, consumers=tuple(replace(one, read=None) for one in about.consumers))
        is_idle = all(one.read is not None for one in about.consumers)
        self._rounds += 1
        if is_idle and said == self._said and self._rounds % 2:
            return
        # What Redis did not take was not said: the next round says it, whichever that is.
        self._said = None
        presence.beat(self._broker, about, forget=self._beats % _SWEEP == 0)
        self._said = said if is_idle else None
        self._beats += 1
        known = (about.tasks, about.queues)
        if known != self._news:
            spread(self._broker, "tasks of a worker")
            self._news = known

    def depart(self) -> None:
        """Say that the worker has stopped.

        Raises:
            BrokerError: Redis is away, or refused; then the worker counts as dead soon.
        """
        presence.depart(self._broker, self.worker)

"""Presence: says in Redis, with each heartbeat, that this worker lives, what it reads, and whether it does.

``celery_streams.presence`` says what that is for. Called by the services thread of the parent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from .. import __version__, presence
from ..broker import StreamBroker
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
    ) -> None:
        self.worker = worker
        self._broker = broker
        self._node = node
        self._readers = readers
        self._queues = queues
        self._visibility_timeout = visibility_timeout
        self._tasks = tasks
        self._beats = 0

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
            queues=tuple(self._queues()),
            consumers=tuple(self._readers()),
            tasks="".join(map(presence.task_mark, sorted(self._tasks()))),
        )
        presence.beat(self._broker, about, forget=self._beats % _SWEEP == 0)
        self._beats += 1

    def depart(self) -> None:
        """Say that the worker has stopped.

        Raises:
            BrokerError: Redis is away, or refused; then the worker counts as dead soon.
        """
        presence.depart(self._broker, self.worker)

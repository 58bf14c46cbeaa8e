"""HandedOver: looks for entries that other workers handed over to this one, and keeps them until a reader takes them.

1. While workers that read the same queues do not know all of this worker's tasks (a canary, a rolling change) it says
   in its presence that it takes such messages, and looks for them a few times a second. In a fleet whose workers know
   the same tasks it asks for the workers now and then, and does nothing else.
2. What it finds gets its heartbeat here, and the crew is told: whoever is free takes it over.

Called by the services thread of the parent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from .. import presence
from ..broker import StreamBroker
from ..handovers import receiver
from ..partitions import queue_of

__all__ = ("HandedOver",)

#: Seconds between two looks for entries.
LOOK = 0.25

#: Seconds between two looks at which tasks other workers know; while one is told when to look; and then at least.
_ASK, _ASK_SELDOM, _ASK_AGAIN = 15.0, 120.0, 3.0

#: Queues shared with workers that know fewer tasks, at most: looking at each takes commands.
_MOST_QUEUES = 50


class HandedOver:
    """What other workers handed over to ``worker``.

    Args:
        on_found: called with the queues in which something waits to be taken over.
        is_told: returns whether :meth:`look_again` is called when other workers start, or know other tasks.
    """

    def __init__(
        self,
        broker: StreamBroker,
        worker: str,
        *,
        queues: Callable[[], Sequence[str]],
        tasks: Callable[[], Iterable[str]],
        on_found: Callable[[Sequence[str]], None],
        is_told: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        #: Whether this worker takes what others do not know.
        self.takes = False
        self.consumer = receiver(worker)
        self._broker = broker
        self._worker = worker
        self._queues = queues
        self._tasks = tasks
        self._on_found = on_found
        self._is_told = is_told
        self._monotonic = monotonic
        self._shared: list[str] = []
        self._asked_at = float("-inf")
        self._again = False

    @property
    def was_used(self) -> bool:
        """Whether anything may have been handed over to this worker."""
        return bool(self._shared)

    def look_again(self) -> None:
        """Ask for the workers soon: another one may know other tasks."""
        self._again = True

    def run_once(self) -> int:
        """Look once; returns the number of entries that wait to be taken over.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        now = self._monotonic()
        pause = _ASK_SELDOM if self._is_told() and not self._shared else _ASK
        if now >= self._asked_at + (_ASK_AGAIN if self._again else pause) and self._queues():
            self._ask()
            self._asked_at, self._again = now, False
        if not self._shared:
            return 0
        held = self._broker.held_by(self.consumer, self._broker.streams(self._shared), limit=100)
        if held:
            self._broker.extend([(self.consumer, entry) for entry in held])
            self._on_found(sorted({entry.stream.queue for entry in held}))
        return len(held)

    def _ask(self) -> None:
        """Find the queues that are read by workers that do not know all of this worker's tasks."""
        queues = set(self._queues())
        tasks = list(self._tasks())
        shared: set[str] = set()
        for other in presence.workers(self._broker):
            if other.is_alive and other.worker != self._worker and not all(map(other.knows, tasks)):
                shared.update(queue for queue in queues if queue_of(queue) in other.queues)
        before, took = queues.intersection(self._shared), self.takes
        self.takes = 0 < len(shared) <= _MOST_QUEUES
        # Who has not heard yet that it is over may hand over a little longer.
        kept = before if took or self._still_held() else set()
        self._shared = sorted(kept | (shared if self.takes else set()))

    def _still_held(self) -> bool:
        return bool(self._broker.held_by(self.consumer, self._broker.streams(self._shared), limit=1))

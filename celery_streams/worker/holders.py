"""Holder timeouts: after what silence an entry may be taken from the consumer that holds it.

By the visibility timeout of the holder's own worker, which beats at its own pace: workers of a fleet may have different
ones, as during a rolling change. Workers say theirs in Redis (``celery_streams.presence``); whoever says nothing, an
older version or one that is long gone, is judged by the asking worker's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import keys, presence
from ..broker import StreamBroker
from ..presence import WorkerPresence

__all__ = ("HolderTimeouts",)

#: Node names that are remembered.
_MOST = 10_000


class HolderTimeouts:
    """The visibility timeouts of a fleet, in seconds, as they were at the last :meth:`refresh`."""

    def __init__(self, broker: StreamBroker, own: float) -> None:
        self.own = own
        #: The shortest of all.
        self.shortest = own
        #: The workers that beat, the dead too.
        self.workers: list[WorkerPresence] = []
        self._broker = broker
        self._consumers: dict[str, float] = {}
        self._nodes: dict[str, float] = {}

    def refresh(self) -> None:
        """Ask for the workers.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        self.workers = presence.workers(self._broker)
        self._consumers = {}
        nodes: dict[str, float] = {}
        for worker in self.workers:
            timeout = worker.visibility_timeout
            nodes[worker.node] = max(timeout, nodes.get(worker.node, 0.0))
            self._consumers.update((one.name, timeout) for one in worker.consumers)
        self.shortest = min([self.own, *(worker.visibility_timeout for worker in self.workers)])
        if len(self._nodes) > _MOST:
            self._nodes.clear()
        # Whoever is missing is remembered: a clock that was ahead for a moment makes everybody look long gone.
        self._nodes.update(nodes)

    def is_here(self, queues: Sequence[str]) -> bool:
        """Return whether who is away keeps what workers say and these queues, too: not so on a Redis Cluster."""
        slot = self._broker.client.slot_of
        said = slot(keys.workers(self._broker.prefix))
        return all(slot(self._broker.queue_keys(queue).streams[0]) == said for queue in queues)

    def knows(self, consumer: str) -> bool:
        """Return whether the worker of ``consumer`` has said its timeout."""
        return consumer in self._consumers or consumer.rpartition("/")[0] in self._nodes

    def of(self, consumer: str) -> float:
        """Return the timeout of the worker of ``consumer``; of what nobody holds, the longest: any may still run it."""
        if consumer == keys.NOBODY:
            return max([self.own, *(worker.visibility_timeout for worker in self.workers if worker.is_alive)])
        known = self._consumers.get(consumer)
        if known is None:
            # A child that was started since: by its node name, which several workers may have.
            known = self._nodes.get(consumer.rpartition("/")[0], self.own)
        return known

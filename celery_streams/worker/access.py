"""QueueAccess: notices that Redis forbids this worker one of its queues, or permits it again.

A command about many queues is refused for all of them when one is forbidden. So a queue that is forbidden is left out,
by the services and by whoever reads, and looked at again and again until it is permitted.

Called by the services thread of the parent, and by its main thread when queues are added.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from ..broker import StreamBroker
from ..exceptions import NotPermitted
from ..probes import denied_to_readers

__all__ = ("QueueAccess",)

logger = logging.getLogger(__name__)


class QueueAccess:
    """Watches the queues that ``queues`` names; ``on_change`` is called when others are denied than before."""

    def __init__(
        self, broker: StreamBroker, queues: Callable[[], Sequence[str]], on_change: Callable[[], None]
    ) -> None:
        #: The queues that are denied.
        self.denied: frozenset[str] = frozenset()
        self._broker = broker
        self._queues = queues
        self._on_change = on_change
        self._lock = threading.Lock()

    def permitted(self, queues: Sequence[str]) -> list[str]:
        """Return those of ``queues`` that are not denied; all of them when they all are, for somebody has to say so."""
        return [queue for queue in queues if queue not in self.denied] or list(queues)

    def run_once(self) -> None:
        """Look once.

        Raises:
            BrokerError: Redis is away, or refused something else.
        """
        if self._look(self._queues()):
            self._on_change()

    def look_at(self, queues: Sequence[str]) -> None:
        """Look at queues that are new, without a call of ``on_change``.

        Raises:
            BrokerError: as for :meth:`run_once`.
        """
        self._look(queues)

    def _look(self, queues: Sequence[str]) -> bool:
        with self._lock:
            suspects = [queue for queue in queues if queue in self.denied]
            others = [queue for queue in queues if queue not in self.denied]
            if not self._may_touch(others):
                suspects += others
            if not suspects:
                return False
            found = denied_to_readers(self._broker, suspects)
            before = self.denied
            self.denied = (before - set(suspects)) | found.keys()
            for queue in sorted(found.keys() - before):
                commands = ", ".join(one.command for one in found[queue])
                logger.error(
                    "Queue %s cannot be read: the Redis user lacks %s. %s. The worker reads its other queues, and this "
                    "one as soon as it is permitted.",
                    queue,
                    commands,
                    found[queue][0].text,
                )
            for queue in sorted((before - self.denied).intersection(suspects)):
                logger.info("Queue %s is permitted again; this worker now reads it.", queue)
            return before != self.denied

    def _may_touch(self, queues: Sequence[str]) -> bool:
        """Return whether a key of each may be asked for: one command for all, and nobody asks more while it is so."""
        if not queues:
            return True
        try:
            self._broker.client.exist([self._broker.queue_keys(queue).streams[0] for queue in queues])
        except NotPermitted:
            return False
        return True

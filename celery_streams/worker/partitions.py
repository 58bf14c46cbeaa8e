"""PartitionWatch: which partitions a worker's queues have: those of the settings, and all that were ever used.

1. A publisher with a greater ``streams_partitions`` than this worker has makes new ones, and says so in the news: they
   are looked for then, and now and then, and announced to the crew like queues that are new.
2. What is beyond the number of the settings, as after it was lowered, is read on: somebody may still write there.
3. A partition is paused while its queue is, a new one before anybody reads it.

Called by the services thread of the parent, and by its main thread when it is told what to read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from ..broker import StreamBroker
from ..exceptions import BrokerError, NotPermitted
from ..inspect import known_partitions
from ..partitions import by_queue, partitions
from ..pauses import follow

__all__ = ("LOOK_EVERY", "PartitionWatch")

logger = logging.getLogger(__name__)

#: Seconds between two looks, where news are not heard.
LOOK_EVERY = 30.0


class PartitionWatch:
    """Watches the partitions of the queues of one worker.

    Args:
        counts: ``streams_partitions``.
        on_new: called when there are partitions of its queues that :meth:`expand` did not return before.
    """

    def __init__(self, broker: StreamBroker, counts: Mapping[str, int], *, on_new: Callable[[], None]) -> None:
        self._broker = broker
        self._counts = counts
        self._on_new = on_new
        #: Queue -> its partitions, itself among them; replaced as a whole, for two threads use it.
        self._found: Mapping[str, Sequence[str]] = {}
        self._asked: Sequence[str] = ()

    def expand(self, queues: Sequence[str]) -> list[str]:
        """Return the names to read for ``queues``; of the settings alone while Redis is away, until the next look."""
        if not set(queues) <= set(self._asked):
            self._asked = list(queues)
            try:
                self._look()
            except BrokerError as exc:
                logger.debug("Cannot look for partitions: %s", exc)
        return [name for queue in queues for name in self._found.get(queue) or self._of_settings(queue)]

    def run_once(self) -> None:
        """Look once; where Redis forbids it, those of the settings are all that there are.

        Raises:
            BrokerError: Redis is away, or refused something else.
        """
        before = self._found
        try:
            self._look()
        except NotPermitted as exc:
            logger.debug("Partitions are not looked for: %s", exc)
            return
        new = sorted(
            queue
            for queue, names in self._found.items()
            if not set(names) <= set(before.get(queue) or self._of_settings(queue))
        )
        if new:
            logger.info("New partitions of queues %s; this worker now reads them.", ", ".join(new))
            self._on_new()

    def _look(self) -> None:
        known = known_partitions(self._broker)
        found = {queue: by_queue([*self._of_settings(queue), *known.get(queue, ())])[queue] for queue in self._asked}
        several = {queue: names for queue, names in found.items() if len(names) > 1}
        if any(not set(names) <= set(self._found.get(queue, ())) for queue, names in several.items()):
            follow(self._broker, several)
        self._found = found

    def _of_settings(self, queue: str) -> list[str]:
        return partitions(queue, self._counts.get(queue, 1))

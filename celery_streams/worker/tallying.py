"""Tallying: writes, once a minute and at the worker's end, what its processes counted to the history of its queues.

It also notes, when the worker begins to read a queue, that its version is another one than before. Called by the
services thread of the parent, and by the main thread once that has ended.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .. import __version__
from ..broker import StreamBroker
from ..exceptions import NotPermitted
from ..pages import each_part
from ..tallies import add, mark
from .counted import Counted

__all__ = ("Tallying",)

logger = logging.getLogger(__name__)


class Tallying:
    """Writes for one worker.

    Args:
        worker: a name that no other worker has.
        queues: returns those that are being read.
        counted: what is counted; None: nothing.
    """

    def __init__(
        self,
        broker: StreamBroker,
        worker: str,
        *,
        queues: Callable[[], Sequence[str]],
        counted: Counted | None,
        version: str = __version__,
    ) -> None:
        self._broker = broker
        self._worker = worker
        self._queues = queues
        self._counted = counted
        self._version = version
        #: Queues that were ever read: what is counted of others has no history.
        self._known: set[str] = set()
        #: What was written, by queue.
        self._written: dict[str, Counter[str]] = {}

    def run_once(self) -> None:
        """Write what is new.

        Raises:
            BrokerError: Redis is away, or refuses; then it is written later.
        """
        new = [queue for queue in self._queues() if queue not in self._known]
        if new:
            with _permitted():
                mark(self._broker, new, worker=self._worker, version=self._version)
            self._known.update(new)
        self.write()

    def write(self) -> None:
        """Write what was counted since the last time.

        Raises:
            BrokerError: Redis is away, or refuses; then it is written later.
        """
        if self._counted is None:
            return
        now = {queue: counts for queue, counts in self._counted.by_queue().items() if queue in self._known}
        more = {queue: counts - self._written.get(queue, Counter()) for queue, counts in now.items()}

        def write(part: Sequence[str]) -> None:
            with _permitted():
                add(self._broker, {queue: more[queue] for queue in part})
            # Part by part: what was added must not be added again because of another one.
            self._written.update((queue, now[queue]) for queue in part)

        each_part(self._broker.by_slot([queue for queue, counts in more.items() if counts]), write)


@contextmanager
def _permitted() -> Iterator[None]:
    """Leave the history to others where Redis forbids this worker to write it."""
    try:
        yield
    except NotPermitted as exc:
        logger.debug("What this worker counted is not added to the history: %s", exc)

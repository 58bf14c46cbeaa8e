"""Hand-back: what waits behind a task that turned out long goes back, so that nobody waits behind it.

What a child fetched behind such a task is put back with no delivery counted, and what it had finished is acknowledged
in its place. Called by the services thread of the parent about ten times a second; while no child is busy it costs no
Redis command. It ends no task: that is ``time_limits``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from .heartbeat import Holder
from .settle import Settler
from .slots import Snapshot

__all__ = ("Handback", "Restrictable")

logger = logging.getLogger(__name__)

#: Seconds that a task may run before what was fetched behind it goes back.
HOLD = 0.05


class Restrictable(Holder, Protocol):
    """A holder whose un-started entries can be taken back."""

    def restrict(self) -> Snapshot:
        """Let it start nothing more of its batch; returns what it holds."""

    def returned(self, batch: int) -> None:
        """Note that what was restricted of ``batch`` is back in its streams."""


class Handback:
    """Takes back what waits behind tasks that run longer than :data:`HOLD`."""

    def __init__(self, settler: Callable[[str], Settler], holders: Callable[[], Iterable[Restrictable]]) -> None:
        #: Entries put back so far.
        self.put_back = 0
        #: Makes a settler for a consumer.
        self._settler = settler
        self._holders = holders

    def run_once(self, *, now: float | None = None, everything: bool = False) -> int:
        """Take back what waits behind long tasks; with ``everything``, whatever was not started. Returns how many.

        Raises:
            BrokerError: Redis is away, or refused; what was restricted is put back at the next call.
        """
        now = time.monotonic() if now is None else now
        count = 0
        for holder in self._holders():
            shot = holder.snapshot()
            since = shot.waiting_since if shot.running is None else shot.started_at
            long = since is not None and now - since >= HOLD
            if not (shot.waiting or shot.finished) or not (long or everything):
                continue
            shot = holder.restrict()
            settler = self._settler(holder.consumer)
            settler.acknowledge(shot.finished)
            count += settler.put_back(shot.waiting, insist=False)
            holder.returned(shot.batch)
        if count:
            self.put_back += count
            logger.debug("Put back %d entries that waited behind long tasks.", count)
        return count

"""SilentWorkers: which workers have not beaten for longer than they may, as this worker has heard it itself.

Measured by its own monotonic clock, from beat to beat (``celery_streams.presence``): so neither a clock of Redis that
was set nor a pause of Redis, or of this worker, makes a living worker look dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from .. import presence
from ..broker import StreamBroker

__all__ = ("SilentWorkers",)

#: Workers that are remembered.
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class _Heard:
    beat_ms: int
    #: Since when it has been silent, in monotonic seconds.
    since: float
    timeout: float


class SilentWorkers:
    """Listens at each look; the first one, and the first one after a pause, finds nobody silent.

    Args:
        timeout: seconds for which a worker may be silent that does not say its own visibility timeout.
    """

    def __init__(
        self, broker: StreamBroker, timeout: float, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._broker = broker
        self._timeout = timeout
        self._monotonic = monotonic
        self._looked_at = float("-inf")
        self._heard: dict[str, _Heard] = {}

    def among(self, workers: Collection[str]) -> set[str]:
        """Return those of ``workers`` that have been silent for too long. One round trip.

        Raises:
            BrokerError: Redis is away, or refused; the next look is a first one.
        """
        now = self._monotonic()
        # Who lives beats within a fifth of its time: with a pause of half of it, too, its silence is shorter.
        if now - self._looked_at > self._timeout / 2 or len(self._heard) > _MOST:
            self._heard.clear()
        self._looked_at = float("-inf")
        beats = {one.worker: one for one in presence.workers(self._broker)}
        self._looked_at = now
        for name in {*beats, *workers}:
            beat, before = beats.get(name), self._heard.get(name)
            if before is None or (beat is not None and beat.beat_ms != before.beat_ms):
                timeout = beat.visibility_timeout if beat is not None else self._timeout
                self._heard[name] = _Heard(beat.beat_ms if beat is not None else 0, now, timeout)
        return {name for name in workers if now - self._heard[name].since > self._heard[name].timeout}

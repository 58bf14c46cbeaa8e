"""Services: the thread of the parent that keeps everything else honest, with connections of its own.

It runs, each at its own interval: time limits and hand-back (ten times a second, without Redis while nothing is
held), heartbeat, presence, claimer. Delayed messages have a thread of their own (``delayed``). None of them waits for
Redis without bound, and none depends on the main thread, which may be busy with signals and callbacks.

A fork must not happen while such a thread holds a lock that the child would inherit: the pool forks inside
:meth:`Services.paused`, between two rounds.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..app import Streams
from ..broker import Delivery
from ..exceptions import BrokerError
from ..presence import ConsumerPresence
from .claimer import Claimer
from .delayed import Promoter
from .hand_back import Handback, Restrictable
from .heartbeat import Heartbeat
from .presence import Presence
from .settle import Settler
from .slots import Snapshot
from .time_limits import TimeLimits

__all__ = ("Services",)

logger = logging.getLogger(__name__)

#: Seconds between two looks at the slots.
_TICK = 0.1


@dataclass(slots=True)
class _Duty:
    name: str
    run: Callable[[], object]
    interval: float
    due: float = 0.0
    failing: bool = field(default=False)


class Services:
    """All services of one worker."""

    def __init__(
        self,
        streams: Streams,
        consumer: str,
        *,
        node: str,
        readers: Callable[[], Sequence[ConsumerPresence]],
        holders: Callable[[], Sequence[Restrictable]],
        handed_back: Callable[[], Sequence[Restrictable]],
        queues: Callable[[], Sequence[str]],
        on_soft: Callable[[Restrictable, Snapshot], None],
        on_hard: Callable[[Restrictable, Snapshot], None],
        delivery_limit: int,
        on_exhausted: Callable[[Delivery, str], None],
    ) -> None:
        conf = streams.conf
        broker = streams.new_broker()
        self.broker = broker
        self._streams = streams
        self._node = node
        self.heartbeat = Heartbeat(broker, holders, visibility_timeout=conf.visibility_timeout)
        self.presence = Presence(
            broker,
            consumer,
            node,
            readers=readers,
            queues=queues,
            visibility_timeout=conf.visibility_timeout,
        )
        self.claimer = Claimer(
            broker,
            consumer,
            queues,
            visibility_timeout=conf.visibility_timeout,
            delivery_limit=delivery_limit,
            on_exhausted=on_exhausted,
            alive=lambda: sorted({holder.consumer for holder in holders()}),
        )
        self.limits = TimeLimits(holders, on_soft=on_soft, on_hard=on_hard)  # type: ignore[arg-type]
        self.handback = Handback(self._settler, handed_back)
        self.promoter = Promoter(streams.new_broker(), queues)
        self._gate = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._duties = [
            _Duty("time limits", self.limits.run_once, _TICK),
            _Duty("hand-back", self.handback.run_once, _TICK),
            _Duty("heartbeat", self.heartbeat.run_once, self.heartbeat.interval),
            _Duty("presence", self.presence.run_once, self.heartbeat.interval),
            _Duty("claimer", self.claimer.run_once, self.claimer.interval),
        ]

    def _settler(self, consumer: str) -> Settler:
        return Settler(self.broker, consumer, conf=self._streams.conf, hostname=self._node, insist=False)

    def start(self) -> None:
        """Start the threads."""
        self._thread = threading.Thread(target=self._run, name="celery-streams-services", daemon=True)
        self._thread.start()
        self.promoter.start()

    def queues_changed(self) -> None:
        """Promote the delayed messages of new queues at once."""
        self.promoter.poke()

    def stop_delayed(self) -> None:
        """Stop promoting (a worker that shuts down leaves that to others); heartbeats go on."""
        self.promoter.stop()

    def stop(self) -> None:
        """Stop everything and wait for the services thread."""
        self._stop.set()
        self.promoter.stop()
        if self._thread is not None:
            self._thread.join(timeout=2.0)
        try:
            self.presence.depart()
        except BrokerError as exc:
            logger.debug("This worker counts as dead soon, for Redis does not hear that it stops: %s", exc)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the services between two rounds, for a fork; waits a second at most, and then forks all the same."""
        taken = self._gate.acquire(timeout=1.0)
        try:
            yield
        finally:
            if taken:
                self._gate.release()

    def _run(self) -> None:
        while not self._stop.wait(_TICK * random.uniform(0.9, 1.1)):
            with self._gate:
                self.run_due()

    def run_due(self, *, now: float | None = None) -> None:
        """Run every service whose time has come; what fails is logged once and tried again."""
        now = time.monotonic() if now is None else now
        for duty in self._duties:
            if now < duty.due:
                continue
            duty.due = now + duty.interval
            try:
                duty.run()
            except BrokerError as exc:
                if not duty.failing:
                    logger.error("The %s cannot do its work: %s", duty.name, exc)
                duty.failing = True
                duty.due = now + max(duty.interval, 0.5)
            except Exception:
                # The boundary of the thread: without it tasks that run would lose their heartbeat.
                logger.exception("The %s failed; it goes on.", duty.name)
                duty.due = now + max(duty.interval, 0.5)
            else:
                if duty.failing:
                    logger.info("The %s is at work again.", duty.name)
                duty.failing = False

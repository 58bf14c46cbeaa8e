"""Services: the threads of the parent that keep everything else honest, with connections of their own.

One beats: heartbeat and presence, which nothing may keep waiting, for others would claim what runs here. One looks
after the rest, each at its own interval: time limits and hand-back (ten times a second, without Redis while nothing is
held), and the claimer. Delayed messages have a thread of their own (``delayed``). None of them waits for Redis without
bound, and none depends on the main thread, which may be busy with signals and callbacks.

A fork must not happen while such a thread holds a lock that the child would inherit: the pool forks inside
:meth:`Services.paused`, between two rounds.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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


class _Rounds:
    """A thread that runs duties, each when its time has come."""

    def __init__(self, name: str, duties: Sequence[_Duty]) -> None:
        self.gate = threading.RLock()
        self._duties = duties
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"celery-streams-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self, timeout: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(timeout=timeout)

    def _run(self) -> None:
        while not self._stop.wait(_TICK * random.uniform(0.9, 1.1)):
            with self.gate:
                self.run_due()

    def run_due(self, *, now: float | None = None) -> None:
        """Run every duty whose time has come; what fails is logged once and tried again."""
        now = time.monotonic() if now is None else now
        for duty in self._duties:
            if now < duty.due:
                continue
            duty.due = now + duty.interval
            try:
                duty.run()
            except BrokerError as exc:
                if not duty.failing:
                    logger.error("The service for %s failed: %s. Trying again.", duty.name, exc)
                duty.failing = True
                duty.due = now + max(duty.interval, 0.5)
            except Exception:
                # The boundary of the thread: without it tasks that run would lose their heartbeat.
                logger.exception("The service for %s failed; trying again.", duty.name)
                duty.due = now + max(duty.interval, 0.5)
            else:
                if duty.failing:
                    logger.info("The service for %s works again.", duty.name)
                duty.failing = False


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
        self._streams = streams
        self._node = node
        #: Used by the thread that looks after the rest.
        self.broker = streams.new_broker()
        beating = streams.new_broker()
        self.heartbeat = Heartbeat(beating, holders, visibility_timeout=conf.visibility_timeout)
        self.presence = Presence(
            beating,
            consumer,
            node,
            readers=readers,
            queues=queues,
            visibility_timeout=conf.visibility_timeout,
            tasks=lambda: list(streams.app.tasks),
        )
        self.claimer = Claimer(
            self.broker,
            consumer,
            queues,
            visibility_timeout=conf.visibility_timeout,
            delivery_limit=delivery_limit,
            on_exhausted=on_exhausted,
            readers=readers,
        )
        self.limits = TimeLimits(holders, on_soft=on_soft, on_hard=on_hard)  # type: ignore[arg-type]
        self.handback = Handback(self._settler, handed_back)
        self.promoter = Promoter(streams.new_broker(), queues)
        self._threads = (
            _Rounds(
                "heartbeat",
                [
                    _Duty("heartbeat", self.heartbeat.run_once, self.heartbeat.interval),
                    _Duty("presence", self.presence.run_once, self.heartbeat.interval),
                ],
            ),
            _Rounds(
                "services",
                [
                    _Duty("time limits", self.limits.run_once, _TICK),
                    _Duty("hand-back", self.handback.run_once, _TICK),
                    _Duty("claimer", self.claimer.run_once, self.claimer.interval),
                ],
            ),
        )

    def _settler(self, consumer: str) -> Settler:
        return Settler(self.broker, consumer, conf=self._streams.conf, hostname=self._node, insist=False)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        self.promoter.start()

    def queues_changed(self) -> None:
        """Promote the delayed messages of new queues at once."""
        self.promoter.poke()

    def stop_delayed(self) -> None:
        """Stop promoting (a worker that shuts down leaves that to others); heartbeats go on."""
        self.promoter.stop()

    def stop(self) -> None:
        """Stop everything and wait for the threads."""
        for thread in self._threads:
            thread.stop()
        self.promoter.stop()
        deadline = time.monotonic() + 2.0
        for thread in self._threads:
            thread.join(timeout=max(deadline - time.monotonic(), 0.1))
        try:
            self.presence.depart()
        except BrokerError as exc:
            logger.debug("This worker counts as dead soon, for Redis does not hear that it stops: %s", exc)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the services between two rounds, for a fork; waits a second at most, and then forks all the same."""
        deadline = time.monotonic() + 1.0
        with ExitStack() as held:
            for thread in self._threads:
                if thread.gate.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
                    held.callback(thread.gate.release)
            yield

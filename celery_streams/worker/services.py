"""Services: the threads of the parent that keep everything else honest, with connections of their own.

One beats: heartbeat and presence, which nothing may keep waiting, for others would claim what runs here. One watches
time limits, which hold while Redis is silent, too. One looks after the rest, each at its own interval: hand-back (ten
times a second, as the limits, without Redis while nothing is held), pauses, and the claimer. Delayed messages have a
thread of their own (``delayed``), which also hears of ``news``: while it does, what changes hardly ever is looked at
then, and seldom besides. None of them waits for Redis without bound, and none depends on the main thread, which may be
busy with signals and callbacks. All but those who beat, or block, share their connections: hardly ever do two of them
ask at once.

A fork must not happen while such a thread holds a lock that the child would inherit: the pool forks inside
:meth:`Services.paused`, between two rounds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..app import Streams
from ..broker import StreamBroker
from ..chance import chance
from ..entries import Delivery
from ..exceptions import BrokerError, BrokerUnavailable, NotPermitted
from ..history import EVERY, STANDS, record
from ..partitions import one_of
from ..presence import ConsumerPresence
from ..probes import server_version
from .access import QueueAccess
from .counted import Counted
from .delayed import Promoter
from .hand_back import Handback, Restrictable
from .handed_over import LOOK as HANDED_LOOK
from .handed_over import HandedOver
from .heartbeat import Heartbeat
from .held_messages import HeldMessages
from .partitions import LOOK_EVERY
from .pauses import PauseWatch
from .presence import Presence
from .settle import Settler
from .shards import Promoters, claimer, is_one_place, promoter, shard_patience
from .slots import Snapshot
from .tallying import Tallying
from .time_limits import TimeLimits

__all__ = ("Services",)

logger = logging.getLogger(__name__)

#: Seconds between two looks at the slots.
_TICK = 0.1

#: Seconds between two looks at which queues may be read, while one is denied; else they are looked at when Redis
#: forbids something, to the services or to a reader, and with each look at the pauses.
_ACCESS = 2.0

#: Seconds between two looks at what news tell of, while they are heard.
_SELDOM = 60.0


#: Seconds between two looks at the version of Redis, which the metrics say.
_SERVER = 600.0


@dataclass(slots=True)
class _Duty:
    name: str
    run: Callable[[], object]
    interval: float
    #: Seconds in the place of ``interval``, asked for at each tick.
    pause: Callable[[], float] | None = None
    last: float = float("-inf")
    #: It is due whatever its interval says.
    soon: bool = False
    #: When it may run again after it failed.
    not_before: float = 0.0
    failing: bool = field(default=False)

    def is_due(self, now: float) -> bool:
        pause = self.interval if self.pause is None or self.failing else self.pause()
        return now >= self.not_before and (self.soon or now >= self.last + pause)


class _Rounds:
    """A thread that runs duties, each when its time has come.

    Args:
        on_away: called when Redis could not be reached for a duty that had worked before.
        on_denied: called when Redis forbade one.
    """

    def __init__(
        self, name: str, duties: Sequence[_Duty], *, on_away: Callable[[], None], on_denied: Callable[[], None]
    ) -> None:
        self.gate = threading.RLock()
        self._duties = duties
        self._on_away = on_away
        self._on_denied = on_denied
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
        while not self._stop.wait(_TICK * chance.uniform(0.9, 1.1)):
            with self.gate:
                self.run_due()

    def run_due(self, *, now: float | None = None) -> None:
        """Run every duty whose time has come; what fails is logged once and tried again."""
        now = time.monotonic() if now is None else now
        for duty in self._duties:
            if not duty.is_due(now):
                continue
            duty.last, duty.soon = now, False
            try:
                duty.run()
            except BrokerError as exc:
                if isinstance(exc, NotPermitted):
                    self._on_denied()
                elif isinstance(exc, BrokerUnavailable) and not duty.failing:
                    self._on_away()
                if not duty.failing:
                    logger.error("The service for %s failed: %s. Trying again.", duty.name, exc)
                duty.failing = True
                duty.not_before = now + 0.5
            except Exception:
                # The boundary of the thread: without it tasks that run would lose their heartbeat.
                logger.exception("The service for %s failed; trying again.", duty.name)
                duty.not_before = now + 0.5
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
        limited: Callable[[], Sequence[Restrictable]],
        handed_back: Callable[[], Sequence[Restrictable]],
        queues: Callable[[], Sequence[str]],
        on_soft: Callable[[Restrictable, Snapshot], None],
        on_hard: Callable[[Sequence[tuple[Restrictable, Snapshot]]], None],
        delivery_limit: int,
        on_exhausted: Callable[[Delivery, str], None],
        on_pauses: Callable[[Callable[[], None]], None],
        on_handed: Callable[[Sequence[str]], None],
        on_front: Callable[[], None],
        broker: StreamBroker,
        access: QueueAccess,
        on_limits: Callable[[dict[str, dict[str, Any]]], None],
        on_away: Callable[[], None],
        look_at_partitions: Callable[[], object] = lambda: None,
        on_recovered: Callable[[str, int], object] = lambda queue, count: None,
        counted: Counted | None = None,
        on_server: Callable[[str], None] | None = None,
        crashes: Callable[[], int] = lambda: 0,
    ) -> None:
        conf = streams.conf
        self._streams = streams
        self._node = node
        self._on_away = on_away
        self._on_server = on_server
        self._queues = queues
        #: In which quiet which queues were recorded last, and when.
        self._recorded: tuple[int | None, list[str]] | None = None
        self._recorded_at = 0.0
        #: Used by all but those who beat or block.
        self.broker = broker
        beating = self._beating = streams.new_broker(
            timeout=None if is_one_place(broker) else shard_patience(conf.visibility_timeout)
        )
        self.heartbeat = Heartbeat(beating, holders, visibility_timeout=conf.visibility_timeout)
        self.handed = HandedOver(
            self.broker,
            consumer,
            queues=queues,
            tasks=lambda: list(streams.app.tasks),
            on_found=on_handed,
            is_told=self._is_told,
        )
        self.presence = Presence(
            beating,
            consumer,
            node,
            readers=readers,
            queues=queues,
            visibility_timeout=conf.visibility_timeout,
            tasks=lambda: list(streams.app.tasks),
            takes=lambda: self.handed.takes,
            crashes=crashes,
        )
        self.claimer = claimer(
            self.broker,
            consumer,
            queues,
            visibility_timeout=conf.visibility_timeout,
            delivery_limit=delivery_limit,
            on_exhausted=on_exhausted,
            on_recovered=on_recovered,
            readers=readers,
            on_front=on_front,
            limits=lambda: self.held.told,
        )
        self.limits = TimeLimits(limited, on_soft=on_soft, on_hard=on_hard)  # type: ignore[arg-type]
        self.handback = Handback(self._settler, handed_back)
        self.pauses = PauseWatch(self.broker, queues, on_pauses)
        self.promoter: Promoter | Promoters = promoter(
            self.broker,
            queues,
            worker=consumer,
            on_wake=lambda: self.held.poke(),
            on_news=self._look_again,
            others_wait=lambda: self.held.watches,
        )
        self.held: HeldMessages = HeldMessages(
            streams,
            self.broker,
            queues,
            turns=self.promoter.turns,
            on_limits=on_limits,
            worker=consumer,
            runs=lambda: [
                shot.running
                for shot in [holder.snapshot() for holder in holders()]
                if shot.running is not None and shot.acked_early
            ],
            quiet=lambda: self.claimer.quiet,
        )
        self.tallying = Tallying(self.broker, consumer, queues=lambda: one_of(queues()), counted=counted)
        self._beat = _Duty("presence", self.presence.run_once, self.heartbeat.interval)
        self._access = _Duty(
            "access to queues", access.run_once, _ACCESS, lambda: _ACCESS if access.denied else float("inf")
        )
        self._pauses = _Duty(
            "pauses", self.pauses.run_once, self.heartbeat.interval, self._pause_of(self.heartbeat.interval)
        )
        self._partitions = _Duty("partitions", look_at_partitions, LOOK_EVERY, self._pause_of(LOOK_EVERY))
        self._held = _Duty(
            "held messages", self.held.run_once, self.claimer.interval, self._pause_of(self.claimer.interval)
        )
        self._tallies = _Duty("tallies", self.tallying.run_once, EVERY)
        self._threads = (
            _Rounds(
                "heartbeat",
                [
                    _Duty("heartbeat", self.heartbeat.run_once, self.heartbeat.interval),
                    self._beat,
                ],
                on_away=self._away,
                on_denied=self.look_at_access,
            ),
            _Rounds(
                "limits",
                [_Duty("time limits", self.limits.run_once, _TICK)],
                on_away=self._away,
                on_denied=self.look_at_access,
            ),
            _Rounds(
                "services",
                [
                    self._access,
                    _Duty("hand-back", self.handback.run_once, _TICK),
                    _Duty("handed over", self._look_at_handed, HANDED_LOOK),
                    self._partitions,
                    self._pauses,
                    self._held,
                    _Duty("claimer", self.claimer.run_once, self.claimer.interval),
                    _Duty("history", self._record, EVERY),
                    self._tallies,
                    *([] if on_server is None else [_Duty("server version", self._look_at_server, _SERVER)]),
                ],
                on_away=self._away,
                on_denied=self.look_at_access,
            ),
        )

    def _settler(self, consumer: str) -> Settler:
        return Settler(self.broker, consumer, conf=self._streams.conf, hostname=self._node, insist=False)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        self.promoter.start()
        self.held.start()

    def queues_changed(self) -> None:
        """Promote the delayed messages of new queues at once, and say what is read now, and by which version."""
        self._beat.soon = self._tallies.soon = True
        self.promoter.poke()

    def look_at_access(self) -> None:
        """Find out which queues are denied: Redis forbade something."""
        self._access.soon = True

    def _record(self) -> None:
        now, queues = time.monotonic(), list(self._queues())
        known = (self.claimer.quiet, queues)
        # Nothing came, nothing is delayed, and so nothing died: the last sample stands.
        if known[0] is not None and self.promoter.knows_of_none and known == self._recorded:
            if now < self._recorded_at + STANDS - EVERY / 2:
                return
        if record(self.broker, queues) is not None:
            self._recorded, self._recorded_at = known, now

    def _look_at_server(self) -> None:
        assert self._on_server is not None
        try:
            self._on_server(server_version(self.broker.client))
        except NotPermitted as exc:
            logger.debug("The version of Redis is missing from the metrics: %s", exc)

    def _look_at_handed(self) -> None:
        took = self.handed.takes
        self.handed.run_once()
        self._beat.soon = self._beat.soon or self.handed.takes != took

    def _away(self) -> None:
        """Doubt all connections on which this worker waits for Redis: one that answers has just been lost."""
        self.claimer.doubt()
        self.promoter.doubt()
        self._on_away()

    def _is_told(self) -> bool:
        return self.promoter.hears_news

    def _pause_of(self, interval: float) -> Callable[[], float]:
        """Return what tells the seconds between two looks: while news are heard they are for what they cannot tell."""
        return lambda: max(_SELDOM, interval) if self._is_told() and not self.held.watches else interval

    def _look_again(self) -> None:
        self._partitions.soon = self._pauses.soon = self._held.soon = True
        self.handed.look_again()

    def stop_due(self) -> None:
        """Stop promoting and releasing (a worker that shuts down leaves that to others); heartbeats go on."""
        self.promoter.stop()
        self.held.stop()

    def stop(self, *, patience: float = 2.0) -> None:
        """Stop everything and wait for the threads; from now on each reply of Redis is waited for ``patience`` s."""
        for thread in self._threads:
            thread.stop()
        self.stop_due()
        for broker in (self.broker, self._beating):
            broker.client.hasten(patience)
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(timeout=max(deadline - time.monotonic(), 0.1))
        self.claimer.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the services between two rounds, for a fork; waits a second at most, and then forks all the same."""
        deadline = time.monotonic() + 1.0
        with ExitStack() as held:
            for thread in self._threads:
                if thread.gate.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
                    held.callback(thread.gate.release)
            yield

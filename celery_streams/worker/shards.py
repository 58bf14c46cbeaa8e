"""Shards: a claimer and a promoter for each slot of a Redis Cluster that this worker reads; one of each elsewhere.

A node that is away, or fails over, then holds up nothing of the others: each slot has its own clock, its own pauses and
its own connections. It decides nothing: claimers and promoters are those of ``claimer`` and ``delayed``.

Called by the services of the parent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..app import Streams
from ..broker import StreamBroker
from ..exceptions import BrokerError
from .claimer import Claimer
from .delayed import Promoter

__all__ = ("Claimers", "Promoters", "claimer", "is_one_place", "promoter", "services_broker", "shard_patience")

#: Seconds, at least, that a node of a Redis Cluster may take to connect, and to answer.
_PATIENCE = 0.5


def shard_patience(visibility_timeout: float) -> float:
    """Return for how many seconds what looks after all shards waits for a node; it is half of a heartbeat's pause.

    One node that hangs must not have others claim what is held elsewhere, nor keep anybody from claiming there.
    """
    return max(visibility_timeout / 10, _PATIENCE)


def services_broker(streams: Streams) -> StreamBroker:
    """Return a broker for services that look after many queues one after another."""
    broker = streams.new_broker()
    if is_one_place(broker):
        return broker
    return streams.new_broker(timeout=shard_patience(streams.conf.visibility_timeout), rests=True)


def claimer(
    broker: StreamBroker, consumer: str, queues: Callable[[], Sequence[str]], **options: Any
) -> Claimer | Claimers:
    """Return what looks after ``queues``; the options are those of :class:`Claimer`."""
    if is_one_place(broker):
        return Claimer(broker, consumer, queues, **options)
    return Claimers(broker, consumer, queues, **options)


def promoter(broker: StreamBroker, queues: Callable[[], Sequence[str]], **options: Any) -> Promoter | Promoters:
    """Return what promotes the messages of ``queues``; the options are those of :class:`Promoter`."""
    if is_one_place(broker):
        return Promoter(broker, queues, **options)
    return Promoters(broker, queues, **options)


def is_one_place(broker: StreamBroker) -> bool:
    """Return whether all keys lie in one place: in a cluster these two do not."""
    return broker.client.slot_of("celery") == broker.client.slot_of("streams")


def _slots(broker: StreamBroker, queues: Sequence[str]) -> dict[int, Sequence[str]]:
    """Return ``queues`` by their slot."""
    return {broker.client.slot_of(broker.queue_keys(part[0]).streams[0]): part for part in broker.by_slot(queues)}


class Claimers:
    """A claimer for each slot; from outside like one."""

    def __init__(
        self, broker: StreamBroker, consumer: str, queues: Callable[[], Sequence[str]], **options: Any
    ) -> None:
        self.consumer = consumer
        self._broker = broker
        self._queues = queues
        self._options = options
        self._parts: dict[int, Sequence[str]] = {}
        self._claimers: dict[int, Claimer] = {}
        #: Seconds between two looks.
        self.interval = Claimer(broker, consumer, queues, **options).interval

    def run_once(self) -> int:
        """Look once in each slot; returns the number of entries put back.

        Raises:
            BrokerError: a look failed; the others were made.
        """
        self._parts = _slots(self._broker, list(self._queues()))
        for slot in self._claimers.keys() - self._parts.keys():
            self._claimers.pop(slot).close()
        moved = 0
        error: BrokerError | None = None
        for slot in self._parts:
            if slot not in self._claimers:
                self._claimers[slot] = Claimer(self._broker, self.consumer, self._queues_of(slot), **self._options)
            try:
                moved += self._claimers[slot].run_once()
            except BrokerError as exc:
                error = error or exc
        if error is not None:
            raise error
        return moved

    def _queues_of(self, slot: int) -> Callable[[], Sequence[str]]:
        return lambda: self._parts.get(slot, ())

    @property
    def quiet(self) -> int | None:
        """A number while all streams are empty, another one when anything came meanwhile; None while nobody knows."""
        found = [self._claimers[slot].quiet if slot in self._claimers else None for slot in self._parts]
        known = [one for one in found if one is not None]
        return sum(known) if known and len(known) == len(found) else None

    def doubt(self) -> None:
        """Look at everything next."""
        for one in list(self._claimers.values()):
            one.doubt()

    def close(self) -> None:
        """Close the connections that only they use."""
        for one in list(self._claimers.values()):
            one.close()


class Promoters:
    """A promoter for each slot, and one that hears the news; from outside like one.

    The one that hears the news looks which slots there are whenever it asks for its queues, and has none.
    """

    def __init__(
        self,
        broker: StreamBroker,
        queues: Callable[[], Sequence[str]],
        *,
        on_news: Callable[[], None] | None = None,
        **options: Any,
    ) -> None:
        self._broker = broker
        self._queues = queues
        self._options = options
        self._parts: dict[int, Sequence[str]] = {}
        self._promoters: dict[int, Promoter] = {}
        self._hears = Promoter(broker, self._part, on_news=on_news, **options)
        self._stopped = False
        #: Whoever starts promoters does not meet whoever stops them all.
        self._lock = threading.Lock()

    def _part(self) -> Sequence[str]:
        """Have a promoter for each slot; returns no queue."""
        self._parts = _slots(self._broker, list(self._queues()))
        with self._lock:
            for slot in self._promoters.keys() - self._parts.keys():
                self._promoters.pop(slot).stop()
            if not self._stopped:
                for slot in self._parts.keys() - self._promoters.keys():
                    made = Promoter(self._broker, self._queues_of(slot), **self._options)
                    self._promoters[slot] = made
                    made.start()
        return ()

    def _queues_of(self, slot: int) -> Callable[[], Sequence[str]]:
        return lambda: self._parts.get(slot, ())

    def _each(self) -> list[Promoter]:
        return list(self._promoters.values())

    @property
    def moved(self) -> int:
        """Messages moved so far."""
        return sum(one.moved for one in self._each())

    @property
    def hears_news(self) -> bool:
        """Whether ``on_news`` is called as soon as there are any."""
        return self._hears.hears_news

    @property
    def knows_of_none(self) -> bool:
        """Whether nothing is delayed on any queue."""
        found = self._each()
        return bool(found) and len(found) == len(self._parts) and all(one.knows_of_none for one in found)

    def turns(self) -> dict[str, float]:
        """Return the queues in which this worker has a place, and by how many seconds it looks after the leader."""
        return {queue: grace for one in self._each() for queue, grace in one.turns().items()}

    def doubt(self) -> None:
        """Listen on new connections from now on."""
        for one in (self._hears, *self._each()):
            one.doubt()

    def poke(self) -> None:
        """End the sleep of all: the queues changed."""
        for one in (self._hears, *self._each()):
            one.poke()

    def start(self) -> None:
        """Run in threads until :meth:`stop`."""
        self._hears.start()

    def stop(self) -> None:
        """Ask the threads to end."""
        with self._lock:
            self._stopped = True
            for one in (self._hears, *self._each()):
                one.stop()

"""Active requests: Celery's Requests for what the children run and hold, where Celery's code in the parent looks.

The parent sees no message. ``celery.worker.state`` is made to say what the children do whenever somebody looks at it:
remote control, a bootstep, a timer, a command of the project's own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast
from weakref import WeakSet

from celery.worker import state as worker_state

from ..broker import StreamBroker
from ..entries import Delivery, Entry
from ..exceptions import BrokerUnavailable
from .crew import Crew
from .hand_back import Restrictable
from .lost_tasks import LostTasks
from .outcome import Event
from .requests import build_request, is_for
from .slots import Snapshot

__all__ = ("ActiveRequests",)

logger = logging.getLogger(__name__)

#: Seconds for which one look at the children serves all who ask.
_FRESH = 0.05


class ActiveRequests:
    """The requests of one worker, by entry: ids alone are unique within one stream only."""

    def __init__(self, lost: LostTasks, crew: Crew, *, eventer: Callable[[], Any]) -> None:
        self.known: dict[Entry, Any] = {}
        #: What each process, or green thread, ran when it was looked at.
        self.at_work: dict[int, Entry] = {}
        self._lost = lost
        self._crew = crew
        self._eventer = eventer
        self._lock = threading.RLock()
        self._looked_at = 0.0

    def attach(self) -> None:
        """Have Celery's sets of active and reserved requests look at the children whenever they are read."""
        requests: Any
        for requests in (worker_state.active_requests, worker_state.reserved_requests):
            requests.__class__ = _LiveRequests
            requests.look = self.refresh

    def detach(self) -> None:
        """Leave Celery's sets as they are now."""
        requests: Any
        for requests in (worker_state.active_requests, worker_state.reserved_requests):
            if isinstance(requests, _LiveRequests):
                cast("Any", requests).__class__ = WeakSet

    def refresh(self) -> None:
        """Look at the children, unless that was done a moment ago."""
        if time.monotonic() - self._looked_at >= _FRESH:
            self.sync()

    def sync(self) -> None:
        """Make Celery's worker state say what the children are doing: active and reserved requests."""
        with self._lock:
            self._looked_at = time.monotonic()
            self._crew.count_starts()
            self._sync()

    def _sync(self) -> None:
        active: dict[Entry, Any] = {}
        reserved: dict[Entry, Any] = {}
        try:
            self._look_at_holders(active, reserved)
        except BrokerUnavailable as exc:
            # Not once for each entry: that may be a time-out for each, and the event loop waits here.
            logger.warning("The list of active tasks is incomplete while Redis is unreachable: %s", exc)
        self.at_work = {request.worker_pid: entry for entry, request in active.items()}
        held = {**reserved, **active}
        for entry, request in self.known.items():
            if held.get(entry) is not request:
                worker_state.task_ready(request)
        self.known = held
        for request in held.values():
            worker_state.task_reserved(request)
        for entry, request in held.items():
            if entry in active:
                worker_state.active_requests.add(request)
            else:
                worker_state.active_requests.discard(request)

    def _look_at_holders(self, active: dict[Entry, Any], reserved: dict[Entry, Any]) -> None:
        for holder in self._crew.holders():
            shot = holder.snapshot()
            if shot.running is not None:
                request = self.of(holder, shot, shot.running)
                if request is not None:
                    request.acknowledged = shot.acked_early
                    request.worker_pid = shot.pid
                    request.time_start = time.time() - (time.monotonic() - shot.started_at)
                    active[shot.running] = request
            for held in shot.waiting:
                request = self.of(holder, shot, held)
                if request is not None:
                    reserved[held] = request

    def of(self, holder: Restrictable, shot: Snapshot, held: Entry, *, broker: StreamBroker | None = None) -> Any:
        """Return Celery's Request for an entry that ``holder`` holds; None when nobody can tell what it is.

        Args:
            broker: asked for the message, in place of the main thread's own.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        known = self.known.get(held)
        if known is not None:
            return known
        try:
            request = self._build(holder, shot, held, broker or self._lost.broker)
        except BrokerUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001
            # Decoding runs serializers and user codecs; remote control must answer all the same.
            logger.warning("Entry %s is missing from the list of active tasks: it cannot be decoded: %r", held, exc)
            return None
        # With tasks in this process Celery's own Request may be at work already.
        at_work = None if request is None else worker_state.requests.get(request.id)
        if at_work is not None and not is_for(at_work, held):
            # Two messages have one task id, by which Celery knows the last of them.
            active = WeakSet.__iter__(worker_state.active_requests)  # as it is: it would look at the children
            at_work = next((one for one in active if is_for(one, held)), None)
        return request if at_work is None else at_work

    def _build(self, holder: Restrictable, shot: Snapshot, held: Entry, broker: StreamBroker) -> Any:
        if shot.acked_early and held == shot.running:
            message = self._crew.kept_message(holder)
            delivery = None if message is None else Delivery(held, message)
        else:
            delivery = broker.fetch(held)
        if delivery is None:
            return None
        return build_request(
            self._lost.app,
            delivery,
            hostname=self._lost.hostname,
            eventer=self._eventer(),
            on_ack=lambda *_: self._lost.settler(holder.consumer).acknowledge([held], event=Event.REVOKED),
            on_reject=lambda *_: None,
        )


class _LiveRequests(WeakSet):  # type: ignore[type-arg]
    """In the place of a WeakSet of Celery's: looks at the children before it answers."""

    @staticmethod
    def look() -> None:
        """Nothing to look at: a set that was made of this one."""

    def __iter__(self) -> Iterator[Any]:
        self.look()
        return super().__iter__()

    def __len__(self) -> int:
        self.look()
        return super().__len__()

    def __contains__(self, item: Any) -> bool:
        self.look()
        return super().__contains__(item)

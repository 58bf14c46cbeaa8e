"""Tracking: what one consumer has noted of tracked tasks when they start, and when their messages are settled.

Which note it is, ``noting`` says; what it looks like in Redis, ``celery_streams.notes``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from .. import notes
from ..broker import StreamBroker
from ..clock import steady_time
from ..entries import Delivery, Entry
from ..exceptions import BrokerError
from ..lanes import Lane
from ..scripts import Script
from .noting import note_of, note_of_held
from .outcome import Action, Event, Outcome

__all__ = ("Tracking", "noting")

logger = logging.getLogger(__name__)

#: Seconds for which no start is noted after Redis did not take one: tasks must not wait for it.
_UNNOTED = 5.0


class Tracking:
    """The notes of one consumer; what Redis does not take of a start is not noted."""

    def __init__(self, broker: StreamBroker, consumer: str) -> None:
        self._broker = broker
        self._consumer = consumer
        #: The tracked task whose start was noted last, and until when none is (monotonic seconds).
        self._started: Entry | None = None
        self._marked: tuple[Entry, notes.Mark] | None = None
        self._unnoted_until = 0.0

    def start(self, started: Delivery, *, early: bool = False) -> None:
        """Note that a task starts, if it is tracked, and if that is not noted yet. One round trip."""
        if not notes.is_tracked(started.message) or self._started is started.entry:
            return
        mark = self._mark_of(started)
        if mark is None or time.monotonic() < self._unnoted_until:
            return
        try:
            self._broker.client.note(notes.stand_alone([self._running(mark, started, early=early)]))
        except BrokerError as exc:
            self._unnoted_until = time.monotonic() + _UNNOTED
            logger.debug("Cannot note that the task of entry %s starts: %s", started.entry, exc)

    def of_admission(self, asking: Delivery, lane: Lane) -> list[notes.Note]:
        """Return what is noted of a message that asks for a place: it is held, or starts."""
        mark = self._mark_of(asking)
        if mark is None:
            return []
        held = note_of_held(self._broker.prefix, mark, asking, lane)
        return [held, self._running(mark, asking).when("admitted")]

    def admitted(self, entry: Entry) -> None:
        """Remember that the start of ``entry`` was noted when it was admitted."""
        self._started = entry

    def of_outcome(
        self, delivery: Delivery, outcome: Outcome, event: Event, lane: Lane | None, history: dict[str, Any]
    ) -> notes.Note | None:
        """Return what is noted when a message is settled; None when its task is not tracked."""
        mark = self._mark_of(delivery) if notes.is_tracked(delivery.message) else None
        if mark is None:
            return None
        prefix = self._broker.prefix
        if outcome.action is Action.HOLD and lane is not None:
            return note_of_held(prefix, mark, delivery, lane)
        member = StreamBroker.waiting_member(delivery.entry, history, outcome.waits_for)
        return note_of(prefix, mark, delivery, outcome, event, now_ms=int(steady_time() * 1000), member=member)

    def _mark_of(self, delivery: Delivery) -> notes.Mark | None:
        # Asked for when a task starts, and again when it ends.
        if self._marked is not None and self._marked[0] is delivery.entry:
            return self._marked[1]
        mark = notes.mark_of(delivery.message)
        self._marked = None if mark is None else (delivery.entry, mark)
        return mark

    def _running(self, mark: notes.Mark, started: Delivery, *, early: bool = False) -> notes.Note:
        place = started.stream.key, started.entry_id.decode()
        return notes.running(self._broker.prefix, mark, started.stream.queue, place, self._consumer, early=early)


class _NotingClient:
    """A client whose scripts note a state in the same step, behind what they do."""

    def __init__(self, client: Any, noted: notes.Note) -> None:
        self._client, self._noted = client, noted

    def run(self, script: Script, names: Sequence[str], args: Sequence[Any]) -> Any:
        return self._client.run(*notes.behind(script, names, args, [self._noted]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def noting(broker: StreamBroker, noted: notes.Note) -> StreamBroker:
    """Return a broker whose verbs note a state in the step that settles; for one verb."""
    client: Any = _NotingClient(broker.client, noted)
    return StreamBroker(client, prefix=broker.prefix, steps=broker.steps)

"""Running messages: what workers hold of a queue at this moment, as Redis knows it; it changes nothing.

That one runs only its worker can say: a child reads some messages ahead, and holds them as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import keys
from .attempts import Attempt, of_history
from .broker import StreamBroker
from .entries import Delivery, delivery
from .exceptions import MessageError
from .message import decode_object
from .obstacles import task_id_of

__all__ = ("HeldMessage", "held_message")

#: Entries of each stream that are looked at: more than all children of a queue hold.
_MOST = 2_000

#: Messages that one step reads: they may be large.
_STEP = 50


@dataclass(frozen=True, slots=True)
class HeldMessage:
    """A message that a consumer holds, to run it."""

    delivery: Delivery
    consumer: str
    #: Seconds since its consumer last gave a sign of it.
    silent: float

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """How the starts before this one ended, the oldest first."""
        message = self.delivery.message
        return of_history(decode_object(message.history)) if message is not None else ()


def held_message(broker: StreamBroker, queue: str, task_id: str) -> HeldMessage | None:
    """Return the message of a task that a consumer holds; None when nobody does.

    Looks at :data:`_MOST` held entries of each stream at most, in steps.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    places = [place for ref in broker.streams(broker.partitions(queue)) for place in (ref.at_front(), ref)]
    commands = [("XPENDING", one.key, keys.GROUP, "-", "+", _MOST) for one in places]
    replies = broker.client.call_all(commands, missing_is_none=True)
    held = [(place, *one) for place, found in zip(places, replies, strict=True) for one in found or ()]
    for start in range(0, len(held), _STEP):
        some = held[start : start + _STEP]
        entries = broker.client.call_all([("XRANGE", place.key, one, one) for place, one, *_ in some])
        for (place, _, consumer, idle, _), found in zip(some, entries, strict=True):
            if found and _is_of(one := delivery(place, *found[0]), task_id):
                return HeldMessage(one, consumer.decode(errors="replace"), int(idle) / 1000)
    return None


def _is_of(one: Delivery, task_id: str) -> bool:
    try:
        return one.message is not None and task_id_of(one.message) == task_id
    except MessageError:
        return False

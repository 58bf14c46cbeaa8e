"""Pauses: queues that nobody reads for a while; kept in Redis, so that they outlive workers, publishers and restarts.

While a queue is paused, what runs goes on, and so do publishes, retries and what becomes due; readers pass over its
streams and fronts, and so keep its order. It knows neither Celery nor the worker: ``pausing`` tells workers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .broker import StreamBroker
from .exceptions import BrokerError, KeyOfOtherType
from .news import spread
from .scripts import load

__all__ = ("Pause", "follow", "parse_pause", "pause_queue", "paused_queues", "resume_queue")

logger = logging.getLogger(__name__)

PAUSE = load("pause")

#: Looks at a queue that is paused and resumed while its partitions are made to follow it; workers look again.
_LOOKS = 5

#: Digits of a time in milliseconds at most; a longer number is somebody else's.
_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Pause:
    """A queue that is paused."""

    queue: str
    #: Seconds since the epoch, by Redis' clock.
    since: float
    #: What somebody said about it.
    reason: str = ""


def pause_queue(broker: StreamBroker, queue: str, *, reason: str = "") -> Pause:
    """Have nobody read ``queue`` until it is resumed; again it changes the reason, not the time.

    Three round trips, and one for each partition: what was made of a queue before they are looked for is paused here,
    and what is made later by who reads it first (:func:`follow`).
    """
    since = broker.client.run(PAUSE, [broker.queue_keys(queue).paused], [reason])
    for name in broker.partitions(queue)[1:]:
        broker.client.run(PAUSE, [broker.queue_keys(name).paused], [reason])
    spread(broker, "pauses")
    return Pause(queue, int(since) / 1000, reason)


def resume_queue(broker: StreamBroker, queue: str) -> bool:
    """Have ``queue`` read again; returns whether it was paused. Three round trips, and one for each partition."""
    was_paused = _unpause(broker, queue)
    for name in broker.partitions(queue)[1:]:
        _unpause(broker, name)
    # Workers look in any case: the reply to an earlier attempt may have been lost.
    spread(broker, "pauses")
    return was_paused


def _unpause(broker: StreamBroker, name: str) -> bool:
    names = broker.queue_keys(name)
    removed = bool(broker.client.call("UNLINK", names.paused))
    # For readers that have nothing else to wait for; a queue that was not paused has none, and may be nobody's at all.
    wake = ("XADD", names.wake, "MAXLEN", 1, "*", "resumed", 9_000_000_000_000)
    for said in broker.client.pipeline([wake]) if removed else ():
        if isinstance(said, BrokerError):
            logger.debug("Cannot notify the readers of queue %s; they notice it within seconds: %s", name, said)
    return removed


def follow(broker: StreamBroker, queues: Mapping[str, Sequence[str]]) -> None:
    """Pause and resume the partitions of each queue as the queue itself is.

    Whoever pauses or resumes begins with the queue. So a partition that is not as its queue was not there yet, or is
    not reached yet, or was paused here in the moment in which its queue was resumed: until nothing changes it is looked
    again. Two round trips or three where nothing is to be done.
    """
    for _ in range(_LOOKS):
        found = paused_queues(broker, [name for names in queues.values() for name in names])
        changed = False
        for queue, (_, *others) in queues.items():
            for name in others:
                if queue in found and name not in found:
                    broker.client.run(PAUSE, [broker.queue_keys(name).paused], [found[queue].reason])
                elif name in found and queue not in found:
                    _unpause(broker, name)
                else:
                    continue
                changed = True
        if not changed:
            return


def paused_queues(broker: StreamBroker, queues: Iterable[str]) -> dict[str, Pause]:
    """Return those of ``queues`` that are paused. One round trip, and one more when there are any."""
    names = list(queues)
    keys = [broker.queue_keys(name).paused for name in names]
    # Asked for all of them at once, for it is asked again and again, and hardly ever is any there.
    if not broker.client.exist(keys):
        return {}
    # A value of another type pauses its queue, too: whoever reads asks whether the key is there.
    found = [
        b"" if isinstance(said, KeyOfOtherType) else said
        for said in broker.client.pipeline([("GET", key) for key in keys])
    ]
    refusal = next((said for said in found if isinstance(said, BrokerError)), None)
    if refusal is not None:
        raise refusal
    return {name: parse_pause(name, said) for name, said in zip(names, found, strict=True) if said is not None}


def parse_pause(queue: str, said: bytes) -> Pause:
    """Return what the value of the key says; it pauses its queue whatever it says."""
    since, _, reason = said.partition(b" ")
    since_ms = int(since) if since.isdigit() and len(since) <= _DIGITS else 0
    return Pause(queue, since_ms / 1000, reason.decode(errors="replace"))

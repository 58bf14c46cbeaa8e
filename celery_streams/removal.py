"""removal: deletes a queue that nobody uses any more, all of its keys; an operator's verb, never a worker's."""

from __future__ import annotations

from . import keys
from .broker import StreamBroker
from .scripts import load

__all__ = ("forget_queue",)

REMOVE = load("remove")


def forget_queue(broker: StreamBroker, queue: str, *, with_messages: bool = False) -> int:
    """Delete all keys of ``queue`` and forget its name; returns the number of messages that it holds, or held.

    A queue that holds any stays, unless ``with_messages``. Whoever publishes to it, or reads it, makes it known again:
    at once, or within a minute in a process that has published to it before.

    A queue with partitions goes with all of them; those that are empty go also where another one is not.
    """
    *others, own = reversed(broker.partitions(queue))
    held = sum(_forget(broker, name, with_messages=with_messages) for name in others)
    return held if held and not with_messages else held + _forget(broker, own, with_messages=with_messages)


def _forget(broker: StreamBroker, queue: str, *, with_messages: bool) -> int:
    names, migrating = broker.queue_keys(queue), keys.migration_keys(broker.prefix, queue)
    streams = [*names.streams, *names.fronts, names.dead]
    others = [
        names.delayed,
        names.delayed_messages,
        migrating.outgoing,
        migrating.incoming,
        names.shelf[0],
        migrating.tags,
    ]
    # The name first: a publisher that comes in between makes it known again.
    broker.client.call("SREM", keys.queues(broker.prefix), queue)
    held = int(
        broker.client.run(
            REMOVE,
            [
                *(*streams, *others, names.wake, names.claims, names.turns, names.paused, names.history, names.unique),
                *(*names.tallies, names.versions),
                *(*names.shelf[1:-1], *names.marks),
            ],
            [len(streams), "1" if with_messages else "0"],
        )
    )
    if held and not with_messages:
        broker.client.call("SADD", keys.queues(broker.prefix), queue)
    return held

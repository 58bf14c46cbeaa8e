"""Transfers: a message goes to another queue, also where a Redis Cluster keeps them apart and no script touches both.

Then it is stored first, under a name by which a second try is known for :data:`BLOCK_MS`, and what it comes from is
removed then. Whoever dies in between leaves both; what is run again, and transferred again within that time, stores
nothing twice.
"""

from __future__ import annotations

import hashlib

from .block_store import BLOCK_MS, MessageBlock, QueuedMessage, publish_blocks
from .broker import StreamBroker
from .entries import Entry
from .exceptions import BrokerError, DuplicateTask
from .message import Message

__all__ = ("BLOCK_MS", "are_apart", "replay_apart", "store_retry")


def are_apart(broker: StreamBroker, queue: str, other: str) -> bool:
    """Return whether no script can touch the keys of both queues."""
    slots = {broker.client.slot_of(broker.queue_keys(one).streams[0]) for one in (queue, other)}
    return len(slots) > 1


def store_retry(
    broker: StreamBroker,
    consumer: str,
    entry: Entry,
    message: Message,
    *,
    queue: str,
    due_ms: int,
    member: str,
    first: str = "",
) -> bool:
    """Store the retry of an entry on ``queue``, which is apart; the entry is to be acknowledged then.

    Returns False, with nothing stored, when the entry is no longer the consumer's; one that somebody took from it by
    hand is its own again, as in one script. A second try stores nothing.

    Args:
        due_ms: milliseconds since the epoch; 0 is now.
        member: ``task id:retries:what tells this publish from others``.
        first: the first id that the entry had, before it was put back.
    """
    if broker.extend([(consumer, entry)]):
        return False
    # Without what is new with each publish: when the task runs again, its retry is another one.
    attempt = member.rpartition(":")[0]
    name = f"{attempt}:{entry.stream.queue}:{first or entry.id.decode()}"
    try:
        _store(broker, queue, message, name, due_ms=due_ms)
    except DuplicateTask:
        # Another message holds its lock there: it goes without, under a name that is the same at each try.
        broker.delay(queue, message, due_ms=due_ms or 1, member=name)
    return True


def replay_apart(broker: StreamBroker, dead_on: str, letter: str, message: Message, *, queue: str) -> bool:
    """Store ``message`` on ``queue`` and delete the dead letter that it comes from; returns whether that was there.

    Raises:
        DuplicateTask: its task is unique, and another message is there.
    """
    dead = broker.queue_keys(dead_on).dead
    if not broker.client.call("XRANGE", dead, letter, letter):
        return False
    _store(broker, queue, message, f"{dead_on}:{letter}")
    broker.client.call("XDEL", dead, letter)
    return True


def _store(broker: StreamBroker, queue: str, message: Message, name: str, *, due_ms: int = 0) -> None:
    """Store a message, and not again what was stored under this name.

    Raises:
        DuplicateTask: its task is unique, and another message is there.
        BrokerError: nobody knows whether it was stored, or it was refused.
    """
    digest = hashlib.sha1(name.encode(errors="surrogatepass"), usedforsecurity=False).hexdigest()
    queued = QueuedMessage(digest, message, due_ms, name if due_ms else "")
    (outcome,) = publish_blocks(broker, [MessageBlock(queue, f"transfer:{digest}", [queued], transferred=True)])
    if isinstance(outcome, BrokerError):
        raise outcome
    for _, error in outcome:
        raise error

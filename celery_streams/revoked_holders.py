"""Revoked holders: frees the locks of unique tasks whose messages wait, and were revoked: no worker will run them.

Whoever publishes and finds a lock taken asks here, and so does whoever stores a message that names its lock already: a
dead letter, a retry.
"""

from __future__ import annotations

from .broker import StreamBroker
from .locks import Holder, Lock, disown, holders, named_lock
from .message import Message
from .revocations import was_revoked

__all__ = ("free_revoked", "make_way")


def free_revoked(broker: StreamBroker, queue: str, lock: Lock, found: Holder) -> bool:
    """Free the lock that ``found`` holds if its task was revoked before it started; returns whether it is free."""
    message = found.unstarted
    return message is not None and was_revoked(broker, message) and disown(broker, queue, lock, found.task_id)


def make_way(broker: StreamBroker, queue: str, message: Message) -> None:
    """Free the lock that ``message`` names on ``queue`` from one that was revoked before it started.

    Nothing for what is not unique; else a round trip, and two more where the lock is so free.
    """
    lock = named_lock(message)
    if lock is not None:
        (found,) = holders(broker, queue, [lock])
        if found is not None:
            free_revoked(broker, queue, lock, found)

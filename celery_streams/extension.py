"""Extension: the heartbeat of entries that somebody holds, so that nobody claims them as those of a dead worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import keys, scripts
from .connection import RedisClient
from .entries import Entry
from .exceptions import BrokerError, NotPermitted

__all__ = ("extend",)


def extend(client: RedisClient, held: Sequence[tuple[str, Entry]]) -> list[int]:
    """Reset the idle time of what each consumer holds; returns the positions whose consumer no longer owns it.

    One round trip; one more when a stream is forbidden: what is held on the others gets its heartbeat all the same.

    Raises:
        NotPermitted: all of the streams are forbidden, or the command.
        BrokerError: Redis is away, or a node of a cluster; the entries on the others had their heartbeat.
    """
    if not held:
        return []
    slots = client.by_slot(range(len(held)), lambda at: held[at][1].stream.key)
    if len(slots) > 1:
        return _extend_apart(client, held, slots)
    try:
        return [int(position) for position in client.run(*_command(held))]
    except NotPermitted:
        parts: dict[str, list[int]] = {}
        for position, (_, entry) in enumerate(held):
            parts.setdefault(entry.stream.key, []).append(position)
        if len(parts) == 1:
            raise
    replies = client.pipeline([_command([held[at] for at in places]) for places in parts.values()])
    refused = [reply for reply in replies if isinstance(reply, BrokerError)]
    if len(refused) == len(parts):
        raise refused[0]
    return sorted(
        places[int(index)]
        for places, reply in zip(parts.values(), replies, strict=True)
        if not isinstance(reply, BrokerError)
        for index in reply
    )


def _extend_apart(client: RedisClient, held: Sequence[tuple[str, Entry]], slots: Sequence[Sequence[int]]) -> list[int]:
    """Extend slot by slot, each whatever becomes of the others.

    Raises:
        BrokerError: one of them failed; the others had their heartbeat.
    """
    lost: list[int] = []
    error: BrokerError | None = None
    # Together first; where one fails its reply is the error. Then it is asked alone, for what is forbidden in it.
    replies = client.pipeline([_command([held[at] for at in places]) for places in slots])
    for places, reply in zip(slots, replies, strict=True):
        found = reply
        if isinstance(reply, NotPermitted):
            try:
                found = extend(client, [held[at] for at in places])
            except BrokerError as exc:
                found = exc
        if isinstance(found, BrokerError):
            error = error or found
        else:
            lost += (places[int(index)] for index in found)
    if error is not None:
        raise error
    return sorted(lost)


def _command(held: Sequence[tuple[str, Entry]]) -> tuple[Any, ...]:
    order: dict[str, int] = {}
    args: list[Any] = [keys.GROUP]
    for consumer, (ref, entry_id) in held:
        args += [order.setdefault(ref.key, len(order) + 1), consumer, entry_id]
    return scripts.EXTEND, list(order), args

"""Reads: how a consumer asks for its next entries, and what the replies mean; when to ask is the reader's matter.

Three kinds: through the script, which looks at priorities, fronts and pauses; without it, on from one stream where much
waits; and one that blocks, which brings the next entry of each stream and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from . import keys, scripts
from .connection import BlockingConnection
from .entries import Delivery, StreamRef, delivery
from .exceptions import BrokerError

__all__ = (
    "parse_paused",
    "parse_read",
    "parse_read_on",
    "read_command",
    "read_on_commands",
    "receive_blocking_read",
    "send_blocking_look",
    "send_blocking_read",
)


def read_command(streams: Sequence[StreamRef], consumer: str, *, count: int) -> tuple[Any, ...]:
    """Return the command of a read that does not block, for a pipeline; see :func:`parse_read`.

    Args:
        streams: as ``StreamBroker.streams`` returns them; each priority may begin with another queue, all with the
            same one.
    """
    width = sum(ref.step == streams[0].step for ref in streams)
    names = [key for ref in streams for key in (ref.front, ref.key)]
    names += [ref.paused for ref in streams[:width]]
    return (scripts.READ, names, [keys.GROUP, consumer, count, width])


def parse_read(streams: Sequence[StreamRef], reply: Any) -> list[Delivery]:
    """Turn the reply to :func:`read_command` into deliveries."""
    found: list[Delivery] = []
    for index, entries in reply or ():
        if not index:
            continue
        ref = streams[(index - 1) // 2]
        if index % 2:
            ref = ref.at_front()
        found += [delivery(ref, entry_id, fields) for entry_id, fields in entries]
    return found


def read_on_commands(stream: StreamRef, consumer: str, *, count: int) -> list[tuple[Any, ...]]:
    """Return commands that read on where much waits, for a pipeline; see :func:`parse_read_on`.

    They do without the script, which has to take every message apart and put it together again: Redis spends less
    than half as much. What is put to the front of the stream meanwhile is read by the next script only.
    """
    read = ("XREADGROUP", "GROUP", keys.GROUP, consumer, "COUNT", count, "STREAMS", stream.key, ">")
    return [("EXISTS", stream.front, stream.paused), read]


def parse_read_on(stream: StreamRef, replies: Sequence[Any]) -> tuple[list[Delivery], bool]:
    """Turn the replies to :func:`read_on_commands` into deliveries, and whether the script has to read next.

    It has to where the stream has a front, or its queue is paused.

    Raises:
        BrokerError: the read was refused.
    """
    there, reply = replies
    if isinstance(reply, BrokerError):
        raise reply
    found = [delivery(stream, entry_id, fields) for _, entries in reply or () for entry_id, fields in entries]
    return found, there != 0


def parse_paused(streams: Sequence[StreamRef], reply: Any) -> frozenset[str]:
    """Return the queues that the reply to :func:`read_command` says are paused."""
    if not reply or reply[-1][0]:
        return frozenset()
    return frozenset(streams[position].queue for position in reply[-1][1])


def send_blocking_read(
    connection: BlockingConnection,
    streams: Sequence[StreamRef],
    consumer: str,
    *,
    block_ms: int,
    more: Iterable[str] = (),
) -> None:
    """Ask for the next entry of any of ``streams``; the reply is taken with :func:`receive_blocking_read`.

    Fronts need no listening to: they are written to only while something waits on their streams. What comes to
    the streams with the keys ``more`` ends the read, and is no delivery.
    """
    names = [*(ref.key for ref in streams), *more]
    connection.send(
        "XREADGROUP",
        "GROUP",
        keys.GROUP,
        consumer,
        "COUNT",
        1,
        "BLOCK",
        block_ms,
        "STREAMS",
        *names,
        *">" * len(names),
    )


def send_blocking_look(
    connection: BlockingConnection, wakes: Iterable[str], *, block_ms: int, more: Iterable[str] = ()
) -> None:
    """Wait for any queue to be resumed, by the keys ``wake`` of queues; for a reader all of whose queues are paused.

    It may end early. The reply is taken with :func:`receive_blocking_read`, and has no deliveries; see there for
    ``more``.
    """
    names = [*wakes, *more]
    connection.send("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *names, *"$" * len(names))


def receive_blocking_read(
    connection: BlockingConnection, streams: Sequence[StreamRef], *, timeout: float
) -> list[Delivery]:
    """Take the reply of :func:`send_blocking_read`, highest priority first; empty when the time was up.

    Raises:
        BrokerUnavailable: no reply within ``timeout`` seconds, or the stream was deleted meanwhile.
    """
    reply = connection.receive(timeout=timeout)
    by_key = {ref.key.encode(): ref for ref in streams}
    found = [
        delivery(by_key[key], entry_id, fields)
        for key, entries in reply or ()
        if key in by_key
        for entry_id, fields in entries
    ]
    if len(found) > 1:
        found.sort(key=lambda item: item.stream.step)
    return found

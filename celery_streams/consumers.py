"""Consumers: keeps the names of live consumers in the group, and deletes those that are gone and hold nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import keys, scripts
from .broker import StreamBroker
from .message import encode_json

__all__ = ("forget_consumer", "forget_idle_consumers", "touch_consumers")


def forget_consumer(broker: StreamBroker, queues: Iterable[str], consumer: str) -> int:
    """Delete ``consumer`` from all groups where it holds nothing; returns from how many."""
    return _forget(broker, queues, consumer, 0)


def forget_idle_consumers(
    broker: StreamBroker,
    queues: Iterable[str],
    *,
    idle_ms: int,
    living: Iterable[str] = (),
    nodes: Mapping[str, int] | None = None,
) -> int:
    """Delete consumers that hold nothing and were not heard of for ``idle_ms``; returns how many.

    Args:
        living: consumers that are kept, however long nobody heard of them.
        nodes: shorter times in ms for the others of these node names.
    """
    # Lua's JSON does not tell an empty list from an empty mapping; it iterates over both.
    said = encode_json({"living": list(living), "nodes": dict(nodes or {})})
    return _forget(broker, queues, "", idle_ms, said)


def touch_consumers(broker: StreamBroker, queues: Iterable[str], consumers: Sequence[str]) -> int:
    """Mark idle ``consumers`` as alive, so that nobody takes them for dead; returns how many were marked."""
    if not consumers:
        return 0
    return sum(
        int(broker.client.run(scripts.TOUCH, [ref.key for ref in part], [keys.GROUP, *consumers]))
        for part in broker.streams_by_slot(broker.streams(queues))
    )


def _forget(broker: StreamBroker, queues: Iterable[str], consumer: str, idle_ms: int, *said: Any) -> int:
    count = 0
    for part in broker.streams_by_slot(broker.streams(queues)):
        names = [*(ref.key for ref in part), *(ref.front for ref in part)]
        count += int(broker.client.run(scripts.FORGET, names, [keys.GROUP, consumer, idle_ms, len(part), *said]))
    return count

"""Revocations: the ids and stamps of revoked tasks, kept for workers that start later.

Times are Redis', or a worker whose clock is ahead would forget what all others revoked. Where Redis' clock itself is
ahead for a moment, ours stands against it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, cast

from . import keys
from .broker import StreamBroker
from .clock import steady_time
from .exceptions import MessageError, NotPermitted
from .message import Message, decode_json, encode_json
from .obstacles import stamps_of, task_id_of
from .pages import steps

__all__ = ("revoke", "revoke_stamps", "revoked", "revoked_stamps", "was_revoked")

logger = logging.getLogger(__name__)


def revoke(broker: StreamBroker, task_ids: Iterable[str], *, seconds: float) -> None:
    """Remember revoked task ids for so many seconds. Two round trips."""
    _remember(broker, keys.revoked(broker.prefix), task_ids, seconds)


def revoked(broker: StreamBroker, *, limit: int = 50_000) -> list[str]:
    """Return the revoked task ids that are not forgotten yet, the newest ``limit``. Two round trips."""
    return [task_id.decode(errors="replace") for task_id in _remembered(broker, keys.revoked(broker.prefix), limit)]


def was_revoked(broker: StreamBroker, message: Message) -> bool:
    """Return whether workers know that a task is revoked, by its id or one of its stamps.

    One round trip; who may not look does not know, nor does whoever cannot read the message.
    """
    try:
        task_id, stamps = task_id_of(message), stamps_of(message)
        looks = [("ZSCORE", keys.revoked(broker.prefix), task_id or "")]
        looks += [("ZSCORE", keys.revoked_stamps(broker.prefix), stamp) for stamp in stamps]
        clock, *scores = broker.client.call_all([("TIME",), *looks])
    except (NotPermitted, MessageError) as exc:
        logger.debug("Cannot tell whether a task was revoked: %s", exc)
        return False
    return any(score is not None and float(score) > int(clock[0]) for score in scores)


def revoke_stamps(broker: StreamBroker, pairs: Iterable[tuple[str, Any]], *, seconds: float) -> None:
    """Remember for so many seconds that tasks with these stamps, pairs of header and stamp, are revoked."""
    _remember(broker, keys.revoked_stamps(broker.prefix), map(encode_json, pairs), seconds)


def revoked_stamps(broker: StreamBroker, *, limit: int = 5_000) -> list[tuple[str, Any]]:
    """Return the pairs of header and stamp that are not forgotten yet, the newest ``limit``.

    They are fewer than ids: Celery compares each stamp of a task with all of them.
    """
    found: list[tuple[str, Any]] = []
    for member in _remembered(broker, keys.revoked_stamps(broker.prefix), limit):
        try:
            pair = decode_json(member)
        except MessageError:
            continue
        # What is somebody else's keeps no worker from starting.
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str):
            found.append((pair[0], pair[1]))
    return found


def _remember(broker: StreamBroker, key: str, members: Iterable[str], seconds: float) -> None:
    names = list(members)
    if not names:
        return
    now = broker.clock_ms() / 1000
    commands: list[tuple[Any, ...]] = [
        ("ZADD", key, *(word for name in some for word in (now + seconds, name))) for some in steps(names, words=2)
    ]
    broker.client.pipeline([*commands, ("ZREMRANGEBYSCORE", key, "-inf", f"({min(now, steady_time())}")])


def _remembered(broker: StreamBroker, key: str, limit: int) -> list[bytes]:
    now = min(broker.clock_ms() / 1000, steady_time())
    return cast("list[bytes]", broker.client.call("ZREVRANGEBYSCORE", key, "+inf", now, "LIMIT", 0, limit))

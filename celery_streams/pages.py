"""Pages: in which steps much is done: so that it does not hold up Redis, nor is too long for one command.

It reads a stream, or the delayed messages of a queue, in such steps; it takes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from . import scripts
from .connection import RedisClient
from .exceptions import BrokerError
from .keys import QueueKeys

__all__ = ("STEP_BYTES", "STEP_WORDS", "each_part", "preview", "scan", "scan_all", "steps")

T = TypeVar("T")
R = TypeVar("R")

#: Bytes of messages that one script may copy, whatever their number: Redis serves nobody else meanwhile.
STEP_BYTES = 1_000_000

#: Words that the messages or entries of one command may take: ElastiCache Serverless takes 3,999 arguments in all.
STEP_WORDS = 3_800


def steps(items: Sequence[T], *, words: int = 1) -> Iterator[Sequence[T]]:
    """Cut ``items``, each of which is so many words of a command, into what fits into one."""
    most = STEP_WORDS // words
    for start in range(0, len(items), most):
        yield items[start : start + most]


def each_part(parts: Sequence[Sequence[T]], do: Callable[[Sequence[T]], R]) -> list[R]:
    """Do something about each part of what lies in several places; one that fails keeps none of the others.

    Raises:
        BrokerError: the first that failed, when all were tried.
    """
    found: list[R] = []
    error: BrokerError | None = None
    for part in parts:
        try:
            found.append(do(part))
        except BrokerError as exc:
            error = error or exc
    if error is not None:
        raise error
    return found


def scan(
    client: RedisClient, key: str, *, start: bytes | str = "-", end: bytes | str = "+", count: int = 100
) -> list[Any]:
    """Return the next entries of a stream as XRANGE does, at most ``count``, and as :data:`STEP_BYTES` take."""
    return list(client.run(scripts.SCAN, [key], [start, end, count, STEP_BYTES, ""]))


def scan_all(
    client: RedisClient, looks: Sequence[tuple[str, bytes | str, bytes | str, int]], *, back: bool = False
) -> list[list[Any]]:
    """Return the next entries of several streams in one round trip: those of each look, together as :func:`scan` does.

    Args:
        looks: stream, start, end, and the greatest number of entries.
        back: as XREVRANGE does, from the newest to the oldest.
    """
    most = max(STEP_BYTES // max(len(looks), 1), 1)
    way = "back" if back else ""
    commands = [(scripts.SCAN, [key], [start, end, count, most, way]) for key, start, end, count in looks]
    return [list(found) for found in client.call_all(commands)] if commands else []


def preview(client: RedisClient, names: QueueKeys, *, offset: int = 0, count: int = 100) -> list[Any]:
    """Return the delayed messages of a queue from ``offset`` on, at most ``count``, and as :data:`STEP_BYTES` take.

    Each is its member, its due time in milliseconds, and the packed message, empty when there is none.
    """
    if count <= 0:
        return []
    return list(client.run(scripts.PREVIEW, [names.delayed, names.delayed_messages], [offset, count, STEP_BYTES]))

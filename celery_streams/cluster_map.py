"""Cluster map: which slot a key lies in, which node serves a slot, and what a command's keys are; it talks to nobody.

The slot map is read from ``CLUSTER SLOTS`` here, and not taken from redis-py's ``RedisCluster``: making one sends
COMMAND, which restricted users and managed servers refuse, and its way to find a node differs between redis-py 5 and 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from redis.crc import key_slot

from .scripts import Script

__all__ = ("SLOTS", "Address", "key_of", "slot_of", "slot_owners", "split")

#: A node: host and port.
Address = tuple[str, int]

#: Slots of a Redis Cluster.
SLOTS = 16_384

#: Commands whose key is not their second word.
_KEY_AT = {"XGROUP": 2, "XINFO": 2, "MEMORY": 2, "OBJECT": 2}

#: Commands that name no key.
_KEYLESS = frozenset(
    (
        "ACL",
        "CLIENT",
        "CLUSTER",
        "COMMAND",
        "CONFIG",
        "DISCARD",
        "EXEC",
        "HELLO",
        "INFO",
        "MULTI",
        "PING",
        "SCRIPT",
        "TIME",
    )
)

#: Names that are asked for again and again: of queues, and for a while of tracked tasks.
_REMEMBERED = 65_536


@lru_cache(maxsize=_REMEMBERED)
def slot_of(key: str | bytes) -> int:
    """Return the slot of a key: that of the part in its first braces, if there are any with something in between."""
    return int(key_slot(key.encode(errors="surrogatepass") if isinstance(key, str) else key))


def key_of(command: Sequence[Any]) -> Any:
    """Return the first key that a command names, or None; a script with its keys and arguments is a command, too."""
    name = command[0]
    if isinstance(name, Script):
        return command[1][0] if command[1] else None
    if name in _KEYLESS:
        return None
    if name in ("EVAL", "EVALSHA"):
        return command[3] if int(command[2]) else None
    if name in ("XREAD", "XREADGROUP"):
        return command[_first_stream(command)]
    at = _KEY_AT.get(name, 1)
    return command[at] if at < len(command) else None


def split(command: Sequence[Any]) -> dict[int, tuple[Any, ...]]:
    """Return a command that names several keys (XREAD, XREADGROUP, EXISTS) as one command for each slot of them."""
    reads = command[0] != "EXISTS"
    start = _first_stream(command) if reads else 1
    count = (len(command) - start) // (2 if reads else 1)
    parts: dict[int, list[int]] = {}
    for at in range(start, start + count):
        parts.setdefault(slot_of(command[at]), []).append(at)
    return {
        slot: (
            *command[:start],
            *(command[at] for at in places),
            *(command[at + count] for at in places if reads),
        )
        for slot, places in parts.items()
    }


def _first_stream(command: Sequence[Any]) -> int:
    return list(command).index("STREAMS") + 1


def slot_owners(said: Sequence[Any], *, asked: Address) -> list[Address | None]:
    """Return the master of each slot, None where there is none, out of the reply to ``CLUSTER SLOTS``.

    A node that does not know its own address leaves it empty: then it is the one that was ``asked``.
    """
    owners: list[Address | None] = [None] * SLOTS
    for first, last, master, *_ in said:
        host = master[0].decode() if master[0] else ""
        owner = (host if host and host != "?" else asked[0], int(master[1]))
        owners[int(first) : int(last) + 1] = [owner] * (int(last) + 1 - int(first))
    return owners

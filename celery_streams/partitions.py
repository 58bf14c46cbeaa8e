"""Partitions: the names under which one queue lies in several slots, and to which of them a key belongs; no Redis here.

``streams_partitions = {"send_message": 8}`` makes of a queue eight inside. The first has the queue's own name, so that
what lay there before stays where it is read. The name of each other one is made from the queue's name, its number and a
third number, which is chosen so that the hash slots of all of them are spread evenly over those of a Redis Cluster. All
that lies below the publish seam and above the tools takes them for queues; people never see these names: a letter or an
entry of a partition is shown with the queue's name, and its id with the number of the partition behind a stroke.
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import count as count_up

__all__ = (
    "MOST",
    "by_queue",
    "choose",
    "is_partition",
    "located",
    "one_of",
    "partition",
    "partitions",
    "place",
    "queue_of",
    "shown_id",
)

#: Partitions that a queue may have. Each is a few streams, which every worker of the queue reads.
MOST = 256

_MARK = "::partition-"
_NAME = re.compile(r"(.+)::partition-([1-9][0-9]{0,2})\.([0-9]{1,4})", re.DOTALL)

_SLOTS = 16_384

#: Slots by which a partition may lie beside its place; of the numbers that are tried, one in 128 hits that.
_BESIDE = 64

#: Numbers that are tried. A queue's name with a closing brace ends the hash tag: all numbers have the same slot.
_TRIED = 5_000


@lru_cache(maxsize=4096)
def partition(queue: str, number: int) -> str:
    """Return the name of a partition of ``queue``, from 0 on; the first is the queue's own."""
    if not number:
        return queue
    # The order of bits turned round: 1/2, 1/4, 3/4, 1/8 ... of the way round the slots. However many there are, they
    # are spread as evenly as can be, and more of them leave the others where they are.
    wanted = _slot(queue) + int(f"{number:08b}"[::-1], 2) * (_SLOTS // MOST)
    for tried in count_up():
        name = f"{queue}{_MARK}{number}.{tried}"
        if (_slot(name) - wanted + _BESIDE) % _SLOTS < 2 * _BESIDE:
            return name
        if tried == _TRIED:
            return f"{queue}{_MARK}{number}.0"
    raise AssertionError


def _slot(name: str) -> int:
    return crc_hqx(name.partition("}")[0].encode(errors="surrogatepass"), 0) % _SLOTS


def partitions(queue: str, count: int) -> list[str]:
    """Return the names of the first ``count`` partitions of ``queue``."""
    return [partition(queue, number) for number in range(count)]


def queue_of(name: str) -> str:
    """Return the queue of which ``name`` is a partition; a queue's own name is its first one."""
    return _parsed(name)[0] if _MARK in name else name


def is_partition(name: str) -> bool:
    """Return whether ``name`` is reserved: only for a partition of another queue."""
    return _MARK in name and _parsed(name)[1] > 0


@lru_cache(maxsize=4096)
def _parsed(name: str) -> tuple[str, int]:
    found = _NAME.fullmatch(name)
    if found is None or int(found[2]) >= MOST or partition(found[1], int(found[2])) != name:
        return name, 0  # somebody's own queue, however odd
    return found[1], int(found[2])


def by_queue(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names by their queues, and of each queue in the order of its partitions, itself first."""
    found: dict[str, list[str]] = {}
    for name in sorted(set(names), key=lambda name: (queue_of(name), _parsed(name)[1])):
        found.setdefault(queue_of(name), []).append(name)
    return {queue: ours if ours[0] == queue else [queue, *ours] for queue, ours in found.items()}


def choose(key: str, count: int) -> int:
    """Return the number of the partition to which ``key`` belongs among ``count``: the same in every process.

    A greater count takes to its new partitions the keys that belong there, and moves no other (jump consistent hash,
    Lamping and Veach 2014).
    """
    state = int.from_bytes(blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
    chosen = jump = 0
    while jump < count:
        chosen = jump
        state = (state * 2_862_933_555_777_941_757 + 1) & 0xFFFF_FFFF_FFFF_FFFF
        jump = int((chosen + 1) * ((1 << 31) / ((state >> 33) + 1)))
    return chosen


def place(queue: str, key: str, count: int) -> str:
    """Return the name of the partition of ``queue`` to which ``key`` belongs among ``count``."""
    return partition(queue, choose(key, count))


def shown_id(name: str, entry_id: str) -> str:
    """Return the id of an entry of a partition as people see it beside the queue's name: ``1712345678901-0/3``."""
    number = _parsed(name)[1] if _MARK in name else 0
    return f"{entry_id}/{number}" if number else entry_id


def located(queue: str, shown: str) -> tuple[str, str]:
    """Undo :func:`shown_id`: return the name of the partition, and the id of the entry there."""
    entry_id, _, number = shown.partition("/")
    if number.isascii() and number.isdecimal() and len(number) <= 3 and 0 < int(number) < MOST:
        return partition(queue, int(number)), entry_id
    return queue, shown


def one_of(queues: Sequence[str]) -> list[str]:
    """Return the queues of these names, each once, in their order."""
    return list(dict.fromkeys(map(queue_of, queues)))

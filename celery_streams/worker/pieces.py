"""Pieces: messages of any size through a control pipe that nobody may wait for.

A pipe that is found writable takes a small message at once and blocks in a large one, for as long as the child at its
other end has a task to run. So a message is cut, each piece is sent when there is room, and the child joins them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

__all__ = ("Assembly", "pieces")

#: Bytes of a piece: a Unix socket that polls as writable has three quarters of its 208 KiB free.
SIZE = 32 * 1024

_MORE, _LAST = b"+", b"."


def pieces(message: tuple[Any, ...]) -> Iterator[bytes]:
    """Cut a message into pieces that a writable pipe takes at once."""
    packed = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    last = len(packed) - 1 - (len(packed) - 1) % SIZE
    for start in range(0, len(packed), SIZE):
        yield (_LAST if start == last else _MORE) + packed[start : start + SIZE]


class Assembly:
    """Puts together what :func:`pieces` cut."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, piece: bytes) -> Any:
        """Take the next piece; returns the message when it was the last of one, and None otherwise."""
        self._parts.append(piece[1:])
        if piece[:1] != _LAST:
            return None
        packed = b"".join(self._parts)
        self._parts.clear()
        return pickle.loads(packed)

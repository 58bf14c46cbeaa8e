"""patterns: shell patterns among the queues of ``-Q``, and the queues that they mean now; it reads no message.

A queue is known when the settings name it, or when anybody ever published to its stream.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..app import streams_of
from ..exceptions import BrokerError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("LOOK_EVERY", "QueuePatterns", "existing_queues", "is_pattern")

logger = logging.getLogger(__name__)

#: Seconds between two looks for queues that are new.
LOOK_EVERY = 5.0


def is_pattern(name: str) -> bool:
    """Return whether a name of ``-Q`` is a shell pattern."""
    return any(letter in name for letter in "*?[")


def existing_queues(app: Celery) -> list[str]:
    """Return the queues on streams that are known; those of the settings only while Redis is away."""
    streams = streams_of(app)
    try:
        return streams.known_queues()
    except BrokerError as exc:
        logger.warning("Cannot look for new queues that match -Q: %s", exc)
        return streams.named_queues()


class QueuePatterns:
    """The patterns of one worker."""

    def __init__(self, app: Celery, patterns: Iterable[str], *, excluded: Iterable[str] = ()) -> None:
        self._app = app
        self._patterns = tuple(patterns)
        # What remote control cancelled stays cancelled: a queue is found once.
        self._found = set(excluded)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def find(self) -> list[str]:
        """Return the queues that match and were not returned before; of the settings only while Redis is away."""
        streams = streams_of(self._app)
        new = sorted(
            name
            for name in existing_queues(self._app)
            if name not in self._found
            and streams.on_streams(name)
            # A queue that comes up later may itself have such a name.
            and any(name == pattern or fnmatchcase(name, pattern) for pattern in self._patterns)
        )
        self._found.update(new)
        return new

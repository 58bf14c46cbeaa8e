"""DatabaseTransfer: carries the queued messages of a queue between two Redis databases, for ``migration``.

Each element goes through four steps, each atomic::

    1. depart       its list or stream -> `migrating:out` in the same database, behind a tag; no worker sees it any more
    2. arrive       written in the other database unless its tag is known there
    3. LREM         deleted from `migrating:out`
    4. forget_tags  the tag may be forgotten, an hour later

Killed between any two steps and run again, step 2 finds the tag and stores nothing twice. Towards the lists, step 1
belongs to the scripts that take messages off the streams.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from . import keys, scripts
from .connection import RedisClient
from .kombu_lists import ListKeys, Wrapped, priority_of
from .pages import STEP_BYTES

__all__ = ("DatabaseTransfer",)

ARRIVE = scripts.load("arrive")
DEPART = scripts.load("depart")
FORGET_TAGS = scripts.load("forget_tags")
PEEK = scripts.load("peek")

#: Elements carried in one step, fewer when they are large, so that Redis is never held up for long.
_STEP = 100

#: Seconds for which the tag of an element is kept after it was deleted on the other side.
_KEEP_TAGS = 3_600

#: Length of a tag in front of an element of `migrating:out`: the hexadecimal form of a UUID.
_TAG = 32


class DatabaseTransfer:
    """The way of one queue between the lists in one database and the streams in another.

    Args:
        kept: the keys of the migration, the same in both databases.
        names: the queue's lists.
    """

    def __init__(self, lists: RedisClient, streams: RedisClient, kept: keys.MigrationKeys, names: ListKeys) -> None:
        self.kept = kept
        self._lists = lists
        self._streams = streams
        self._names = names

    def depart(self, key: str) -> bool:
        """Let the next elements of the list ``key`` depart; returns whether there were any."""
        tags = [uuid.uuid4().hex for _ in range(_STEP)]
        return bool(self._lists.run(DEPART, [key, self.kept.outgoing], [STEP_BYTES, *tags]))

    @staticmethod
    def tagged(wrapped: Wrapped) -> bytes:
        """Return a message as the scripts that take it off a stream let it depart."""
        return wrapped.tag.replace("-", "").encode() + wrapped.element

    def to_streams(self) -> None:
        """Carry what has departed from the lists to ``migrating:in`` beside the streams."""
        self._carry(self._lists, self._streams, [self.kept.incoming], lambda element: 1)

    def to_lists(self) -> None:
        """Carry what has departed from the streams to the lists."""
        names = self._names
        self._carry(
            self._streams, self._lists, list(names.lists), lambda element: names.index_of(priority_of(element)) + 1
        )

    def forget_open_tags(self) -> None:
        """Forget the tags that a migration left which was killed between its last two steps: nothing refers to them."""
        for source, target in ((self._lists, self._streams), (self._streams, self._lists)):
            if not source.call("LLEN", self.kept.outgoing):
                open_tags = target.call("ZRANGEBYSCORE", self.kept.tags, "+inf", "+inf")
                if open_tags:
                    target.run(FORGET_TAGS, [self.kept.tags], [_KEEP_TAGS, *open_tags])

    def _carry(
        self, source: RedisClient, target: RedisClient, lists: Sequence[str], index_of: Callable[[bytes], int]
    ) -> None:
        """Take steps 2 to 4 for everything in ``source`` that is on its way; ``index_of`` counts ``lists`` from 1."""
        while True:
            tagged = source.run(PEEK, [self.kept.outgoing], [_STEP, STEP_BYTES])
            if not tagged:
                return
            args: list[Any] = []
            for one in tagged:
                args += [one[:_TAG], index_of(one[_TAG:]), one[_TAG:]]
            target.run(ARRIVE, [self.kept.tags, *lists], args)
            source.call_all([("LREM", self.kept.outgoing, -1, one) for one in tagged])
            target.run(FORGET_TAGS, [self.kept.tags], [_KEEP_TAGS, *(one[:_TAG] for one in tagged)])

"""ForeignStream: takes over what is left in a stream that somebody's own code wrote and read, for ``adopt``.

Each entry becomes a message of a Celery task: in one step where the stream is in the database of ours, and on a Redis
Cluster in the same slot; else it is stored behind a tag, deleted there, and the tag forgotten an hour later, so that a
command which was killed and is run again stores nothing twice. What was acknowledged and not deleted has run: it stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import keys, scripts
from .broker import StreamBroker
from .connection import RedisClient, pairs
from .exceptions import ConfigurationError, KeyMissing, KeyOfOtherType
from .message import Message
from .pages import scan

__all__ = ("ForeignEntry", "ForeignStream")

TAKE_OVER = scripts.load("take_over")
FORGET_TAGS = scripts.load("forget_tags")

#: Entries that are looked at in one step.
_STEP = 100

#: Seconds for which the tag of an entry is kept after it was deleted in the other database.
_KEEP_TAGS = 3_600


@dataclass(frozen=True, slots=True)
class ForeignEntry:
    """One entry, as somebody wrote it."""

    entry_id: str
    fields: dict[bytes, bytes]
    #: Who has it; None while nobody has read it.
    consumer: str | None = None


class ForeignStream:
    """A stream that is not ours.

    Args:
        client: of the database that it is in.
        group: its consumer group; None: the only one there is, or none.

    Raises:
        ConfigurationError: there is no such stream or group, or there are several groups and none was named.
    """

    def __init__(self, client: RedisClient, key: str, *, group: str | None = None) -> None:
        self.client = client
        self.key = key
        try:
            found = client.call("XINFO", "GROUPS", key)
        except KeyMissing:
            raise ConfigurationError(f"There is no stream {key!r} in this database") from None
        except KeyOfOtherType:
            raise ConfigurationError(f"{key!r} is not a stream") from None
        groups = {one[b"name"].decode(errors="replace"): one for one in map(pairs, found)}
        if keys.GROUP in groups:
            raise ConfigurationError(f"{key!r} is a stream of celery-streams: its workers read it")
        if group is not None and group not in groups:
            raise ConfigurationError(f"{key!r} has no group {group!r}; it has {', '.join(sorted(groups)) or 'none'}")
        if group is None and len(groups) > 1:
            raise ConfigurationError(f"{key!r} has several groups: name one with --group ({', '.join(sorted(groups))})")
        self.group = group if group is not None else next(iter(groups), None)
        self._last = groups[self.group][b"last-delivered-id"] if self.group is not None else b"0-0"

    def entries(self) -> Iterator[ForeignEntry]:
        """Yield what has not run to its end, the oldest first: what somebody holds, then what nobody has read."""
        if self.group is not None:
            start = "-"
            while page := self.client.call("XPENDING", self.key, self.group, start, "+", _STEP):
                for entry_id, consumer, *_ in page:
                    found = self.client.call("XRANGE", self.key, entry_id, entry_id)
                    if found:
                        yield ForeignEntry(entry_id.decode(), pairs(found[0][1]), consumer.decode(errors="replace"))
                start = "(" + page[-1][0].decode()
        begin = b"(" + self._last
        while rest := scan(self.client, self.key, start=begin, count=_STEP):
            for entry_id, flat in rest:
                yield ForeignEntry(entry_id.decode(), pairs(flat))
            begin = b"(" + rest[-1][0]

    def take_over(self, broker: StreamBroker, queue: str, entry: ForeignEntry, message: Message, *, here: bool) -> bool:
        """Make ``entry`` a message of ``queue``; returns whether it became one now.

        Args:
            here: the foreign stream is in the database of the broker's streams.

        Raises:
            BrokerError: Redis is away, or refuses; run again, it stores nothing twice.
        """
        names = broker.queue_keys(queue)
        tags = keys.migration_keys(broker.prefix, queue).tags
        tag = f"{self.key} {entry.entry_id}"
        client = broker.client
        # In a cluster its key lies in a slot of its own, but where somebody chose the hash tag.
        together = here and client.slot_of(self.key) == client.slot_of(tags)
        target = [tags, names.streams[message.step], *([self.key] if together else [])]
        broker.client.call("SADD", keys.queues(broker.prefix), queue)
        stored = broker.client.run(TAKE_OVER, target, [tag, self.group or "", entry.entry_id, *message.as_fields()])
        if not together:
            removal: list[tuple[str, ...]] = [("XDEL", self.key, entry.entry_id)]
            if self.group is not None:
                removal.insert(0, ("XACK", self.key, self.group, entry.entry_id))
            self.client.call_all(removal)
            broker.client.run(FORGET_TAGS, [tags], [_KEEP_TAGS, tag])
        return bool(stored)

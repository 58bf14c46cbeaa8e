"""Dead search: looks for dead letters, the newest first, in bounded steps that go on where the last one stopped.

A queue may have a hundred thousand dead letters, and Redis has no index over what they say: each has to be looked at.
So a step looks at so many and no more, says how many, and where the next step begins. That place is an entry id, which
does not move when letters are added, replayed or deleted meanwhile.
"""

from __future__ import annotations

import heapq
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from .broker import StreamBroker
from .dead_letters import DeadLetter, decode_arguments, parse_dead_letter
from .entries import is_entry_id
from .exceptions import MessageError
from .inspect import known_partitions
from .message import Message
from .pages import scan_all

__all__ = ("LOOK_AT", "Cursor", "Found", "Redact", "Wanted", "search", "shown")

#: A task's name, its args and its kwargs; returns what may be seen of the two.
Redact = Callable[[str | None, Any, Any], tuple[Any, Any]]

#: Letters that one step looks at: some 20 us each, and as many of Redis; a page must not take 300 ms.
LOOK_AT = 5_000

#: Letters of one queue that one step reads, at most.
_PAGE = 200

_WORD = re.compile(r"[a-z0-9_.@+-]+", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place among the dead letters of all queues: everything older than this letter comes after it."""

    #: Both halves of an entry id.
    milliseconds: int
    number: int
    #: The queue, or the partition of one.
    queue: str = ""

    @classmethod
    def parse(cls, text: str) -> Cursor | None:
        """Read what ``str`` made; None for what is none."""
        entry_id, _, queue = text.partition(" ")
        if not is_entry_id(entry_id):
            return None
        milliseconds, _, number = entry_id.partition("-")
        return cls(int(milliseconds), int(number), queue)

    @classmethod
    def of(cls, queue: str, entry_id: str) -> Cursor:
        """Return the place of a letter."""
        milliseconds, _, number = entry_id.partition("-")
        return cls(int(milliseconds), int(number), queue)

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.number} {self.queue}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters are meant; what is None matches all."""

    #: A task's name, or a shell pattern.
    task: str | None = None
    reason: str | None = None
    #: A part of the exception as it is shown, in any case.
    exception: str | None = None
    #: A part of the arguments in JSON, in any case.
    text: str | None = None
    #: A task id, or an entry id.
    id: str | None = None
    #: A task id, or that of the parent, the root or the group.
    family: str | None = None
    #: When it died: seconds since the epoch by Redis' clock, from (inclusive) and until (exclusive).
    since: float | None = None
    until: float | None = None

    def matches(self, letter: DeadLetter, *, accept: Iterable[str] | None, redact: Redact | None = None) -> bool:
        """Return whether ``letter`` is meant; its arguments are decoded only where the bytes do not tell."""
        if self.task is not None and letter.task != self.task and not fnmatchcase(letter.task or "", self.task):
            return False
        if self.reason is not None and letter.reason != self.reason:
            return False
        if self.id is not None and self.id not in (letter.task_id, letter.entry_id):
            return False
        if self.family is not None and not _is_of(letter, self.family):
            return False
        if self.exception is not None and self.exception.lower() not in (letter.exception or "").lower():
            return False
        return self.text is None or _says(letter, self.text, accept, redact)


@dataclass(frozen=True, slots=True)
class Found:
    """One step of a search."""

    #: The newest first.
    letters: tuple[DeadLetter, ...]
    looked_at: int
    #: Dead letters of these queues in all.
    total: int
    #: Where the next step begins; None when all were looked at.
    next: Cursor | None


def search(
    broker: StreamBroker,
    queues: Sequence[str],
    wanted: Wanted,
    *,
    accept: Iterable[str] | None,
    before: Cursor | None = None,
    limit: int = 50,
    look_at: int = LOOK_AT,
    oldest_first: bool = False,
    redact: Redact | None = None,
) -> Found:
    """Return up to ``limit`` dead letters of ``queues`` that match, the newest first.

    At most ``look_at`` are looked at, so that a step has an end; then the next one begins at ``Found.next``.

    Args:
        accept: content types whose bodies may be decoded, as Celery's ``accept_content``.
        before: where the last step stopped.
        oldest_first: the other way round, so that what is replayed runs in its old order.
        redact: what the text is looked for in, out of a task's name, its args and kwargs; it may hide some, so that a
            search does not find what may not be seen.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    known = known_partitions(broker) if queues else {}
    names = [name for queue in queues for name in known.get(queue, (queue,))]
    sizes = broker.client.call_all([("XLEN", broker.queue_keys(name).dead) for name in names]) if names else []
    accepted = None if accept is None else list(accept)
    letters: list[DeadLetter] = []
    looked_at, last = 0, before
    first, end = _stretch(wanted, before, back=not oldest_first)
    some = [name for name, size in zip(names, sizes, strict=True) if size]
    reads = _Reads(broker, some, first, end, before, back=not oldest_first)
    for place, fields in heapq.merge(*map(reads.entries, reads.sources), key=_place, reverse=not oldest_first):
        if looked_at >= look_at or len(letters) >= limit:
            return Found(tuple(letters), looked_at, sum(sizes), last)
        looked_at, last = looked_at + 1, Cursor(*place)
        letter = parse_dead_letter(last.queue, b"%d-%d" % place[:2], fields)
        if wanted.matches(letter, accept=accepted, redact=redact):
            letters.append(letter)
    return Found(tuple(letters), looked_at, sum(sizes), None)


#: The parts of a cursor, which compare faster, and the fields of the letter at this place.
_Placed = tuple[tuple[int, int, str], list[bytes]]


def _place(one: _Placed) -> tuple[int, int, str]:
    return one[0]


def _stretch(wanted: Wanted, before: Cursor | None, *, back: bool) -> tuple[str, str]:
    """Return where each stream is read from and up to; of one queue's letters with the same id some may come after."""
    since = None if wanted.since is None else max(int(wanted.since * 1000), 0)
    until = None if wanted.until is None else max(int(wanted.until * 1000) - 1, 0)
    if back:
        first = [] if before is None else [(before.milliseconds, before.number)]
        first += [] if until is None else [(until, 2**64 - 1)]
        return "{}-{}".format(*min(first)) if first else "+", "-" if since is None else str(since)
    begin = max((since or 0, 0), (0, 0) if before is None else (before.milliseconds, before.number))
    # Of what dies meanwhile nothing new comes.
    return "{}-{}".format(*begin), "+" if until is None else f"{until}-{2**64 - 1}"


@dataclass(slots=True)
class _Source:
    """The dead letters of one queue, as far as they are read."""

    queue: str
    key: str
    start: str
    count: int
    read: deque[_Placed] = field(default_factory=deque)
    ended: bool = False


class _Reads:
    """Reads the dead letters of several queues: few of each at first, for there may be hundreds of queues.

    Whenever those of one queue are used up, others that are nearly so are read in the same round trip.
    """

    def __init__(
        self, broker: StreamBroker, queues: Sequence[str], first: str, end: str, before: Cursor | None, *, back: bool
    ) -> None:
        self._broker, self._end, self._back = broker, end, back
        self._before = None if before is None else (before.milliseconds, before.number, before.queue)
        count = max(_PAGE // max(len(queues), 1), 2)
        self.sources = [_Source(queue, broker.queue_keys(queue).dead, first, count) for queue in queues]

    def entries(self, source: _Source) -> Iterator[_Placed]:
        """Yield the dead letters of one queue, as they lie there, with their places."""
        while True:
            while source.read:
                yield source.read.popleft()
            if source.ended:
                return
            self._read()

    def _read(self) -> None:
        low = [one for one in self.sources if not one.ended and len(one.read) <= one.count // 8]
        looks = [(one.key, one.start, self._end, one.count) for one in low]
        for one, page in zip(low, scan_all(self._broker.client, looks, back=self._back), strict=True):
            one.ended = not page
            one.count = min(2 * one.count, _PAGE)
            for entry_id, fields in page:
                milliseconds, _, number = entry_id.partition(b"-")
                place = int(milliseconds), int(number), one.queue
                if self._before is None or (place < self._before if self._back else place > self._before):
                    one.read.append((place, fields))
            if page:
                one.start = "(" + page[-1][0].decode()


#: Headers that say of which tasks a message came.
_FAMILY = ("parent_id", "root_id", "group")


def _is_of(letter: DeadLetter, family: str) -> bool:
    """Return whether ``letter`` is the task ``family``, or one of its children, of its root's, or of that group."""
    if letter.task_id == family:
        return True
    message = letter.message
    if message is None:
        return False
    # JSON may escape what is no plain word; else the bytes tell at once that it is not there.
    if _WORD.fullmatch(family.lower()) and family.encode() not in message.headers:
        return False
    try:
        headers = message.decode_headers()
    except MessageError:
        return False
    return any(headers.get(name) == family for name in _FAMILY)


def _says(letter: DeadLetter, text: str, accept: Iterable[str] | None, redact: Redact | None) -> bool:
    """Return whether the arguments of ``letter`` say ``text``, in any case; of one that is no message, its bytes."""
    wanted = text.lower()
    message = letter.message
    if message is None:
        return any(wanted.encode() in value.lower() for _, value in letter.fields)
    # The bytes of the body tell at once that a word is not in it; marks and blanks may be written in several ways.
    if _WORD.fullmatch(wanted) and _is_plain(message) and wanted.encode() not in message.body.lower():
        return False
    called = decode_arguments(message, accept=accept)
    if called.error is not None:
        return False
    both: list[Any] = [called.args, called.kwargs]
    if redact is not None:
        try:
            both = list(redact(letter.task, *both))
        except Exception:  # noqa: BLE001  (the project's own function; what it does not show is not found)
            return False
    return wanted in shown(both).lower() or any(wanted in one.lower() for one in _texts(both))


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in ``value``, the keys of objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)


def _is_plain(message: Message) -> bool:
    try:
        properties, headers = message.decode_properties(), message.decode_headers()
    except MessageError:
        return False
    return properties.get("content_type") == "application/json" and not (
        headers.get("compression") or properties.get("compression")
    )


def shown(arguments: Any) -> str:
    """Return arguments as the text that a person reads and looks for: JSON, with exact integers, where it can be."""
    return json.dumps(arguments, ensure_ascii=False, default=repr)

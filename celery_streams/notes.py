"""Notes: what is kept in Redis of a tracked task, one key each: where its message is, and the state that it is in.

A tracked task's message says so in a header, so that whoever moves it needs no settings. Each verb that changes the
state notes it in the same step (``lua/note``), behind what it does; messages of other tasks pay for one look at their
headers. What the notes mean is the matter of ``states``; which one a settled message gets, that of ``worker.noting``.
It knows neither Celery nor a connection.

A note is text: Redis' time in ms, an id that the verb returned (of a dead letter, or of what is held; else ``-``), a
JSON object, and behind a line feed the headers of the message. The JSON:

========  ============================================================================================================
``s``     the state: queued, delayed, held, running, retrying, succeeded, failed, dead, revoked, expired
``q``     the queue
``n``     which attempt it is, from 1 on; ``m``: how many there may be
``u``     ms since the epoch at which it is due; ``d``: its member of the delayed set, where that is known
``r``     the reason
``e``     the entry that ran, or was settled; with running: ``k``: its stream, ``w``: the consumer
``a``     with running: 1 when it was acknowledged before it ran
``l``     with held: its lane
``c``     1 when the headers are compact
========  ============================================================================================================

On a Redis Cluster the state of a task lies apart from its queue, and is noted in a step behind the verb. What the verb
stored may have been run by then: such a note does not take the place of one of a later entry (:func:`_apart`). While
the node of the state is away its notes are kept (``late_notes``), and know their place as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from . import keys
from .compact import is_compact
from .exceptions import MessageError
from .message import Message
from .scripts import Command, Script, following, load

__all__ = (
    "DONE",
    "HEADER",
    "NOTE",
    "WORDS",
    "Mark",
    "Note",
    "behind",
    "is_tracked",
    "mark_of",
    "note",
    "running",
    "stand_alone",
    "unless_in",
    "waiting",
)

#: Header of the messages of tracked tasks: for how many seconds the state of a task that is done is kept, and how many
#: attempts there may be (None: nobody says).
HEADER = "streams_track"

#: States that are the last one, unless somebody replays the message.
DONE = frozenset(("succeeded", "failed", "dead", "revoked", "expired"))

NOTE = load("note")

#: Milliseconds for which the state of a task that is not done is kept at least, counted from when it is due.
_UNFINISHED_MS = 7 * 86_400_000

#: Seconds that a message may say at most.
_LONGEST = 10 * 366 * 86_400

#: Words of a command that one note takes.
WORDS = 5

#: States of messages that others may have taken before the state is noted.
_STORED = frozenset(("queued", "delayed", "retrying", "held"))

_MARK = b'"' + HEADER.encode() + b'":'

_encode = json.JSONEncoder(separators=(",", ":")).encode

_BOTH: dict[str, Script] = {}


class Mark(NamedTuple):
    """What the header of a tracked message says, and what else a note needs of its message."""

    task_id: str
    kept_ms: int
    attempt: int
    of: int | None
    message: Message


@dataclass(frozen=True, slots=True)
class Note:
    """One state to be noted."""

    key: str
    kept_ms: int
    text: bytes
    #: On which reply of the verb, and what the state must be so far; see ``lua/note``.
    on: str = ""
    must: str = ""

    def when(self, on: str) -> Note:
        """Return the note for another reply of the verb."""
        return replace(self, on=on)


def is_tracked(message: Message | None) -> bool:
    """Return whether a message may be that of a tracked task; :func:`mark_of` knows."""
    return message is not None and _MARK in message.headers


def mark_of(message: Message | None) -> Mark | None:
    """Return what the header of a tracked message says; None when it is not tracked, or the header makes no sense."""
    if message is None or _MARK not in message.headers:
        return None
    try:
        headers = message.decode_headers()
    except MessageError:
        return None
    said, task_id = headers.get(HEADER), headers.get("id")
    if not (isinstance(said, list) and len(said) == 2 and isinstance(said[0], (int, float))) or not task_id:
        return None
    of, retries = said[1], headers.get("retries")
    return Mark(
        str(task_id),
        int(min(max(said[0], 1), _LONGEST) * 1000),
        retries + 1 if isinstance(retries, int) and retries > 0 else 1,
        of if isinstance(of, int) and of > 0 else None,
        message,
    )


def note(prefix: str, mark: Mark, state: str, queue: str, *, must: str = "", wait_ms: int = 0, **said: Any) -> Note:
    """Return the note that a task is in ``state``.

    Args:
        must: what the state must be so far; see ``lua/note``.
        wait_ms: how long it is until the message is due.
        said: what else it says; see the module.
    """
    known: dict[str, Any] = {"s": state, "q": queue, "n": mark.attempt}
    if mark.of is not None:
        known["m"] = mark.of
    known.update((name, value) for name, value in said.items() if value)
    if is_compact(mark.message.properties):
        known["c"] = 1
    kept_ms = mark.kept_ms if state in DONE else max(mark.kept_ms, _UNFINISHED_MS) + max(wait_ms, 0)
    return Note(
        keys.state(prefix, mark.task_id), kept_ms, _encode(known).encode() + b"\n" + mark.message.headers, must=must
    )


def waiting(
    prefix: str,
    queue: str,
    message: Message,
    *,
    due_ms: int = 0,
    now_ms: int = 0,
    member: str = "",
    must: str = "",
    entry: str = "",
) -> Note | None:
    """Return the note that a message was stored, now or until it is due; None when its task is not tracked.

    Args:
        entry: the one that it takes the place of.
    """
    mark = mark_of(message)
    if mark is None:
        return None
    state = "retrying" if mark.attempt > 1 else "delayed" if due_ms else "queued"
    return note(
        prefix, mark, state, queue, must=must, wait_ms=due_ms - now_ms if due_ms else 0, u=due_ms, d=member, e=entry
    )


def running(prefix: str, mark: Mark, queue: str, place: tuple[str, str], consumer: str, *, early: bool) -> Note:
    """Return the note that a consumer starts the entry at ``place``, stream and id."""
    return note(prefix, mark, "running", queue, k=place[0], e=place[1], w=consumer, a=int(early))


def at(place: tuple[str, str]) -> str:
    """Return the part of a note that says that the entry at ``place``, stream and id, runs."""
    return _encode({"k": place[0], "e": place[1]})[1:-1]


def unless_in(queue: str) -> str:
    """Return what the state must be so that a message which comes to ``queue`` from another one is not there yet."""
    return "!" + _in(queue)


def _in(queue: str) -> str:
    return _encode({"q": queue})[1:-1]


def behind(
    script: Script, names: Sequence[str], args: Sequence[Any], noted: Sequence[Note | None]
) -> tuple[Script, list[str], list[Any]]:
    """Return the command that runs ``script`` and notes states behind it; what is None is not noted."""
    some = [one for one in noted if one is not None]
    if not some:
        return script, list(names), list(args)
    both = _BOTH.get(script.sha)
    if both is None:
        both = _BOTH[script.sha] = following(script, NOTE, told=True, rest=_apart)
    words = [word for one in some for word in (one.on, one.kept_ms, one.must, one.text)]
    return both, [*names, *(one.key for one in some)], [*args, *words, len(names), len(args)]


def _apart(reply: Any, names: Sequence[Any], words: Sequence[Any]) -> list[Command]:
    """Return the commands that note states when the verb has replied, each for itself: their keys lie apart."""
    commands: list[Command] = []
    for at, key in enumerate(names):
        on, kept_ms, must, text = words[4 * at : 4 * at + 4]
        if not _applies(on, reply):
            continue
        named = on in ("", "held") and isinstance(reply, bytes)
        # A position that nobody names applies always, and goes without an id.
        must = must or _unless_later(text, reply)
        commands.append((NOTE, [key], [on if named else "0", kept_ms, must, text, reply if named else "1"]))
    return commands


def _unless_later(text: bytes, reply: Any) -> str:
    """Return what the state must be so that ``text`` takes the place of no later one; '' is anything.

    What a verb has stored gets an entry with a later id than the one that it comes from, and whoever takes that notes
    it. Ids are compared within a queue only: other nodes' clocks may differ.
    """
    said = json.loads(text.partition(b"\n")[0])
    if said["s"] not in _STORED:
        return ""
    if "e" in said:
        ms, number = said["e"].split("-")
        since = f"{ms}-{int(number) + 1}"
    elif isinstance(reply, bytes):
        since = reply.decode()
    elif isinstance(reply, int):
        since = f"{reply}-0"
    else:
        return ""
    return f"<{since} {_in(said['q'])}"


def _applies(on: str, reply: Any) -> bool:
    """Return whether a note is for this reply of its verb, as ``lua/note`` does."""
    if on == "held":
        return isinstance(reply, bytes)
    if on == "admitted":
        return reply in (1, 2)
    if on == "stored":
        return bool(reply[0] == 1)
    if on == "":
        return reply is not None and reply != 0
    listed = json.loads(reply) if isinstance(reply, bytes) and reply.startswith(b"[[") else reply
    positions = [one[0] if isinstance(one, list) else one for one in listed] if isinstance(listed, list) else []
    return int(on) not in positions


def stand_alone(noted: Sequence[Note]) -> list[Command]:
    """Return the commands that note states where no verb changes them, each for itself: their keys may lie apart."""
    return [(NOTE, [one.key], [one.on, one.kept_ms, one.must, one.text, "1"]) for one in noted]

"""States: tells in which state a tracked task is, from its note and from what lies in Redis at that moment.

Notes (see ``notes``) say what was last done with a message. Nobody notes that a message became due, was released, or
lost its worker, so what a note says is compared with where the message is: an entry that no longer is its consumer's
does not run any more. It changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from celery import current_app

from . import keys
from .app import streams_of
from .broker import StreamBroker
from .compact import expand_headers
from .exceptions import MessageError
from .message import decode_json

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("STATES", "TaskState", "TrackedTask", "look", "state")

#: All states, in the order of a task's life.
STATES = (
    "queued",
    "delayed",
    "held",
    "running",
    "retrying",
    "succeeded",
    "failed",
    "dead",
    "revoked",
    "expired",
    "unknown",
)

#: Looks at a task whose message moves on between two round trips.
_LOOKS = 5


@dataclass(frozen=True, slots=True)
class TaskState:
    """The state of one task at one moment."""

    #: One of :data:`STATES`.
    state: str
    #: When it came to be so, in seconds since the epoch by Redis' clock; None with ``unknown``.
    since: float | None = None
    #: With ``delayed`` and ``retrying``: when it is due, in seconds since the epoch.
    until: float | None = None
    #: Which attempt it is, from 1 on (with ``retrying`` the next one), and how many there may be; None: nobody says.
    attempt: int | None = None
    of: int | None = None
    #: Why: with ``held`` what it waits for, with ``dead`` and ``failed`` what happened.
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TrackedTask:
    """A tracked task: its state, and what its message said."""

    task_id: str
    state: TaskState
    headers: Mapping[str, Any] = field(default_factory=dict)


@overload
def state(app: Celery, task_id: Any, /) -> TaskState: ...


@overload
def state(task_id: Any, /) -> TaskState: ...


def state(app_or_task_id: Any, task_id: Any = None, /) -> TaskState:
    """Return the state of a task: ``state(task_id)``, or ``state(app, task_id)`` where the app is not the current one.

    It is ``unknown`` for tasks that are not tracked (``streams_track``), that nobody published, and whose state is no
    longer kept. Two or three round trips.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    app, wanted = (current_app, app_or_task_id) if task_id is None else (app_or_task_id, task_id)
    return look(app, wanted).state


def look(app: Celery, task_id: Any) -> TrackedTask:
    """Return a task with its state and the headers of its message; the headers are empty when it is unknown.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    broker, wanted = streams_of(app).broker, str(task_id)
    key = keys.state(broker.prefix, wanted)
    before: bytes | None = None
    found: TaskState | None = None
    for _ in range(_LOOKS):
        raw, score, clock = broker.client.call_all(
            [("GET", key), ("ZSCORE", keys.revoked(broker.prefix), wanted), ("TIME",)]
        )
        if raw is None:
            return TrackedTask(wanted, TaskState("unknown"))
        if found is not None and raw == before:
            # It was still so behind the look at its message: the two belong together.
            return TrackedTask(wanted, found, _headers(raw))
        now_ms = int(clock[0]) * 1000 + int(clock[1]) // 1000
        note = _parse(raw)
        if note is None:
            return TrackedTask(wanted, TaskState("unknown"))
        found = _judge(broker, note, now_ms=now_ms, revoked=score is not None and float(score) * 1000 > now_ms)
        if note.state in ("succeeded", "failed", "revoked", "expired"):
            return TrackedTask(wanted, found, _headers(raw))
        before = raw
    # It moves on faster than we look; that is what it was a moment ago.
    return TrackedTask(wanted, found or TaskState("unknown"), _headers(before or b""))


@dataclass(frozen=True, slots=True)
class _Noted:
    """A note, taken apart."""

    since_ms: int
    id: str
    said: Mapping[str, Any]

    @property
    def state(self) -> str:
        return str(self.said.get("s"))

    @property
    def queue(self) -> str:
        return str(self.said.get("q"))

    def told(
        self, state: str, *, since_ms: int | None = None, until_ms: int = 0, reason: str | None = None
    ) -> TaskState:
        """Return a state with what the note says of the rest."""
        return TaskState(
            state,
            (self.since_ms if since_ms is None else since_ms) / 1000,
            until_ms / 1000 if until_ms else None,
            self.said.get("n"),
            self.said.get("m"),
            str(self.said.get("r", "")) if reason is None else reason,
        )


def _parse(raw: bytes) -> _Noted | None:
    try:
        since, noted_id, rest = raw.split(b" ", 2)
        said = json.loads(rest.partition(b"\n")[0])
        return _Noted(int(since), noted_id.decode(), said)
    except (ValueError, UnicodeDecodeError):
        return None  # somebody else's key


def _headers(raw: bytes) -> dict[str, Any]:
    note = _parse(raw)
    try:
        found = decode_json(raw.partition(b"\n")[2])
        if not isinstance(found, dict):
            return {}
        return expand_headers(found) if note is not None and note.said.get("c") else found
    except MessageError:
        return {}


def _judge(broker: StreamBroker, note: _Noted, *, now_ms: int, revoked: bool) -> TaskState:
    """Return what a note means now. At most one round trip."""
    state, said, names = note.state, note.said, broker.queue_keys(note.queue)
    if state == "dead":
        there = broker.client.call("XRANGE", names.dead, note.id, note.id)
        return note.told("dead" if there else "failed")
    if state == "running":
        if said.get("a"):
            return note.told("running")
        (held,) = broker.client.call_all(
            [("XPENDING", said["k"], keys.GROUP, said["e"], said["e"], 1, said["w"])], missing_is_none=True
        )
        # What is not pending there any more went back when its worker died, and nobody has started it again.
        return note.told("running") if held else _waits(broker, note, now_ms, revoked, reason="crashed")
    if state in ("queued", "delayed", "held", "retrying"):
        return _waits(broker, note, now_ms, revoked)
    return note.told(state)


def _waits(broker: StreamBroker, note: _Noted, now_ms: int, revoked: bool, *, reason: str | None = None) -> TaskState:
    """Return the state of a task whose message waits somewhere in its queue."""
    state, said, names = note.state, note.said, broker.queue_keys(note.queue)
    member, lane = said.get("d"), said.get("l", "")
    replies = broker.client.call_all(
        [
            ("GET", names.paused),
            ("ZSCORE", names.delayed, member or ""),
            ("HGET", names.shelf[0], note.id),
            ("ZSCORE", names.shelf[2], lane),
            ("ZCARD", names.delayed),
            ("HLEN", names.shelf[0]),
            *(("XLEN", key) for key in (*names.streams, *names.fronts)),
        ]
    )
    paused, due, is_held, waits_for_time, *sizes = replies
    if not any(sizes):
        return TaskState("unknown")  # somebody purged the queue
    if revoked:
        return note.told("revoked", reason="")
    until_ms = int(said.get("u") or 0)
    is_later = until_ms > now_ms and (not member or due is not None)
    if state == "held" and is_held is not None:
        return note.told("held", reason="rate limit" if waits_for_time is not None else "concurrency limit")
    if not is_later and paused is not None:
        since, _, why = paused.partition(b" ")
        why = why.decode(errors="replace")
        since_ms = int(since) if since.isdigit() else note.since_ms
        return note.told(
            "held", since_ms=max(since_ms, note.since_ms), reason=f"queue paused: {why}" if why else "queue paused"
        )
    if state == "retrying":
        return note.told("retrying", until_ms=until_ms)
    if state == "delayed" and is_later:
        return note.told("delayed", until_ms=until_ms)
    return note.told("queued", since_ms=until_ms if state == "delayed" and until_ms <= now_ms else None, reason=reason)

"""Obstacles: why no worker would run a message that is put back: it expired, or it was revoked; pure functions.

A worker acknowledges such a message and forgets it. So whoever puts a dead letter back looks here first, and may take
the obstacle out of the message when a person asks for that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from dateutil.parser import isoparse  # type: ignore[import-untyped]

from .exceptions import MessageError
from .message import Message, encode_json
from .said import Said, say

__all__ = ("Obstacle", "find_obstacles", "stamps_of", "task_id_of", "under_new_id", "without_expiry")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a message would not be run."""

    kind: Literal["expired", "revoked"]
    #: Completes "Dead letter ... was not replayed: ".
    text: Said


def find_obstacles(message: Message, *, now: float, revoked: Container[str]) -> tuple[Obstacle, ...]:
    """Return why no worker would run ``message``; nothing if one would.

    Args:
        now: seconds since the epoch.
        revoked: task ids and stamps (as :func:`stamps_of` has them) that are revoked.

    Raises:
        MessageError: the headers are no JSON object.
    """
    found: list[Obstacle] = []
    expires = _seconds(_told(message).get("expires"))
    if expires is not None and expires <= now:
        at = datetime.fromtimestamp(expires, timezone.utc).isoformat(sep=" ", timespec="seconds")
        found.append(Obstacle("expired", say("it expired at %(at)s", at=at)))
    task_id = task_id_of(message)
    if task_id is not None and task_id in revoked:
        found.append(Obstacle("revoked", say("its task id %(id)s was revoked", id=task_id)))
    found += [
        Obstacle("revoked", say("tasks with its stamp %(stamp)s were revoked", stamp=stamp))
        for stamp in stamps_of(message)
        if stamp in revoked
    ]
    return tuple(found)


def task_id_of(message: Message) -> str | None:
    """Return the task id, of protocol 1 too; None when the message does not say."""
    task_id = _told(message).get("id")
    return None if task_id is None else str(task_id)


def stamps_of(message: Message) -> list[str]:
    """Return the stamps of a message as they are kept when they are revoked: pairs of header and stamp, in JSON."""
    headers = message.decode_headers()
    stamps, names = headers.get("stamps"), headers.get("stamped_headers")
    if not isinstance(stamps, Mapping) or not isinstance(names, list):
        return []
    found: list[tuple[str, Any]] = []
    for name in names:
        value = stamps.get(name)
        found += [(name, stamp) for stamp in (value if isinstance(value, list) else [value]) if stamp is not None]
    return [encode_json(pair) for pair in found]


def without_expiry(message: Message) -> Message:
    """Return ``message`` so that it never expires.

    Raises:
        MessageError: its expiry stands in a body that cannot be written again.
    """
    return _changed(message, lambda told: told.update(expires=None))


def under_new_id(message: Message, task_id: str) -> Message:
    """Return ``message`` as a task of another id, with no stamps: what was revoked by either does not meet it.

    Raises:
        MessageError: its id stands in a body that cannot be written again.
    """

    def rename(told: dict[str, Any]) -> None:
        if told.get("root_id") == told.get("id"):
            told["root_id"] = task_id
        told["id"] = task_id
        told.pop("stamps", None)
        told.pop("stamped_headers", None)

    message = message.written_out()
    properties = message.decode_properties()
    properties["correlation_id"] = task_id
    return _changed(message.changed(properties=encode_json(properties).encode()), rename)


def _changed(message: Message, change: Callable[[dict[str, Any]], Any]) -> Message:
    message = message.written_out()
    headers = message.decode_headers()
    if "task" in headers:
        change(headers)
        return message.changed(headers=encode_json(headers).encode())
    body = _body(message)
    if not body:
        raise MessageError("The message is of Celery's protocol 1, and not JSON: it cannot be changed")
    change(body)
    return message.changed(body=encode_json(body).encode())


def _told(message: Message) -> dict[str, Any]:
    """Return what the message says of its task: the headers, or with protocol 1 the body."""
    headers = message.decode_headers()
    return headers if "task" in headers else _body(message)


def _body(message: Message) -> dict[str, Any]:
    properties = message.decode_properties()
    if properties.get("content_type") != "application/json" or properties.get("compression"):
        return {}
    try:
        body = json.loads(message.body)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _seconds(expires: Any) -> float | None:
    """Return an expiry in seconds since the epoch; None for none, and for what a worker will call invalid."""
    if isinstance(expires, str):
        try:
            expires = isoparse(expires)
        except (ValueError, OverflowError):
            return None
    if not isinstance(expires, datetime):
        return None
    aware = expires if expires.tzinfo is not None else expires.replace(tzinfo=timezone.utc)
    return aware.timestamp()

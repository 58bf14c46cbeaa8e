"""Celery's own queues, kombu's Redis lists: their keys, and their envelope to and from a Message; no Redis here.

A queue is a list for each priority step, ``QUEUE``, ``QUEUE\\x06\\x163`` ...; publishers push at the head, workers pop
at the tail. An element is JSON: ``body`` (base64), ``content-type``, ``content-encoding``, ``headers``, ``properties``.
What a stock worker has fetched lies in the hash ``unacked`` until it is acknowledged.

JSON is copied as plain JSON, so that kombu's marked values (dates, UUIDs) pass through unread.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import keys
from .exceptions import MessageError
from .message import Message, encode, encode_history

__all__ = ("ListKeys", "Wrapped", "list_keys", "priority_of", "unwrap", "unwrap_unacked", "wrap")

#: kombu's separator between a queue and its priority step, and inside binding tables.
SEPARATOR = "\x06\x16"


@dataclass(frozen=True, slots=True)
class ListKeys:
    """The Redis keys of one Celery queue; ``lists`` runs parallel to ``steps``, highest priority first."""

    queue: str
    steps: tuple[int, ...]
    lists: tuple[str, ...]
    unacked: str
    unacked_index: str
    #: Binding table of an exchange, with ``%s`` for its name.
    bindings: str

    def index_of(self, priority: Any) -> int:
        """Return the index of the list that a message of this priority belongs to, as kombu does."""
        return keys.step_index(self.steps, priority)


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A message as an element of a Celery list."""

    element: bytes
    #: Which of :attr:`ListKeys.lists`.
    index: int
    #: Its delivery tag, unique.
    tag: str


def list_keys(queue: str, options: Mapping[str, Any]) -> ListKeys:
    """Return the keys of ``queue`` under these ``broker_transport_options``."""
    prefix = options.get("global_keyprefix") or ""
    separator = options.get("sep") or SEPARATOR
    steps = tuple(sorted(int(step) for step in options.get("priority_steps") or keys.DEFAULT_STEPS))
    return ListKeys(
        queue=queue,
        steps=steps,
        lists=tuple(f"{prefix}{queue}{separator}{step}" if step else f"{prefix}{queue}" for step in steps),
        unacked=f"{prefix}{options.get('unacked_key') or 'unacked'}",
        unacked_index=f"{prefix}{options.get('unacked_index_key') or 'unacked_index'}",
        bindings=f"{prefix}_kombu.binding.%s",
    )


def unwrap(element: bytes, names: keys.QueueKeys) -> Message:
    """Turn an element of a Celery list into a message for the streams of ``names``.

    Raises:
        MessageError: it is not what kombu writes.
    """
    envelope = _object(element, "the element")
    properties, headers = envelope.get("properties"), envelope.get("headers") or {}
    if not isinstance(properties, dict) or not isinstance(headers, dict) or "body" not in envelope:
        raise MessageError("the element is not a kombu message")
    properties, headers = dict(properties), dict(headers)
    info = properties.pop("delivery_info", None) or {}
    redelivered = headers.pop("redelivered", False) or (isinstance(info, dict) and info.get("redelivered"))
    properties.pop("delivery_tag", None)
    body = _body(envelope["body"], properties.pop("body_encoding", None))
    properties["content_type"] = envelope.get("content-type")
    properties["content_encoding"] = envelope.get("content-encoding")
    step = names.step_index(properties.get("priority"))
    try:
        made = encode(headers, properties, body, step=step)
    except (ValueError, RecursionError) as exc:
        raise MessageError(f"the message cannot be written: {exc}") from exc
    history = encode_history({"redelivered": 1} if redelivered else {})
    return Message(made.headers, made.properties, made.body, history, step)


def priority_of(element: bytes) -> Any:
    """Return the priority in an element of a Celery list; None when there is none, or the element is no message."""
    try:
        properties = _object(element, "the element").get("properties")
    except MessageError:
        return None
    return properties.get("priority") if isinstance(properties, dict) else None


def unwrap_unacked(value: bytes) -> tuple[bytes, str, str]:
    """Return (element to put back on its list, exchange, routing key) for a value of the hash ``unacked``.

    Raises:
        MessageError: it is not what kombu writes.
    """
    found = _json(value, "the value")
    if not isinstance(found, list) or len(found) != 3 or not isinstance(found[0], dict):
        raise MessageError("the value is not an unacknowledged message")
    payload, exchange, routing_key = found
    headers = payload.setdefault("headers", {})
    properties = payload.get("properties")
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        raise MessageError("the value is not an unacknowledged message")
    headers["redelivered"] = True
    properties.setdefault("delivery_info", {})["redelivered"] = True
    return _dumped(payload), str(exchange or ""), str(routing_key or "")


def wrap(message: Message, names: ListKeys, *, eta: str | None = None) -> Wrapped:
    """Turn a message into an element of the Celery lists of ``names``, as kombu would have published it.

    ``eta`` (ISO 8601) replaces the one in the headers. The count of crashes is left behind: lists have no place for it.

    Raises:
        MessageError: headers, properties or history are not JSON objects.
    """
    message = message.written_out()
    headers, properties = _object(message.headers, "headers"), _object(message.properties, "properties")
    history = _object(message.history, "history") if message.history else {}
    if eta is not None and "task" in headers:
        headers["eta"] = eta
    info: dict[str, Any] = {"exchange": "", "routing_key": names.queue}
    if history.get("redelivered") or history.get("crashes"):
        headers["redelivered"] = info["redelivered"] = True
    content_type, content_encoding = properties.pop("content_type", None), properties.pop("content_encoding", None)
    priority = properties.pop("priority", None) or 0
    tag = str(uuid.uuid4())
    envelope = {
        "body": base64.b64encode(message.body).decode(),
        "content-encoding": content_encoding,
        "content-type": content_type,
        "headers": headers,
        "properties": {
            **properties,
            "delivery_info": info,
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": tag,
        },
    }
    return Wrapped(_dumped(envelope), names.index_of(priority), tag)


def _body(body: Any, encoding: Any) -> bytes:
    if not isinstance(body, str):
        raise MessageError(f"the body must be text, not {type(body).__name__}")
    if not encoding or str(encoding).lower() == "utf-8":
        return body.encode()
    if encoding != "base64":
        raise MessageError(f"unknown body_encoding {encoding!r}")
    try:
        return base64.b64decode(body)
    except (binascii.Error, ValueError) as exc:
        raise MessageError(f"the body is not base64: {exc}") from exc


def _json(raw: bytes, what: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise MessageError(f"{what} is not JSON: {exc}") from exc


def _dumped(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError) as exc:  # what could just be read may be too deep with a level around it
        raise MessageError(f"the message cannot be written: {exc}") from exc


def _object(raw: bytes, what: str) -> dict[str, Any]:
    value = _json(raw, what)
    if not isinstance(value, dict):
        raise MessageError(f"{what} must be a JSON object, not {type(value).__name__}")
    return value

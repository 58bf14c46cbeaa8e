"""Compact: what goes without saying in a task's headers and properties is left out of entries, and put back when read.

Two thirds of a small message are headers that are null, ids that are said twice, and properties that are the same in
every message. An entry is written without them when its names are those of Celery's protocol 2, in Celery's order, and
each value is what :data:`HEADERS` and :data:`PROPERTIES` say; what is read is the same, in the same order. The mark
``"compact":1`` at the beginning of the properties tells such an entry from one that never had these headers.

It is JSON all the same, and a version that does not know the mark runs it: it takes what is missing for null. It needs
``content_type`` and ``content_encoding``, which are therefore always written. No Redis here, and no Celery.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .exceptions import MessageError

__all__ = ("HEADERS", "PROPERTIES", "expand_headers", "expand_properties", "is_compact", "shorten")

#: What is left out of the headers when it says this, in the order in which Celery writes them. Of ``root_id`` that is
#: the id; ``...`` stands for what is always written.
HEADERS: dict[str, Any] = {
    "lang": "py",
    "task": ...,
    "id": ...,
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "root_id": ...,
    "parent_id": None,
    "argsrepr": "()",
    "kwargsrepr": "{}",
    "origin": ...,
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}

#: The same of the properties, in kombu's order. The ``correlation_id`` of a task is its id.
PROPERTIES: dict[str, Any] = {
    "correlation_id": ...,
    "reply_to": ...,
    "delivery_mode": 2,
    "content_type": ...,
    "content_encoding": ...,
    "priority": 0,
}

_MARK = b'{"compact":1,'
_HEADER_NAMES, _PROPERTY_NAMES = tuple(HEADERS), tuple(PROPERTIES)


def shorten(headers: Mapping[str, Any], properties: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return what has to be written of both, the mark included; None when they are not in Celery's own form."""
    names, property_names = tuple(headers), tuple(properties)
    if names[: len(_HEADER_NAMES)] != _HEADER_NAMES or property_names[: len(_PROPERTY_NAMES)] != _PROPERTY_NAMES:
        return None
    task_id = headers["id"]
    if type(task_id) is not str or type(headers["timelimit"]) is tuple or "compact" in properties:
        return None
    short = {name: value for name, value in headers.items() if not _goes_without_saying(HEADERS, name, value)}
    if short["root_id"] == task_id:
        del short["root_id"]
    rest = {name: value for name, value in properties.items() if not _goes_without_saying(PROPERTIES, name, value)}
    if rest["correlation_id"] == task_id:
        del rest["correlation_id"]
    return short, {"compact": 1, **rest}


def _goes_without_saying(defaults: Mapping[str, Any], name: str, value: Any) -> bool:
    default = defaults.get(name, ...)
    # Of the same type, too: False is no 0 in JSON.
    return default is not ... and type(value) is type(default) and bool(value == default)


def is_compact(properties: bytes) -> bool:
    """Return whether properties, as they lie in Redis, are those of a compact message."""
    return properties.startswith(_MARK)


def expand_headers(short: dict[str, Any]) -> dict[str, Any]:
    """Undo :func:`shorten` for decoded headers.

    Raises:
        MessageError: what is always written is missing.
    """
    full = {**HEADERS, **short}
    if "root_id" not in short:
        full["root_id"] = full["id"]
    if full["id"] is ... or full["task"] is ... or full["origin"] is ...:
        raise MessageError("a compact message must have the headers task, id and origin")
    if "timelimit" not in short:
        full["timelimit"] = [None, None]
    if "stamps" not in short:
        full["stamps"] = {}
    return full


def expand_properties(short: dict[str, Any], task_id: Any) -> dict[str, Any]:
    """Undo :func:`shorten` for decoded properties of the message of ``task_id``.

    Raises:
        MessageError: what is always written is missing.
    """
    full = {**PROPERTIES, **short}
    del full["compact"]
    if "correlation_id" not in short:
        full["correlation_id"] = task_id
    if full["reply_to"] is ... or full["content_type"] is ... or full["content_encoding"] is ...:
        raise MessageError("a compact message must have the properties reply_to, content_type and content_encoding")
    return full

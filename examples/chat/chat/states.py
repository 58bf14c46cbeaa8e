"""States in words: what a person reads below a message. The page's script has the same words, from the page."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from django.utils import timezone

from celery_streams import BrokerError, TaskState, state

from .models import Message

__all__ = ("WORDS", "annotate", "describe")

logger = logging.getLogger(__name__)

#: A state as it is said of a message that is sent, and of one that is marked as read.
WORDS = {
    "queued": ("waiting to be sent", "waiting to be marked as read"),
    "delayed": ("to be sent later", "to be marked as read later"),
    "held": ("held back", "held back"),
    "running": ("sending", "marking as read"),
    "retrying": ("trying again", "trying again"),
    "succeeded": ("sent", "read"),
    "failed": ("not sent", "not marked as read"),
    "dead": ("not sent", "not marked as read"),
    "revoked": ("cancelled", "cancelled"),
    "expired": ("given up, too late", "given up, too late"),
    "unknown": ("state unknown", "state unknown"),
}


def annotate(messages: Iterable[Message]) -> list[Message]:
    """Give each message its ``state`` (a TaskState, or None for one that nobody has read) and its ``words``."""
    found = list(messages)
    for message in found:
        message.state = _state_of(message)
        message.words = describe(message.state, incoming=message.incoming) if message.state else "new"
    return found


def describe(found: TaskState, *, incoming: bool) -> str:
    """Return a state in words, such as ``trying again, attempt 2 of 4``."""
    said = [WORDS[found.state][incoming]]
    if found.state == "retrying" and found.of:
        said.append(f"attempt {found.attempt} of {found.of}")
    left = round((found.until or 0) - timezone.now().timestamp())
    if found.state in ("retrying", "delayed") and left > 0:
        said.append(f"in {left} s")
    if found.state in ("held", "queued") and found.reason:
        said.append(found.reason)
    return ", ".join(said)


def _state_of(message: Message) -> Any:
    if not message.task_id:
        return None
    if message.done:
        return TaskState("succeeded", since=message.done.timestamp())
    try:
        return state(message.task_id)
    except BrokerError as exc:
        logger.warning("The state of task %s cannot be told: %s", message.task_id, exc)
        return TaskState("unknown")

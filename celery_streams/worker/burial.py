"""Burial: what a dead letter says besides its message, and who is told that there is one. ``settle`` stores it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kombu.utils.json import JSONEncoder

from ..attempts import FIELD, Attempt
from ..entries import Delivery
from ..hints import command
from ..partitions import queue_of, shown_id
from ..signals import message_dead_lettered
from .attempted import with_attempt
from .outcome import Outcome

__all__ = ("Death", "announce", "reason_of", "record_of")

logger = logging.getLogger(__name__)

_encode = JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Death:
    """What a dead letter says besides the message and the reason."""

    task: str | None = None
    task_id: str | None = None
    exception: str | None = None
    traceback: str | None = None
    #: The class of the exception, or how the process ended; never what an exception says.
    detail: str = ""


def reason_of(outcome: Outcome) -> str:
    """Return the reason as a dead letter says it."""
    return outcome.reason.value if outcome.reason else "unknown"


def record_of(
    delivery: Delivery,
    outcome: Outcome,
    death: Death,
    past: Mapping[str, Any],
    *,
    hostname: str,
    attempt: Attempt | None = None,
) -> bytes:
    """Return the field ``death`` of a dead letter: a JSON object.

    Args:
        past: the history of the message.
        hostname: the node name of the worker that buries it.
        attempt: the last one; None: it was never started.
    """
    reason = reason_of(outcome)
    last = with_attempt(dict(past), attempt).get(FIELD) if attempt is not None else None
    return _encode(
        {
            "reason": reason,
            "task": death.task,
            "task_id": death.task_id,
            "exception": death.exception,
            "traceback": death.traceback,
            "worker": hostname,
            "crashes": int(past.get("crashes") or 0) + (1 if reason == "crashed" else 0),
            "entry_id": past.get("first") or delivery.entry_id.decode(),
            "queue": queue_of(delivery.stream.queue),
            # Those before stand in the message's own history.
            **({} if last is None else {FIELD: last.rpartition("\n")[2]}),
        }
    ).encode()


def announce(sender: object, delivery: Delivery, outcome: Outcome, death: Death, letter: str) -> None:
    """Log that there is a dead letter, whose id is ``letter``, and send the signal."""
    queue, reason = queue_of(delivery.stream.queue), reason_of(outcome)
    letter = shown_id(delivery.stream.queue, letter)
    # Whatever led here was logged as an error already: as another one, error trackers would count it twice.
    logger.warning(
        "Task %s[%s] of queue %s is a dead letter (%s): %s",
        death.task or "?",
        death.task_id or "?",
        queue,
        reason,
        command("dead", "show", queue, letter),
        extra={"data": {"id": death.task_id, "name": death.task, "queue": queue}},
    )
    message_dead_lettered.send(
        sender=sender, queue=queue, entry_id=letter, reason=reason, task_id=death.task_id, task=death.task
    )

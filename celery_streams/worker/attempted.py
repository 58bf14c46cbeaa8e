"""Attempted: what is said of a delivery that ended among the attempts of its message.

``settle`` has it written, with whatever puts the message back or buries it; a retry takes it along (``execution``).
"""

from __future__ import annotations

import sys
import time
from typing import Any

from ..attempts import FIELD, Attempt, and_this
from ..celery_private import error_of_retry
from ..message import Message, encode_history
from .outcome import Action, Outcome, Reason
from .task_errors import class_of

__all__ = ("TIME_LIMIT", "attempt_of", "with_attempt", "with_retry")

#: What is said of a start that a hard time limit ended.
TIME_LIMIT = "TimeLimitExceeded"

#: Reasons of dead letters of messages that were started.
_STARTED = (Reason.FAILED, Reason.CRASHED, Reason.REJECTED, Reason.TIMED_OUT)


def attempt_of(outcome: Outcome, detail: str, consumer: str, *, ran_for: float | None) -> Attempt | None:
    """Return the attempt that ended with ``outcome``; None when the message goes on without one: it never started.

    Args:
        detail: what a :class:`burial.Death` says of it besides: the class of what it raised, how its process ended.
        ran_for: for how many seconds it ran, as far as that is known.
    """
    if outcome.action is Action.REQUEUE:
        if not outcome.redelivered:
            return None
        said = "put back" if outcome.behind else "crashed" if outcome.crash else "interrupted"
        if outcome.crash and detail == TIME_LIMIT:
            said = Reason.TIMED_OUT.value
    elif outcome.action is Action.DEAD and outcome.reason in _STARTED:
        said = outcome.reason.value
    else:
        return None
    ended = time.time()
    began = None if ran_for is None else ended - ran_for
    return Attempt(said, consumer, "" if said in ("put back", "rejected") else detail, began, ended)


def with_attempt(history: dict[str, Any], attempt: Attempt | None) -> dict[str, Any]:
    """Return a history with one attempt more, if there was one."""
    if attempt is None:
        return history
    return {**history, FIELD: and_this(history.get(FIELD), attempt, least=int(history.get("crashes") or 0))}


def with_retry(retry: Message, of: Message | None, consumer: str, *, ran_for: float | None, retries: float) -> Message:
    """Return the message of a retry, which knows the attempts of the message that it takes the place of.

    Called while the task calls ``self.retry()``: it failed with the ``exc`` of that call, else with what is being
    handled.
    """
    history = of.decode_history() if of is not None else {}
    raised, ended = error_of_retry(), time.time()
    if raised is None:
        raised = sys.exc_info()[1]
    began = None if ran_for is None else ended - ran_for
    attempt = Attempt("retried", consumer, "" if raised is None else class_of(raised), began, ended)
    text = and_this(history.get(FIELD), attempt, least=int(retries) + 1)
    return retry.changed(history=encode_history({FIELD: text}))

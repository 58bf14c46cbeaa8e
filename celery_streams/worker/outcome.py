"""outcome: decides what happens to a message, from what became of its task. Pure; ``settle`` carries it out.

The table, for messages that are acknowledged late (the default on streams):

===============  ===================================================================================================
event            action
===============  ===================================================================================================
succeeded        ack
expected         ack (an exception in ``Task.throws``); dead letter when ``acks_on_failure`` is off
failed           dead letter (``streams_dead_letter_failures``), else ack; dead letter when ``acks_on_failure`` is off
retried          retry: ack together with storing the message that ``self.retry()`` made
ignored          ack
rejected         dead letter
requeued         requeue behind what waits, marked redelivered: before it, a task that rejects and rejects would spin
expired          ack
revoked          ack, also when terminated while it ran
unknown          hand over to a worker that knows the task, while one takes it; else requeue after 1 to 30 s until
                 ``streams_unknown_task_ttl``, then dead letter
malformed        dead letter; likewise ``nameless``, ``not_accepted`` (content type) and ``invalid``
early            requeue until its eta: the message came before its time
limited          hold: its task raised RateLimited; no delivery counted; dead letter when acknowledged before it ran
held             leave: it was moved aside before it started
timed_out        as failed; requeue with the crash counted when ``acks_on_timeout`` is off
exited           dead letter: the task's body raised SystemExit or KeyboardInterrupt (Celery: WorkerLostError); as lost
                 when the task says ``reject_on_worker_lost = True``
lost             requeue with the crash counted and a back-off, dead letter at the delivery limit or when the task
                 says ``reject_on_worker_lost = False``
interrupted      requeue at once, marked redelivered (cold shutdown)
disowned         leave: another worker has it
kept             leave: the task's own strategy holds on to it, and acknowledges it later
===============  ===================================================================================================

A message that was acknowledged before it ran is gone from the stream: then only a dead letter can still be written,
and everything else is ``leave``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ..recovery import MAX_BACKOFF_MS

__all__ = ("Action", "Circumstances", "Event", "Outcome", "Reason", "decide")

#: Seconds: least and greatest pause before a message for an unknown task is looked at again.
UNKNOWN_PAUSE = (1.0, 30.0)


class Event(Enum):
    """What happened to a message."""

    SUCCEEDED = "succeeded"
    EXPECTED = "expected"
    FAILED = "failed"
    RETRIED = "retried"
    IGNORED = "ignored"
    REJECTED = "rejected"
    REQUEUED = "requeued"
    EXPIRED = "expired"
    REVOKED = "revoked"
    UNKNOWN = "unknown"
    MALFORMED = "malformed"
    NAMELESS = "nameless"
    NOT_ACCEPTED = "not_accepted"
    INVALID = "invalid"
    EARLY = "early"
    LIMITED = "limited"
    TIMED_OUT = "timed_out"
    EXITED = "exited"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    DISOWNED = "disowned"
    KEPT = "kept"
    HELD = "held"


class Action(Enum):
    """What is done with a message."""

    ACK = "ack"
    RETRY = "retry"
    DEAD = "dead"
    REQUEUE = "requeue"
    HAND_OVER = "hand over"
    HOLD = "hold"
    LEAVE = "leave"


class Reason(str, Enum):
    """Why a message became a dead letter; what ``celery-streams dead list`` shows and filters by."""

    FAILED = "failed"
    CRASHED = "crashed"
    REJECTED = "rejected"
    TIMED_OUT = "time-limit"
    UNKNOWN = "unknown-task"
    MALFORMED = "malformed"
    NOT_ACCEPTED = "not-accepted"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a decision depends on besides the event; times in seconds."""

    #: False when the message was acknowledged before the task ran.
    acks_late: bool = True
    acks_on_failure: bool = True
    acks_on_timeout: bool = True
    #: The task's own word; None is "not said".
    reject_on_worker_lost: bool | None = None
    dead_letter_failures: bool = True
    #: Deliveries that ended in a crash before this one.
    crashes: int = 0
    delivery_limit: int = 5
    #: How long the task has been unknown to workers.
    unknown_for: float = 0.0
    unknown_task_ttl: float = 600.0
    #: The worker that takes it because it knows the task; empty: none, or it was handed over before.
    taker: str = ""
    #: How long until the eta of a message that came early, or until its key may start again.
    early_by: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The decision."""

    action: Action
    #: Only with DEAD.
    reason: Reason | None = None
    #: Only with REQUEUE and HOLD: seconds until it may be delivered again.
    delay: float = 0.0
    #: Only with REQUEUE: whether this delivery counts as a crash.
    crash: bool = False
    #: Only with REQUEUE: whether the next delivery is marked as redelivered.
    redelivered: bool = True
    #: Only with REQUEUE: whether it goes behind what waits, as a new message would; else it runs before that.
    behind: bool = False
    #: Only with REQUEUE: what it waits for; the kinds of waits that are short are in ``recovery.LONGEST_WAIT_MS``.
    waits_for: str = field(default="back", compare=False)
    #: Only with HAND_OVER: the worker that takes it.
    taker: str = ""


_ACK = Outcome(Action.ACK)
_LEAVE = Outcome(Action.LEAVE)
_ALWAYS_DEAD = {
    Event.REJECTED: Reason.REJECTED,
    Event.MALFORMED: Reason.MALFORMED,
    Event.NAMELESS: Reason.MALFORMED,
    Event.NOT_ACCEPTED: Reason.NOT_ACCEPTED,
    Event.INVALID: Reason.INVALID,
}
_ALWAYS_ACK = {Event.SUCCEEDED, Event.IGNORED, Event.EXPIRED, Event.REVOKED}


def crash_pause(crashes: int) -> float:
    """Return the pause in seconds before the next delivery after so many crashes: 0, 1, 2, 4 ... 60."""
    return 0.0 if crashes <= 1 else min(2.0 ** min(crashes - 2, 10), MAX_BACKOFF_MS / 1000)


def crash_pauses_ms(delivery_limit: int) -> list[int]:
    """Return the pauses in milliseconds after each crash that does not reach the limit, for the script that recovers.

    It carries out this part of the table for entries that nobody needs to look at; all others are decided here.
    """
    return [int(crash_pause(crashes) * 1000) for crashes in range(1, delivery_limit)]


def decide(event: Event, given: Circumstances) -> Outcome:
    """Return what is done with the message."""
    outcome = _decide(event, given)
    if not given.acks_late and outcome.action is not Action.DEAD:
        return _LEAVE
    return outcome


def _decide(event: Event, given: Circumstances) -> Outcome:
    if event in _ALWAYS_ACK:
        return _ACK
    if event in _ALWAYS_DEAD:
        return Outcome(Action.DEAD, _ALWAYS_DEAD[event])
    if event is Event.RETRIED:
        return Outcome(Action.RETRY)
    if event in (Event.DISOWNED, Event.KEPT, Event.HELD):
        return _LEAVE
    if event in (Event.REQUEUED, Event.INTERRUPTED):
        return Outcome(Action.REQUEUE, behind=event is Event.REQUEUED)
    if event is Event.EARLY:
        return Outcome(Action.REQUEUE, delay=given.early_by, redelivered=False)
    if event is Event.LIMITED:
        # What was acknowledged before it ran cannot be held, and must not be lost.
        return Outcome(Action.HOLD, delay=given.early_by) if given.acks_late else Outcome(Action.DEAD, Reason.FAILED)
    if event is Event.EXPECTED:
        return _ACK if given.acks_on_failure else Outcome(Action.DEAD, Reason.FAILED)
    if event is Event.FAILED:
        keep = given.dead_letter_failures or not given.acks_on_failure
        return Outcome(Action.DEAD, Reason.FAILED) if keep else _ACK
    if event is Event.UNKNOWN:
        return _unknown(given)
    if event is Event.TIMED_OUT:
        if given.acks_late and not given.acks_on_timeout:
            return _crashed(given)
        return Outcome(Action.DEAD, Reason.TIMED_OUT) if given.dead_letter_failures else _ACK
    assert event in (Event.LOST, Event.EXITED), event
    again = given.reject_on_worker_lost
    if given.acks_late and (again or (again is None and event is Event.LOST)):
        return _crashed(given)
    keep = given.dead_letter_failures or given.acks_late
    return Outcome(Action.DEAD, Reason.CRASHED) if keep else _ACK


def _crashed(given: Circumstances) -> Outcome:
    crashes = given.crashes + 1
    if crashes >= given.delivery_limit:
        return Outcome(Action.DEAD, Reason.CRASHED)
    return Outcome(Action.REQUEUE, delay=crash_pause(crashes), crash=True, waits_for="crash")


def _unknown(given: Circumstances) -> Outcome:
    if given.taker:
        return Outcome(Action.HAND_OVER, taker=given.taker)
    left = given.unknown_task_ttl - given.unknown_for
    if left <= 0:
        return Outcome(Action.DEAD, Reason.UNKNOWN)
    least, most = UNKNOWN_PAUSE
    pause = min(max(given.unknown_for / 2, least), most, max(left, 0.1))
    return Outcome(Action.REQUEUE, delay=pause, redelivered=False, waits_for="unknown")

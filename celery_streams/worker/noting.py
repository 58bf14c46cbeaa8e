"""Noting: which state a tracked task gets when its message is settled; a table, pure. ``settle`` has it noted.

==========  ========================================================================================================
action      state
==========  ========================================================================================================
ack         by the event: succeeded (ignored, too), failed, revoked, expired; a retry was noted where it was stored
dead        dead, with the reason and the id of the dead letter
requeue     queued; delayed (or retrying) when it came before its eta
hold        held
retry       retrying, by the verb that stores it; hand over, leave: as it was
leave       as with ack, if it was acknowledged before it ran and that is what runs under this id
==========  ========================================================================================================
"""

from __future__ import annotations

from ..entries import Delivery
from ..lanes import Lane, lane_at
from ..notes import Mark, Note, at, note
from .outcome import Action, Event, Outcome

__all__ = ("note_of", "note_of_held")

#: What the events mean whose messages are acknowledged.
_DONE = {
    Event.SUCCEEDED: ("succeeded", ""),
    Event.IGNORED: ("succeeded", "ignored"),
    Event.EXPECTED: ("failed", "failed"),
    Event.FAILED: ("failed", "failed"),
    Event.TIMED_OUT: ("failed", "time-limit"),
    Event.EXITED: ("failed", "crashed"),
    Event.LOST: ("failed", "crashed"),
    Event.EXPIRED: ("expired", ""),
    Event.REVOKED: ("revoked", ""),
}


def note_of(
    prefix: str,
    mark: Mark,
    delivery: Delivery,
    outcome: Outcome,
    event: Event,
    *,
    now_ms: int,
    member: str = "",
) -> Note | None:
    """Return what is noted when ``outcome`` is carried out; None when that changes nothing.

    Args:
        member: under which it waits, with REQUEUE for later.
    """
    queue, entry = delivery.stream.queue, delivery.entry_id.decode()
    if outcome.action is Action.DEAD:
        reason = outcome.reason.value if outcome.reason else "unknown"
        return note(prefix, mark, "dead", queue, e=entry, r=reason)
    if outcome.action is Action.REQUEUE:
        if event is Event.EARLY:
            wait_ms = int(outcome.delay * 1000)
            state = "retrying" if mark.attempt > 1 else "delayed"
            return note(prefix, mark, state, queue, e=entry, u=now_ms + wait_ms, wait_ms=wait_ms, d=member)
        return note(prefix, mark, "queued", queue, e=entry, r="crashed" if outcome.crash else "")
    if outcome.action in (Action.ACK, Action.LEAVE) and event in _DONE:
        state, reason = _DONE[event]
        # What was acknowledged before it ran may have been published again meanwhile, or have stored a retry.
        must = at((delivery.stream.key, entry)) if outcome.action is Action.LEAVE else ""
        return note(prefix, mark, state, queue, must=must, e=entry, r=reason)
    return None


def note_of_held(prefix: str, mark: Mark, delivery: Delivery, lane: Lane) -> Note:
    """Return what is noted when a message is moved aside."""
    entry, name = delivery.entry, lane_at(lane, delivery.entry.stream.step)
    return note(prefix, mark, "held", entry.stream.queue, e=entry.id.decode(), l=name).when("held")

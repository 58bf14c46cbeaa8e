"""The decision table: every event in all circumstances, and what shall be done with the message.

A row says in which circumstances it holds; a dash is "whatever". The first row that fits a cell is the rule for it.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from celery_streams.worker.outcome import Action, Circumstances, Event, Outcome, Reason, crash_pause, decide

LIMIT = 5

ACK = Outcome(Action.ACK)
LEAVE = Outcome(Action.LEAVE)
RETRY = Outcome(Action.RETRY)
AGAIN = Outcome(Action.REQUEUE, redelivered=True)
BEHIND = Outcome(Action.REQUEUE, redelivered=True, behind=True)
#: The first crash: at once. One below the limit: after 1, 2, 4 seconds.
CRASH_0 = Outcome(Action.REQUEUE, crash=True)
CRASH_3 = Outcome(Action.REQUEUE, crash=True, delay=4.0)
LATER = Outcome(Action.REQUEUE, delay=7.5, redelivered=False)
HOLD = Outcome(Action.HOLD, delay=7.5)
SOON = Outcome(Action.REQUEUE, delay=1.0, redelivered=False)


def dead(reason: Reason) -> Outcome:
    return Outcome(Action.DEAD, reason)


FAILED, CRASHED, TIMED_OUT = dead(Reason.FAILED), dead(Reason.CRASHED), dead(Reason.TIMED_OUT)

# late: acknowledged after the task ran. ack_fail, ack_time: acks_on_failure, acks_on_timeout. rejects: the task's
# reject_on_worker_lost. keeps: dead letters for failures. crashes: before this one, of 5 that are allowed.
TABLE = """
event         late   ack_fail  ack_time  rejects  keeps  crashes   outcome
succeeded     yes    -         -         -        -      -         ACK
succeeded     no     -         -         -        -      -         LEAVE
ignored       yes    -         -         -        -      -         ACK
ignored       no     -         -         -        -      -         LEAVE
expired       yes    -         -         -        -      -         ACK
expired       no     -         -         -        -      -         LEAVE
revoked       yes    -         -         -        -      -         ACK
revoked       no     -         -         -        -      -         LEAVE
expected      -      no        -         -        -      -         FAILED
expected      yes    -         -         -        -      -         ACK
expected      no     -         -         -        -      -         LEAVE
failed        -      no        -         -        -      -         FAILED
failed        -      yes       -         -        yes    -         FAILED
failed        yes    yes       -         -        no     -         ACK
failed        no     yes       -         -        no     -         LEAVE
retried       yes    -         -         -        -      -         RETRY
retried       no     -         -         -        -      -         LEAVE
rejected      -      -         -         -        -      -         REJECTED
requeued      yes    -         -         -        -      -         BEHIND
requeued      no     -         -         -        -      -         LEAVE
unknown       yes    -         -         -        -      -         SOON
unknown       no     -         -         -        -      -         LEAVE
malformed     -      -         -         -        -      -         MALFORMED
nameless      -      -         -         -        -      -         MALFORMED
not_accepted  -      -         -         -        -      -         NOT_ACCEPTED
invalid       -      -         -         -        -      -         INVALID
early         yes    -         -         -        -      -         LATER
early         no     -         -         -        -      -         LEAVE
limited       yes    -         -         -        -      -         HOLD
limited       no     -         -         -        -      -         FAILED
held          -      -         -         -        -      -         LEAVE
timed_out     yes    -         no        -        -      0         CRASH_0
timed_out     yes    -         no        -        -      3         CRASH_3
timed_out     yes    -         no        -        -      4         CRASHED
timed_out     yes    -         no        -        -      9         CRASHED
timed_out     -      -         -         -        yes    -         TIMED_OUT
timed_out     yes    -         yes       -        no     -         ACK
timed_out     no     -         -         -        no     -         LEAVE
exited        yes    -         -         yes      -      0         CRASH_0
exited        yes    -         -         yes      -      3         CRASH_3
exited        yes    -         -         -        -      -         CRASHED
exited        no     -         -         -        yes    -         CRASHED
exited        no     -         -         -        no     -         LEAVE
lost          yes    -         -         no       -      -         CRASHED
lost          yes    -         -         -        -      0         CRASH_0
lost          yes    -         -         -        -      3         CRASH_3
lost          yes    -         -         -        -      4         CRASHED
lost          yes    -         -         -        -      9         CRASHED
lost          no     -         -         -        yes    -         CRASHED
lost          no     -         -         -        no     -         LEAVE
interrupted   yes    -         -         -        -      -         AGAIN
interrupted   no     -         -         -        -      -         LEAVE
disowned      -      -         -         -        -      -         LEAVE
kept          -      -         -         -        -      -         LEAVE
"""

OUTCOMES = {
    "ACK": ACK,
    "LEAVE": LEAVE,
    "RETRY": RETRY,
    "AGAIN": AGAIN,
    "BEHIND": BEHIND,
    "CRASH_0": CRASH_0,
    "CRASH_3": CRASH_3,
    "LATER": LATER,
    "HOLD": HOLD,
    "SOON": SOON,
    "FAILED": FAILED,
    "CRASHED": CRASHED,
    "TIMED_OUT": TIMED_OUT,
    "REJECTED": dead(Reason.REJECTED),
    "MALFORMED": dead(Reason.MALFORMED),
    "NOT_ACCEPTED": dead(Reason.NOT_ACCEPTED),
    "INVALID": dead(Reason.INVALID),
}
COLUMNS = {
    "late": {"yes": True, "no": False},
    "ack_fail": {"yes": True, "no": False},
    "ack_time": {"yes": True, "no": False},
    "rejects": {"yes": True, "no": False, "unsaid": None},
    "keeps": {"yes": True, "no": False},
    "crashes": {"0": 0, "3": 3, "4": 4, "9": 9},
}
ROWS = [line.split() for line in TABLE.strip().splitlines()[1:]]
CELLS = list(itertools.product((event.value for event in Event), *COLUMNS.values()))


def rule_for(cell: tuple[str, ...]) -> int:
    """Return the number of the first row that fits."""
    for number, row in enumerate(ROWS):
        if all(word in ("-", value) for word, value in zip(row, cell, strict=False)):
            return number
    raise AssertionError(f"the table has no row for {cell}")


def given(cell: tuple[str, ...]) -> Circumstances:
    late, ack_fail, ack_time, rejects, keeps, crashes = (
        values[word] for values, word in zip(COLUMNS.values(), cell[1:], strict=True)
    )
    return Circumstances(
        acks_late=bool(late),
        acks_on_failure=bool(ack_fail),
        acks_on_timeout=bool(ack_time),
        reject_on_worker_lost=rejects,  # type: ignore[arg-type]
        dead_letter_failures=bool(keeps),
        crashes=int(crashes or 0),
        delivery_limit=LIMIT,
        early_by=7.5,
    )


@pytest.mark.parametrize("event", [event.value for event in Event])
def test_every_cell_of_the_table_is_decided_as_it_says(event: str) -> None:
    cells = [cell for cell in CELLS if cell[0] == event]

    decided = {cell: decide(Event(event), given(cell)) for cell in cells}

    assert len(cells) == 2 * 2 * 2 * 3 * 2 * 4
    assert decided == {cell: OUTCOMES[ROWS[rule_for(cell)][-1]] for cell in cells}


def test_no_row_of_the_table_is_idle() -> None:
    used = {rule_for(cell) for cell in CELLS}

    assert [row for number, row in enumerate(ROWS) if number not in used] == []


@pytest.mark.parametrize(
    ("crashes", "pause"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (7, 32), (8, 60), (9, 60), (1000, 60)]
)
def test_pause_after_a_crash_doubles_up_to_a_minute(crashes: int, pause: float) -> None:
    assert crash_pause(crashes) == pause


def test_message_that_may_be_delivered_once_is_given_up_at_its_first_crash() -> None:
    assert decide(Event.LOST, Circumstances(delivery_limit=1)) == CRASHED


def unknown(since: float, ttl: float = 600.0, **more: Any) -> Outcome:
    return decide(Event.UNKNOWN, Circumstances(unknown_for=since, unknown_task_ttl=ttl, **more))


@pytest.mark.parametrize(
    ("since", "pause"), [(0, 1), (1, 1), (10, 5), (60, 30), (400, 30), (585, 15), (599.5, 0.5), (599.99, 0.1)]
)
def test_unknown_task_is_looked_at_again_ever_more_rarely_and_a_last_time_at_its_end(
    since: float, pause: float
) -> None:
    outcome = unknown(since)

    assert (outcome.action, outcome.crash, outcome.redelivered) == (Action.REQUEUE, False, False)
    assert outcome.delay == pytest.approx(pause)


@pytest.mark.parametrize(("since", "ttl"), [(600, 600), (601, 600), (0, 0)])
def test_task_that_nobody_knew_in_time_is_a_dead_letter(since: float, ttl: float) -> None:
    assert unknown(since, ttl) == dead(Reason.UNKNOWN)
    assert unknown(since, ttl, acks_late=False) == dead(Reason.UNKNOWN)


def test_unknown_task_goes_to_a_worker_that_takes_it_however_long_nobody_knew_it() -> None:
    assert unknown(5, taker="w@h/0.1") == Outcome(Action.HAND_OVER, taker="w@h/0.1")
    assert unknown(700, taker="w@h/0.1").action is Action.HAND_OVER
    assert unknown(5, taker="w@h/0.1", acks_late=False).action is Action.LEAVE


def test_message_that_came_early_waits_for_exactly_as_long_as_it_was_early() -> None:
    assert decide(Event.EARLY, Circumstances(early_by=0.125)).delay == 0.125

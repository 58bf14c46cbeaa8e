"""Attempts: what a history says of the starts of its message, in bounds, whatever anybody wrote there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_streams.attempts import MOST, MOST_BYTES, Attempt, and_this, parse
from celery_streams.message import Message, encode_history
from celery_streams.worker.attempted import TIME_LIMIT, attempt_of
from celery_streams.worker.outcome import Circumstances, Event, decide

ONE = Attempt("retried", "celery@host/2.0a1b2c3d", "ConnectionError", 1_700_000_000.25, 1_700_000_001.5)


def test_attempts_are_numbered_and_come_back_as_they_were() -> None:
    text = and_this(and_this(None, ONE), replace(ONE, outcome="crashed", began=None, detail="signal 9 (SIGKILL)"))

    assert parse(text) == (
        replace(ONE, number=1),
        replace(ONE, number=2, outcome="crashed", began=None, detail="signal 9 (SIGKILL)"),
    )


def test_attempt_that_an_older_worker_left_out_leaves_a_gap() -> None:
    text = and_this(and_this("", ONE, least=3), ONE)

    assert [one.number for one in parse(text)] == [3, 4]


def test_only_the_newest_attempts_are_kept() -> None:
    text = ""
    for _ in range(MOST + 7):
        text = and_this(text, ONE)

    assert [one.number for one in parse(text)] == list(range(8, MOST + 8))


@pytest.mark.parametrize("name", ["w" * 5_000, "é" * 5_000, "\N{PILE OF POO}" * 5_000])
def test_names_of_any_length_keep_to_the_bound_in_bytes(name: str) -> None:
    text = ""
    for _ in range(MOST):
        text = and_this(text, Attempt("retried", name, name, 1.0, 2.0))
        assert len(text.encode()) <= MOST_BYTES

    assert parse(text)[-1].number == MOST


@given(st.text() | st.integers() | st.none(), st.text(), st.text())
def test_whatever_anybody_wrote_the_next_attempt_is_told_from_it(known: object, worker: str, detail: str) -> None:
    parse(known)

    text = and_this(known, Attempt("failed", worker, detail, None, 12.5))

    last = parse(text)[-1]
    assert (last.outcome, last.began, last.ended) == ("failed", None, 12.5)
    assert len(text.encode(errors="replace")) <= MOST_BYTES


@pytest.mark.parametrize("value", [["1\t\t\tx\ty\tz"], 7, {"a": 1}, None, True])
def test_attempts_that_are_no_text_are_dropped_from_a_history(value: object) -> None:
    history = Message(b"", b"", b"", encode_history({"first": "1-1", "attempts": value})).decode_history()

    assert history == {"first": "1-1"}


KILLED = "signal 9 (SIGKILL)"


@pytest.mark.parametrize(
    ("event", "given_", "detail", "said"),
    [
        (Event.REQUEUED, Circumstances(), "Reject", ("put back", "")),
        (Event.INTERRUPTED, Circumstances(), "", ("interrupted", "")),
        (Event.LOST, Circumstances(), KILLED, ("crashed", KILLED)),
        (Event.LOST, Circumstances(crashes=4), KILLED, ("crashed", KILLED)),
        (Event.EXITED, Circumstances(), "exitcode 3", ("crashed", "exitcode 3")),
        (Event.TIMED_OUT, Circumstances(acks_on_timeout=False), TIME_LIMIT, ("time-limit", TIME_LIMIT)),
        (Event.TIMED_OUT, Circumstances(), TIME_LIMIT, ("time-limit", TIME_LIMIT)),
        (Event.FAILED, Circumstances(), "Refused", ("failed", "Refused")),
        (Event.REJECTED, Circumstances(), "Reject", ("rejected", "")),
    ],
)
def test_each_way_in_which_a_start_ends_has_its_word(
    event: Event, given_: Circumstances, detail: str, said: tuple[str, str]
) -> None:
    attempt = attempt_of(decide(event, given_), detail, "w@h/1.aa", ran_for=2.0)

    assert attempt is not None
    assert (attempt.outcome, attempt.detail) == said
    assert attempt.began is not None
    assert attempt.ended == pytest.approx(attempt.began + 2.0)


@pytest.mark.parametrize(
    "event",
    [Event.EARLY, Event.UNKNOWN, Event.MALFORMED, Event.INVALID, Event.NOT_ACCEPTED, Event.LIMITED, Event.SUCCEEDED],
)
def test_message_that_was_not_started_or_is_over_has_no_attempt_more(event: Event) -> None:
    for given_ in (Circumstances(), Circumstances(unknown_for=1e9)):
        assert attempt_of(decide(event, given_), "X", "w@h/1.aa", ran_for=None) is None

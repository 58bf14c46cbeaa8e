"""Course: the steps of a queue, out of samples that are written when something changes, and of what was counted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from celery_streams.history import Sample
from celery_streams.monitoring.course import Course, Pace, Spread, lay_out, pace, spread
from celery_streams.tallies import Mark, Tally

#: The end of the fifth minute, and a half.
NOW = 6_000.0 + 5 * 60 + 30


def laid_out(*held: Sample, counted: Any = (), marked: Any = ()) -> Course:
    return lay_out("q", held, counted, marked, length=60.0, count=6, now=NOW)


def at(minute: float, waiting: int = 0, added: int | None = None) -> Sample:
    return Sample(6_000.0 + 60 * minute, waiting, 0, 0, 0, added)


def test_steps_begin_at_whole_minutes_and_the_last_one_goes_on() -> None:
    found = laid_out()

    assert [step.at for step in found.steps] == [6_000.0 + 60 * minute for minute in range(6)]
    assert (found.begins, found.ends) == (6_000.0, 6_360.0)
    assert {step.waiting for step in found.steps} == {None}
    assert not found.is_counted


def test_what_stands_is_carried_on_until_it_changes() -> None:
    found = laid_out(at(-3, 7), at(2.5, 9), at(5.2, 1))

    assert [step.waiting for step in found.steps] == [7, 7, 9, 9, 9, 1]


def test_time_in_which_nobody_wrote_is_a_gap() -> None:
    found = laid_out(at(-6.5, 7), at(4.5, 9))

    assert [step.waiting for step in found.steps] == [None, None, None, None, 9, 9]


def test_arrivals_are_told_by_what_was_added_between_the_ends_of_two_steps() -> None:
    found = laid_out(at(-1, added=10), at(1.5, added=14), at(2.5, added=15), at(3.5, added=2), at(4.5, added=None))

    assert [step.arrived for step in found.steps] == [0, 4, 1, None, None, None]


def test_what_was_counted_stands_in_its_step_and_nothing_in_the_others() -> None:
    one = Tally(6_060.0, 60.0, done=3, failed=1, retried=2, runs={0.1: 4}, run_sum=0.2)

    found = laid_out(counted=[one])

    assert [step.done for step in found.steps] == [None, 3, None, None, None, None]
    step = found.steps[1]
    assert (step.failed, step.retried, step.wait, step.run) == (1, 2, None, Spread(4, 0.05, 0.1))
    assert found.is_counted


def test_marks_before_the_first_step_are_left_out() -> None:
    assert laid_out(marked=[Mark(5_990.0, "1"), Mark(6_010.0, "2")]).marks == (Mark(6_010.0, "2"),)


@pytest.mark.parametrize(
    ("buckets", "total", "expected"),
    [
        ({}, 0.0, None),
        ({0.1: 0}, 0.0, None),
        ({0.1: 1}, 0.05, Spread(1, 0.05, 0.1)),
        ({0.1: 95, 5.0: 5}, 10.0, Spread(100, 0.1, 0.1)),
        ({0.1: 94, 5.0: 6}, 10.0, Spread(100, 0.1, 5.0)),
        ({5.0: 6, 0.1: 94}, 10.0, Spread(100, 0.1, 5.0)),
        ({0.1: 1, math.inf: 1}, 9_000.0, Spread(2, 4_500.0, 4_500.0)),
        ({1800.0: 9, math.inf: 1}, 20.0, Spread(10, 2.0, 1800.0)),
        ({math.inf: 2}, 7_000.0, Spread(2, 3_500.0, 3_500.0)),
    ],
)
def test_spread_says_mean_and_within_what_nearly_all_ended(
    buckets: dict[float, int], total: float, expected: Spread | None
) -> None:
    assert spread(buckets, total) == expected


def test_pace_is_the_mean_of_the_last_five_minutes() -> None:
    assert pace([at(-3, added=0), at(0.4, 3, added=50), at(5, 8, added=75)], now=NOW) == Pace(5.0, 4.0)
    assert pace([at(-1, 8, added=75), at(4, 8, added=75)], now=NOW) == Pace(0.0, 0.0)


def test_pace_of_a_queue_that_is_new_is_that_of_the_minutes_it_has() -> None:
    assert pace([at(3.5, added=0), at(4.5, 4, added=10)], now=NOW) == Pace(5.0, 3.0)


@pytest.mark.parametrize(
    "held",
    [[], [at(4, added=1)], [at(-9, added=1)], [at(-1), at(4)], [at(-1, added=9), at(4, added=1)]],
    ids=["nothing", "one moment", "nobody wrote", "not told", "made anew"],
)
def test_pace_that_nobody_knows_is_none(held: Any) -> None:
    assert pace(held, now=NOW) is None

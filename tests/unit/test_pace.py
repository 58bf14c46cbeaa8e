"""Pace: how many entries a child fetches at once, learned from what the last ones took."""

from __future__ import annotations

import itertools

from celery_streams.worker.pace import Pace


def learned(*batches: tuple[int, float], most: int = 100, budget: float = 0.010) -> Pace:
    pace = Pace(most=most, budget=budget)
    for ran, seconds in batches:
        pace.observe(ran=ran, seconds=seconds)
    return pace


def test_first_fetch_is_one_entry() -> None:
    assert learned().count == 1


def test_small_tasks_are_soon_fetched_by_the_hundred() -> None:
    pace, counts = learned(), []

    while len(counts) < 12:
        counts.append(pace.count)
        pace.observe(ran=pace.count, seconds=pace.count * 0.00005)

    assert counts[-1] == 100
    assert all(after <= before * 4 for before, after in itertools.pairwise(counts))


def test_no_more_is_fetched_than_is_allowed() -> None:
    assert learned(*[(10, 0.0)] * 20, most=7).count == 7


def test_tasks_of_the_whole_budget_are_fetched_one_at_a_time() -> None:
    assert learned(*[(1, 0.010)] * 10).count == 1


def test_tasks_of_a_tenth_of_the_budget_are_fetched_by_the_ten() -> None:
    assert learned(*[(5, 0.005)] * 30).count in (9, 10)


def test_one_long_task_says_more_than_many_short_ones() -> None:
    pace = learned(*[(100, 0.005)] * 20)
    before = pace.count

    pace.observe(ran=1, seconds=3.0)

    assert (before, pace.count) == (100, 1)


def test_short_tasks_after_a_long_one_are_believed_slowly() -> None:
    pace = learned((1, 0.1))

    pace.observe(ran=1, seconds=0.0001)

    assert pace.count == 1

    for _ in range(30):
        pace.observe(ran=pace.count, seconds=0.0001 * pace.count)

    assert pace.count > 90


def test_batch_of_which_nothing_ran_teaches_nothing() -> None:
    pace = learned(*[(100, 0.005)] * 20)

    pace.observe(ran=0, seconds=9.0)

    assert pace.count == 100


def test_tasks_that_took_no_measurable_time_are_fetched_by_as_many_as_allowed() -> None:
    assert learned(*[(1, 0.0)] * 60).count == 100

"""Time limits and counts as people write them."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest

from celery_streams.worker.option_values import count, first_limit, misunderstood, seconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5.0),
        ("5", 5.0),
        (" 0.5 ", 0.5),
        ("1e1", 10.0),
        (b"7", 7.0),
        *((one, None) for one in (None, "", 0, "0", 0.0, False, "inf")),
    ],
)
def test_time_limit_is_a_number_or_its_text(value, expected):
    assert seconds(value) == expected


@pytest.mark.parametrize("value", ["soon", "5s", "nan", float("nan"), True, [5], timedelta(seconds=5), object()])
def test_time_limit_that_means_nothing_is_refused(value):
    with pytest.raises(ValueError, match="not a number of seconds"):
        seconds(value)


@pytest.mark.parametrize(
    ("value", "expected"), [(5, 5), ("5", 5), (" 5 ", 5), (5.0, 5), ("200000", 200_000), (None, None), ("", None)]
)
def test_count_is_a_whole_number_or_its_text(value, expected):
    assert count(value) == expected


@pytest.mark.parametrize("value", ["many", "1.5", 1.5, True, "nan", "inf", [1]])
def test_count_that_means_nothing_is_refused(value):
    with pytest.raises(ValueError, match="not a whole number"):
        count(value)


def test_first_limit_that_is_one_counts():
    assert first_limit(None, "", "0", "30", 60) == 30.0
    assert first_limit(None, None) is None
    assert first_limit(None, True, 60) == 1.0


def test_everything_that_cannot_be_understood_is_named_at_once():
    tasks = [
        SimpleNamespace(
            name="b", time_limit="late", soft_time_limit="5", rate_limit="10/m", streams_delivery_limit="3"
        ),
        SimpleNamespace(name="a", time_limit=None, soft_time_limit=-1, rate_limit="often", streams_delivery_limit="0"),
        SimpleNamespace(name="c", time_limit=None, soft_time_limit=None, rate_limit="10/fortnight"),
    ]
    values = {"task_time_limit": ("30", "seconds"), "worker_max_tasks_per_child": ("-1", "count"), "x": (0, "amount")}

    found = list(misunderstood(values, tasks))

    assert found == [
        "worker_max_tasks_per_child: '-1' is less than 1",
        "soft_time_limit of task a: -1 is less than 0",
        "rate_limit of task a: 'often' is not a rate such as 10/m",
        "streams_delivery_limit of task a: '0' is less than 1",
        "time_limit of task b: 'late' is not a number of seconds",
        "rate_limit of task c: '10/fortnight' is not a rate such as 10/m",
    ]


def test_what_a_setting_and_all_its_tasks_say_is_told_once():
    tasks = [SimpleNamespace(name=f"t{n}", time_limit="soon") for n in range(5)]

    assert list(misunderstood({"task_time_limit": ("soon", "seconds")}, tasks)) == [
        "task_time_limit: 'soon' is not a number of seconds"
    ]
    assert list(misunderstood({"task_time_limit": (30, "seconds")}, tasks)) == [
        "time_limit of task t0, t1, t2 and 2 more: 'soon' is not a number of seconds"
    ]

"""Alerts: a state and thresholds in, alerts out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celery_streams.conf import Alerts
from celery_streams.inspect import QueueStatus
from celery_streams.monitoring.alerts import judge, never_used
from celery_streams.monitoring.lists import ListSide

QUIET = QueueStatus(
    queue="send_message", waiting=0, pending=0, delayed=0, dead=0, consumers=2, oldest_waiting=None, overdue=0.0
)


def test_queue_without_work_raises_no_alert() -> None:
    assert judge(QUIET, Alerts()) == []


def test_queue_below_all_thresholds_raises_no_alert() -> None:
    busy = replace(QUIET, waiting=999, pending=999, delayed=50_000, oldest_waiting=59.9, overdue=4.9)

    assert judge(busy, Alerts()) == []


@pytest.mark.parametrize(
    ("change", "name", "warning", "critical"),
    [
        ("waiting", "backlog", 1_000, 10_000),
        ("oldest_waiting", "age", 60.0, 600.0),
        ("dead", "dead", 1, 100),
        ("pending", "pending", 1_000, 10_000),
        ("overdue", "overdue", 5.0, 60.0),
        ("crashes", "restart_loop", 3, 10),
    ],
)
def test_value_at_a_threshold_meets_it(change: str, name: str, warning: float, critical: float) -> None:
    above: dict[str, Any] = {change: warning}
    far_above: dict[str, Any] = {change: critical}
    [mild] = judge(replace(QUIET, **above), Alerts())
    [grave] = judge(replace(QUIET, **far_above), Alerts())

    assert (mild.level, mild.queue, mild.name, mild.value, mild.threshold) == (
        "warning",
        "send_message",
        name,
        warning,
        warning,
    )
    assert (grave.level, grave.name, grave.threshold) == ("critical", name, critical)


def test_threshold_of_none_is_off() -> None:
    queue = replace(QUIET, dead=500)

    [critical] = judge(queue, Alerts(dead_warning=None))
    [warning] = judge(queue, Alerts(dead_critical=None))

    assert (critical.level, warning.level) == ("critical", "warning")
    assert judge(queue, Alerts(dead_warning=None, dead_critical=None)) == []


def test_threshold_of_zero_says_nothing_about_an_empty_queue() -> None:
    assert judge(QUIET, Alerts(backlog_warning=0, dead_warning=0)) == []


def test_waiting_messages_without_a_consumer_are_critical() -> None:
    [alert] = judge(replace(QUIET, waiting=1, consumers=0), Alerts())

    assert (alert.level, alert.name) == ("critical", "no_consumer")
    assert alert.message == "1 waiting, and no worker consumes the queue (critical from 1)"


def test_entries_that_nobody_works_on_any_more_are_critical() -> None:
    [alert] = judge(replace(QUIET, pending=2, consumers=0), Alerts())

    assert (alert.level, alert.name, alert.value) == ("critical", "no_consumer", 2)


def test_held_messages_that_nobody_lets_go_are_critical() -> None:
    [alert] = judge(replace(QUIET, waiting=1, held=3, consumers=0), Alerts())

    assert (alert.level, alert.name, alert.value) == ("critical", "no_consumer", 4)
    assert judge(replace(QUIET, held=3), Alerts()) == []


def test_one_child_is_one_child() -> None:
    [alert] = judge(replace(QUIET, crashes=1), Alerts(restart_loop_warning=1))

    assert alert.message == "1 child of its workers crashed within ten minutes (warning from 1)"


@pytest.mark.parametrize(
    ("side", "names"),
    [
        (ListSide(100, 1.0, ("stock@h",)), ["list_filling"]),
        (ListSide(100, 1.0, None), ["list_filling"]),
        (ListSide(100, 1.0, ()), ["no_stock_worker"]),
        (ListSide(99, 1.0, ("stock@h",)), []),
        (ListSide(100, 0.5, ("stock@h",)), []),
        (ListSide(5_000, 0.5, ("stock@h",)), ["list_backlog"]),
        (ListSide(5_000, 0.0, ("stock@h",)), ["list_backlog"]),
        (ListSide(None, 1.0, None), []),
    ],
)
def test_list_that_fills_though_all_should_go_to_the_stream_is_said(side: ListSide, names: list[str]) -> None:
    assert [alert.name for alert in judge(QUIET, Alerts(), side)] == names


def test_empty_queue_without_a_consumer_is_in_order() -> None:
    assert judge(replace(QUIET, consumers=0), Alerts()) == []


def test_critical_alerts_come_first() -> None:
    queue = replace(QUIET, waiting=1_500, oldest_waiting=700.0, dead=3)

    assert [(alert.level, alert.name) for alert in judge(queue, Alerts())] == [
        ("critical", "age"),
        ("warning", "backlog"),
        ("warning", "dead"),
    ]


def test_message_says_the_value_and_the_threshold() -> None:
    queue = replace(QUIET, waiting=12_345, overdue=7.25)

    assert [alert.message for alert in judge(queue, Alerts())] == [
        "12,345 waiting (critical from 10,000)",
        "the earliest delayed message is 7.2 s late; is a worker running? (warning from 5)",
    ]


def test_alert_of_a_queue_that_was_never_used_is_a_warning() -> None:
    alert = never_used("send_mesage")

    assert (alert.level, alert.queue, alert.name) == ("warning", "send_mesage", "never_used")

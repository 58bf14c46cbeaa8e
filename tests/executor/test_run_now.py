"""Delayed messages that somebody wants to run now: they run, whatever eta they name."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_streams.delayed_messages import delayed_messages, run_now
from celery_streams.message import pack
from tests.support.bench import NOTHING, QUEUE, Bench

TOMORROW = datetime.now(timezone.utc) + timedelta(days=1)


def run_all_now(bench: Bench) -> int:
    return run_now(bench.broker, QUEUE, [one.member for one in delayed_messages(bench.broker, QUEUE)])


@pytest.mark.parametrize("options", [{"countdown": 600}, {"eta": TOMORROW}, {"eta": TOMORROW, "priority": 9}])
def test_message_with_an_eta_runs_now_when_somebody_asks_for_it(both: Bench, options: dict[str, Any]) -> None:
    @both.task(bind=True)
    def later(self: Any) -> None:
        both.ran.append(self.request.eta)

    later.apply_async(**options)
    assert run_all_now(both) == 1
    both.run()

    assert len(both.ran) == 1
    assert both.ran[0] is not None, "what the task sees of its message does not change"
    assert both.left() == NOTHING


def test_retry_runs_now_and_the_next_one_waits_again(both: Bench) -> None:
    @both.task(bind=True, max_retries=5)
    def again(self: Any) -> None:
        both.ran.append(self.request.retries)
        raise self.retry(countdown=600)

    again.delay()
    both.run()
    for _ in range(2):
        run_all_now(both)
        both.run()

    assert both.ran == [0, 1, 2]
    assert both.left()["delayed"] == 1


@pytest.mark.parametrize(
    ("history", "after"),
    [
        ("", '{"hurried":1}'),
        ("{}", '{"hurried":1}'),
        ('{"unknown": 1732712345678.25, "x": 1e15}', '{"hurried":1,"unknown": 1732712345678.25, "x": 1e15}'),
        ('{"hurried":1}', '{"hurried":1}'),
        ("nan", "nan"),
        ("[]", "[]"),
    ],
)
def test_history_keeps_what_it_says_to_the_digit(bench: Bench, history: str, after: str) -> None:
    @bench.task()
    def later() -> None:
        """Do nothing."""

    later.apply_async(countdown=600)
    (one,) = delayed_messages(bench.broker, QUEUE)
    assert one.message is not None
    with_history = pack(one.message._replace(history=history.encode()))
    bench.broker.client.call("HSET", bench.broker.queue_keys(QUEUE).delayed_messages, one.member, with_history)

    assert run_all_now(bench) == 1

    (entry,) = bench.broker.read(bench.broker.streams([QUEUE]), "me", count=5)
    assert entry.message is not None
    assert entry.message.history.decode() == after


def test_message_that_was_promoted_meanwhile_is_not_counted(bench: Bench) -> None:
    @bench.task()
    def later() -> None:
        """Do nothing."""

    later.apply_async(countdown=600)
    (one,) = delayed_messages(bench.broker, QUEUE)

    assert [run_now(bench.broker, QUEUE, members) for members in ([one.member, "gone"], [one.member], [])] == [1, 0, 0]

"""What happens around the body."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Task
from celery.exceptions import Reject, SoftTimeLimitExceeded

from celery_streams import streams_of
from celery_streams.exceptions import BrokerFull, BrokerUnavailable, NotPermitted, QueueFull
from tests.support.bench import ME, NOTHING, QUEUE, ActionError, Bench, NoBackend, but


def test_task_whose_result_cannot_be_stored_is_not_run_again(both: Bench) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")
        both.app._local.backend = note.backend = NoBackend()

    note.delay()

    both.run()

    assert both.ran == ["ran"]
    assert both.left() == but(dead=["failed"])


def test_rejected_task_is_settled_while_the_result_backend_is_away(both: Bench) -> None:
    @both.task()
    def reject() -> None:
        reject.backend = NoBackend()
        raise Reject("no", requeue=False)

    reject.delay()

    both.run()

    assert {**both.left(), "dead": []} == NOTHING
    assert len(both.deaths()) == 1


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")
@pytest.mark.parametrize(
    "error", [QueueFull, BrokerFull, BrokerUnavailable, NotPermitted, SoftTimeLimitExceeded, MemoryError]
)
@pytest.mark.parametrize("options", [{}, {"expires": 60}], ids=["plain", "expires"])
def test_task_whose_hook_cannot_publish_or_takes_too_long_fails_once(
    both: Bench, error: type[Exception], options: dict[str, Any]
) -> None:
    class Hooked(Task):
        def on_failure(self, *_: Any) -> None:
            raise error("of the hook")

    @both.task(base=Hooked)
    def fail() -> None:
        both.ran.append("ran")
        raise ActionError("of the body")

    fail.apply_async(**options)

    both.run()

    assert both.ran == ["ran"]
    assert both.left() == but(dead=["failed"])


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")
@pytest.mark.parametrize("hook", ["on_success", "after_return", "on_retry"])
def test_task_whose_hook_finds_no_memory_runs_once_and_keeps_its_state(both: Bench, hook: str) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("of the hook")

    @both.task(base=type("Hooked", (Task,), {hook: fail}), bind=True)
    def work(self: Task) -> None:
        both.ran.append(self.request.retries)
        if hook == "on_retry" and not self.request.retries:
            raise self.retry(countdown=0)

    result = work.delay()

    both.run()
    if hook == "on_retry":
        both.run()

    assert both.ran == ([0, 1] if hook == "on_retry" else [0])
    assert result.state == "SUCCESS"
    assert both.left() == but(dead=["failed"])


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")
def test_task_whose_errback_goes_to_a_full_queue_fails_once(both: Bench) -> None:
    both.app.conf.streams_max_length = 1
    streams_of(both.app).reload()

    @both.task()
    def fail() -> None:
        both.ran.append("ran")
        raise ActionError("of the body")

    fail.apply_async(queue="full")
    fail.apply_async(link_error=fail.si().set(queue="full"))

    both.run()

    assert both.ran == ["ran"]
    assert both.left() == but(dead=["failed"])


def test_time_limits_are_known_while_the_body_runs_and_over_when_its_message_is_settled(both: Bench) -> None:
    @both.task(soft_time_limit=20, time_limit=30)
    def note() -> None:
        both.ran.append(both.notes.limits[-1])

    note.delay()

    both.run()

    assert both.ran == [(20, 30)]
    assert both.notes.limits[-1] == (None, None)


def test_limits_of_the_message_come_before_those_of_the_task_and_the_worker(both: Bench) -> None:
    both.executor.around.soft_limit, both.executor.around.hard_limit = 100, 200

    @both.task(soft_time_limit=20)
    def note() -> None:
        both.ran.append(both.notes.limits[-1])

    note.apply_async(soft_time_limit=5)
    note.delay()

    both.run()
    both.run()

    assert both.ran == [(5, 200), (20, 200)]


def test_success_and_failure_callbacks_are_published(both: Bench) -> None:
    @both.task()
    def add(x: int, y: int) -> int:
        return x + y

    add.apply_async((1, 2), link=add.s(10))

    both.run()

    assert both.left() == but(waiting=1)

    both.run()

    assert both.left() == NOTHING


@pytest.mark.parametrize("path", ["fast", "slow"])
def test_failed_task_leaves_nothing_for_the_garbage_collector(bench: Bench, path: str) -> None:
    raised: list[weakref.ref[ActionError]] = []

    @bench.task(ignore_result=True)
    def fails() -> None:
        exc = ActionError("boom")
        raised.append(weakref.ref(exc))
        raise exc

    expires = datetime.now(timezone.utc) + timedelta(hours=1)
    bench.publish_task("fails", **({} if path == "fast" else {"expires": expires.isoformat()}))
    gc.collect()
    gc.disable()
    try:
        bench.run()
        left = raised[0]()
    finally:
        gc.enable()

    assert left is None or left.__traceback__ is None


@pytest.mark.parametrize("countdown", [0, 60])
def test_retries_of_two_messages_with_one_task_id_both_survive(make_both: Callable[..., Bench], countdown: int) -> None:
    bench = make_both()

    @bench.task(bind=True)
    def again(self: Any) -> None:
        raise self.retry(countdown=countdown)

    for _ in range(2):
        bench.app.tasks["again"].apply_async(task_id="import-5")

    # Both have been read before either is retried, as by two children.
    deliveries = bench.broker.read(bench.broker.streams([QUEUE]), ME, count=2)
    for delivery in deliveries:
        bench.run(delivery=delivery)

    left = bench.left()
    assert len(deliveries) == 2
    assert left["waiting"] + left["delayed"] == 2
    assert (left["pending"], left["dead"]) == (0, [])

"""Messages that are acknowledged before they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from celery import Task

import celery_streams
from celery_streams import keys, streams_of
from celery_streams.broker import StreamBroker
from celery_streams.entries import Entry
from celery_streams.exceptions import BrokerUnavailable
from celery_streams.worker.settle import Settler
from tests.support.bench import ME, NOTHING, STREAM, ActionError, Bench, but


@pytest.fixture(params=["setting", "task"])
def early(request: pytest.FixtureRequest, make: Callable[..., Bench]) -> tuple[Bench, dict[str, Any]]:
    """A bench and task options with which messages are acknowledged before they run."""
    if request.param == "setting":
        return make(streams_acks_late=False), {}
    return make(), {"streams_acks_late": False}


def test_early_acknowledgement_comes_before_the_body(early: tuple[Bench, dict[str, Any]]) -> None:
    bench, options = early

    @bench.task(**options)
    def look() -> None:
        bench.ran.append(bench.left())

    result = look.delay()

    delivery = bench.run()

    assert bench.ran == [NOTHING]
    assert bench.notes.kept == [delivery.message]
    assert (bench.left(), result.state) == (NOTHING, "SUCCESS")


def test_task_that_was_acknowledged_early_and_fails_is_a_dead_letter(early: tuple[Bench, dict[str, Any]]) -> None:
    bench, options = early

    @bench.task(**options)
    def fail() -> None:
        raise ActionError

    fail.delay()

    bench.run()

    assert bench.left() == but(dead=["failed"])


def test_task_that_was_acknowledged_early_can_retry(early: tuple[Bench, dict[str, Any]]) -> None:
    bench, options = early

    @bench.task(bind=True, **options)
    def again(self: Task) -> None:
        self.retry(countdown=60)

    again.delay()

    bench.run()

    assert bench.left() == but(delayed=1)


def test_task_that_was_acknowledged_early_owns_its_message(early: tuple[Bench, dict[str, Any]]) -> None:
    bench, options = early

    @bench.task(**options)
    def ask() -> None:
        bench.ran.append(celery_streams.still_owned())

    ask.delay()

    bench.run()

    assert bench.ran == [True]


def test_task_that_runs_at_most_once_does_not_run_when_another_worker_has_its_message(
    early: tuple[Bench, dict[str, Any]],
) -> None:
    bench, options = early

    @bench.task(**options)
    def note() -> None:
        bench.ran.append("ran")

    note.delay()
    delivery = bench.read()
    bench.broker.client.call("XCLAIM", STREAM, keys.GROUP, "other", 0, delivery.entry_id)

    bench.run(delivery=delivery)

    assert (bench.ran, bench.left()) == ([], but(pending=1))


class LosesReplies(StreamBroker):
    """A broker whose first acknowledgement reaches Redis, and whose reply is lost."""

    def ack(self, consumer: str, entries: Sequence[Entry]) -> list[Entry]:
        lost = super().ack(consumer, entries)
        if not getattr(self, "failed", False):
            self.failed = True
            raise BrokerUnavailable
        return lost


def test_task_runs_when_only_the_reply_to_its_early_acknowledgement_was_lost(
    early: tuple[Bench, dict[str, Any]],
) -> None:
    bench, options = early

    @bench.task(**options)
    def note() -> None:
        bench.ran.append("ran")

    note.delay()
    bench.executor.around.settler = Settler(
        LosesReplies(bench.broker.client), ME, conf=streams_of(bench.app).conf, hostname="w@h", sleep=lambda _: None
    )

    bench.run()

    assert (bench.ran, bench.left()) == (["ran"], NOTHING)


def test_task_that_says_acks_late_is_acknowledged_late_whatever_the_setting(make: Callable[..., Bench]) -> None:
    bench = make(streams_acks_late=False)

    @bench.task(acks_late=True)
    def look() -> None:
        bench.ran.append(bench.left())

    look.delay()

    bench.run()

    assert bench.ran == [but(pending=1)]

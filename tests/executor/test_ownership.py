"""An entry that is no longer ours."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Task
from celery.exceptions import Reject

import celery_streams
from celery_streams import keys
from celery_streams.signals import entry_lost
from tests.support.bench import ME, STREAM, ActionError, Bench, but


def test_entry_that_another_worker_has_is_neither_acknowledged_nor_buried(both: Bench) -> None:
    @both.task()
    def fail() -> None:
        raise ActionError

    fail.delay()
    delivery = both.read()
    both.broker.client.call("XCLAIM", STREAM, keys.GROUP, "other", 0, delivery.entry_id)
    lost: list[Any] = []

    def receiver(**signal: Any) -> None:
        lost.append((signal["entry_id"], signal["consumer"]))

    entry_lost.connect(receiver, weak=False)
    try:
        both.run(delivery=delivery)
    finally:
        entry_lost.disconnect(receiver)

    assert both.left() == but(pending=1)
    assert lost == [(delivery.entry_id.decode(), ME)]


def test_task_can_ask_whether_it_still_owns_its_message(both: Bench) -> None:
    @both.task()
    def ask(lose: bool) -> None:
        both.ran.append(celery_streams.still_owned())
        if lose:
            ((entry_id, *_),) = both.broker.client.call("XPENDING", STREAM, keys.GROUP, "-", "+", 1)
            both.broker.client.call("XCLAIM", STREAM, keys.GROUP, "other", 0, entry_id)
            both.ran.append(celery_streams.still_owned())

    ask.delay(True)

    both.run()

    assert both.ran == [True, False]


def test_task_is_told_at_once_what_its_parent_found(both: Bench) -> None:
    both.notes.taken_away = True

    @both.task()
    def ask() -> None:
        both.ran.append(celery_streams.still_owned())

    ask.delay()

    both.run()

    assert both.ran == [False]


@pytest.mark.parametrize(("how", "noted"), [("return", False), ("fail", True), ("retry", True), ("reject", True)])
def test_heartbeat_can_know_that_the_outcome_of_a_task_is_being_settled(both: Bench, how: str, noted: bool) -> None:
    """What succeeded is acknowledged later, when it runs no more."""

    @both.task(bind=True)
    def end(self: Task) -> None:
        both.ran.append(both.notes.was_settling)
        if how == "fail":
            raise ActionError
        if how == "retry":
            self.retry(countdown=60)
        if how == "reject":
            raise Reject(requeue=True)

    end.delay()

    both.run()

    assert (both.ran, both.notes.was_settling) == ([False], noted)

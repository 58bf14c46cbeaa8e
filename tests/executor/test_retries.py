"""Retries: one message in the place of another."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Task

from celery_streams import keys, streams_of
from celery_streams.broker import StreamBroker
from celery_streams.exceptions import BrokerUnavailable
from celery_streams.worker.execution import Interruption
from celery_streams.worker.settle import Settler
from tests.support.bench import ME, STREAM, ActionError, Bench, but
from tests.support.redis_state import redis_state


def test_retry_takes_the_place_of_its_entry_in_one_step(both: Bench) -> None:
    seen: list[dict[str, Any]] = []

    @both.task(bind=True)
    def again(self: Task) -> None:
        try:
            self.retry(countdown=60)
        finally:
            seen.append(both.left())

    result = again.delay()

    both.run()

    assert seen == [but(delayed=1)]
    assert both.left() == but(delayed=1)
    ((due, message),) = both.delayed()
    assert 58_000 < due - time.time() * 1000 < 61_000
    assert (message.decode_headers()["id"], message.decode_headers()["retries"]) == (result.id, 1)
    assert result.state == "RETRY"


def test_retry_without_a_countdown_waits_at_once(both: Bench) -> None:
    @both.task(bind=True)
    def again(self: Task) -> None:
        self.retry(countdown=0)

    again.delay()

    both.run()

    assert both.left() == but(waiting=1)


class RefusesRetries(StreamBroker):
    """A broker whose retries do not reach Redis."""

    def retry(self, *args: Any, **options: Any) -> bool:
        raise BrokerUnavailable


def test_process_that_dies_between_deciding_a_retry_and_storing_it_leaves_one_message(bench: Bench) -> None:
    @bench.task(bind=True)
    def again(self: Task) -> None:
        self.retry(countdown=60)

    again.delay()
    refusing = RefusesRetries(bench.broker.client)
    bench.executor.around.settler = Settler(
        refusing, ME, conf=streams_of(bench.app).conf, hostname="w@h", give_up=lambda: True
    )

    with pytest.raises(Interruption):
        bench.run()

    assert bench.left() == but(pending=1)


def test_retry_of_an_entry_that_another_worker_has_stores_nothing(both: Bench) -> None:
    @both.task(bind=True)
    def again(self: Task) -> None:
        self.retry(countdown=60)

    again.delay()
    delivery = both.read()
    both.broker.client.call("XCLAIM", STREAM, keys.GROUP, "other", 0, delivery.entry_id)
    before = redis_state(both.broker.client)

    both.run(delivery=delivery)

    assert redis_state(both.broker.client) == before
    assert both.settler.lost == 1


def test_retry_whose_exception_the_task_swallowed_is_published_all_the_same(both: Bench) -> None:
    @both.task(bind=True)
    def again(self: Task) -> str:
        try:
            self.retry(countdown=60)
        except Exception:
            return "swallowed"
        return ""

    again.delay()

    both.run()

    assert both.left() == but(delayed=1)


def test_task_that_used_up_its_retries_is_a_dead_letter(both: Bench) -> None:
    @both.task(bind=True, max_retries=1)
    def again(self: Task) -> None:
        self.retry(exc=ActionError(), countdown=0)

    again.delay()
    both.run()
    both.run()

    assert both.left() == but(dead=["failed"])

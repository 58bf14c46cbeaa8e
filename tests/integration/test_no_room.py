"""A Redis whose disk or memory is full: publishers are told the queue and what to do, and nothing is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from celery import Celery, signals
from kombu.exceptions import OperationalError

from celery_streams import BrokerError, BrokerFull, BrokerUnavailable, bulk
from celery_streams.connection import RedisClient
from tests.support.full import disk_full, memory_full
from tests.support.redis_state import redis_state

MakeApp = Callable[..., Celery]

Full = Callable[[RedisClient], AbstractContextManager[None]]

#: How the server is full, the class of the error, and what it says.
FULL = {
    "disk": (disk_full, BrokerUnavailable, r"MISCONF .*\(look at its log, and make room on its disk"),
    "memory": (memory_full, BrokerFull, r"is full: .*\(raise maxmemory, or start more workers"),
}


def with_task(app: Celery, **options: Any) -> Any:
    @app.task(name="t", shared=False, ignore_result=True, **options)
    def t(*args: Any, **kwargs: Any) -> str:
        return "ran"

    return t


def in_bulk(task: Any) -> None:
    with bulk(task.app):
        task.delay()


#: Each publishes to the queue "celery", unless it says another.
WAYS: dict[str, Callable[[Any], object]] = {
    "at once": lambda task: task.apply_async(retry=False),
    "tried again": lambda task: task.apply_async(retry=True, retry_policy={"max_retries": 1, "interval_start": 0}),
    "later": lambda task: task.apply_async(countdown=60, retry=False),
    "with a priority": lambda task: task.apply_async(priority=9, retry=False),
    "to a new queue": lambda task: task.apply_async(queue="new", retry=False),
    "by name": lambda task: task.app.send_task("t", retry=False),
    "in bulk": in_bulk,
}


@pytest.fixture
def _celerys_way() -> Iterator[None]:
    """A receiver of a publish signal: publishes go through all of Celery's code."""

    def receive(**kwargs: Any) -> None:
        pass

    signals.before_task_publish.connect(receive)
    yield
    signals.before_task_publish.disconnect(receive)


def refused(client: RedisClient, full: str, publish: Callable[[], object], queue: str = "celery") -> BrokerError:
    """Publish while there is no room; return the error, which must have changed nothing."""
    make_full, kind, said = FULL[full]
    with make_full(client):
        before = redis_state(client)
        with pytest.raises(kind, match=f"Cannot publish to queue '{queue}': Redis at .*{said}") as caught:
            publish()
        assert redis_state(client) == before
    return caught.value


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("full", FULL)
def test_publisher_is_told_the_queue_and_what_to_do(app: MakeApp, client: RedisClient, full: str, way: str) -> None:
    task = with_task(app())
    task.delay()

    error = refused(client, full, lambda: WAYS[way](task), "new" if "new" in way else "celery")

    assert isinstance(error, OperationalError)
    WAYS[way](task)


@pytest.mark.usefixtures("_celerys_way")
@pytest.mark.parametrize("full", FULL)
def test_publisher_with_receivers_of_signals_is_told_the_same(app: MakeApp, client: RedisClient, full: str) -> None:
    task = with_task(app())
    task.delay()

    refused(client, full, lambda: task.apply_async(retry=False))


@pytest.mark.parametrize("full", FULL)
def test_publisher_of_a_unique_task_is_told_the_same_and_its_lock_is_free(
    app: MakeApp, client: RedisClient, full: str
) -> None:
    task = with_task(app(), streams_unique=True)

    refused(client, full, lambda: task.apply_async(retry=False))

    first = task.delay()
    assert task.delay().id == first.id


@pytest.mark.parametrize("full", FULL)
def test_publisher_to_a_bounded_queue_is_told_the_same(app: MakeApp, client: RedisClient, full: str) -> None:
    task = with_task(app(streams_max_length=10))
    task.delay()

    refused(client, full, lambda: task.apply_async(retry=False))
    refused(client, full, lambda: task.apply_async(countdown=60, retry=False))

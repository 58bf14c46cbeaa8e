"""What a worker's process prepares before its first message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.backends.redis import RedisBackend
from redis.exceptions import ConnectionError

from celery_streams import streams_of
from celery_streams.worker.preparation import prepare

#: More than redis-py 8 allows a pool where nothing is said.
MANY = 150


def work() -> None:
    """Do nothing."""


def _take(backend: Any, count: int) -> None:
    """Take as many connections to the results as so many tasks do that end together."""
    taken: list[Any] = []
    try:
        while len(taken) < count:
            taken.append(backend.client.client())  # which keeps one to itself
    finally:
        for one in taken:
            one.close()
        backend.client.connection_pool.disconnect()


@pytest.mark.parametrize("connected", [False, True], ids=["at once", "after the project asked for a result"])
@pytest.mark.parametrize("own", [False, True], ids=["the app's", "the task's own"])
def test_all_tasks_that_end_together_find_a_connection_for_their_results(
    app: Callable[..., Celery], connected: bool, own: bool
) -> None:
    streams = app()
    task = streams.task(lazy=False)(work)
    if own:
        task.backend = RedisBackend(app=streams, url=streams.conf.result_backend)
    if connected:
        task.backend.client.ping()

    prepare(streams, "me", streams_of(streams))

    _take(task.backend, MANY)


@pytest.mark.parametrize("said", ["setting", "url"])
def test_bound_that_the_project_set_is_kept(app: Callable[..., Celery], redis_url: str, said: str) -> None:
    results = redis_url.rpartition("/")[0] + "/1"
    streams = app(redis_max_connections=3) if said == "setting" else app(result_backend=f"{results}?max_connections=3")
    streams.task(lazy=False)(work)

    prepare(streams, "me", streams_of(streams))

    _take(streams.backend, 3)
    with pytest.raises(ConnectionError, match="Too many connections"):
        _take(streams.backend, 4)

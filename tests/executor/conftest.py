"""Fixtures for the tests of what becomes of one message: a bench, and benches on the fast and the slow path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, signals
from celery.worker import state as worker_state

from celery_streams.broker import StreamBroker
from tests.support.bench import Bench


@pytest.fixture
def make(app: Callable[..., Celery], broker: StreamBroker) -> Iterator[Callable[..., Bench]]:
    def made(**settings: Any) -> Bench:
        return Bench(app(**{"result_backend": "cache+memory://", **settings}), broker)

    before = set(worker_state.revoked), set(worker_state.successful_requests)
    yield made
    for known, now in zip(before, (worker_state.revoked, worker_state.successful_requests), strict=True):
        for task_id in set(now) - known:
            now.discard(task_id)


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    return make()


@pytest.fixture(params=["fast", "slow"])
def make_both(request: pytest.FixtureRequest, make: Callable[..., Bench]) -> Iterator[Callable[..., Bench]]:
    """The same test on the fast path, and on the slow one, to which a receiver of task_received leads."""

    def receiver(**_: Any) -> None:
        """Only be there."""

    if request.param == "slow":
        signals.task_received.connect(receiver, weak=False)
    yield make
    signals.task_received.disconnect(receiver)


@pytest.fixture
def both(make_both: Callable[..., Bench]) -> Bench:
    return make_both()

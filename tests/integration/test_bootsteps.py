"""A project's own steps of the consumer, which name Celery's Tasks, Heart and Control; ours stand for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery, bootsteps
from celery.worker.consumer.connection import Connection
from celery.worker.consumer.control import Control as CeleryControl
from celery.worker.consumer.heart import Heart as CeleryHeart
from celery.worker.consumer.tasks import Tasks as CeleryTasks

from celery_streams.worker import consumer

NAMES = {
    "the class": CeleryTasks,
    "its module": "celery.worker.consumer.tasks:Tasks",
    "the package": "celery.worker.consumer:Tasks",
    "a dot": "celery.worker.consumer.tasks.Tasks",
}


def step(name: str, *requires: Any) -> Any:
    return type(name, (bootsteps.StartStopStep,), {"requires": requires, "__module__": __name__})


def order(*steps: Any) -> list[Any]:
    """Return the steps in the order in which a consumer would start them; their sets have another order each time."""
    blueprint = consumer.Consumer.Blueprint(steps=random.sample(steps, len(steps)))
    types = list(blueprint.types)
    random.shuffle(types)
    blueprint.types = types  # type: ignore[assignment]
    blueprint.steps = blueprint.claim_steps()
    return list(blueprint._finalize_steps(blueprint.steps))


@pytest.mark.parametrize("how", NAMES)
def test_step_that_requires_celerys_tasks_starts_after_ours_and_celerys_is_not_loaded(how: str) -> None:
    for _ in range(20):
        mine, second = step("Mine", NAMES[how]), step("Second", NAMES["the class"], Connection)
        after = step("After", mine, CeleryHeart, "celery.worker.consumer:Control")

        found = order(mine, second, after)

        assert found.index(consumer.StreamTasks) < min(found.index(mine), found.index(second))
        assert max(map(found.index, (mine, consumer.Heart, consumer.Control))) < found.index(after)
        assert not {CeleryTasks, CeleryHeart, CeleryControl}.intersection(found)
        assert len(found) == len(set(found)) == 12
        assert found[-1].last


def test_celerys_own_steps_among_the_projects_are_ours() -> None:
    for _ in range(20):
        found = order(CeleryTasks, "celery.worker.consumer:Heart", CeleryControl)

        assert len(found) == 9
        assert not {CeleryTasks, CeleryHeart, CeleryControl}.intersection(found)


def test_step_that_nobody_knows_is_named() -> None:
    with pytest.raises(ImportError, match="no_such_module"):
        order(step("Mine", "no_such_module:Step"))


def test_steps_of_a_project_are_left_as_they_were_for_a_stock_worker() -> None:
    mine = step("Mine", "celery.worker.consumer:Tasks")

    order(mine)

    assert list(mine.requires) == [CeleryTasks]


def test_steps_are_found_by_celerys_names(app: Callable[..., Celery]) -> None:
    blueprint = consumer.Consumer.Blueprint()
    steps = blueprint.claim_steps()

    assert steps["celery.worker.consumer.tasks.Tasks"] is consumer.StreamTasks
    assert steps["celery.worker.consumer.heart.Heart"] is consumer.Heart
    assert steps["celery.worker.consumer.control.Control"] is consumer.Control


class SilentChannel:
    """A channel on a connection whose peer is silent; closing it waits for an answer in vain."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        raise redis.exceptions.TimeoutError("Timeout reading from socket")


@pytest.mark.parametrize("ending", ["stop", "shutdown"])
def test_step_that_hears_messages_is_closed_whole_after_the_connection_was_lost(
    app: Callable[..., Celery], ending: str
) -> None:
    """Gossip is such a step: with the broker silent a worker ended with a stack trace and exit code 1."""
    owner = consumer.Consumer.__new__(consumer.Consumer)  # no pool, no timer
    owner.app = app()
    owner.app.conf.update(
        worker_enable_prefetch_count_reduction=False, worker_cancel_long_running_tasks_on_connection_loss=True
    )
    owner.connection = owner.app.connection_for_read()
    owner.connection_errors = (*owner.connection.connection_errors, *owner.connection.channel_errors)
    owner.channel_errors = owner.connection.channel_errors
    hearing = bootsteps.ConsumerStep(owner)
    channels = [SilentChannel(), SilentChannel()]
    hearing.consumers = [SimpleNamespace(channel=one, cancel=one.close) for one in channels]

    owner.on_connection_error_after_connected(ConnectionResetError("lost"))
    getattr(hearing, ending)(owner)

    assert [one.closed for one in channels] == [2 if ending == "stop" else 1] * 2
    assert not owner.connection

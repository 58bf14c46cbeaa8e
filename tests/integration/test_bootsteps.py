"""A project's own steps of the consumer, which name Celery's Tasks, Heart and Control; ours stand for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
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

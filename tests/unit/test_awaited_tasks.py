"""``async def`` tasks of an installed app are awaited wherever Celery calls them, whichever decorator declared them."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, _state, chain, chord, group, shared_task, states
from celery.app.trace import build_tracer

import celery_streams


async def increased(number: int) -> int:
    await asyncio.sleep(0)
    return number + 1


def total(numbers: list[int]) -> int:
    return sum(numbers)


class Flaky(Exception):
    """What a task is retried for."""


def _plain(app: Celery, name: str) -> Any:
    return app.task(increased, name=name, shared=False)


def _shared(app: Celery, name: str) -> Any:
    return shared_task(increased, name=name)


def _ours(app: Celery, name: str) -> Any:
    return celery_streams.shared_task(name=name)(increased)


def _made_at_once(app: Celery, name: str) -> Any:
    return app.task(increased, name=name, shared=False, lazy=False)


def _retried(app: Celery, name: str) -> Any:
    tries: list[int] = []

    async def increase(self: Any, number: int) -> int:
        tries.append(number)
        if self.request.called_directly or self.request.retries:
            return await increased(number)
        raise Flaky

    options = {"autoretry_for": (Flaky,), "retry_kwargs": {"countdown": 0}}
    return app.task(increase, name=name, bind=True, shared=False, **options)


def _of_a_class(app: Celery, name: str) -> Any:
    async def run(self: Any, number: int) -> int:
        return await increased(number)

    return app.register_task(type("Increase", (Task,), {"name": name, "run": run})())


DECLARED: dict[str, Callable[[Celery, str], Any]] = {
    "app.task": _plain,
    "app.task, not lazy": _made_at_once,
    "celery.shared_task": _shared,
    "celery_streams.shared_task": _ours,
    "autoretry_for and bind": _retried,
    "a class": _of_a_class,
}


async def _in_a_loop(task: Any) -> Any:
    return task.apply((1,)).get()


def _in_a_worker(task: Any) -> Any:
    """Run it as a stock worker of lists does, to which a rollback leads."""
    tracer = build_tracer(task.name, task, app=task.app, eager=False, propagate=False)
    task_id = f"traced-{task.name}"
    tracer(task_id, (1,), {}, {"id": task_id, "task": task.name, "is_eager": False, "retries": 1})
    assert task.app.backend.get_state(task_id) == states.SUCCESS
    return task.app.backend.get_result(task_id)


def _eager(task: Any) -> Any:
    task.app.conf.task_always_eager = True
    return task


CALLED: dict[str, Callable[[Any], Any]] = {
    "directly": lambda task: task(1),
    ".apply()": lambda task: task.apply((1,)).get(),
    ".delay(), eager": lambda task: _eager(task).delay(1).get(),
    "in a chain, eager": lambda task: chain(_eager(task).s(-1), task.s(), task.s()).delay().get(),
    "in a group, eager": lambda task: group(_eager(task).s(one) for one in (1, 2)).delay().get()[0],
    "in a chord, eager": lambda task: chord([_eager(task).s(0), task.s(0)], task.app.tasks["total"].s())().get(),
    "in a running loop": lambda task: asyncio.run(_in_a_loop(task)),
    "by a stock worker": _in_a_worker,
}


@pytest.fixture
def app() -> Iterator[Celery]:
    # Celery gives a shared task to every app that is finalized later.
    finalizers = set(_state._on_app_finalizers)
    yield Celery("awaited", broker="memory://", backend="cache+memory://")
    _state._on_app_finalizers = finalizers


@pytest.mark.parametrize("installed", ["first", "last"])
@pytest.mark.parametrize("called", CALLED)
@pytest.mark.parametrize("declared", DECLARED)
def test_async_task_returns_its_result_and_no_coroutine(
    app: Celery, declared: str, called: str, installed: str
) -> None:
    if installed == "first":
        celery_streams.install(app)
    app.task(total, name="total", shared=False)
    task = DECLARED[declared](app, f"{declared} {called} {installed}")
    if installed == "last":
        celery_streams.install(app)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CALLED[called](task) == 2


def test_async_task_is_awaited_that_was_declared_after_the_app_was_finalized(app: Celery) -> None:
    celery_streams.install(app)
    app.finalize()

    assert _plain(app, "late").apply((1,)).get() == 2


@pytest.mark.parametrize("installed", ["first", "last"])
@pytest.mark.parametrize("options", [{}, {"autoretry_for": (ValueError,)}])
def test_tasks_that_a_function_declares_may_refer_to_themselves_and_to_each_other(
    app: Celery, options: dict[str, Any], installed: str
) -> None:
    if installed == "first":
        celery_streams.install(app)

    @app.task(name="descends", shared=False, **options)
    def descends(number: int) -> int:
        return descends.apply((number - 1,)).get() if number else steps.name == "steps"

    @app.task(name="steps", shared=False, **options)
    async def steps(number: int) -> int:
        return steps.apply((number - 1,)).get() if number else descends.apply((2,)).get()

    if installed == "last":
        celery_streams.install(app)

    assert descends.apply((2,)).get() == 1
    assert steps.apply((2,)).get() == 1


def test_async_task_of_an_app_that_is_not_installed_is_left_as_celery_has_it(app: Celery) -> None:
    task = _plain(app, "stock")

    coroutine = task(1)

    assert asyncio.run(coroutine) == 2


def test_what_ran_an_async_task_leaves_no_open_loop_when_its_thread_ends(app: Celery) -> None:
    celery_streams.install(app)
    task = _plain(app, "in a thread")
    loops: list[Any] = []

    async def note() -> None:
        loops.append(asyncio.get_running_loop())

    noting = app.task(note, name="note", shared=False)

    def run() -> None:
        assert task(1) == 2
        noting()
        noting()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    gc.collect()

    assert loops[0] is loops[1]
    assert loops[0].is_closed()

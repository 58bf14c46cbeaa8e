"""``async def`` tasks, however they are declared and decorated, are awaited by what runs tasks as functions."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, _state, states
from celery.app.trace import build_tracer

import celery_streams
from celery_streams.async_tasks import as_function
from celery_streams.awaited_tasks import make_callable


class Flaky(Exception):
    """What a task is retried for."""


@pytest.fixture
def app() -> Iterator[Celery]:
    # Celery gives a shared task to every app that is finalized later.
    finalizers = set(_state._on_app_finalizers)
    yield Celery("async-tasks", set_as_current=False, broker="memory://", backend="cache+memory://")
    _state._on_app_finalizers = finalizers


def ran(task: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a task as a worker does and return its result; twice prepared, as after a restart of its pool."""
    make_callable(task)
    make_callable(task)
    tracer = build_tracer(task.name, task, app=task.app, eager=False, propagate=False)
    task_id = str(uuid.uuid4())  # backends in memory share their memory
    outcome = tracer(task_id, args, kwargs, {"id": task_id, "task": task.name, "is_eager": False})
    result = task.app.backend.get_result(task_id)
    assert outcome[1] is None, result
    assert task.app.backend.get_state(task_id) == states.SUCCESS
    return result


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def logged(fun: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fun)
    def call(*args: Any, **kwargs: Any) -> Any:
        return fun(*args, **kwargs)

    return call


def bare(fun: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return fun(*args, **kwargs)

    return call


def kept_aside(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Call what ``functools.wraps`` keeps, and refer to nothing else."""

    def call(*args: Any) -> Any:
        return call.__wrapped__(*args)  # type: ignore[attr-defined]

    return functools.wraps(fun)(call)


def awaiting(fun: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fun)
    async def call(*args: Any) -> Any:
        return await fun(*args)

    return call


def running(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Run the coroutine itself, as asgiref's ``async_to_sync`` does."""

    @functools.wraps(fun)
    def call(*args: Any) -> Any:
        return asyncio.run(fun(*args))

    return call


class Counted:
    """A decorator that is an object."""

    def __init__(self, fun: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fun)
        self.fun = fun

    def __call__(self, *args: Any) -> Any:
        return self.fun(*args)


def partly(fun: Callable[..., Any]) -> Callable[..., Any]:
    return functools.update_wrapper(functools.partial(fun), fun)


DECORATORS: dict[str, Callable[[Any], Any]] = {
    "none": lambda fun: fun,
    "functools.wraps": logged,
    "without functools.wraps": bare,
    "two": lambda fun: logged(bare(fun)),
    "keeps it aside": kept_aside,
    "itself async def": awaiting,
    "functools.wraps around one that is async def": lambda fun: logged(awaiting(fun)),
    "runs it itself": running,
    "an object": Counted,
    "functools.wraps around functools.partial": lambda fun: logged(partly(fun)),
    "already made a function": lambda fun: logged(as_function(fun)),
}


@pytest.mark.parametrize("decorator", DECORATORS)
def test_async_function_behind_a_decorator_is_awaited(app: Celery, decorator: str) -> None:
    task = app.task(DECORATORS[decorator](double), name="t", shared=False, lazy=False)

    assert ran(task, 21) == 42


@pytest.mark.parametrize("decorator", DECORATORS)
def test_async_function_behind_a_decorator_is_awaited_with_our_shared_task(decorator: str) -> None:
    made = Celery("async-tasks", broker="memory://", backend="cache+memory://")
    name = f"shared.{decorator}"
    celery_streams.shared_task(name=name)(DECORATORS[decorator](double))

    assert made.tasks[name](21) == 42


@pytest.mark.parametrize("decorator", ["none", "functools.wraps", "without functools.wraps"])
def test_async_method_run_of_a_task_class_is_awaited(app: Celery, decorator: str) -> None:
    async def run(self: Any, number: int) -> int:
        return await double(number)

    cls = type("Doubling", (Task,), {"name": "t", "run": DECORATORS[decorator](run)})

    assert ran(app.register_task(cls()), 21) == 42


@pytest.mark.parametrize("decorator", ["none", "functools.wraps", "without functools.wraps"])
def test_bound_async_function_behind_a_decorator_gets_its_task(app: Celery, decorator: str) -> None:
    async def named(self: Any, number: int) -> list[Any]:
        return [self.name, await double(number)]

    task = app.task(DECORATORS[decorator](named), name="t", bind=True, shared=False, lazy=False)

    assert ran(task, 21) == ["t", 42]


@pytest.mark.parametrize("decorator", ["none", "functools.wraps"])
@pytest.mark.parametrize("bind", [False, True])
@pytest.mark.parametrize("autoretry_for", [(), (Flaky,)])
def test_async_function_with_pydantic_gets_models_and_returns_plain_data(
    app: Celery, decorator: str, bind: bool, autoretry_for: tuple[type[Exception], ...]
) -> None:
    pydantic = pytest.importorskip("pydantic")  # of the extra "test"
    Order = pydantic.create_model("Order", number=(int, ...))

    async def follow(order: Any) -> Any:
        return Order(number=await double(order.number))

    async def follow_bound(self: Any, order: Any) -> Any:
        assert self.name == "t"
        return Order(number=await double(order.number))

    for one in (follow, follow_bound):
        one.__annotations__.update({"order": Order, "return": Order})
    fun = DECORATORS[decorator](follow_bound if bind else follow)
    task = app.task(fun, name="t", bind=bind, pydantic=True, autoretry_for=autoretry_for, shared=False, lazy=False)

    assert ran(task, {"number": 21}) == {"number": 42}


@pytest.mark.parametrize("options", [{}, {"pydantic": True}])
@pytest.mark.parametrize("decorator", ["none", "functools.wraps", "without functools.wraps"])
def test_what_a_decorated_async_function_raises_is_retried_by_autoretry(
    app: Celery, decorator: str, options: dict[str, Any]
) -> None:
    if options:
        pytest.importorskip("pydantic")
    tries: list[int] = []

    async def fail_once() -> str:
        tries.append(1)
        await asyncio.sleep(0)
        if len(tries) == 1:
            raise Flaky
        return "done"

    task = app.task(
        DECORATORS[decorator](fail_once),
        name="t",
        autoretry_for=(Flaky,),
        retry_kwargs={"countdown": 0},
        shared=False,
        lazy=False,
        **options,
    )
    make_callable(task)

    assert task.apply().get() == "done"
    assert len(tries) == 2


def test_function_that_refers_to_no_coroutine_function_is_left_as_it_is() -> None:
    def plain() -> int:
        return len(DECORATORS)

    assert as_function(plain) is plain
    assert as_function(logged(plain)) is not plain
    assert as_function(len) is len


@pytest.mark.parametrize("then", ["end", "go on"])
def test_coroutine_that_stops_the_loop_of_its_thread_harms_neither_itself_nor_the_next_one(then: str) -> None:
    async def stop() -> str:
        asyncio.get_running_loop().stop()
        if then == "go on":
            await asyncio.sleep(0.01)
        return then

    async def wait() -> str:
        await asyncio.sleep(0.01)
        return "waited"

    found = [as_function(stop)(), as_function(wait)(), as_function(stop)(), as_function(wait)()]

    assert found == [then, "waited", then, "waited"]

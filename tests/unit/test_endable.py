"""A soft time limit arrives in a coroutine wherever it waits, as Celery's exception, and cancels what it waited for."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_streams.async_tasks import run
from celery_streams.endable import EndableCoroutine

#: What ended of what a coroutine waited for, and how.
Ends = list[str]


async def for_ever(ends: Ends) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        ends.append("cancelled")
        raise


async def stubborn(ends: Ends) -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        ends.append("swallowed")
    return "all the same"


async def plain(ends: Ends) -> None:
    await for_ever(ends)


async def gathered(ends: Ends) -> None:
    await asyncio.gather(for_ever(ends), for_ever(ends), return_exceptions=True)


async def shielded(ends: Ends) -> None:
    inner = asyncio.ensure_future(asyncio.sleep(0.01))
    await asyncio.shield(asyncio.Event().wait())
    await inner


async def waited_for(ends: Ends) -> None:
    await asyncio.wait_for(for_ever(ends), timeout=60)


async def of_its_own_task(ends: Ends) -> None:
    await asyncio.create_task(for_ever(ends))


async def swallowed(ends: Ends) -> None:
    await asyncio.create_task(stubborn(ends))


async def grouped(ends: Ends) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(for_ever(ends))


async def grouped_body(ends: Ends) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(for_ever(ends))
        await asyncio.sleep(60)


async def timed(ends: Ends) -> None:
    async with asyncio.timeout(60):
        await for_ever(ends)


WAITS: dict[str, tuple[Callable[[Ends], Awaitable[None]], Ends]] = {
    "await": (plain, ["cancelled"]),
    "gather": (gathered, ["cancelled", "cancelled"]),
    "shield": (shielded, []),
    "wait_for": (waited_for, ["cancelled"]),
    "a task": (of_its_own_task, ["cancelled"]),
    "what swallows it": (swallowed, ["swallowed"]),
}
if sys.version_info >= (3, 11):
    WAITS["TaskGroup"] = grouped, ["cancelled"]
    WAITS["the body of a TaskGroup"] = grouped_body, ["cancelled"]
    WAITS["timeout()"] = timed, ["cancelled"]


async def limited(coroutine: Any, *, after: float = 0.01) -> Any:
    """Run ``coroutine`` as a pool does, with a soft limit."""
    endable = EndableCoroutine(coroutine)
    task = asyncio.ensure_future(asyncio.get_running_loop().create_task(endable))
    await asyncio.sleep(after)
    endable.raise_soft(task)
    await asyncio.wait([task], timeout=5)
    assert task.done()
    return task.result()


@pytest.mark.parametrize("wait", WAITS)
def test_soft_limit_that_nobody_catches_fails_the_task_as_in_celery(wait: str) -> None:
    waiting, ends = WAITS[wait]
    seen: Ends = []

    with pytest.raises(SoftTimeLimitExceeded) as raised:
        asyncio.run(limited(waiting(seen)))

    assert type(raised.value) is SoftTimeLimitExceeded
    assert repr(raised.value) == "SoftTimeLimitExceeded()"
    assert seen == ends


@pytest.mark.parametrize("wait", [wait for wait in WAITS if wait != "the body of a TaskGroup"])
def test_task_that_catches_its_soft_limit_goes_on_and_can_wait_for_anything(wait: str) -> None:
    waiting, _ = WAITS[wait]

    async def body() -> Any:
        try:
            await waiting([])
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0.01)
        if sys.version_info >= (3, 11):
            this = asyncio.current_task()
            assert this is not None
            assert this.cancelling() == 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(60)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.sleep(60), 0.01)
        return await asyncio.gather(asyncio.sleep(0.01, "cleaned"), asyncio.sleep(0, "up"))

    assert asyncio.run(limited(body())) == ["cleaned", "up"]


def test_soft_limit_raised_again_after_cleaning_up_is_celerys_exception() -> None:
    async def body() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)

    with pytest.raises(SoftTimeLimitExceeded) as raised:
        asyncio.run(limited(body()))

    assert type(raised.value) is SoftTimeLimitExceeded


def test_cancellation_of_the_tasks_own_is_no_soft_limit() -> None:
    async def body() -> str:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_later(0.01, inner.cancel)
        try:
            await inner
        except SoftTimeLimitExceeded:
            return "a limit"
        except asyncio.CancelledError:
            return "cancelled"
        return "nothing"

    async def unlimited() -> str:
        return await asyncio.get_running_loop().create_task(EndableCoroutine(body()))

    assert asyncio.run(unlimited()) == "cancelled"


def test_coroutine_that_is_given_up_runs_no_further_whatever_wakes_it() -> None:
    steps: list[str] = []

    async def body() -> None:
        while True:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                steps.append("goes on")
            finally:
                steps.append("woken")

    async def giving_up() -> None:
        endable = EndableCoroutine(body())
        task = asyncio.get_running_loop().create_task(endable)
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
        endable.give_up()
        del steps[:]
        task.cancel()
        await asyncio.sleep(0.05)
        assert task.cancelled()

    asyncio.run(giving_up())

    assert steps == []


class Strike:
    """Raises once, at the next look at a loop's selector: as the handler of a signal does, or gevent's hub."""

    def __init__(self, exc: BaseException) -> None:
        self.exc: BaseException | None = exc

    def __call__(self) -> None:
        exc, self.exc = self.exc, None
        if exc is not None:
            raise exc


def striking(body: Callable[[], Any], exc: BaseException) -> Any:
    """Run ``body``, whose loop is struck by ``exc`` while it waits."""
    strike = Strike(exc)

    async def struck() -> Any:
        loop: Any = asyncio.get_running_loop()
        select = loop._selector.select

        def selecting(timeout: float | None = None) -> Any:
            if timeout is None or timeout > 1:
                strike()
            return select(timeout)

        loop._selector.select = selecting
        try:
            return await body()
        finally:
            loop._selector.select = select

    return run(struck())


def test_soft_limit_that_strikes_a_loop_is_raised_in_its_coroutine() -> None:
    async def body() -> str:
        try:
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0.01)
            return "cleaned up"
        return "nothing"

    assert striking(body, SoftTimeLimitExceeded()) == "cleaned up"


def test_what_ends_a_task_cancels_its_coroutine_and_goes_on() -> None:
    seen: Ends = []

    with pytest.raises(KeyboardInterrupt):
        striking(lambda: for_ever(seen), KeyboardInterrupt())

    assert seen == ["cancelled"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["swallow", "raise", "sleep", "reraise"]), max_size=4), st.booleans())
def test_whatever_a_coroutine_does_it_ends_or_is_given_up(answers: list[str], soft: bool) -> None:
    async def body() -> str:
        for answer in answers:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if answer == "raise":
                    raise ValueError(answer) from None
                if answer == "sleep":
                    await asyncio.sleep(0.001)
                if answer == "reraise":
                    raise
        return "ended"

    async def ending() -> str:
        endable = EndableCoroutine(body())
        task = asyncio.get_running_loop().create_task(endable)
        await asyncio.sleep(0)
        if soft and answers:
            endable.raise_soft(task)
            await asyncio.sleep(0.003)
        endable.end()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.003)
        if not task.done():
            endable.give_up()
            task.cancel()
            await asyncio.sleep(0.003)
            return "given up" if task.cancelled() else "goes on"
        if task.cancelled():
            return "cancelled"
        return repr(task.exception()) if task.exception() else task.result()

    assert asyncio.run(ending()) in {
        *("ended", "given up", "cancelled", "ValueError('raise')", "SoftTimeLimitExceeded()"),
    }

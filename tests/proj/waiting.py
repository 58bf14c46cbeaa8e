"""``async def`` tasks, declared with celery-streams' decorator and with Celery's own.

The annotations are classes, not texts: of those, Celery 5.5 makes no models for ``pydantic=True``.
"""

import asyncio
import functools
import sys
import threading

import pydantic
from celery import current_task
from celery import shared_task as celery_shared_task
from celery.exceptions import SoftTimeLimitExceeded

from celery_streams import shared_task

from . import ledger
from .actions import EXITS, ODD

_running = [0]
_met: dict[int, asyncio.Event] = {}


async def _wait(task, value, seconds):
    await _record(task, asyncio.sleep(seconds))
    return value


async def _record(task, work):
    request = task.request
    _running[0] += 1
    ledger.write(
        "run",
        request.id,
        task=task.name,
        retries=request.retries,
        hostname=request.hostname,
        running=_running[0],
        thread=threading.get_ident(),
    )
    try:
        await work
    finally:
        _running[0] -= 1
    assert task.request.id == request.id == current_task.request.id


@shared_task(bind=True)
async def wait_for(self, value, seconds=0.1):
    return await _wait(self, value, seconds)


@shared_task
async def switch_interval_of_coroutines():
    await asyncio.sleep(0.01)
    return sys.getswitchinterval()


@shared_task
def switch_interval():
    return sys.getswitchinterval()


@shared_task(bind=True)
async def meet(self, value, count):
    """End when ``count`` tasks run at once in this process."""

    async def work():
        met = _met.setdefault(count, asyncio.Event())
        if _running[0] >= count:
            met.set()
        await asyncio.wait_for(met.wait(), 15)

    await _record(self, work())
    return value


@celery_shared_task(bind=True)
async def wait_for_it(self, value, seconds=0.1):
    return await _wait(self, value, seconds)


@shared_task(bind=True, max_retries=3)
async def wait_and_retry(self, value, until=1):
    await _wait(self, value, 0.01)
    if self.request.retries < until:
        raise self.retry(countdown=0)
    return [value, self.request.retries]


@shared_task(bind=True, autoretry_for=(ConnectionError,), retry_kwargs={"max_retries": 1, "countdown": 0})
async def wait_and_fail(self, value):
    await _wait(self, value, 0.01)
    raise ConnectionError(value)


@shared_task(bind=True)
async def wait_and_exit(self, seconds=0.1):
    await _wait(self, None, seconds)
    sys.exit("a bad option")


@shared_task
async def add_later(x, y):
    await asyncio.sleep(0.01)
    return x + y


@shared_task
async def add_by_calling(x, y):
    """Call another ``async def`` task as a function, and apply it in place."""
    return add_later(x, y) + add_later.apply((x, y)).result


@shared_task
def is_in_a_loop():
    """Return what a library asks that refuses to block an event loop, Django's for one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@shared_task(bind=True)
async def wait_and_raise(self, kind):
    """Wait, then raise an exception of an odd class."""
    ledger.write("run", self.request.id, task=self.name)
    await asyncio.sleep(0.01)
    raise ODD[kind]("odd")


@shared_task(bind=True)
async def wait_and_leave(self, how):
    """Wait, then end the process as far as a body can."""
    ledger.write("run", self.request.id, task=self.name)
    await asyncio.sleep(0.01)
    raise EXITS[how]()


@shared_task(bind=True)
async def wait_and_harm(self, how):
    """Stop the event loop, or change how it makes tasks for good."""
    ledger.write("run", self.request.id, task=self.name)
    loop = asyncio.get_running_loop()
    if how == "stop":
        loop.stop()
    else:
        loop.set_task_factory(lambda *args, **options: None)  # type: ignore[arg-type,return-value]
    await asyncio.sleep(0.01)
    return how


def decorated(function):
    """What many decorators look like."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


@celery_shared_task
@decorated
async def wait_behind_a_decorator(x, y):
    await asyncio.sleep(0.01)
    return x + y


@celery_shared_task(bind=True)
@decorated
@decorated
async def wait_behind_decorators(self, x):
    await asyncio.sleep(0.01)
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return x


@celery_shared_task(autoretry_for=(ConnectionError,), retry_kwargs={"max_retries": 2, "countdown": 0}, bind=True)
@decorated
async def wait_and_autoretry(self, x):
    await asyncio.sleep(0.01)
    if self.request.retries < 2:
        raise ConnectionError(x)
    return x


class Point(pydantic.BaseModel):
    x: int


@celery_shared_task(pydantic=True)
async def wait_for_point(point: Point) -> Point:
    await asyncio.sleep(0.01)
    return Point(x=point.x + 1)


@celery_shared_task(pydantic=True, bind=True)
async def wait_for_bound_point(self, point: Point) -> Point:
    await asyncio.sleep(0.01)
    return Point(x=point.x + 1)


@shared_task(bind=True)
async def wait_and_clean_up(self, seconds=60.0):
    """Catch the soft time limit, and return what was thought of it."""
    try:
        await _wait(self, None, seconds)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0.01)
        return "cleaned up"


@shared_task(bind=True, max_retries=3)
async def wait_stubbornly(self, then="swallow", seconds=60.0):
    """Do something odd each time it is cancelled; the second time it runs it ends at once."""
    ledger.write("run", self.request.id, task=self.name, redelivered=self.request.delivery_info["redelivered"])
    if ledger.count("run", self.request.id) > 1:
        return "at last"
    while True:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError as exc:
            ledger.write("cancelled", self.request.id)
            if then == "return":
                return "all the same"
            if then == "raise":
                raise ValueError(then) from exc
            if then == "retry":
                raise self.retry(countdown=0) from exc
            if then == "sleep":
                await asyncio.sleep(0.3)
                raise
        finally:
            ledger.write("left", self.request.id)

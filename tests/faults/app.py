"""The project that the fault harness runs: tasks that record when they start and end, and fail as they are told.

``-A tests.faults.app``; its settings come from the environment, as those of the sample project do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import stat
import time
import uuid
from typing import Any

from celery import Celery, shared_task
from celery.exceptions import OperationalError, SoftTimeLimitExceeded

import celery_streams
from tests.faults.ledger import Ledger
from tests.proj import settings

app = Celery("faults")
app.conf.update(settings.from_environment())
if settings.flag(settings.INSTALL):
    celery_streams.install(app)

_ledger: list[Ledger] = []


def ledger() -> Ledger:
    """Return this process' ledger, opened when the first task needs it."""
    if not _ledger:
        _ledger.append(Ledger.from_environment())
    return _ledger[0]


class Planned(Exception):
    """A failure that was ordered."""


def record(task: Any, what: str) -> None:
    request = task.request
    ledger().append(
        "runs",
        what=what,
        id=request.id,
        retries=request.retries,
        redelivered=bool((request.delivery_info or {}).get("redelivered")),
        worker=request.hostname,
        pid=os.getpid(),
        at=time.time(),
    )


def run(task: Any, action: str, **options: Any) -> Any:
    record(task, "start")
    value = _ACTIONS[action](task, **options)
    record(task, "end")
    return value


def _ok(task: Any, value: Any = None, **_: Any) -> Any:
    return value


def _note(task: Any, text: str) -> None:
    """Tell the ledger what arrived."""
    ledger().note(task.request.id, text=text)


def _nap(task: Any, seconds: float) -> None:
    time.sleep(seconds)


def _deaf(task: Any, seconds: float) -> None:
    """Nap, and let no SIGTERM through."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    time.sleep(seconds)


def _nap_first(task: Any, seconds: float) -> None:
    """Nap the first time it runs only."""
    if ledger().first(task.request.id):
        time.sleep(seconds)


def _spin(task: Any, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _hold_gil(task: Any, seconds: float) -> None:
    """Sleep in C without letting any other thread of this process run."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def _flaky(task: Any, until: int, seconds: float = 0.0, countdown: float = 0.0) -> None:
    """Retry ``until`` times."""
    time.sleep(seconds)
    if task.request.retries < until:
        record(task, "end")
        raise task.retry(countdown=countdown, max_retries=None)


def _fail(task: Any, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    record(task, "end")
    raise Planned(task.request.id)


def _poison(task: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _crash(task: Any, how: str) -> None:
    """End the process the first time; its last act is to note when."""
    if ledger().first(task.request.id):
        ledger().note(task.request.id, crash=how)
        if how == "exit":
            os._exit(3)
        elif how == "segfault":
            ctypes.string_at(0)
        os.kill(os.getpid(), signal.SIGKILL)


def _hang_up(task: Any) -> None:
    """The first time: close what the process talks to its parent through, and end a moment later."""
    if ledger().first(task.request.id):
        for descriptor in range(3, 256):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and _is_unix(descriptor):
                    os.close(descriptor)
        time.sleep(0.3)
        os._exit(3)


def _is_unix(descriptor: int) -> bool:
    with contextlib.closing(socket.socket(fileno=os.dup(descriptor))) as sock:
        return sock.family == socket.AF_UNIX


def _own(task: Any, seconds: float) -> None:
    """Wait, then say whether the message is still ours."""
    time.sleep(seconds)
    ledger().note(task.request.id, owned=celery_streams.still_owned())


def _soft(task: Any, seconds: float) -> None:
    """Nap until the soft time limit, and say that it came."""
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        ledger().note(task.request.id, soft=True)


def _unserialisable(task: Any) -> object:
    return object()


def _odd_error(task: Any) -> None:
    class Odd(Exception):
        def __init__(self, first: Any, second: Any) -> None:
            super().__init__("odd")
            self.lock = open(os.devnull)  # noqa: SIM115  (an exception that cannot be pickled is the point)

    raise Odd(1, 2)


def _publish(task: Any, count: int) -> None:
    """Publish ``count`` more tasks from inside the task."""
    for _ in range(count):
        result = quiet.delay("ok")
        ledger().append("submitted", id=result.id, action="ok", at=time.time())


def _offer(task: Any, keys: list[str], count: int, pause: float, does: str, **what: Any) -> None:
    """Publish unique tasks again and again, and tell the ledger of which message each publish was told."""
    for number in range(count):
        key, own, began = keys[number % len(keys)], uuid.uuid4().hex, time.time()
        try:
            result = once.apply_async((key, does), what, task_id=own)
        except OperationalError:
            continue  # nobody knows
        ledger().append("offers", key=key, own=own, id=result.id, began=began, at=time.time())
        time.sleep(pause)


_ACTIONS = {name[1:]: value for name, value in list(globals().items()) if name.startswith("_") and callable(value)}


@shared_task(bind=True, ignore_result=True, max_retries=None)
def quiet(self: Any, action: str, **options: Any) -> None:
    """Do ``action`` and keep no result: the task of the load."""
    run(self, action, **options)


@shared_task(bind=True, max_retries=None)
def loud(self: Any, action: str, **options: Any) -> Any:
    """Do ``action`` and keep its result."""
    return run(self, action, **options)


@shared_task(bind=True, ignore_result=True, max_retries=None, streams_unique=True, streams_unique_key="key")
def once(self: Any, key: str, action: str, **options: Any) -> None:
    """Do ``action``, once at a time for each key."""
    run(self, action, **options)


@shared_task(bind=True, ignore_result=True, max_retries=None)
def keyed(self: Any, action: str, key: str = "", **options: Any) -> None:
    """Do ``action``, as the limits of its key allow."""
    run(self, action, **options)


@shared_task(bind=True)
def double(self: Any, x: int, seconds: float = 0.0) -> int:
    record(self, "start")
    time.sleep(seconds)
    record(self, "end")
    return 2 * x


@shared_task(bind=True)
def total(self: Any, numbers: list[int]) -> int:
    record(self, "start")
    ledger().note(self.request.id, total=sum(numbers))
    record(self, "end")
    return sum(numbers)

"""Inline requests: stand-ins for the parts of a worker that Celery's strategies and Requests expect around them.

They let Celery's own code for everything out of the ordinary (events, revokes, expiry, custom Requests) run a message
here and now, in the process and thread that read it, and report what became of it in a :class:`Run`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from billiard.einfo import ExceptionInfo
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.utils.collections import AttributeDict
from celery.worker import state as worker_state

from ..broker import Delivery
from ..exceptions import BrokerError
from .task_options import TaskPlan

if TYPE_CHECKING:
    from celery import Celery

    from .slow_path import SlowPath

__all__ = ("ETA_SLACK", "PASSING_BY", "LocalConsumer", "Progress", "Run")

logger = logging.getLogger(__name__)

#: Raised outside of a task's body, these end the process, or the settling goes on later: the message stays pending.
PASSING_BY = (SoftTimeLimitExceeded, MemoryError, BrokerError)

#: Seconds by which the clocks of publisher, Redis and worker may disagree before an eta is taken for not reached.
ETA_SLACK = 0.05


class Progress(Protocol):
    """Who is told how a task goes: a slot in shared memory, or a thread's record."""

    def limit(self, *, soft: float | None, hard: float | None) -> None:
        """The task has these time limits, in seconds from its start."""

    def keep(self, message: Any) -> None:
        """The message is about to be acknowledged before the task runs."""

    def lost(self) -> bool:
        """Return whether the entry is known to be no longer ours."""


@dataclass(slots=True)
class Run:
    """What the slow path learns while Celery's Request does its part."""

    delivery: Delivery
    plan: TaskPlan
    history: dict[str, Any]
    #: Celery's verdict: ``ack``, ``reject`` or ``requeue``.
    verdict: str = ""
    started: bool = False
    early: bool = False
    #: (failed, return value as text or ExceptionInfo, runtime), as the tracer's wrapper gives it.
    traced: tuple[int, Any, float] | None = None
    #: Seconds since the epoch at which the message is due, when it came before its time.
    due: float | None = None
    request: Any = None


class _InlinePool:
    """What Celery's Request takes for its pool: runs the task here and now."""

    is_green = False

    def __init__(self, path: SlowPath) -> None:
        self._path = path

    def apply_async(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        *,
        accept_callback: Callable[[int, float], None],
        callback: Callable[[Any], None],
        error_callback: Callable[[Any], None],
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> None:
        executor, run = self._path.executor, self._path.run_now
        executor.progress.limit(soft=soft_timeout or executor.soft_limit, hard=timeout or executor.hard_limit)
        run.started = True
        accept_callback(os.getpid(), time.monotonic())
        try:
            run.traced = target(*args)
        except PASSING_BY:
            raise
        except Exception as exc:
            # As in Celery's pools: what the tracer itself raised, a Reject of a callback for one, is a failure.
            if not isinstance(exc, Reject):
                logger.error("A task failed outside of its body.", exc_info=True)
            einfo = ExceptionInfo()
            run.traced = (1, einfo, 0.0)
            executor.tell(lambda: error_callback(einfo))
        else:
            executor.tell(lambda: callback(run.traced))
        finally:
            executor.progress.limit(soft=None, hard=None)


class _Timer:
    """What a strategy takes for the consumer's timer: a message that is not due yet goes back."""

    def __init__(self, path: SlowPath) -> None:
        self._path = path

    def call_at(self, eta: float, fun: Callable[..., Any], args: tuple[Any, ...] = (), **_: Any) -> None:
        early_by = eta - time.monotonic()  # by the clock of kombu's timers
        if early_by > ETA_SLACK:
            self._path.run_now.due = time.time() + early_by
        else:
            fun(*args)


class _QoS:
    def increment_eventually(self, *_: Any) -> None:
        """There is no prefetch count to correct."""

    decrement_eventually = increment_eventually


class LocalConsumer:
    """What Celery's strategies need of a Consumer, in the process that runs the tasks."""

    def __init__(self, path: SlowPath, hostname: str, app: Celery) -> None:
        self.app = app
        self.hostname = hostname
        self.pool = _InlinePool(path)
        self.timer = _Timer(path)
        self.qos = _QoS()
        self.connection_errors: tuple[type[BaseException], ...] = ()
        self.event_dispatcher: Any = None
        self.disable_rate_limits = True
        self.task_buckets: Mapping[str, Any] = {}
        self.controller = AttributeDict(state=worker_state)
        self.on_task_request = self._execute

    def _execute(self, request: Any) -> None:
        worker_state.task_reserved(request)
        request.execute_using_pool(self.pool)

    def apply_eta_task(self, request: Any) -> None:
        """Run a message whose eta has come."""
        self._execute(request)

    def _limit_task(self, request: Any, bucket: Any, tokens: int) -> None:
        self._execute(request)

    _limit_post_eta = _limit_task

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
from functools import partial
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.utils.collections import AttributeDict
from celery.utils.time import maybe_make_aware
from celery.worker import state as worker_state
from celery.worker.consumer.consumer import Consumer

from ..entries import Delivery
from ..running_task import current
from .execution import ETA_SLACK, Escaped, Execution, OwnedTask, Surroundings
from .option_values import first_limit
from .task_errors import as_received
from .task_options import TaskOptions

__all__ = ("InlineConsumer", "Run")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Run:
    """What the slow path learns while Celery's Request does its part."""

    execution: Execution
    options: TaskOptions
    name: str
    #: The name under which it is shown: its ``shadow``, if it has one.
    shown: str
    task_id: str
    #: What the code of the task may reach of its delivery.
    task: OwnedTask
    #: Celery's verdict: ``ack``, ``reject`` or ``requeue``.
    verdict: str = ""
    started: bool = False
    early: bool = False
    #: The strategy holds on to the message.
    kept: bool = False
    #: (failed, return value as text or ExceptionInfo, runtime), as the tracer's wrapper gives it.
    traced: tuple[int, Any, float] | None = None
    #: Seconds since the epoch at which the message is due, when it came before its time.
    due: float | None = None
    #: What the message said, where Celery's Request was told another time, for this host's clock is off.
    expires: Any = None

    @property
    def delivery(self) -> Delivery:
        """The message's delivery."""
        return self.execution.delivery


def _ignore(*args: Any) -> None:
    """Do nothing: nobody listens."""


class _InlinePool:
    """What Celery's Request takes for its pool: runs the task here and now."""

    is_green = False

    def __init__(self, consumer: InlineConsumer) -> None:
        self._consumer = consumer

    def apply_async(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        accept_callback: Callable[[int, float], None] = _ignore,
        callback: Callable[[Any], None] = _ignore,
        error_callback: Callable[[Any], None] = _ignore,
        soft_timeout: Any = None,
        timeout: Any = None,
        correlation_id: Any = None,
        **_: Any,
    ) -> None:
        around = self._consumer.around
        # What no request sends with its own id concerns several messages, or none.
        run = self._consumer.run_of(correlation_id)
        try:
            soft, hard = first_limit(soft_timeout, around.soft_limit), first_limit(timeout, around.hard_limit)
        except ValueError as exc:
            raise InvalidTaskError(f"invalid time limit: {exc}") from exc
        around.progress.limit(soft=soft, hard=hard)
        if run is not None and run.expires is not None:
            for request in (one for one in args if isinstance(one, dict) and one.get("id") == run.task_id):
                request["expires"] = run.expires
        token = current.set(run.task) if run is not None and run.kept else None
        if run is not None:
            run.started = True
            around.settler.note_start(run.delivery, early=not run.options.acks_late)
            around.count_request(run.name, run.shown)
        accept_callback(os.getpid(), time.monotonic())
        name = "" if run is None else run.name
        try:
            traced = around.trace(partial(target, **kwargs or {}), *args, name=name, task_id=correlation_id)
            if run is not None:
                run.traced = (1, traced.einfo, 0.0) if isinstance(traced, Escaped) else traced
                if run.traced[0]:
                    as_received(run.traced[1])
            if isinstance(traced, Escaped):
                if not around.tell(lambda: error_callback(traced.einfo)) and run is not None:
                    around.on_untold(run.delivery, traced.einfo)
            else:
                around.tell(lambda: callback(traced))
        finally:
            around.progress.limit(soft=None, hard=None)
            if token is not None:
                current.reset(token)


class _Timer:
    """What a strategy takes for the consumer's timer: a real one, but a message that is not due yet goes back."""

    def __init__(self, consumer: InlineConsumer) -> None:
        self._consumer = consumer

    def call_at(
        self, eta: float, fun: Callable[..., Any], args: tuple[Any, ...] = (), *rest: Any, **options: Any
    ) -> Any:
        if fun not in (self._consumer.apply_eta_task, self._consumer._limit_task):
            return self._consumer.around.timer.call_at(eta, fun, args, *rest, **options)
        early_by = eta - time.monotonic()  # by the clock of kombu's timers
        # What that clock says is this host's time of day, which may be off: Redis' decides.
        if not self._consumer.comes_early(time.time() + early_by):
            fun(*args)
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer.around.timer, name)


class _Hub:
    """What a strategy takes for the worker's event loop: calls that are made later, by the timer."""

    def __init__(self, consumer: InlineConsumer) -> None:
        self.timer = consumer.timer

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> Any:
        return self.timer.call_after(0, callback, args)

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Any:
        return self.timer.call_after(delay, callback, args)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> Any:
        return self.timer.call_at(when, callback, args)

    def call_repeatedly(self, delay: float, callback: Callable[..., Any], *args: Any) -> Any:
        return self.timer.call_repeatedly(delay, callback, args)


class _QoS:
    def increment_eventually(self, *_: Any) -> None:
        """There is no prefetch count to correct."""

    decrement_eventually = increment_eventually


class InlineConsumer(Consumer):  # type: ignore[misc]
    """What Celery's strategies need of a Consumer, in the process that runs the tasks.

    It is one for ``isinstance``, since receivers of signals tell their senders apart so; it consumes nothing.
    """

    #: What runs now.
    run: Run

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.app = around.app
        self.hostname = around.hostname
        self.pool = _InlinePool(self)
        self.timer = _Timer(self)
        self.hub = _Hub(self)
        self.qos = _QoS()
        self.connection_errors: tuple[type[BaseException], ...] = ()
        self.disable_rate_limits = True
        self.task_buckets: Mapping[str, Any] = {}
        self.controller = AttributeDict(state=worker_state)
        self.on_task_request = self._take

    @property
    def event_dispatcher(self) -> Any:
        """Celery's EventDispatcher, or None."""
        return self.around.dispatcher

    def run_of(self, task_id: Any) -> Run | None:
        """Return the message of this task id: what runs now, or one that its strategy kept."""
        run: Run | None = getattr(self, "run", None)
        if run is not None and run.task_id == task_id:
            return run
        kept: Run | None = self.around.kept.of_task(task_id)
        return kept

    def comes_early(self, due: float) -> bool:
        """Return whether ``due``, seconds since the epoch, is still to come; then the message goes back until then."""
        early = not self.run.execution.hurried and due > self.around.clock.now() + ETA_SLACK
        if early:
            self.run.due = due
        return early

    def _take(self, request: Any) -> None:
        # kombu's timer knows no time before the start of the host: an eta that this host's clock takes for one, for it
        # is ahead of Redis', is none to Celery's strategy.
        eta = getattr(request, "eta", None)
        if not (eta and self.comes_early(maybe_make_aware(eta, self.app.timezone).timestamp())):
            self._execute(request)

    def _execute(self, request: Any) -> None:
        worker_state.task_reserved(request)
        request.execute_using_pool(self.pool)

    def apply_eta_task(self, request: Any) -> None:
        """Run a message whose eta has come."""
        self._execute(request)

    def _limit_task(self, request: Any, bucket: Any, tokens: int) -> None:
        self._execute(request)

    _limit_post_eta = _limit_task

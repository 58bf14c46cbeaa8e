"""Task options: what is known of a task before a message of it comes: its options, read once; it runs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..app import Streams
from ..limits import Limits, limits_of
from .outcome import Circumstances, Event, Outcome, decide

if TYPE_CHECKING:
    from celery import Celery
    from celery.app.task import Task

__all__ = ("TaskOptions", "least_delivery_limit", "limits_in_force", "options_of")

_STOCK_REQUEST = "celery.worker.request:Request"
_STOCK_STRATEGY = "celery.worker.strategy:default"


@dataclass(slots=True)
class TaskOptions:
    """What is known of a task before a message of it comes."""

    task: Task
    #: The fast path is open to it.
    plain: bool
    acks_late: bool
    #: Its strategy is not Celery's, and may keep a message and run it later.
    custom_strategy: bool
    #: What ``outcome.decide`` has to know of the task.
    given: Circumstances
    #: How often, and how many at once.
    limits: Limits = field(default_factory=Limits)
    #: What is decided about a message whose task succeeded: most do.
    succeeded: Outcome = field(init=False)

    def __post_init__(self) -> None:
        self.succeeded = decide(Event.SUCCEEDED, self.given)


def limits_in_force(task: Any, streams: Streams) -> Limits:
    """Return the limits of a task, without its rate where ``worker_disable_rate_limits`` says so.

    Raises:
        ConfigurationError: an option means nothing.
    """
    name = task.name
    limits = limits_of(task, streams.conf.limits.get(name, {}), streams.limits_in_redis.get(name))
    return replace(limits, rate=0.0) if streams.app.conf.worker_disable_rate_limits else limits


def options_of(task: Any, streams: Streams) -> TaskOptions:
    """Read the options of a task.

    Raises:
        ConfigurationError: a limit means nothing.
    """
    conf = streams.conf
    own = getattr(task, "streams_acks_late", None)
    acks_late = bool(conf.acks_late if own is None else own) or bool(task.acks_late)
    plain = acks_late and task.Request == _STOCK_REQUEST and task.Strategy == _STOCK_STRATEGY
    limit = getattr(task, "streams_delivery_limit", None)
    keep = getattr(task, "streams_dead_letter_failures", None)
    return TaskOptions(
        task,
        plain=plain,
        acks_late=acks_late,
        custom_strategy=task.Strategy != _STOCK_STRATEGY,
        given=Circumstances(
            acks_on_failure=_flag(task, "acks_on_failure"),
            acks_on_timeout=_flag(task, "acks_on_timeout"),
            reject_on_worker_lost=task.reject_on_worker_lost,
            dead_letter_failures=conf.dead_letter_failures if keep is None else bool(keep),
            delivery_limit=int(limit or conf.delivery_limit),
        ),
        limits=limits_in_force(task, streams),
    )


def least_delivery_limit(app: Celery, streams: Streams) -> int:
    """Return the smallest delivery limit of any task: before it no message of a dead worker needs a second look."""
    limits = (options_of(task, streams).given.delivery_limit for task in list(app.tasks.values()))
    return min([streams.conf.delivery_limit, *limits])


def _flag(task: Any, name: str) -> bool:
    """Read ``acks_on_failure`` / ``acks_on_timeout`` (Celery 5.7), or the older flag for both."""
    value = getattr(task, name, None)
    if value is None:
        value = getattr(task, "acks_on_failure_or_timeout", None)
    return True if value is None else bool(value)

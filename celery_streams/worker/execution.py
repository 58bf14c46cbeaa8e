"""Execution: one message on its way through this process, as values: what it is, and what happened to it.

``executor`` makes an :class:`Execution` of a delivery and hands it to the fast or the slow path; each of them *returns*
a :class:`Report`, and settles nothing. What both need of the process around them is a :class:`Surroundings`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from billiard.einfo import ExceptionInfo
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.worker import state as worker_state
from kombu.asynchronous.timer import Timer

from ..app import Streams
from ..clock import RedisClock
from ..entries import Delivery
from ..exceptions import BrokerError, MessageError
from ..locks import HEADER, is_unique
from ..running_task import HeldRetry, RunningTask
from .attempted import with_retry
from .burial import Death
from .kept_messages import KeptMessages
from .outcome import Circumstances, Event, decide
from .own_process import end_foreign_process
from .settle import Settler
from .task_errors import Interruption, einfo_of, is_of, log_raised
from .task_options import TaskOptions

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "ETA_SLACK",
    "PASSING_BY",
    "Escaped",
    "Execution",
    "Interruption",
    "OwnedTask",
    "Progress",
    "Report",
    "Surroundings",
    "check_kwargs",
    "is_plain_value",
    "recognise_revoked",
)

logger = logging.getLogger(__name__)

#: Seconds by which the clocks of publisher and Redis may disagree before an eta is taken for not reached.
ETA_SLACK = 0.05


#: What ends the process, wherever it is raised; the message stays pending.
_ENDINGS = (SystemExit, KeyboardInterrupt, Interruption)

#: Raised outside of Celery's tracer, these end the process, or the settling goes on later: the message stays pending.
#: In the tracer the last three are a user's: of a hook or an errback that publishes to a full queue, takes too long, or
#: finds no memory.
PASSING_BY = (*_ENDINGS, MemoryError, SoftTimeLimitExceeded, BrokerError)


def is_plain_value(value: Any) -> bool:
    """Return whether a name or an id of a message is one value, and no list or mapping: Celery looks it up."""
    return not isinstance(value, (list, dict))


def recognise_revoked(task_id: Any) -> None:
    """Have an id that is no text (a number, a UUID) be known as revoked where its text is: Celery asks for the id.

    Other processes, and workers that start later, are told texts.
    """
    if not isinstance(task_id, str) and is_plain_value(task_id) and str(task_id) in worker_state.revoked:
        worker_state.revoked.add(task_id)


def check_kwargs(kwargs: Any) -> None:
    """Check the keyword arguments: Celery's tracer would report to nobody what is wrong with them, and no result.

    Raises:
        MessageError: they are no mapping.
    """
    if not isinstance(kwargs, dict):
        raise MessageError(f"the keyword arguments must be a mapping, not {type(kwargs).__name__}")


@dataclass(frozen=True, slots=True)
class Escaped:
    """What passed Celery's tracer, and what Celery's pools report as a failure of the task.

    A body raised what is no Exception, a callback raised Reject or is of an odd type, a result backend gave up.
    """

    exc: BaseException
    einfo: ExceptionInfo


class Progress(Protocol):
    """Where the progress of a task is noted: a slot in shared memory, or a thread's record."""

    def limit(self, *, soft: float | None, hard: float | None) -> None:
        """The task has these time limits, in seconds from its start."""

    def keep(self, message: Any) -> None:
        """The message is about to be acknowledged before the task runs."""

    def took(self) -> float:
        """Return how many seconds ago the task started."""

    def retried(self) -> None:
        """The message was settled as retried while its task runs on: nothing is left to do for it."""

    def settling(self, *, ends: bool = False) -> None:
        """Its entry may be gone before the reply comes: what the task came to is being settled, or it is moved aside.

        Args:
            ends: no more: it starts.
        """

    def lost(self) -> bool:
        """Return whether the entry is known to be no longer ours."""


@dataclass(slots=True)
class Execution:
    """One message: decoded headers and properties, the history of its deliveries, and its task's options."""

    delivery: Delivery
    #: None when no task of this name is registered, or the name stands in the body (protocol 1).
    options: TaskOptions | None
    headers: dict[str, Any]
    properties: dict[str, Any]
    history: dict[str, Any]

    @property
    def task_id(self) -> Any:
        """The id that the headers say."""
        return self.headers.get("id")

    @property
    def hurried(self) -> bool:
        """Whether somebody asked that it run now, whatever eta it names (see ``delayed_messages.run_now``)."""
        return bool(self.history.get("hurried"))


@dataclass(frozen=True, slots=True)
class Report:
    """What happened to a message; ``outcome.decide`` makes a decision of it."""

    event: Event
    #: What a dead letter would say.
    death: Death | None = None
    #: Seconds until it may run, with EARLY and LIMITED.
    early_by: float = 0.0
    #: The entry was settled before its task ended: acknowledged early, or retried.
    settled: bool = False
    #: What the task's options are, where only the body said which task it is.
    options: TaskOptions | None = None
    #: How long the task has been unknown, in seconds, with UNKNOWN.
    unknown_for: float = 0.0
    #: A worker that knows the task and takes its messages, with UNKNOWN; empty: none.
    taker: str = ""
    #: The exception that the task raised, to be let go when all is settled.
    error: BaseException | None = None
    #: Told once the message is settled.
    announce: Callable[[], object] | None = None


@dataclass(slots=True)
class Surroundings:
    """What runs around the tasks of one consumer, in the process that runs them."""

    app: Celery
    hostname: str
    streams: Streams
    settler: Settler
    progress: Progress
    #: Time limits of the worker (``--time-limit``, ``--soft-time-limit``), in seconds.
    soft_limit: float | None = None
    hard_limit: float | None = None
    #: Called when a task starts, with its name and the one under which it is shown (``shadow``), as Celery counts it.
    count: Callable[[str, str], None] = lambda name, shown: None
    #: Likewise for one that Celery's Request runs; in the worker's own process it counts for itself.
    count_request: Callable[[str, str], None] = lambda name, shown: None
    #: Content types that may be decoded, as kombu wants them.
    accept: Any = None
    #: Those of them that this package decodes as kombu would, and faster.
    json_types: frozenset[str] = frozenset()
    #: Celery's EventDispatcher, or None.
    dispatcher: Any = None
    #: By the task's name.
    options: dict[str, TaskOptions] = field(default_factory=dict)
    #: What strategies keep.
    kept: KeptMessages[Any] = field(kw_only=True)
    #: kombu's Timer, for strategies that do something later.
    timer: Any = field(default_factory=Timer)
    #: ``worker_deduplicate_successful_tasks``
    deduplicates: bool = False
    pid: int = field(default_factory=os.getpid)
    #: Told of a failure that this process could not report: another one may be able to.
    on_untold: Callable[[Delivery, ExceptionInfo], object] = lambda delivery, einfo: None
    #: Called when a message was dealt with, with what its task raised.
    on_ended: Callable[[BaseException | None], object] = lambda error: None
    #: Redis' clock, which decides about eta and expires; this host's may be off.
    clock: RedisClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = RedisClock(self._ask_the_time)

    def _ask_the_time(self) -> float | None:
        try:
            return self.settler.broker.clock_ms() / 1000
        except BrokerError as exc:
            logger.debug("Cannot ask Redis for the time: %s", exc)
            return None

    def trace(self, tracer: Callable[..., Any], *args: Any, name: Any, task_id: Any) -> Any:
        """Call Celery's tracer; returns what it returns, or an :class:`Escaped`.

        A process that the task forked ends here, and what ends a process is raised.
        """
        try:
            try:
                return tracer(*args)
            finally:
                if os.getpid() != self.pid:
                    end_foreign_process()
        except _ENDINGS:
            raise
        except BaseException as exc:  # noqa: BLE001
            # MemoryError, too: what it stood before may be stored, and the task must not run again for it.
            if is_of(exc, Exception) and not is_of(exc, Reject):
                log_raised(logger.error, "Task %s[%s] failed outside of its body.", name, task_id)
            return Escaped(exc, einfo_of(exc))

    def sends_events(self) -> bool:
        """Return whether task events are wanted."""
        dispatcher = self.dispatcher
        return dispatcher is not None and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups)

    def tell(self, report: Callable[[], object]) -> bool:
        """Tell the result backend and the like; whatever that raises, the message must be settled all the same.

        Returns whether it was told.
        """
        try:
            report()
        except (SystemExit, KeyboardInterrupt, Interruption):
            raise
        except BaseException:  # noqa: BLE001
            # What a task raised may raise anything where Celery looks at it.
            log_raised(logger.error, "Reporting the outcome of a task failed; its message is settled all the same.")
            return False
        return True

    def ran_before(self, task_id: Any) -> None:
        """Remember a task that succeeded, where ``worker_deduplicate_successful_tasks`` asks for it."""
        if self.deduplicates:
            worker_state.successful_requests.add(task_id)


class OwnedTask(RunningTask):
    """What a running task may do with its own delivery."""

    __slots__ = ("_around", "_delivery", "early")

    def __init__(self, delivery: Delivery, around: Surroundings, task_id: Any, retries: Any) -> None:
        # Not through the parent: one is made for each message.
        self.task_id = task_id or ""
        # A project's own header of this name may be anything, as with lists; self.retry() then fails in Celery.
        self.retries = retries if isinstance(retries, (int, float)) else 0
        self.retried = self.over = False
        #: The message was acknowledged before the task ran, and so is nobody else's.
        self.early = False
        self._delivery = delivery
        self._around = around

    @property
    def queue(self) -> str:
        """The queue, or partition of one, of its delivery."""
        return self._delivery.stream.queue

    def owned(self) -> bool:
        """Ask the slot, then Redis; that is a heartbeat, too."""
        if self.over:
            return False
        if self.retried or self.early:
            return True
        around = self._around
        if around.progress.lost():
            return False
        return not around.settler.broker.extend([(around.settler.consumer, self._delivery.entry)])

    def lock(self) -> str | None:
        """Read it in the headers: few tasks are unique, and few of these are retried."""
        message = self._delivery.message
        return message.decode_headers().get(HEADER) if message is not None and is_unique(message) else None

    def store_retry(self, held: HeldRetry) -> None:
        """Store ``held``; unless the entry was acknowledged early, in one step with settling it."""
        around = self._around
        if os.getpid() != around.pid:
            raise Interruption("this process was forked by the task, whose message is not its own")
        if self.over:
            raise Interruption("this task was ended: its message is settled, or will be")
        message = with_retry(
            held.message,
            self._delivery.message,
            around.settler.consumer,
            # Of what a strategy kept nobody knows when it began.
            ran_for=None if self._delivery.entry in around.kept else around.progress.took(),
            retries=self.retries,
        )
        held = replace(held, message=message)
        if self.early:
            around.settler.publish(held)
        else:
            outcome = decide(Event.RETRIED, Circumstances())
            around.progress.settling()
            around.settler.settle(self._delivery, outcome, held=held, event=Event.RETRIED)
        if around.settler.gave_up:
            raise Interruption("the retry could not be stored before this process had to end")
        if not around.settler.is_aside(self._delivery.entry):
            # Else its entry is still to be settled, and needs its heartbeat. Now nothing is left to do for it when this
            # process dies: it is no dead letter either, where it was acknowledged early.
            around.progress.retried()

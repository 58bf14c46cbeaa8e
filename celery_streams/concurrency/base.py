"""StreamsPool: what all pools share as Celery's pools: the parent of whoever they run; see ``worker.parent``.

The consumer (``worker.consumer``) tells the pool what to read with :meth:`StreamsPool.consume`; the pool tells its
children or threads. Everything that runs user code in the parent is done on the main thread, through its mailbox.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from celery.concurrency.base import BasePool
from celery.worker import state as worker_state

from ..app import Streams, streams_of
from ..entries import StreamRef
from ..exceptions import BrokerError
from ..partitions import one_of
from ..poll import readable
from ..presence import ConsumerPresence
from ..worker.child import STOP_PATIENCE, ChildOptions
from ..worker.hand_back import Restrictable
from ..worker.mailbox import Mailbox
from ..worker.option_values import count, seconds
from ..worker.parent import Parent
from ..worker.slots import MAX_BATCH, Snapshot
from ..worker.time_limits import without_effect

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("StreamsPool", "parted")

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two rounds of the main thread's own chores.
_CHORES = 0.5


def parted(items: Sequence[T], *, size: int = 500) -> Iterator[list[T]]:
    """Cut a long list into messages that a pipe takes at once."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


class StreamsPool(BasePool):  # type: ignore[misc]
    """Base of our pools; see Celery's BasePool for what the worker calls."""

    app: Celery
    #: Children or threads that there should be.
    limit: int
    uses_semaphore = False
    #: What must have patched the standard library before the pool is made, as kombu's detect_environment calls it.
    patched_by: ClassVar[str] = ""
    #: The time limits that the pool can enforce, by the names of the task's options.
    enforced: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        initargs = self.options.get("initargs") or (self.app, None)
        self.hostname: str = initargs[1] or ""
        self.streams: Streams = streams_of(self.app)
        #: Celery's Consumer, once it runs.
        self.consumer: Any = None
        #: Celery's autoscaler, when there is one.
        self.autoscaler: Any = None
        #: A cold shutdown cancels whatever runs; what cannot be ended is passed over.
        self.cancels = False
        #: Task events are sent.
        self.events_wanted = False
        self.parent = Parent(self.app, self.hostname, self.streams, self, eventer=self._eventer)
        self._hub: Any = None
        #: When the worker was told to stop (monotonic seconds).
        self._closed_at: float | None = None
        self._read_at = time.monotonic()

    @property
    def queues(self) -> list[str]:
        """The queues that are being read."""
        return one_of(self.parent.queues)

    @property
    def mailbox(self) -> Mailbox:
        """Work for the main thread."""
        return self.parent.mailbox

    # -- what subclasses do

    @abstractmethod
    def holders(self) -> Sequence[Restrictable]:
        """Return whoever holds entries now."""

    def limited(self) -> Sequence[Restrictable]:
        """Return the holders whose tasks may have time limits."""
        return self.holders()

    def handed_back(self) -> Sequence[Restrictable]:
        """Return the holders in which entries may wait behind a task that runs."""
        return self.holders()

    def consumer_names(self) -> Sequence[str]:
        """Return the names under which this process reads itself."""
        return ()

    def readers(self) -> Sequence[ConsumerPresence]:
        """Return whoever reads now, for the services thread to tell Redis."""
        since = None if self.running() >= (self.limit or 1) else round(time.monotonic() - self._read_at, 1)
        return [ConsumerPresence(name, None, since) for name in self.consumer_names()]

    def living(self) -> int:
        """Return how many children or threads there are."""
        return int(self.num_processes)

    def last_read(self) -> float:
        """Return when a read last succeeded (monotonic seconds)."""
        return self._read_at

    def note_read(self) -> None:
        """Note that a read of this process has succeeded."""
        self._read_at = time.monotonic()

    @abstractmethod
    def announce(self, streams: Sequence[StreamRef]) -> None:
        """Tell the children what to read."""

    def give_back(self) -> None:
        """Put back at once what was fetched and not started."""

    def kept_message(self, holder: Restrictable) -> Any:
        """Return the message of a task that was acknowledged before it ran."""
        return None

    def count_starts(self) -> None:
        """Add what was started elsewhere since the last time to Celery's totals."""

    def report_of_soft(self, holder: Restrictable, shot: Snapshot) -> Callable[[], None]:
        """Return what says, in the main thread, that a task is over its soft limit.

        One round trip, unless it is known, and half a second at most: the limit is told after it.
        """
        request: Any = None
        try:
            if shot.running is not None:
                request = self.parent.request_soon(holder, shot, shot.running)
        except BrokerError as exc:
            logger.debug("Cannot name the task that is over its soft time limit while Redis is unreachable: %s", exc)
        return lambda: None if request is None else request.on_timeout(True, shot.soft)

    def on_soft(self, holder: Restrictable, shot: Snapshot) -> None:
        """Tell a task that its soft time limit is over (called by the services thread)."""

    def on_hard(self, exceeded: Sequence[tuple[Restrictable, Snapshot]]) -> None:
        """End the tasks whose hard time limit is over (called by the services thread)."""

    def work_meanwhile(self, ended: threading.Event) -> None:
        """Do for a moment what the event loop would do: the main thread waits for Celery's broker, until ``ended``.

        :meth:`wake` ends the moment.
        """
        if self.options.get("threads") is True:
            ended.wait(_CHORES)  # the chores have a thread, which reads the mailbox
            return
        self.wait_for_work(_CHORES)
        self.mailbox.guarded(self.chores)

    def wake(self) -> None:
        """End the wait of the main thread in :meth:`work_meanwhile` (from any thread)."""
        self.mailbox.post(lambda: None)

    def reaches(self, task: Any) -> bool:
        """Return whether the limits that the pool enforces reach this task; all but the plain ones of asyncio."""
        return True

    def look_at_tasks(self) -> None:
        """Read the tasks and their options again; children know those that there were when they were forked."""

    def forward(self, *message: Any) -> None:
        """Tell all children something that remote control changed."""

    def forward_revoked(self, task_ids: Sequence[str]) -> None:
        """Tell all children that these tasks are revoked."""
        for part in parted(task_ids):
            self.forward("revoke", part)

    def forward_stamps(self, pairs: Sequence[tuple[str, Any]]) -> None:
        """Tell all children that tasks with these stamps, pairs of header and stamp, are revoked."""
        for part in parted(pairs):
            self.forward("revoke_stamps", part)

    def want_events(self, wanted: bool) -> None:
        """Have task events sent or not."""
        if wanted != self.events_wanted:
            self.events_wanted = wanted
            self.forward("events", wanted)

    def running(self) -> int:
        """Return how many tasks run now."""
        return sum(holder.snapshot().running is not None for holder in self.holders())

    # -- options

    def child_options(self) -> ChildOptions:
        """Return what the command line means for whoever runs the tasks."""
        options, conf = self.options, self.app.conf
        one_at_a_time = count(conf.worker_prefetch_multiplier) == 1 or conf.get("worker_disable_prefetch")
        return ChildOptions(
            soft_limit=seconds(options.get("soft_timeout")),
            hard_limit=seconds(options.get("timeout")),
            max_tasks=count(options.get("maxtasksperchild")),
            max_memory=count(options.get("max_memory_per_child")),
            max_batch=1 if one_at_a_time else MAX_BATCH,
            worker=self.parent.name,
        )

    # -- what the consumer asks

    def consume(self, queues: Sequence[str]) -> None:
        """Read these queues from now on; none stops reading and gives back what was not started."""
        self.parent.consume(queues)

    def start_services(self) -> None:
        """Start heartbeat, claimer, limits and promotion."""
        options = self.child_options()
        idle = without_effect(
            list(self.app.tasks.values()),
            soft=options.soft_limit,
            hard=options.hard_limit,
            enforced=self.enforced,
            reaches=self.reaches,
            inherited={
                "soft_time_limit": self.app.conf.task_soft_time_limit,
                "time_limit": self.app.conf.task_time_limit,
            },
        )
        if idle:
            pool = type(self).__module__.rpartition(".")[2]
            logger.warning("Pool %s does not enforce: %s", pool, ", ".join(idle))
        self.parent.start()
        if self.options.get("threads") is True:
            threading.Thread(target=self._without_loop, name="celery-streams-chores", daemon=True).start()

    # -- stop

    def hasten(self) -> None:
        """What the main thread asks of Redis from now on must not hold it up for long (called in signal handlers)."""
        self.parent.close()

    def on_close(self) -> None:
        """The worker is told to stop."""
        self._closed_at = time.monotonic()
        self.hasten()

    def must_end(self) -> bool:
        """Return whether an outcome that Redis does not take is to be given up now."""
        if worker_state.should_terminate is not None and worker_state.should_terminate is not False:
            return True
        return self._closed_at is not None and time.monotonic() - self._closed_at >= STOP_PATIENCE

    # -- the main thread

    def register_with_event_loop(self, loop: Any) -> None:
        """Hear of posted work and of children through Celery's event loop."""
        self._hub = loop
        loop.add_reader(self.mailbox.descriptor, self.mailbox.guarded, self.mailbox.drain)
        loop.call_repeatedly(_CHORES, self.mailbox.guarded, self.chores)

    def _without_loop(self) -> None:
        """Do the chores in a thread, where the transport of Celery's broker has no event loop."""
        while self.parent.services is not None:
            self.mailbox.guarded(self.wait_for_work, _CHORES)
            self.mailbox.guarded(self.chores)

    def wait_for_work(self, timeout: float) -> None:
        """Wait until something was posted, ``timeout`` seconds at most."""
        readable([self.mailbox.descriptor], timeout=timeout)

    def chores(self) -> None:
        """What the main thread looks after now and then."""
        self.parent.chores()
        if self.autoscaler is not None and self.queues:
            self.mailbox.chore(self.autoscaler.look)

    def sync_state(self) -> None:
        """Make Celery's worker state say what the children are doing."""
        self.parent.requests.sync()

    def _eventer(self) -> Any:
        return getattr(self.consumer, "event_dispatcher", None)

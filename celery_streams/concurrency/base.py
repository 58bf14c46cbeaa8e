"""StreamsPool: what all pools share: services, aftermath, and what remote control wants to know; it starts nothing.

The consumer (``worker.consumer``) tells the pool what to read with :meth:`StreamsPool.consume`; the pool tells its
children or threads. Everything that runs user code in the parent is done on the main thread, through :meth:`post`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from celery.concurrency.base import BasePool
from celery.worker import state as worker_state

from ..app import Streams, streams_of
from ..broker import Delivery, Entry, StreamRef
from ..exceptions import BrokerError, BrokerUnavailable
from ..poll import readable
from ..presence import ConsumerPresence
from ..worker.child import ChildOptions, consumer_name
from ..worker.dead_children import Aftermath
from ..worker.hand_back import Restrictable
from ..worker.option_values import count, seconds
from ..worker.requests import build_request
from ..worker.services import Services
from ..worker.slots import MAX_BATCH, Snapshot
from ..worker.task_options import least_delivery_limit
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
        #: The queues that are being read.
        self.queues: list[str] = []
        #: Celery's autoscaler, when there is one.
        self.autoscaler: Any = None
        #: Task events are sent.
        self.events_wanted = False
        self.aftermath = Aftermath(self.app, self.hostname, self.streams, eventer=self._eventer)
        self.services: Services | None = None
        self._posted: deque[Callable[[], None]] = deque()
        self._failing_chores: set[str] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._hub: Any = None
        self._requests: dict[Entry, Any] = {}
        self._read_at = time.monotonic()

    # -- what subclasses do

    @abstractmethod
    def holders(self) -> Sequence[Restrictable]:
        """Return whoever holds entries now."""

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

    def note_read(self) -> None:
        """Note that a read of this process has succeeded."""
        self._read_at = time.monotonic()

    @abstractmethod
    def announce(self, streams: Sequence[StreamRef]) -> None:
        """Tell the children what to read."""

    def on_soft(self, holder: Restrictable, shot: Snapshot) -> None:
        """Tell a task that its soft time limit is over (called by the services thread)."""

    def on_hard(self, holder: Restrictable, shot: Snapshot) -> None:
        """End a task whose hard time limit is over (called by the services thread)."""

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
        )

    # -- what the consumer asks

    def consume(self, queues: Sequence[str]) -> None:
        """Read these queues from now on; none stops reading and gives back what was not started."""
        self.queues = list(queues)
        if self.services is not None:
            self.services.queues_changed()
        if self.queues:
            try:
                self.aftermath.broker.ensure_groups(self.queues)
            except BrokerError as exc:
                logger.error("Cannot make the consumer groups of %s yet: %s", ", ".join(self.queues), exc)
        self.announce(self.aftermath.broker.streams(self.queues))

    def start_services(self) -> None:
        """Start heartbeat, claimer, limits and promotion."""
        options = self.child_options()
        idle = without_effect(
            self.app.tasks.values(), soft=options.soft_limit, hard=options.hard_limit, enforced=self.enforced
        )
        if idle:
            logger.warning("This pool does not enforce: %s", ", ".join(idle))
        self.services = Services(
            self.streams,
            consumer_name(self.hostname, 0),
            node=self.hostname,
            readers=self.readers,
            holders=self.holders,
            handed_back=self.handed_back,
            queues=lambda: self.queues,
            on_soft=self.on_soft,
            on_hard=self.on_hard,
            delivery_limit=least_delivery_limit(self.app, self.streams),
            on_exhausted=self._on_exhausted,
        )
        self.services.start()
        if self.options.get("threads") is True:
            threading.Thread(target=self._without_loop, name="celery-streams-chores", daemon=True).start()

    # -- the main thread

    def post(self, work: Callable[[], None]) -> None:
        """Have ``work`` done on the main thread."""
        self._posted.append(work)
        try:
            os.write(self._wake_write, b".")
        except BlockingIOError:
            pass  # the pipe is full of wake-ups already
        except OSError as exc:
            logger.debug("The pool is gone: %s", exc)

    def register_with_event_loop(self, loop: Any) -> None:
        """Hear of posted work and of children through Celery's event loop."""
        self._hub = loop
        loop.add_reader(self._wake_read, self.guarded, self._drain)
        loop.call_repeatedly(_CHORES, self.guarded, self.chores)

    def _without_loop(self) -> None:
        """Do the chores in a thread, where the transport of Celery's broker has no event loop."""
        while self.services is not None:
            self.guarded(self.wait_for_work, _CHORES)
            self.guarded(self.chores)

    def wait_for_work(self, timeout: float) -> None:
        """Wait until something was posted, ``timeout`` seconds at most."""
        readable([self._wake_read], timeout=timeout)

    def guarded(self, work: Callable[..., Any], *args: Any) -> None:
        """Call ``work``; what it raises is logged, for Celery takes some exceptions for a lost connection."""
        try:
            work(*args)
        except Exception:
            # A boundary of the event loop: a callback that raises would restart Celery's consumer.
            logger.exception("%s failed; the worker goes on.", getattr(work, "__name__", work))

    def _drain(self) -> None:
        if readable([self._wake_read], timeout=0.0):  # eventlet makes a read wait, whatever the pipe's mode is
            with contextlib.suppress(BlockingIOError):  # woken twice for one byte
                os.read(self._wake_read, 4096)
        self.do_posted()

    def do_posted(self) -> None:
        """Do what was posted, without reading the pipe that wakes the main thread."""
        while self._posted:
            self.guarded(self._posted.popleft())

    def chores(self) -> None:
        """What the main thread looks after now and then."""
        self.chore(self._drain)
        self.chore(self.aftermath.run_once)
        if self.autoscaler is not None and self.queues:
            self.chore(self.autoscaler.look)

    def chore(self, work: Callable[[], object], name: str = "") -> None:
        """Do one of the chores; one that fails keeps none of the others waiting, and is logged once until it works."""
        name = name or getattr(work, "__qualname__", repr(work))
        try:
            work()
        except Exception:
            # A boundary, as in guarded(); what fails now most likely fails twice a second.
            if name not in self._failing_chores:
                self._failing_chores.add(name)
                logger.exception("%s failed; it is tried again every %g s, and the worker goes on.", name, _CHORES)
        else:
            if name in self._failing_chores:
                self._failing_chores.discard(name)
                logger.info("%s works again.", name)

    def _on_exhausted(self, delivery: Delivery, holder: str) -> None:
        assert self.services is not None
        consumer = self.services.claimer.consumer

        def settle() -> None:
            if self.aftermath.broker.extend([(consumer, delivery.entry)]) or self.aftermath.claim_left(delivery):
                return  # another worker's by now; or a part of a chord that has to wait, and is found again
            self.aftermath.crashes += 1
            self.aftermath.settle_lost(delivery, consumer, claimed=True)

        self.post(settle)

    def _eventer(self) -> Any:
        return getattr(self.consumer, "event_dispatcher", None)

    # -- what remote control asks

    def counted(self, counts: dict[str, int]) -> None:
        """Add tasks that children started to Celery's totals."""
        worker_state.total_count.update(counts)
        worker_state.all_total_count[0] += sum(counts.values())

    def sync_state(self) -> None:
        """Make Celery's worker state say what the children are doing: active and reserved requests."""
        active: dict[Entry, Any] = {}
        reserved: dict[Entry, Any] = {}
        try:
            self._look_at_holders(active, reserved)
        except BrokerUnavailable as exc:
            # Not once for each entry: that may be a time-out for each, and the event loop waits here.
            logger.warning("Cannot tell what all children are doing: %s", exc)
        for request in self._requests.values():
            worker_state.task_ready(request)
        self._requests = {**reserved, **active}
        for request in self._requests.values():
            worker_state.task_reserved(request)
        for request in active.values():
            worker_state.active_requests.add(request)

    def _look_at_holders(self, active: dict[Entry, Any], reserved: dict[Entry, Any]) -> None:
        for holder in self.holders():
            shot = holder.snapshot()
            if shot.running is not None:
                request = self._request_of(holder, shot, shot.running)
                if request is not None:
                    request.acknowledged = shot.acked_early
                    request.worker_pid = shot.pid
                    request.time_start = time.time() - (time.monotonic() - shot.started_at)
                    active[shot.running] = request
            for held in shot.waiting:
                request = self._request_of(holder, shot, held)
                if request is not None:
                    reserved[held] = request

    def _request_of(self, holder: Restrictable, shot: Snapshot, held: Entry) -> Any:
        known = self._requests.get(held)
        if known is not None:
            return known
        try:
            request = self._build_request(holder, shot, held)
        except BrokerUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001
            # Decoding runs serializers and user codecs; remote control must answer all the same.
            logger.warning("Cannot tell what entry %s is: %r", held, exc)
            return None
        # With tasks in this process Celery's own Request may be at work already.
        return request if request is None else worker_state.requests.get(request.id, request)

    def _build_request(self, holder: Restrictable, shot: Snapshot, held: Entry) -> Any:
        if shot.acked_early and held == shot.running:
            message = self.kept_message(holder)
            delivery = None if message is None else Delivery(held, message)
        else:
            delivery = self.aftermath.broker.fetch(held)
        if delivery is None:
            return None
        return build_request(
            self.app,
            delivery,
            hostname=self.hostname,
            eventer=self._eventer(),
            on_ack=lambda *_: self._acknowledge(holder.consumer, held),
            on_reject=lambda *_: None,
        )

    def kept_message(self, holder: Restrictable) -> Any:
        """Return the message of a task that was acknowledged before it ran."""
        return None

    def _acknowledge(self, consumer: str, held: Entry) -> None:
        self.aftermath.broker.ack(consumer, [held])

"""Parent: the worker's main process: what it does for its crew, whatever pool that is.

Its parts: the mailbox of the main thread, the requests that remote control asks for, what it does for children that
died and for tasks that were lost with them, and the services' threads. It starts and ends nobody: that is the pool's.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.worker import state as worker_state

from ..app import Streams
from ..consumers import forget_consumer
from ..entries import Delivery, Entry, StreamRef
from ..exceptions import BrokerError, BrokerUnavailable, NotPermitted
from ..partitions import one_of
from .access import QueueAccess
from .active_requests import ActiveRequests
from .child import consumer_name
from .counted import Counted
from .counting import count_process
from .crew import Crew
from .dead_children import DeadChildren
from .hand_back import Handback, Restrictable
from .lost_tasks import LostTasks
from .mailbox import Mailbox
from .partitions import PartitionWatch
from .services import Services
from .shards import services_broker
from .slots import Snapshot
from .task_options import least_delivery_limit
from .untold import UntoldFailures

if TYPE_CHECKING:
    from celery import Celery

    from .metrics import WorkerMetrics

__all__ = ("Parent",)

logger = logging.getLogger(__name__)

#: Seconds for which a worker that stops waits for Redis to take what its children left.
_PATIENCE = 2.0

#: Seconds for which the crash of a child counts as a recent one, and how many are counted.
_CRASHES, _MOST_CRASHES = 600.0, 1_000

#: Seconds that a worker which stops waits for each reply.
_LEAVING = 1.0

#: Seconds for which a soft time limit waits for what its task is, and those after a silence for which none does: many
#: tasks may be over their limits at once.
_SOON, _UNKNOWN_FOR = 0.5, 5.0


class Parent:
    """One for each pool. ``eventer`` is asked for at each use: Celery makes a new one after a reconnect."""

    def __init__(self, app: Celery, hostname: str, streams: Streams, crew: Crew, *, eventer: Callable[[], Any]) -> None:
        self.app = app
        self.hostname = hostname
        #: A name that no other worker has; see ``presence``.
        self.name = consumer_name(hostname, 0)
        self.streams = streams
        self.crew = crew
        #: When children crashed of late (monotonic seconds).
        self._crashed: deque[float] = deque(maxlen=_MOST_CRASHES)
        #: The queues that are being read, each partition by its name.
        self.queues: list[str] = []
        self.mailbox = Mailbox()
        self.metrics: WorkerMetrics | None = streams.metrics
        #: What is counted, if it is wanted for metrics or for the history.
        self.all_counts: Counted | None = None
        if self.metrics is not None:
            self.all_counts = self.metrics.counted
        elif streams.conf.count_tasks:
            self.all_counts = Counted()
        #: What is counted in this process.
        self.counts = None if self.all_counts is None else self.all_counts.own
        self.lost = LostTasks(app, hostname, streams, eventer=eventer, counts=self.counts)
        self.dead = DeadChildren(self.lost)
        self.untold = UntoldFailures(app, hostname, eventer=eventer)
        self.requests = ActiveRequests(self.lost, crew, eventer=eventer)
        self.services: Services | None = None
        if self.counts is not None:
            count_process(self.counts, streams)
        #: The queues that the worker is told to read, and all their partitions, the denied too.
        self._asked: list[str] = []
        self._told: list[str] = []
        #: Shared by the services; see there.
        self._broker = services_broker(streams)
        #: For who cannot wait.
        self._brief = streams.new_broker(timeout=_SOON)
        self._silent_until = 0.0
        self.access = QueueAccess(self._broker, lambda: self._told, self._on_access)
        self.partitions = PartitionWatch(
            self._broker, streams.conf.partitions, on_new=lambda: self.mailbox.post(self._announce_again)
        )
        self._known: set[StreamRef] = set()
        #: Queues whose streams and groups were made; should they vanish, those who read make them again.
        self._made: set[str] = set()

    def start(self) -> None:
        """Start heartbeat, claimer, limits and promotion."""
        crew = self.crew
        self.services = Services(
            self.streams,
            self.name,
            node=self.hostname,
            readers=crew.readers,
            holders=crew.holders,
            limited=crew.limited,
            handed_back=crew.handed_back,
            queues=lambda: self.queues,
            on_soft=crew.on_soft,
            on_hard=crew.on_hard,
            delivery_limit=least_delivery_limit(self.app, self.streams),
            on_exhausted=self._on_exhausted,
            on_recovered=self.lost.count_recovered,
            counted=self.all_counts,
            crashes=self.crashes,
            on_server=None if self.metrics is None else self.metrics.server_is,
            on_limits=self._on_limits,
            on_pauses=self._on_pauses,
            broker=self._broker,
            access=self.access,
            look_at_partitions=self.partitions.run_once,
            on_away=lambda: self.mailbox.post(self._announce_again),
            on_handed=self._on_handed,
            on_front=lambda: self.mailbox.post(lambda: self.crew.forward("look")),
        )
        self.services.start()
        self.requests.attach()
        if self.metrics is not None:
            self.metrics.start(crew, lambda: one_of(self.queues))

    def child_ended(self, reason: str) -> None:
        """Note the end of a child, by one of :data:`metrics.CHILD_EXITS`."""
        if self.metrics is not None:
            self.metrics.child_ended(reason)
        if reason == "crash":
            self._crashed.append(time.monotonic())

    def crashes(self) -> int:
        """Return how many children crashed within the last ten minutes."""
        since = time.monotonic() - _CRASHES
        return sum(at >= since for at in list(self._crashed))

    def _on_exhausted(self, delivery: Delivery, holder: str) -> None:
        assert self.services is not None
        consumer = self.services.claimer.consumer
        self.mailbox.post(lambda: self.lost.settle_exhausted(delivery, consumer, holder))

    def _on_handed(self, queues: Sequence[str]) -> None:
        assert self.services is not None
        consumer = self.services.handed.consumer
        self.mailbox.post(lambda: self.crew.forward("handed", consumer, list(queues)))

    def _on_limits(self, limits: dict[str, dict[str, Any]]) -> None:
        self.mailbox.post(lambda: self.crew.forward("limits", limits))

    def limits_changed(self) -> None:
        """Have limits that remote control changed count for what is held already."""
        if self.services is not None:
            self.services.held.refresh()

    def _announce_again(self) -> None:
        """Have readers look at their queues anew."""
        if self._asked:
            self.consume(self._asked)

    def look_at_access(self) -> None:
        """Find out which queues are denied: a reader was refused."""
        if self.services is not None:
            self.services.look_at_access()

    def _on_pauses(self, say: Callable[[], None]) -> None:
        self.mailbox.post(self._announce_again)
        self.mailbox.post(say)

    def _on_access(self) -> None:
        self.mailbox.post(self._announce_again)

    def look_at_pauses(self) -> list[str]:
        """Look at once which queues are paused; returns their names.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        return self.services.pauses.run_once() if self.services is not None else []

    def consume(self, queues: Sequence[str]) -> None:
        """Have these queues read from now on; none stops reading and gives back what was not started."""
        self._asked = list(queues)
        self._told = self.partitions.expand(self._asked)
        new = [queue for queue in self._told if queue not in self._made]
        if new:
            self._make_groups(new)
        self.queues = self.access.permitted(self._told)
        if self.services is not None:
            self.services.queues_changed()
            self.lost.broker.client.close()  # it is hardly ever needed
        streams = self.lost.broker.streams(self.queues)
        self._known.update(streams)
        self.crew.announce(streams)
        if not streams and self.services is not None:
            self.mailbox.guarded(self.crew.give_back)

    def _make_groups(self, queues: Sequence[str]) -> None:
        try:
            self.lost.broker.ensure_groups(queues)
            self._made.update(queues)
        except NotPermitted:
            try:
                self.access.look_at(queues)
                allowed = [queue for queue in queues if queue not in self.access.denied]
                self.lost.broker.ensure_groups(allowed)
                self._made.update(allowed)
            except BrokerError as exc:
                logger.error("Cannot make the consumer groups of %s yet: %s", ", ".join(queues), exc)
        except BrokerError as exc:
            logger.error("Cannot make the consumer groups of %s yet: %s", ", ".join(queues), exc)

    def request_soon(self, holder: Restrictable, shot: Snapshot, held: Entry) -> Any:
        """Return Celery's Request for an entry, for somebody who cannot wait; None when nobody can tell what it is.

        Raises:
            BrokerUnavailable: Redis does not answer at once.
        """
        known = self.requests.known.get(held)
        if known is not None or time.monotonic() < self._silent_until:
            return known
        try:
            return self.requests.of(holder, shot, held, broker=self._brief)
        except BrokerUnavailable:
            self._silent_until = time.monotonic() + _UNKNOWN_FOR
            raise

    def give_back(self) -> None:
        """Put back at once what children fetched and did not start."""
        Handback(self.lost.settler, self.crew.holders).run_once(everything=True)

    def chores(self) -> None:
        """What the main thread looks after now and then."""
        self.mailbox.chore(self.mailbox.drain)
        self.mailbox.chore(self.dead.run_once)
        self.mailbox.chore(self.crew.count_starts)

    def counted(self, counts: dict[str, int]) -> None:
        """Add tasks that children started to Celery's totals."""
        worker_state.total_count.update(counts)
        worker_state.all_total_count[0] += sum(counts.values())

    # -- stop

    def close(self) -> None:
        """Wait no longer than a moment for each reply from now on: the worker is told to stop.

        Nothing here is worth more. Entries that cannot be settled stay pending, and others claim them.
        """
        self.lost.broker.client.hasten(_LEAVING)

    def stop(self, *, end_crew: Callable[[], None]) -> None:
        """Stop, in the one order that loses nothing: promotion, what was not started, the crew, the services.

        Args:
            end_crew: ends children or threads, and waits until they have ended; what is left stays pending.
        """
        if self.services is None:
            return
        self.services.stop_due()
        self.mailbox.guarded(self.crew.give_back)
        end_crew()
        services, self.services = self.services, None
        deadline = time.monotonic() + _PATIENCE
        while self.dead.run_once() and time.monotonic() < deadline:
            # What is left needs Redis, which is away or refuses: it is asked again, this often.
            time.sleep(0.05)
        services.stop(patience=_LEAVING)
        self.untold.close()
        self.requests.detach()
        self._leave(services)
        if self.metrics is not None:
            self.metrics.close()
        if self.all_counts is not None:
            self.all_counts.close()

    def _leave(self, services: Services) -> None:
        """Say that the worker stopped, and take this process' own consumers out of the groups."""
        known = {ref for ref in self._known if ref.queue not in self.access.denied}
        queues = sorted({ref.queue for ref in known})
        streams = sorted(known, key=lambda ref: ref.step)
        own = self.crew.consumer_names()
        steps: list[Callable[[], object]] = [services.presence.depart, services.tallying.write]
        if not any(holder.snapshot().running is not None for holder in self.crew.holders()):
            steps += [partial(self.lost.settler(name).put_all_back, streams) for name in own]
        receiving = services.handed.consumer
        if services.handed.was_used:
            steps.append(partial(self.lost.settler(receiving).put_all_back, streams))
        steps += [
            partial(forget_consumer, services.broker, queues, name)
            for name in (*own, services.claimer.consumer, receiving)
        ]
        for step in steps:
            try:
                step()
            except BrokerUnavailable as exc:
                # Each further one would cost a time-out, and supervisors kill what takes too long.
                logger.warning(
                    "Cannot tell Redis that this worker stops: %s. Others notice when its heartbeat ends.",
                    exc,
                )
                return
            except BrokerError as exc:
                logger.error("Redis refused a command of this worker's shutdown: %s", exc)

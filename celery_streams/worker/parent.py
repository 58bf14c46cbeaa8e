"""Parent: the worker's main process: what it does for its crew, whatever pool that is.

Its parts: the mailbox of the main thread, the requests that remote control asks for, what it does for children that
died and for tasks that were lost with them, and the services' threads. It starts and ends nobody: that is the pool's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from celery.worker import state as worker_state

from ..app import Streams
from ..broker import Delivery, StreamRef
from ..exceptions import BrokerError
from .active_requests import ActiveRequests
from .child import consumer_name
from .crew import Crew
from .dead_children import DeadChildren
from .hand_back import Handback
from .lost_tasks import LostTasks
from .mailbox import Mailbox
from .services import Services
from .task_options import least_delivery_limit

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Parent",)

logger = logging.getLogger(__name__)

#: Seconds for which a worker that stops waits for Redis to take what its children left.
_PATIENCE = 2.0


class Parent:
    """One for each pool. ``eventer`` is asked for at each use: Celery makes a new one after a reconnect."""

    def __init__(self, app: Celery, hostname: str, streams: Streams, crew: Crew, *, eventer: Callable[[], Any]) -> None:
        self.app = app
        self.hostname = hostname
        self.streams = streams
        self.crew = crew
        #: The queues that are being read.
        self.queues: list[str] = []
        self.mailbox = Mailbox()
        self.lost = LostTasks(app, hostname, streams, eventer=eventer)
        self.dead = DeadChildren(self.lost)
        self.requests = ActiveRequests(self.lost, crew, eventer=eventer)
        self.services: Services | None = None
        self._known: set[StreamRef] = set()

    def start(self) -> None:
        """Start heartbeat, claimer, limits and promotion."""
        crew = self.crew
        self.services = Services(
            self.streams,
            consumer_name(self.hostname, 0),
            node=self.hostname,
            readers=crew.readers,
            holders=crew.holders,
            handed_back=crew.handed_back,
            queues=lambda: self.queues,
            on_soft=crew.on_soft,
            on_hard=crew.on_hard,
            delivery_limit=least_delivery_limit(self.app, self.streams),
            on_exhausted=self._on_exhausted,
        )
        self.services.start()
        self.requests.attach()

    def _on_exhausted(self, delivery: Delivery, holder: str) -> None:
        assert self.services is not None
        consumer = self.services.claimer.consumer
        self.mailbox.post(lambda: self.lost.settle_exhausted(delivery, consumer))

    def consume(self, queues: Sequence[str]) -> None:
        """Have these queues read from now on; none stops reading and gives back what was not started."""
        self.queues = list(queues)
        if self.services is not None:
            self.services.queues_changed()
        if self.queues:
            try:
                self.lost.broker.ensure_groups(self.queues)
            except BrokerError as exc:
                logger.error("Cannot make the consumer groups of %s yet: %s", ", ".join(self.queues), exc)
        streams = self.lost.broker.streams(self.queues)
        self._known.update(streams)
        self.crew.announce(streams)
        if not streams and self.services is not None:
            self.mailbox.guarded(self.crew.give_back)

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

    def stop(self, *, end_crew: Callable[[], None]) -> None:
        """Stop, in the one order that loses nothing: promotion, what was not started, the crew, the services.

        Args:
            end_crew: ends children or threads, and waits until they have ended; what is left stays pending.
        """
        if self.services is None:
            return
        self.services.stop_delayed()
        self.mailbox.guarded(self.crew.give_back)
        end_crew()
        services, self.services = self.services, None
        deadline = time.monotonic() + _PATIENCE
        while self.dead.run_once() and time.monotonic() < deadline:
            # What is left needs Redis, which is away or refuses: it is asked again, this often.
            time.sleep(0.05)
        services.stop()
        self.requests.detach()
        self._leave(services)

    def _leave(self, services: Services) -> None:
        """Take this process' own consumers out of the groups."""
        queues = sorted({ref.queue for ref in self._known})
        streams = sorted(self._known, key=lambda ref: ref.step)
        own = self.crew.consumer_names()
        if not any(holder.snapshot().running is not None for holder in self.crew.holders()):
            for name in own:
                self.mailbox.guarded(self.lost.settler(name).put_all_back, streams)
        for name in (*own, services.claimer.consumer):
            self.mailbox.guarded(services.broker.forget_consumer, queues, name)

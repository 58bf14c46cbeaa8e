"""Reader: asks the streams for work and waits for it; it runs nothing and settles nothing.

1. One round trip acknowledges what is done and reads what is next, highest priority first.
2. When nothing waits it sends one blocking read and watches its socket together with the control pipe, so that a
   command from the parent is heard at once and an idle consumer costs one Redis command every few seconds.
3. What a slow read brought is asked about before it is handed out: a process that stood still (SIGSTOP, a suspended
   machine) finds entries in its socket that another worker has claimed and run meanwhile.
4. Missing streams and groups (FLUSHALL, DEL, a new queue) are made again; a lost connection is met with growing
   pauses. Both are logged once, not once a try.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Sequence

from ..broker import Delivery, Entry, StreamBroker, StreamRef
from ..connection import BlockingConnection
from ..exceptions import BrokerError, BrokerUnavailable, GroupMissing
from ..poll import readable
from .settle import Settler

__all__ = ("Pace", "Reader")

logger = logging.getLogger(__name__)

#: Milliseconds that a blocking read waits; a consumer that is idle sends one command in this time.
BLOCK_MS = 5_000

#: Seconds beyond BLOCK_MS after which a connection that does not answer is taken for dead (a peer gone without RST).
GRACE = 3.0

#: Seconds after which a consumer that is idle looks also at what it need not listen to: the fronts of its streams.
LOOK = 30.0

#: Seconds: least and greatest pause while Redis is away.
_PAUSES = (0.1, 2.0)


class Pace:
    """How many entries to fetch at once: about ten milliseconds' worth, by what tasks took lately.

    Small tasks are fetched by the hundred, where the round trip would cost more than the tasks; tasks of ten
    milliseconds and more one at a time, so that nothing waits behind them.
    """

    def __init__(self, *, most: int, budget: float = 0.010) -> None:
        self._most = most
        self._budget = budget
        self._count = 1
        self._mean = budget

    @property
    def count(self) -> int:
        """Entries to fetch next."""
        return self._count

    def observe(self, *, ran: int, seconds: float) -> None:
        """Learn from a batch: ``ran`` tasks took ``seconds``."""
        if not ran:
            return
        mean = seconds / ran
        # Down at once, up by half of the way: a long task says more than many short ones.
        self._mean = mean if mean > self._mean else (self._mean + mean) / 2
        wanted = int(self._budget / self._mean) if self._mean > 0 else self._most
        self._count = max(1, min(wanted, self._count * 4, self._most))


class Reader:
    """Reads for one consumer.

    Args:
        wake: descriptor that becomes readable when ``on_wake`` has something to do.
        on_wake: called then, between reads; it may change :attr:`streams`.
        stopped: asked before and while waiting.
        held: returns what the consumer has in its hands between two reads, besides what waits for its acknowledgement;
            so what else is pending for it after a lost connection came with a reply that never arrived, and is put
            back. None leaves that to claimers.
    """

    def __init__(
        self,
        broker: StreamBroker,
        consumer: str,
        settler: Settler,
        *,
        wake: int,
        on_wake: Callable[[], None],
        stopped: Callable[[], bool],
        held: Callable[[], Collection[Entry]] | None = None,
        on_read: Callable[[], None] = lambda: None,
    ) -> None:
        self.broker = broker
        self.consumer = consumer
        #: What is read, highest priority first.
        self.streams: Sequence[StreamRef] = ()
        #: Called while nothing is there to read; returns seconds until it wants to be called again, None is never.
        self.on_pause: Callable[[], float | None] = lambda: None
        #: Times that streams or groups had to be made again.
        self.recreated = 0
        self._settler = settler
        self._wake = wake
        self._on_wake = on_wake
        self._stopped = stopped
        self._held = held
        self._on_read = on_read
        #: When to look for entries that went to a connection that was lost.
        self._strays_due: list[float] = []
        self._blocking: BlockingConnection | None = None
        self._client_id = 0
        self._pause = _PAUSES[0]
        self._refusal = ""
        self._turn = 0
        self._quiet = False
        self._looked_at = 0.0
        self._introduced: Sequence[StreamRef] = ()
        self._armed: Sequence[StreamRef] = ()
        self._sent_at = 0.0
        self._deadline = 0.0
        self._unblocked = False

    def next(self, count: int, *, assisted: bool = False, block: bool = True) -> list[Delivery]:
        """Acknowledge what is done and return what is next; empty when a command, a stop or an error came instead."""
        try:
            return self._next(count, assisted=assisted, block=block)
        except BrokerError as exc:
            self.recover_from(exc)
            return []

    def recover_from(self, exc: BrokerError) -> None:
        """Do what there is to do about a read that failed: pause, or make missing groups again."""
        if isinstance(exc, BrokerUnavailable):
            self._lost_connection(exc)
        elif isinstance(exc, GroupMissing):
            self._recreate()
        else:
            self._refused(exc)

    def _next(self, count: int, *, assisted: bool, block: bool) -> list[Delivery]:
        if self._introduced is not self.streams:
            # Before Redis 7.2 a read that finds nothing makes no consumer, and the status would not show this one.
            self.broker.touch_consumers(sorted({ref.queue for ref in self.streams}), [self.consumer])
            self._introduced = self.streams
        if self._strays_due and time.monotonic() >= self._strays_due[0]:
            self._put_strays_back()
        # After a wait that brought nothing there is nothing to read either: wait again. Only what was put to a front
        # between two waits, while something waited on its stream that another consumer took, would lie there.
        again = self._quiet and not self._settler.waiting and time.monotonic() - self._looked_at < LOOK
        found = [] if again else self._exchange(count, assisted=assisted)
        self._quiet = False
        if not found and block and not self._stopped() and not self._settler.waiting:
            found = self._wait()
        if self._pause != _PAUSES[0]:
            logger.info("Redis is back; %s goes on.", self.consumer)
            self._pause, self._refusal = _PAUSES[0], ""
        return found

    def close(self) -> None:
        """Close the connection of blocking reads."""
        if self._blocking is not None:
            self._blocking.close()
            self._blocking = None

    # -- one round trip

    def _exchange(self, count: int, *, assisted: bool) -> list[Delivery]:
        streams = self._in_turn()
        acks = self._settler.command()
        commands = [acks] if acks else []
        if streams and count:
            commands.append(StreamBroker.read_command(streams, self.consumer, count=count))
        if not commands:
            return []
        sent_at = self._looked_at = time.monotonic()
        replies = self.broker.client.pipeline(commands)
        if acks:
            try:
                self._settler.take_reply(replies.pop(0), assisted=assisted)
            except BrokerError as exc:
                found = self._take_read(streams, replies)
                if not found:
                    raise
                # They are pending for this consumer, and nobody else would run them. The next round trip sends the
                # acknowledgements again.
                self.recover_from(exc)
                return self._owned(found, sent_at)
        return self._owned(self._take_read(streams, replies), sent_at)

    def _take_read(self, streams: Sequence[StreamRef], replies: list[object]) -> list[Delivery]:
        if not replies:
            return []
        if isinstance(replies[-1], BrokerError):
            raise replies[-1]
        self._on_read()
        return StreamBroker.parse_read(streams, replies[-1])

    def _in_turn(self) -> Sequence[StreamRef]:
        """Return the streams so that each queue comes first in its turn; the order of priorities stays."""
        steps = len(self.broker.steps)
        width = len(self.streams) // steps
        if width < 2:
            return self.streams
        self._turn = (self._turn + 1) % width
        turned: list[StreamRef] = []
        for step in range(steps):
            row = self.streams[step * width : (step + 1) * width]
            turned += [*row[self._turn :], *row[: self._turn]]
        return turned

    # -- waiting

    def _wait(self) -> list[Delivery]:
        if not self.streams:
            if readable([self._wake], timeout=1.0):
                self._on_wake()
            return []
        streams = self.streams
        descriptor = self.arm()
        while not self.due():
            watched = [descriptor] if self._unblocked else [descriptor, self._wake]
            left = max(self._deadline - time.monotonic(), 0.0)
            pause = self.on_pause()
            found = readable(watched, timeout=left if pause is None else min(left, pause))
            if self._wake in found:
                self._on_wake()
                if self._stopped() or self.streams is not streams:
                    self.disarm()
        return self.collect()

    def arm(self) -> int:
        """Send a blocking read; returns the descriptor that becomes readable when its reply is there.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        if self._blocking is None:
            self._blocking = self.broker.client.open()
            self._client_id = self._ask_client_id(self._blocking)
        self._armed = self.streams
        self._sent_at = time.monotonic()
        StreamBroker.send_blocking_read(self._blocking, self._armed, self.consumer, block_ms=BLOCK_MS)
        self._deadline = time.monotonic() + BLOCK_MS / 1000 + GRACE
        self._unblocked = False
        return self._blocking.fileno()

    @staticmethod
    def _ask_client_id(connection: BlockingConnection) -> int:
        connection.send("CLIENT", "ID")
        try:
            return int(connection.receive())
        except BrokerUnavailable:
            raise
        except BrokerError as exc:
            logger.debug("A blocking read cannot be ended early without CLIENT ID: %s", exc)
            return 0

    def due(self) -> bool:
        """Return whether the reply to :meth:`arm` is there, or late."""
        assert self._blocking is not None
        return self._blocking.ready() or time.monotonic() >= self._deadline

    def disarm(self) -> None:
        """End the blocking read early; its reply, with an entry or without, must still be collected."""
        if not self._unblocked:
            self._unblocked = True
            self._unblock()

    def collect(self) -> list[Delivery]:
        """Take the reply to :meth:`arm`.

        Raises:
            BrokerUnavailable: there is none.
            BrokerError: Redis refused the read.
        """
        assert self._blocking is not None
        found = StreamBroker.receive_blocking_read(
            self._blocking, self._armed, timeout=max(self._deadline - time.monotonic(), 0.0)
        )
        self._on_read()
        self._quiet = not found and not self._unblocked
        return self._owned(found, self._sent_at)

    def _owned(self, found: list[Delivery], sent_at: float) -> list[Delivery]:
        """Return what of ``found`` is still ours; one round trip, and only after a read that took long."""
        if not found or time.monotonic() - sent_at < self._settler.trust:
            return found
        lost = set(self.broker.extend([(self.consumer, one.entry) for one in found]))
        if lost:
            logger.warning(
                "%d entries were claimed from %s before it could start them; they are not run here.",
                len(lost),
                self.consumer,
            )
        return [one for position, one in enumerate(found) if position not in lost]

    def _unblock(self) -> None:
        """End our own blocking read early; without the permission to do so it ends by itself after BLOCK_MS."""
        try:
            self.broker.client.call("CLIENT", "UNBLOCK", self._client_id)
        except BrokerError as exc:
            logger.debug("Cannot end a blocking read early: %s", exc)

    # -- trouble

    def _put_strays_back(self) -> None:
        assert self._held is not None
        self._settler.flush()
        if not self._settler.waiting:
            count = self._settler.put_strays_back(self.streams, self._held)
            self._strays_due.pop(0)
            if count:
                logger.info(
                    "Put back %d entries that were read by %s on a connection that broke.", count, self.consumer
                )

    def _lost_connection(self, exc: BrokerUnavailable) -> None:
        if self._pause == _PAUSES[0]:
            logger.error("Connection to Redis lost: %s. Trying again until it is back.", exc)
        self.close()
        if self._held is not None:
            # At once, and when a blocking read has ended that a Redis beyond a dead network goes on with.
            now = time.monotonic()
            self._strays_due = [now, now + BLOCK_MS / 1000 + GRACE]
        # What lies idle is most likely as dead, and would cost a time-out each.
        self.broker.client.close()
        self._sleep()

    def _refused(self, exc: BrokerError) -> None:
        if str(exc) != self._refusal:
            self._refusal = str(exc)
            logger.error(
                "Cannot read from queues %s: %s. Trying again until Redis allows it.",
                ", ".join(sorted({ref.queue for ref in self.streams})),
                exc,
            )
        self.close()
        self._sleep()

    def _recreate(self) -> None:
        queues = sorted({ref.queue for ref in self.streams})
        try:
            created = self.broker.ensure_groups(queues)
        except BrokerUnavailable as exc:
            self._lost_connection(exc)
        except BrokerError as exc:
            self._refused(exc)
        else:
            if created:
                self.recreated += created
                logger.warning(
                    "Created %d missing consumer groups of queues %s again: were the streams deleted?",
                    created,
                    ", ".join(queues),
                )

    def _sleep(self) -> None:
        """Pause, unless the parent has something to say."""
        pause = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(self._pause * 2, _PAUSES[1])
        if readable([self._wake], timeout=pause):
            self._on_wake()

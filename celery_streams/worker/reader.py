"""Reader: asks the streams for work and waits for it; it runs nothing and settles nothing.

1. One round trip acknowledges what is done and reads what is next, highest priority first; through a script, or where
   small tasks wait by the hundred without it.
2. When nothing waits it sends one blocking read and watches its socket together with the control pipe, so that a
   command from the parent is heard at once and an idle consumer costs one Redis command every few seconds. After a
   message that came alone nothing is likely to wait: the next read blocks at once.
3. What a slow read brought is asked about before it is handed out: a process that stood still (SIGSTOP, a suspended
   machine) finds entries in its socket that another worker has claimed and run meanwhile.
4. Missing streams and groups (FLUSHALL, DEL, a new queue) are made again; a lost connection is met with growing
   pauses. Both are logged once, not once a try. What cannot be read is left out for a while (``reading_order``): the
   others are read on.
5. What a paused queue holds is passed over (the script that reads looks). A read that blocks cannot look; it is ended
   when the parent announces the streams anew, and what it brought meanwhile goes back to its place.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..broker import StreamBroker
from ..chance import chance
from ..connection import BlockingConnection
from ..consumers import touch_consumers
from ..entries import Delivery, Entry, StreamRef
from ..exceptions import BrokerError, BrokerUnavailable, GroupMissing, KeyOfOtherType, NotPermitted
from ..handovers import take_over
from ..pauses import paused_queues
from ..poll import readable
from ..reads import (
    parse_paused,
    parse_read,
    parse_read_on,
    read_command,
    read_on_commands,
    receive_blocking_read,
    send_blocking_look,
    send_blocking_read,
)
from ..unblocking import Unblocker
from .reading_order import AWAY, ReadingOrder
from .settle import Settler

__all__ = ("Reader",)

logger = logging.getLogger(__name__)

#: Milliseconds that a blocking read waits at first, and at last: twice as long after each that brought nothing. A
#: consumer that is idle sends one command in this time.
BLOCK_MS, LONGEST_BLOCK_MS = 5_000, 30_000

#: Seconds beyond BLOCK_MS after which a connection that does not answer is taken for dead (a peer gone without RST).
GRACE = 3.0

#: Seconds after which a consumer that is idle looks also at what it need not listen to: the fronts of its streams. The
#: claimer sees what lies there within two of its looks, and has it looked for (``look_again``).
LOOK = 300.0
_NEVER = float("-inf")

#: Entries asked for at once from which on the next read of a stream that has as many does without the script. These are
#: small tasks, so that what is put to the front of the stream in that moment waits for milliseconds.
_MANY = 16

#: A message came alone when the wait for it was this many times as long as what was done with it; and that in seconds,
#: at most.
_ALONE = 2.0
_ALONE_AT_MOST = 0.05

#: Seconds: least and greatest pause while Redis is away.
_PAUSES = (0.1, 2.0)

#: Seconds after which a reader says itself that one of several queues is forbidden.
_REFUSED_FOR = 10.0


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
        #: The queues that were paused at the last look.
        self.paused: frozenset[str] = frozenset()
        #: Times that streams or groups had to be made again.
        self.recreated = 0
        self._settler = settler
        self._wake = wake
        self._on_wake = on_wake
        self._stopped = stopped
        self._held = held
        #: Called when Redis forbids one of several queues, and whoever reads cannot tell which.
        self.on_denied: Callable[[], None] = lambda: None
        self._on_read = on_read
        #: When to look for entries that went to a connection that was lost.
        self._strays_due: list[float] = []
        self._blocking: BlockingConnection | None = None
        self._unblocker = Unblocker(broker, consumer)
        self._block_ms = BLOCK_MS
        self._pause = _PAUSES[0]
        self._refusal = ""
        #: When Redis first forbade one of several queues (monotonic seconds); 0.0: it does not.
        self._refused_at = 0.0
        self._order = ReadingOrder(broker)
        self._quiet = False
        #: Keys of streams that had more than was asked for when they were read last, and nothing at their front.
        self._rich: set[str] = set()
        #: Until when nothing is likely to wait: the last message came alone.
        self._alone_until = 0.0
        self._looked_at = _NEVER
        #: The consumer whose entries are to be taken over, and on which queues; None: nothing is known to be there.
        self._handed: tuple[str, frozenset[str]] | None = None
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

    def take_from(self, receiving: str, queues: Collection[str]) -> None:
        """Take over next what was handed to ``receiving`` on ``queues``, before anything else is read."""
        self._handed = (receiving, frozenset(queues))

    def look_again(self) -> None:
        """Ask at once for what need not be listened to; what waits for a reply asks next."""
        self._looked_at = _NEVER

    def recover_from(self, exc: BrokerError) -> None:
        """Do what there is to do about a read that failed: pause, or make missing groups again."""
        self._unblocker.doubt()
        if isinstance(exc, BrokerUnavailable):
            self._lost_connection(exc)
        elif isinstance(exc, GroupMissing):
            self._recreate()
        else:
            self._refused(exc)

    def _next(self, count: int, *, assisted: bool, block: bool) -> list[Delivery]:
        if self._order.leaves_out:
            self._order.try_again()
        if self._introduced is not self.streams:
            fresh = self._introduce(count)
            if fresh:
                return fresh
        if self._strays_due and time.monotonic() >= self._strays_due[0]:
            self._put_strays_back()
        if self._handed is not None and count and not self._stopped():
            handed = self._take_over(count)
            if handed:
                return handed
        # After a wait that brought nothing there is nothing to read either: wait again. Only what was put to a front
        # between two waits, while something waited on its stream that another consumer took, would lie there.
        now = time.monotonic()
        looked = now - self._looked_at < (BLOCK_MS / 1000 if self.paused else LOOK)
        again = self._quiet and not self._settler.waiting and (looked or self._has_no_fronts(now))
        if not again and block and looked and now < self._alone_until:
            self._exchange(0, assisted=assisted)
            found: list[Delivery] = []
        else:
            found = [] if again else self._exchange(count, assisted=assisted)
        self._quiet, self._alone_until = False, 0.0
        if not found and block and not self._stopped() and not self._settler.waiting:
            found = self._wait()
            if len(found) > max(count, 1):
                # A blocking read brings one entry of each stream that has any. They would wait here for each other.
                self._settler.put_back([one.entry for one in found[max(count, 1) :]])
                found = found[: max(count, 1)]
        if self._pause != _PAUSES[0]:
            logger.info("Redis is back; %s goes on.", self.consumer)
            self._pause, self._refusal, self._refused_at = _PAUSES[0], "", 0.0
        return found

    def _introduce(self, count: int) -> list[Delivery]:
        """Look at the streams that are new; at all of them unless some were only added. With thousands of them a new
        one must not cost what all of them cost.
        """
        known = set(self._introduced)
        new = [ref for ref in self.streams if ref not in known]
        if new:
            # Before Redis 7.2 a read that finds nothing makes no consumer, and the status would not show this one.
            touch_consumers(self.broker, sorted({ref.queue for ref in new}), [self.consumer])
        only_added = bool(known and new) and len(known) + len(new) == len(self.streams)
        self._introduced = self.streams
        if not only_added:
            self._looked_at = _NEVER
            return []
        if not count or self._stopped():
            return []
        sent_at, paused = time.monotonic(), self.paused
        found: list[Delivery] = []
        for part in self.broker.streams_by_slot(new):
            if not found:
                reply = self.broker.client.run(*read_command(part, self.consumer, count=count))
                found = self._take_read(part, reply, count)
                self.paused = paused = self.paused | paused
        # The wait that was ended for this had brought nothing.
        self._quiet = not found and self._unblocked
        return self._owned(found, sent_at)

    def close(self) -> None:
        """Close the connection of blocking reads."""
        if self._blocking is not None:
            self._blocking.close()
            self._blocking = None

    def _has_no_fronts(self, now: float) -> bool:
        """Ask for all fronts at once, where nothing else is to be looked for."""
        if self.paused or self._order.away or self._looked_at == _NEVER or self._blocking is None:
            return False
        self._blocking.send("EXISTS", *(ref.front for ref in self.streams))
        if self._blocking.receive():
            return False
        self._looked_at = now
        return True

    # -- one round trip

    def _exchange(self, count: int, *, assisted: bool) -> list[Delivery]:
        acks = self._settler.commands()
        parts = self._order.parts(self.streams)
        if len(parts) == 1:
            return self._ask(parts[0], count, acks, assisted=assisted)
        found: list[Delivery] = []
        error: BrokerUnavailable | None = None
        answered = False
        for part in parts or [()]:
            try:
                found = self._ask(part, count, acks, assisted=assisted)
            except BrokerUnavailable as exc:
                error = exc
                self._order.leave_out(part, exc)
                self._note_strays(time.monotonic())
            else:
                answered = True
                self._order.answered(part)
            acks = []
            if found or not count:
                break
        if error is not None and not answered:
            raise error
        return found

    def _ask(
        self, streams: Sequence[StreamRef], count: int, acks: Sequence[tuple[Any, ...]], *, assisted: bool
    ) -> list[Delivery]:
        if self._order.aside:
            streams = [ref for ref in streams if ref not in self._order.aside]
        commands = list(acks)
        # Of the highest priority, and this queue's turn: what waits there in numbers comes next. Only what is put to
        # its front in this moment comes after the next few milliseconds' worth of small tasks.
        read_on = count >= _MANY and bool(streams) and streams[0].key in self._rich
        if read_on:
            commands += read_on_commands(streams[0], self.consumer, count=count)
        elif streams and count:
            commands.append(read_command(streams, self.consumer, count=count))
        if not commands:
            return []
        sent_at = time.monotonic()
        if count:
            self._looked_at = sent_at
        replies = self.broker.client.pipeline(commands)

        def take_read() -> list[Delivery]:
            if read_on:
                return self._take_read_on(streams[0], replies[-2:], count)
            return self._take_read(streams, replies[-1], count) if streams and count else []

        if acks:
            try:
                self._settler.take_replies(replies[: len(acks)], assisted=assisted, put_off=self._order.is_parted)
            except BrokerError as exc:
                found = take_read()
                if not found:
                    raise
                # They are pending for this consumer, and nobody else would run them. The next round trip sends the
                # acknowledgements again.
                self.recover_from(exc)
                return self._owned(found, sent_at)
        return self._owned(take_read(), sent_at)

    def _take_over(self, count: int) -> list[Delivery]:
        assert self._handed is not None
        receiving, queues = self._handed
        streams = [ref for ref in self.streams if ref.queue in queues and ref.queue not in self.paused]
        found = take_over(self.broker, receiving, self.consumer, streams, count=count)
        if len(found) < count:
            self._handed = None  # what comes later is told of again
        return found

    def _take_read(self, streams: Sequence[StreamRef], reply: object, count: int) -> list[Delivery]:
        if isinstance(reply, BrokerError):
            raise reply
        self._on_read()
        paused = parse_paused(streams, reply)
        if self._order.is_parted:
            paused |= self.paused.difference(ref.queue for ref in streams)
        self.paused = paused
        found = parse_read(streams, reply)
        if count >= _MANY and len(found) == count and found[-1].stream == streams[0]:
            self._rich.add(streams[0].key)
        return found

    def _take_read_on(self, stream: StreamRef, replies: Sequence[object], count: int) -> list[Delivery]:
        self._rich.discard(stream.key)
        found, is_special = parse_read_on(stream, replies)
        self._on_read()
        if len(found) == count and not is_special:
            self._rich.add(stream.key)
        return self._unpaused(found) if is_special else found

    # -- waiting

    def _wait(self) -> list[Delivery]:
        if not self.streams:
            if readable([self._wake], timeout=1.0):
                self._on_wake()
            return []
        streams = self.streams
        descriptors = self.arm()
        while not self.due():
            watched = descriptors if self._unblocked else [*descriptors, self._wake]
            left = max(self._deadline - time.monotonic(), 0.0)
            pause = self.on_pause()
            found = readable(watched, timeout=left if pause is None else min(left, pause))
            if self._wake in found:
                self._on_wake()
                if self._must_look_again(streams) or self._stopped():
                    self.disarm()
        if not self._unblocked and readable([self._wake], timeout=0):
            # It may have been said before what is here now was published: that its queue is paused, say.
            self._on_wake()
            self._unblocked = self._must_look_again(streams)
        return self.collect()

    def _must_look_again(self, streams: Sequence[StreamRef]) -> bool:
        return self.streams is not streams or self._handed is not None or self._looked_at == _NEVER

    def arm(self) -> Sequence[int]:
        """Send a blocking read; returns the descriptors one of which becomes readable when its reply is there.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        if self._blocking is None:
            self._blocking = self.broker.client.open()
        self._block_ms = self.broker.client.block_at_most(self._block_ms)
        self._blocking.connect(lasting=self._block_ms / 1000)
        self._armed = self.streams
        if self._order.leaves_out:
            self._armed = self._order.listened_to(self.streams)
        if not self._unblocker.prepare(self._blocking, self.streams):
            self._block_ms = min(self._block_ms, BLOCK_MS)
        self._sent_at = time.monotonic()
        if self.paused:
            self._armed = [ref for ref in self._armed if ref.queue not in self.paused]
        # Before the read is there: whoever sees it there may call it back.
        self._unblocked = False
        ms, more = self._block_ms, self._unblocker.watched
        if self._order.away:
            ms = min(ms, int(AWAY * 1000))
        if self._armed:
            send_blocking_read(self._blocking, self._armed, self.consumer, block_ms=ms, more=more)
        else:
            send_blocking_look(
                self._blocking,
                [self.broker.queue_keys(queue).wake for queue in sorted(self.paused)],
                block_ms=ms,
                more=more,
            )
        self._deadline = time.monotonic() + ms / 1000 + GRACE
        return self._blocking.descriptors

    def due(self) -> bool:
        """Return whether the reply to :meth:`arm` is there, or late."""
        assert self._blocking is not None
        return self._blocking.ready() or time.monotonic() >= self._deadline

    def disarm(self) -> None:
        """End the blocking read early; its reply, with an entry or without, must still be collected."""
        if not self._unblocked:
            self._unblocked = True
            left = self._unblock()
            self._deadline = min(self._deadline, time.monotonic() + left)

    def collect(self) -> list[Delivery]:
        """Take the reply to :meth:`arm`.

        Raises:
            BrokerUnavailable: there is none.
            BrokerError: Redis refused the read.
        """
        assert self._blocking is not None
        found = receive_blocking_read(self._blocking, self._armed, timeout=max(self._deadline - time.monotonic(), 0.0))
        self._on_read()
        self._quiet = not found and not self._unblocked and bool(self._armed)
        self._block_ms = min(2 * self._block_ms, LONGEST_BLOCK_MS) if self._quiet else BLOCK_MS
        if self._quiet:
            self.broker.client.close()  # an idle consumer needs no second connection
        if found and self._unblocked:
            found = self._unpaused(found)
        now = time.monotonic()
        self._alone_until = now + min((now - self._sent_at) / _ALONE, _ALONE_AT_MOST) if len(found) == 1 else 0.0
        return self._owned(found, self._sent_at)

    def _unpaused(self, found: list[Delivery]) -> list[Delivery]:
        """Put back what came from a queue that was paused meanwhile; returns the rest. One round trip, or two."""
        if not found:
            return found
        self.paused = frozenset(paused_queues(self.broker, {one.stream.queue for one in found}))
        self._settler.put_back([one.entry for one in found if one.stream.queue in self.paused])
        return [one for one in found if one.stream.queue not in self.paused]

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

    def _unblock(self) -> float:
        """End our own blocking read early; returns seconds after which its reply cannot be expected any more.

        Where Redis permits no way to do so it ends by itself after its time.
        """
        try:
            ends = self._unblocker.unblock()
        except BrokerUnavailable as exc:
            logger.debug("A blocking read is given up: %s", exc)
            return 0.0
        return GRACE if ends else self._block_ms / 1000 + GRACE

    # -- trouble

    def _put_strays_back(self) -> None:
        assert self._held is not None
        self._settler.flush()
        if not self._settler.waiting:
            count = 0
            parts = self._order.parts(self.streams)
            for part in parts:
                try:
                    count += self._settler.put_strays_back(part, self._held)
                except BrokerUnavailable as exc:
                    if len(parts) == 1:
                        raise
                    # What others hold runs; here it is looked for when the node is back.
                    self._order.leave_out(part, exc)
            if self._order.away:
                self._strays_due[0] = time.monotonic() + AWAY
            else:
                self._strays_due.pop(0)
            if count:
                logger.info(
                    "Put back %d entries that were read by %s on a connection that broke.", count, self.consumer
                )

    def _lost_connection(self, exc: BrokerUnavailable) -> None:
        if self._pause == _PAUSES[0]:
            logger.error("Connection to Redis lost: %s. Trying again until it is back.", exc)
        self.close()
        self._note_strays(time.monotonic())
        self._block_ms = BLOCK_MS
        # What lies idle is most likely as dead, and would cost a time-out each.
        self.broker.client.close()
        self._sleep()

    def _note_strays(self, now: float) -> None:
        if self._held is not None:
            # At once, and when a blocking read has ended that a Redis beyond a dead network goes on with.
            self._strays_due = [now, now + self._block_ms / 1000 + GRACE]

    def _refused(self, exc: BrokerError) -> None:
        several = len({ref.queue for ref in self.streams}) > 1
        if isinstance(exc, KeyOfOtherType) and several and self._set_aside(exc):
            return
        if isinstance(exc, NotPermitted) and several and not self._refused_at:
            # The parent finds out which of them it is, and says so once for all children.
            logger.info("Cannot read from a queue: %s. Finding out which one.", exc)
            self._refused_at = time.monotonic()
            self.on_denied()
        elif str(exc) != self._refusal and not (several and time.monotonic() - self._refused_at < _REFUSED_FOR):
            self._refusal = str(exc)
            logger.error(
                "Cannot read from queues %s: %s. Trying again until Redis allows it.",
                ", ".join(sorted({ref.queue for ref in self.streams})),
                exc,
            )
        self.close()
        self._sleep()

    def _set_aside(self, exc: KeyOfOtherType) -> bool:
        """Leave out the keys that hold something else, which would end each read, for a while.

        Returns whether there are new ones, and streams beside them.
        """
        found = self._order.set_aside(self.streams)
        if not found:
            return False
        if str(exc) != self._refusal:
            self._refusal = str(exc)
            logger.error(
                "Cannot read the streams %s: %s. The others are read; trying again until this is fixed.",
                ", ".join(ref.key for ref in found),
                exc,
            )
        return True

    def _recreate(self) -> None:
        queues = sorted({ref.queue for ref in self.streams})
        try:
            created = self.broker.make_missing_groups(queues)
        except BrokerUnavailable as exc:
            self._lost_connection(exc)
        except BrokerError as exc:
            self._refused(exc)
        else:
            if created:
                self.recreated += len(created)
                logger.warning(
                    "Recreated %d missing consumer groups of queues %s: were the streams deleted?",
                    len(created),
                    ", ".join(sorted(set(created))),
                )

    def _sleep(self) -> None:
        """Pause, unless the parent has something to say."""
        pause = self._pause * chance.uniform(0.5, 1.0)
        self._pause = min(self._pause * 2, _PAUSES[1])
        if readable([self._wake], timeout=pause):
            self._on_wake()

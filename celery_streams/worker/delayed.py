"""Promoter: moves delayed messages to their streams when they are due, within milliseconds.

1. Workers take turns: of those that read a queue one leads and one is its deputy, however many there are. Both know
   when its next message is due; the deputy looks :data:`_GRACE` after the leader should have, so that a message is on
   time when the leader is killed, or stands still. The others look every few seconds, take a place that is free, and
   the lead when they find something overdue.
2. Whoever leads promotes what is due, in steps, then sleeps until the next due time.
3. The sleep is a blocking read of the queues' ``wake`` streams: whoever stores a message that is due before all
   others writes its due time there, so an earlier one is never late, and nothing is polled.
4. With them it reads ``news``, also where it has no turn: what other services look at changed.

It runs in a thread of its own in the parent: its waiting must not hold up heartbeats.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ..broker import StreamBroker
from ..chance import chance
from ..connection import BlockingConnection
from ..exceptions import BrokerError, BrokerUnavailable
from ..hints import command
from ..keys import news
from ..poll import readable
from ..turns import take_turns

__all__ = ("Promoter",)

logger = logging.getLogger(__name__)

#: Milliseconds: longest sleep; only a bound for what a lost connection may cost.
_LONGEST_MS = 30_000

#: Seconds beyond that after which a connection that does not answer is taken for dead.
_PATIENCE = 3.0

#: Milliseconds after which a queue is looked at again whose messages Redis refuses to move.
_REFUSED_MS = 1_000

#: Messages moved in one step, which holds Redis up for a millisecond or two, and on a busy machine for ten times that.
_STEP = 100

#: Queues that one script looks at, so that Redis is never held up.
_QUEUES = 100

#: Seconds by which a deputy looks later than the leader.
_GRACE = 0.2

#: Seconds between two looks at whose turn it is, for up to 100 queues; with more of them they are rarer.
_LOOK = 2.0

#: How much rarer the looks are while nothing is delayed, and for who has a place in all queues: where leader and deputy
#: are gone those who rest find out. Seconds from its start after which a worker relies on it: those that were killed
#: before may have the turns.
_IDLE, _PLACED, _SETTLED = 5, 6, 30.0

#: Looks that a leader or deputy may miss before its place is free.
_MISSED = 2.5

#: Seconds after which a message that nobody moved shows that leader and deputy stand still.
_OVERDUE = 0.5

#: Seconds after which it is tried again to listen to what Redis refused.
_DEAF = 30.0


class Promoter:
    """Promotes the queues that ``queues`` names at each round.

    Args:
        worker: a name that no other worker has.
        on_wake: called whenever somebody wrote to a wake stream.
        on_news: called whenever there are news, and once at first; None: they are not listened to.
        others_wait: returns whether the turns matter although nothing is delayed.
    """

    def __init__(
        self,
        broker: StreamBroker,
        queues: Callable[[], Sequence[str]],
        *,
        worker: str = "",
        on_wake: Callable[[], None] = lambda: None,
        on_news: Callable[[], None] | None = None,
        others_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        #: Messages moved, and looks at whose turn it is, so far.
        self.moved = self.looks = 0
        self._broker = broker
        self._queues = queues
        self._worker = worker or secrets.token_hex(8)
        self._on_wake = on_wake
        self._on_news = on_news
        self._news = news(broker.prefix)
        self._last_news = b"0-0"
        #: Until when news are not asked for, for Redis refused them.
        self._no_news_until = 0.0 if on_news is not None else math.inf
        self._others_wait = others_wait
        self._refusal = ""
        #: Queues of which Redis refused to move what is due.
        self._refused: set[str] = set()
        #: The queues that were asked for at the last look.
        self._looked_at: list[str] = []
        self._next_look = 0.0
        self._began = time.monotonic()
        #: Nothing was delayed at the last look, and this worker had a place in all queues.
        self._idle = self._placed = False
        #: Queue in which this worker has a place -> seconds by which it looks later than the leader.
        self._graces: dict[str, float] = {}
        #: Queue -> when its next message is due (monotonic seconds), for those that have one.
        self._due: dict[str, float] = {}
        #: Redis' clock minus the monotonic one, in seconds.
        self._offset = 0.0
        self._last: dict[str, bytes] = {}
        #: Queues whose wake stream Redis refuses to read -> until when it is not asked for.
        self._deaf: dict[str, float] = {}
        #: When the reply to the blocking read must be there (monotonic seconds); 0.0 when none was sent.
        self._read_ends = 0.0
        self._reading: list[str] = []
        self._doubted = False
        #: Whether this read is of the news, too, and until when they are heard of at least.
        self._hears, self._hears_until = False, 0.0
        self._connection: BlockingConnection | None = None
        self._stop = threading.Event()
        self._poked, self._poke = os.pipe()
        os.set_blocking(self._poke, False)
        self._thread: threading.Thread | None = None

    def run_once(self) -> int | None:
        """Promote what is due where this worker has a turn; returns milliseconds until the next is due, None for never.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        self._look()
        for queue in self._refused & self._graces.keys():
            self._due[queue] = time.monotonic() - self._graces[queue]
        while due := self._due_now():
            self._promote(due[:_QUEUES])
        earliest = self.expected()
        if earliest is None:
            self._refusal = ""
            return None
        return max(round((earliest - time.monotonic()) * 1000), 0)

    def expected(self) -> float | None:
        """Return when this worker looks for the next message (monotonic seconds); None while it expects none."""
        return min((at + self._graces.get(queue, 0.0) for queue, at in list(self._due.items())), default=None)

    # -- turns

    def turns(self) -> dict[str, float]:
        """Return the queues in which this worker has a place, and by how many seconds it looks after the leader."""
        return dict(self._graces)

    def _look(self) -> None:
        """Take turns: with all queues now and then, and at once with those that are new."""
        queues = list(self._queues())
        now = time.monotonic()
        new = queues
        if now < self._next_look:
            if queues == self._looked_at:
                return
            known = set(self._looked_at)
            new = [queue for queue in queues if queue not in known]
        rare = 1
        if self._idle and now - self._began > _SETTLED and not self._others_wait():
            rare = _IDLE * _PLACED if self._placed else _IDLE
        length = _pause(len(queues)) * rare
        if new is queues:
            self._next_look = now + length * chance.uniform(0.75, 1.25)
            self._idle = self._placed = True
        for part in _parted(new):
            self._take_turns(part, length_ms=int(length * _MISSED * 1000))
        self._looked_at = queues
        for queue in self._graces.keys() - set(queues):
            del self._graces[queue]
            self._due.pop(queue, None)

    def _take_turns(self, queues: Sequence[str], *, length_ms: int) -> None:
        clock_ms, turns = take_turns(
            self._broker, queues, self._worker, length_ms=length_ms, overdue_ms=int(_OVERDUE * 1000)
        )
        self.looks += 1
        now = time.monotonic()
        self._offset = clock_ms / 1000 - now
        for queue, turn in zip(queues, turns, strict=True):
            self._idle = self._idle and turn.next_due_ms is None
            self._placed = self._placed and turn.place < 2
            if turn.place > 1:
                self._graces.pop(queue, None)
                self._due.pop(queue, None)
                continue
            self._graces[queue] = _GRACE if turn.place else 0.0
            self._expect(queue, turn.next_due_ms, now)

    def _expect(self, queue: str, next_due_ms: int | None, now: float) -> None:
        if next_due_ms is None:
            self._due.pop(queue, None)
        else:
            self._due[queue] = now + next_due_ms / 1000

    # -- promotion

    def _due_now(self) -> list[str]:
        now = time.monotonic()
        return [queue for queue, at in self._due.items() if at + self._graces[queue] <= now]

    def _promote(self, queues: Sequence[str]) -> None:
        result = self._broker.promote(queues, limit=_STEP)
        now = time.monotonic()
        self.moved += result.moved
        if result.missing:
            logger.error("%d delayed messages had been deleted by someone else.", result.missing)
        if result.refusal and result.refusal != self._refusal:
            logger.error(
                "Delayed messages of queue %s cannot be moved to their stream, and stay delayed until then: %s (%s)",
                next((queue for queue, wait in zip(queues, result.waits, strict=True) if wait == -1), ""),
                result.refusal.rstrip("."),
                command("doctor"),
            )
        self._refusal = result.refusal
        for queue, wait in zip(queues, result.waits, strict=True):
            self._refused.discard(queue)
            if wait == 0:
                self._due[queue] = now - self._graces[queue]  # there is more, at once
            elif wait == -1:
                self._refused.add(queue)
                self._due[queue] = now - self._graces[queue] + _REFUSED_MS / 1000
            else:
                self._expect(queue, wait, now)

    # -- sleep

    def wait(self, next_due_ms: int | None) -> None:
        """Sleep until ``next_due_ms`` is over, an earlier message was stored, or it is time for another look.

        The time is kept here: an idle Redis looks at the time-outs of its blocked clients only every 100 ms.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        if self._doubted:
            self._doubted = False
            self._hush()
        now = time.monotonic()
        sleep = max(self._next_look - now, 0.0)
        if next_due_ms is not None:
            sleep = min(sleep, max(next_due_ms, 1) / 1000)
        queues = [queue for queue in self._graces if self._deaf.get(queue, 0.0) <= now]
        told = self._no_news_until <= now
        if not queues and not told:
            self._hush()
            if readable([self._poked], timeout=min(sleep, _LONGEST_MS / 1000)):
                os.read(self._poked, 4096)
            return
        try:
            self._listen(queues, sleep, now, told=told)
        except BrokerUnavailable:
            raise
        except BrokerError as exc:
            self._read_ends = 0.0
            if not told or self._may_hear_news():
                self._turn_deaf(queues, exc)

    @property
    def hears_news(self) -> bool:
        """Whether ``on_news`` is called as soon as there are any."""
        return time.monotonic() < self._hears_until

    @property
    def knows_of_none(self) -> bool:
        """Whether nothing is delayed on any queue: this worker would have heard of it."""
        return self._idle and self._placed and not self._due

    def _may_hear_news(self) -> bool:
        """Find out whether it was the news that Redis refused; if so they are not asked for, for a while."""
        [said] = self._broker.client.pipeline([("XREAD", "COUNT", 1, "STREAMS", self._news, "0-0")])
        if not isinstance(said, BrokerError):
            return True
        logger.debug("Cannot read news of changes, so this worker looks more often: %s", said)
        self._no_news_until = time.monotonic() + _DEAF
        self._hears_until = 0.0
        return False

    def _listen(self, queues: list[str], sleep: float, now: float, *, told: bool) -> None:
        if self._connection is None:
            self._connection = self._broker.client.open()
        if self._reading != queues or self._hears != told:
            self._hush()
        if not self._read_ends:
            self._reading, self._hears = queues, told
            keys = [self._broker.queue_keys(queue).wake for queue in queues]
            last = [self._last.get(queue, b"0-0") for queue in queues]
            if told:
                keys.append(self._news)
                last.append(self._last_news)
                self._hears_until = now + _LONGEST_MS / 1000 + _PATIENCE
            block_ms = self._broker.client.block_at_most(_LONGEST_MS)
            asked = ("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *keys, *last)
            self._connection.send(*asked, lasting=block_ms / 1000)
            self._read_ends = now + block_ms / 1000 + _PATIENCE
        left = self._read_ends - now
        sleep = min(sleep, left)
        answer = self._connection.fileno()
        if not self._connection.ready():
            found = readable([answer, self._poked], timeout=sleep)
            if self._poked in found:
                os.read(self._poked, 4096)
            if answer not in found and (found or sleep < left):
                return
        self._read_ends = 0.0
        said = self._connection.receive(timeout=0.0) or ()
        now = time.monotonic()
        by_key = {self._broker.queue_keys(queue).wake.encode(): queue for queue in queues} if said else {}
        if any(key in by_key for key, _ in said):
            self._on_wake()
        for key, entries in said:
            if key not in by_key:
                self._last_news = entries[-1][0]
                if self._on_news is not None:
                    self._on_news()
                continue
            self._last[by_key[key]] = entries[-1][0]
            self._heard(by_key[key], entries[-1][1], now)

    def _heard(self, queue: str, fields: Sequence[bytes] | None, now: float) -> None:
        """Expect a message that was stored meanwhile when the entry says, or now if that makes no sense."""
        try:
            due = float((fields or ())[1]) / 1000 - self._offset
        except (ValueError, IndexError):
            due = now
        self._due[queue] = min(self._due.get(queue, math.inf), due if math.isfinite(due) else now)
        if self._idle:
            self._idle = False
            self._next_look = min(self._next_look, now + _pause(len(self._looked_at)) * chance.uniform(0.75, 1.25))

    def _hush(self) -> None:
        if self._read_ends and self._connection is not None:
            self._connection.close()
        self._read_ends = 0.0

    def _turn_deaf(self, queues: Sequence[str], exc: BrokerError) -> None:
        """Go on without the queues that Redis refuses; their messages are found at the looks."""
        keys = [self._broker.queue_keys(queue).wake for queue in queues]
        replies = self._broker.client.pipeline([("XREAD", "COUNT", 1, "STREAMS", key, "0-0") for key in keys])
        refused = [queue for queue, reply in zip(queues, replies, strict=True) if isinstance(reply, BrokerError)]
        until = time.monotonic() + _DEAF
        self._deaf.update(dict.fromkeys(refused or queues, until))
        logger.error(
            "Delayed messages of %s may be some seconds late, for this worker cannot be woken for new ones: %s",
            ", ".join(refused or queues),
            exc,
        )

    def doubt(self) -> None:
        """Listen on a new connection from now on: this one may have been lost without a sign."""
        self._doubted = True
        self.poke()

    def poke(self) -> None:
        """End the sleep: the queues changed, or the thread shall end."""
        with contextlib.suppress(BlockingIOError):  # it was poked often enough
            os.write(self._poke, b".")

    # -- thread

    def start(self) -> None:
        """Run in a thread until :meth:`stop`."""
        self._thread = threading.Thread(target=self._run, name="celery-streams-delayed", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop.set()
        self.poke()

    def _run(self) -> None:
        pause = 0.1
        while not self._stop.is_set():
            try:
                self.wait(self.run_once())
                pause = 0.1
            except BrokerError as exc:
                if pause == 0.1:
                    logger.error("Delayed messages wait while Redis is unreachable: %s", exc)
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                self._forget()
                self._stop.wait(pause * chance.uniform(0.5, 1.0))
                pause = min(pause * 2, 2.0)
            except Exception:
                # The boundary of the thread: without it delayed messages would stop for good.
                logger.exception("Moving delayed messages to their streams failed; trying again in a second.")
                self._forget()
                self._stop.wait(1.0)
        if self._connection is not None:
            self._connection.close()
        self._leave()

    def _forget(self) -> None:
        """Look anew at everything: the next Redis may be another one."""
        self._read_ends = self._next_look = 0.0
        self._last.clear()
        self._last_news = b"0-0"

    def _leave(self) -> None:
        """Give this worker's turns to others."""
        try:
            for part in _parted(list(self._graces)):
                take_turns(self._broker, part, self._worker, length_ms=1, overdue_ms=0, leave=True)
        except BrokerError as exc:
            logger.debug("Cannot hand over the turns at delayed messages; others take them when they expire: %s", exc)


def _pause(queues: int) -> float:
    """Return seconds between two looks at so many queues."""
    return _LOOK * max(queues / 100, 1.0)


def _parted(queues: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(queues), _QUEUES):
        yield queues[start : start + _QUEUES]

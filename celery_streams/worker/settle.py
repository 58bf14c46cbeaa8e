"""Settler: carries out what ``outcome`` decided. The one place that settles messages, in children and in the parent.

Its duties:

1. Collect acknowledgements of tasks that ran, so that many go to Redis in one command (:meth:`Settler.flush`); every
   other action is carried out at once, in one atomic script.
2. Insist: while Redis is away the entry stays pending for us and the call is repeated with growing pauses, because a
   task that ran must not run again.
3. Set aside what Redis refuses for one queue alone (``set_aside``), so that it holds up nothing else.
4. Have the states of tracked tasks noted, in the same steps.
5. Notice that an entry was no longer ours, count it, and say so (log, signal): then nothing was done to it.

Called by the child's loop, by the pools that run in one process, and by the parent for children that died.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

from .. import notes
from ..attempts import Attempt
from ..broker import StreamBroker
from ..conf import StreamsConf
from ..entries import Delivery, Entry, StreamRef, delivery
from ..exceptions import (
    BrokerError,
    BrokerUnavailable,
    GroupMissing,
    KeyNotPermitted,
)
from ..handovers import hand_over, receiver
from ..lanes import Admission, Lane, admit, give_back, keeping_place, vacating
from ..limits import Limits
from ..locks import is_unique, named_lock, publish_anyway, start, unlocking
from ..message import Message
from ..pages import STEP_WORDS
from ..partitions import queue_of, shown_id
from ..revoked_holders import make_way
from ..running_task import HeldRetry
from ..signals import entry_lost
from ..transfers import are_apart, store_retry
from .attempted import attempt_of, with_attempt
from .burial import Death, announce, record_of
from .collected import Collected
from .insistence import PAUSES, Aside, Insistence
from .noting import note_of
from .outcome import Action, Event, Outcome, Reason
from .set_aside import OF_ONE_QUEUE, SetAside, each_queue, of_queues
from .tracking import Tracking, noting

__all__ = ("Settler",)

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Acknowledgements in one command, which notes states with them.
_AT_ONCE = STEP_WORDS // notes.WORDS


class Settler:
    """Settles the entries of one consumer.

    ``insist`` off lets BrokerUnavailable pass (the parent comes back later), and collects nothing; ``give_up`` is asked
    before each new attempt, and says yes when the process must end at once. Several settlers may collect into one
    :class:`Collected`; only one of them sends.
    """

    def __init__(
        self,
        broker: StreamBroker,
        consumer: str,
        *,
        conf: StreamsConf,
        hostname: str,
        insist: bool = True,
        give_up: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
        collected: Collected | None = None,
        aside: SetAside | None = None,
        worker: str = "",
    ) -> None:
        self.broker = broker
        self.consumer = consumer
        #: Entries that were not ours any more when they were settled.
        self.lost = 0
        #: Seconds after which an entry that was read and not started may belong to another worker.
        self.trust = conf.visibility_timeout / 2
        self._conf = conf
        self._hostname = hostname
        #: By whose heartbeat a place lives when its entry is gone; see ``presence``.
        self._worker = worker or consumer
        self._insists = insist
        self._give_up = give_up
        self._sleep = sleep
        #: Called whenever every collected acknowledgement is known to have reached Redis.
        self.on_confirmed: Callable[[], None] = lambda: None
        self._collected = Collected() if collected is None else collected
        #: Entries with places in limits, which go with them, and what is known of these limits.
        self._placed: dict[Entry, dict[str, Any]] = {}
        #: None: whatever is refused is insisted on.
        self.aside = aside
        self._tracking = Tracking(broker, consumer)
        self._insistence = Insistence(consumer, insists=insist, give_up=give_up, sleep=sleep, aside=aside)
        self._told_forbidden = ""
        self._sent: Sequence[Sequence[Entry]] = ()

    def another(self) -> Settler:
        """Return a settler of the same consumer that collects acknowledgements of its own.

        Both know the same places: what one of them was admitted for the other one may settle.
        """
        other = Settler(
            self.broker,
            self.consumer,
            conf=self._conf,
            hostname=self._hostname,
            insist=self._insists,
            give_up=self._give_up,
            sleep=self._sleep,
            aside=self.aside,
            worker=self._worker,
        )
        other._placed = self._placed
        return other

    @property
    def gave_up(self) -> bool:
        """An outcome could not be stored before this process had to end."""
        return self._insistence.gave_up

    @property
    def set_aside(self) -> tuple[Entry, ...]:
        """Entries whose outcome Redis refused; they wait in this process."""
        forbidden = tuple(self._collected.forbidden)
        return forbidden if self.aside is None else (*forbidden, *self.aside.entries)

    # -- acknowledgements, collected

    @property
    def waiting(self) -> int:
        """Acknowledgements that were not sent yet."""
        return len(self._collected.entries)

    def overdue(self, *, now: float, after: float) -> bool:
        """Return whether the oldest collected acknowledgement has waited for ``after`` seconds."""
        return self._collected.overdue(now=now, after=after)

    def commands(self) -> list[tuple[Any, ...]]:
        """Return the commands that send the collected acknowledgements along with a read; none when there are none.

        It is one, but on a Redis Cluster, where it is one for each slot. The replies go to :meth:`take_replies`; until
        then they stay collected.
        """
        self._collected.bring_back()
        self._look_back()
        self._sent = self.broker.entries_by_slot(list(self._collected.entries[:_AT_ONCE]))
        return [self._ack_command(part) for part in self._sent]

    def _look_back(self) -> None:
        """Note what was sent last and had no reply."""
        for part in self._sent:
            self._collected.asked.update(part)
        self._sent = ()

    def _ack_command(self, entries: Sequence[Entry]) -> tuple[Any, ...]:
        command = StreamBroker.ack_command(self.consumer, entries)
        noted = self._collected.noted(entries)
        if not noted:
            return command
        script, names, args = command
        return notes.behind(script, names, args, noted)

    def _ack(self, entries: Sequence[Entry]) -> list[Entry]:
        lost: list[Entry] = []
        for part in self.broker.entries_by_slot(entries):
            lost += StreamBroker.parse_ack(part, self.broker.client.run(*self._ack_command(part)))
        return lost

    def take_replies(self, replies: Sequence[Any], *, assisted: bool, put_off: bool = False) -> None:
        """Take the replies to :meth:`commands`; without a group nothing was ours any more.

        Args:
            put_off: what cannot be sent for now is sent a while later, and holds up nothing.

        Raises:
            BrokerError: one is an error; the acknowledgements of that part stay collected.
        """
        parts, self._sent = self._sent, ()
        sent = [entry for part in parts for entry in part]
        lost: list[Entry] = []
        left: list[Entry] = []
        error: BrokerError | None = None
        for part, reply in zip(parts, replies, strict=True):
            if isinstance(reply, BrokerUnavailable):
                self._collected.asked.update(part)
            if isinstance(reply, GroupMissing):
                lost += part
            elif isinstance(reply, KeyNotPermitted) and len(parts) == 1:
                self._acknowledge_apart(part, assisted=assisted)
                return
            elif isinstance(reply, BrokerError):
                left += part
                if put_off and isinstance(reply, (BrokerUnavailable, KeyNotPermitted)):
                    logger.debug("%d entries are acknowledged later: %s", len(part), reply)
                else:
                    error = error or reply
            else:
                lost += StreamBroker.parse_ack(part, reply)
        if error is not None and len(left) == len(sent):
            raise error
        if left and error is None:
            # Those of one node of a cluster: the others' go on.
            self._collected.put_off(left, seconds=PAUSES[1])
            left = []
        self._confirm(sent, lost, assisted=assisted, but=left)
        if error is not None:
            raise error

    def _acknowledge_apart(self, sent: Sequence[Entry], *, assisted: bool) -> None:
        """Acknowledge queue by queue, so that one that is forbidden keeps neither the others nor what is to run next.

        Raises:
            BrokerError: Redis is away, or refused something else, and this settler does not insist.
        """
        queues: dict[str, list[Entry]] = {}
        for entry in sent:
            queues.setdefault(entry.stream.queue, []).append(entry)
        lost: list[Entry] = []
        forbidden: list[Entry] = []
        said = ""

        def acknowledge(entries: list[Entry]) -> list[Entry]:
            nonlocal said
            try:
                return self._ack(entries)
            except KeyNotPermitted as exc:
                if self.aside is not None and self.aside.has_room():
                    self.aside.add(
                        "acknowledge", entries, exc, partial(acknowledge_later, entries, self._ack_command(entries))
                    )
                    return []
                said = str(exc).rstrip(".")
                forbidden.extend(entries)
                return []

        def acknowledge_later(entries: list[Entry], command: tuple[Any, ...]) -> None:
            for entry in StreamBroker.parse_ack(entries, self.broker.client.run(*command)):
                self._report_lost(entry)

        for entries in queues.values():
            lost += self.insist(partial(acknowledge, entries), "acknowledge", "what ran here")[0] or ()
            if self.gave_up:
                return
        if said and said != self._told_forbidden:
            logger.error(
                "Cannot acknowledge %d entries of queues %s: %s. It is tried every few seconds until Redis permits it.",
                len(forbidden),
                ", ".join(sorted({entry.stream.queue for entry in forbidden})),
                said,
            )
        self._told_forbidden = said
        self._collected.put_off(forbidden, seconds=PAUSES[1])
        self._confirm(sent, lost, assisted=assisted)

    def _confirm(
        self, sent: Sequence[Entry], lost: Sequence[Entry], *, assisted: bool, but: Sequence[Entry] = ()
    ) -> None:
        # ``assisted`` says that the parent may have settled some in our place: then that is why.
        self._collected.sent(len(sent), but=but)
        if not self._collected.entries and not self._collected.forbidden:
            self.on_confirmed()
        asked = self._collected.asked
        if lost and not assisted:
            for entry in lost:
                if entry not in asked:
                    self._report_lost(entry)
        if asked:
            asked.difference_update({*sent} - {*but})

    def flush(self, *, assisted: bool = False) -> None:
        """Send the collected acknowledgements; insists while Redis is away."""
        for _ in range(0, len(self._collected.entries), _AT_ONCE):
            self._flush_some(assisted=assisted)
            if self.gave_up:
                return

    def _flush_some(self, *, assisted: bool) -> None:
        self._look_back()
        sent = list(self._collected.entries[:_AT_ONCE])
        forbidden = False

        def acknowledge() -> list[Entry]:
            nonlocal forbidden
            try:
                return self._ack(sent)
            except KeyNotPermitted:
                forbidden = True
                return []

        lost, repeated = self.insist(acknowledge, "acknowledge", "what ran here")
        if self.gave_up:
            return
        if forbidden:
            self._acknowledge_apart(sent, assisted=assisted or repeated)
            return
        self._confirm(sent, lost or (), assisted=assisted or repeated)

    def acknowledge(self, entries: Sequence[Entry], *, event: Event = Event.SUCCEEDED) -> None:
        """Acknowledge what ran in a process that cannot do so itself any more; what is not its own is left alone.

        Tracked tasks whose outcome is another than that they succeeded were settled when they ended.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        if not entries:
            return
        commands = [("XRANGE", entry.stream.key, entry.id, entry.id) for entry in entries]
        for entry, found in zip(entries, self.broker.client.pipeline(commands), strict=True):
            if found and not isinstance(found, BrokerError):
                one = delivery(entry.stream, *found[0])
                mark = notes.mark_of(one.message)
                made = mark and note_of(self.broker.prefix, mark, one, Outcome(Action.ACK), event, now_ms=0)
                if made:
                    self._collected.notes[entry] = made
        if event is Event.SUCCEEDED:
            self._ack(entries)
            return
        # It ran when it ended, and what runs may have places; what succeeded has given them back by itself.
        for entry in entries:
            script, names, args = self._ack_command([entry])
            vacating(self.broker, [entry], {}).client.run(script, names, args)

    # -- what was not started

    def put_back(self, entries: Sequence[Entry], *, insist: bool = True) -> int:
        """Put entries that were not started back for others, with no delivery counted; returns how many.

        Args:
            insist: off lets a BrokerError pass.
        """
        if not entries:
            return 0
        queues = of_queues(entries)
        if not (insist and self._insists):
            return each_queue(lambda part: self.broker.put_back(self.consumer, part), queues)
        refused: list[BrokerError] = []

        def put_all_back() -> int:
            try:
                return self.broker.put_back(self.consumer, entries)
            except OF_ONE_QUEUE as exc:
                refused.append(exc)
                return 0

        if len(queues) > 1:
            found = self.insist(put_all_back, "put back", "what was not started")[0] or 0
            if not refused:
                return found
        count = 0
        for part in queues.values():
            put_back = partial(self.broker.put_back, self.consumer, part)
            count += self.insist(put_back, "put back", "what was not started", aside=Aside(part, put_back))[0] or 0
        return count

    def put_strays_back(self, streams: Sequence[StreamRef], held: Callable[[], Collection[Entry]]) -> int:
        """Put back what is pending for this consumer and in nobody's hands, without insisting; returns how many.

        Args:
            held: returns what is in somebody's hands; asked after Redis, for what is read later is no stray.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        pending = self.broker.held_by(self.consumer, streams)
        in_hands = set(held())
        return self.put_back([entry for entry in pending if entry not in in_hands], insist=False)

    def put_all_back(self, streams: Sequence[StreamRef]) -> int:
        """Put back whatever is pending for this consumer on ``streams``, without insisting; returns how many.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        queues: dict[str, list[StreamRef]] = {}
        for ref in streams:
            queues.setdefault(ref.queue, []).append(ref)
        return each_queue(lambda part: self.broker.put_back_all(part, self.consumer), queues)

    # -- at once

    def ack_now(self, delivery: Delivery) -> bool:
        """Acknowledge before the task runs; returns whether it may run: False when another worker has it."""
        message, broker = delivery.message, self.broker
        if message is not None and is_unique(message):
            broker = unlocking(broker, delivery.entry, message)
        if delivery.entry in self._placed:
            broker = keeping_place(broker, delivery.entry, self._worker)
        lost, repeated = self.insist(
            lambda: broker.ack(self.consumer, [delivery.entry]),
            "acknowledge",
            delivery,
            aside=self._unstarted(delivery.entry),
        )
        if lost is None:
            return False
        if lost and not repeated:
            self._report_lost(delivery.entry)
            return False
        return True  # lost after a repetition: the first attempt had reached Redis

    def starts(self, delivery: Delivery) -> bool:
        """Free the lock of a task that is unique until it starts; returns whether the entry is still ours."""
        entry = delivery.entry
        begin = partial(start, self.broker, self.consumer, delivery)
        found, _ = self.insist(begin, "start", delivery, aside=self._unstarted(entry))
        if self.is_aside(entry):
            return False
        told = None if found else self._placed.pop(entry, None)
        if told is not None:
            # It was replaced after it was read: whoever took its place waits for the places that it has just taken.
            self.insist(lambda: give_back(self.broker, entry, told), "give back the places of", entry)
        return bool(found)

    def _unstarted(self, entry: Entry) -> Aside:
        """Return what to do with an entry that must not start, once Redis permits it."""
        return Aside([entry], partial(self.broker.put_back, self.consumer, [entry]), goes_back=True)

    # -- tracked tasks

    def note_start(self, started: Delivery, *, early: bool = False) -> None:
        """Note that a task starts, if it is tracked. One round trip; what Redis does not take is not noted."""
        self._tracking.start(started, early=early)

    # -- limits

    def admit(
        self, asking: Delivery, lane: Lane, task: str, limits: Limits, *, ahead: bool, published: str = ""
    ) -> Admission | None:
        """Ask whether an entry may start; one that may not is moved aside. None: Redis was away for too long, or
        refuses.

        What settles an entry that has places gives them back, in the same step. One that Redis refuses to admit is set
        aside until it does not: put back it would be read again at once, and refused again.
        """
        entry = asking.entry
        noted = self._tracking.of_admission(asking, lane)

        def ask() -> Admission:
            return admit(self.broker, self.consumer, entry, lane, ahead=ahead, published=published, noted=noted)

        def ask_again() -> None:
            if ask().admitted:
                self.broker.put_back(self.consumer, [entry])  # with its places

        found, _ = self.insist(ask, "ask for a place of", entry, aside=Aside([entry], ask_again, goes_back=True))
        if noted and found is not None and found.admitted:
            self._tracking.admitted(entry)
        if found is not None and found.placed:
            self._placed[entry] = {task: limits.told()}
        return found

    def vacate_with(self, entry: Entry, task: str, limits: Limits) -> None:
        """Have what settles ``entry`` give back the places that it may have."""
        self._placed[entry] = {task: limits.told()}

    def settle(
        self,
        delivery: Delivery,
        outcome: Outcome,
        *,
        death: Death | None = None,
        held: HeldRetry | None = None,
        history: dict[str, Any] | None = None,
        acked_early: bool = False,
        lane: Lane | None = None,
        event: Event | None = None,
        ran_for: float | None = None,
        holder: str = "",
    ) -> bool:
        """Carry out ``outcome`` for ``delivery``; returns whether the entry was still ours (or needed nothing).

        Args:
            death: what a dead letter says.
            held: the message of ``self.retry()``, stored in the same step.
            history: what the message's history says so far.
            acked_early: the entry is gone; a dead letter is written from the delivery itself.
            lane: where it waits, with HOLD.
            event: what happened, for the state of a task that may be tracked; None: it is not.
            ran_for: for how many seconds it ran, as far as that is known.
            holder: the consumer with which it ended, where that is another one.
        """
        told = self._placed.pop(delivery.entry, None)
        if outcome.waits_for == "unknown" or outcome.reason is Reason.UNKNOWN:
            told = {}  # it may have been released where its task, and the limits of that, are known
        past = dict(history or {})
        noted = None
        if event is not None:
            noted = self._tracking.of_outcome(delivery, outcome, event, lane, past)
        broker = self.broker if told is None else vacating(self.broker, [delivery.entry], told)
        action = outcome.action
        if action is Action.RETRY and held is None:
            action = Action.ACK
        if action is Action.ACK:
            may_wait = self._insists and told is None and (noted is None or event is Event.SUCCEEDED)
            return self._acknowledge(delivery, broker, noted, may_wait=may_wait)
        if action is Action.LEAVE:
            if acked_early:
                self._leave(delivery, told, noted)
            return True
        if action is Action.HAND_OVER:
            to = receiver(outcome.taker)
            return self._settled(
                "hand over", delivery, lambda: hand_over(self.broker, self.consumer, to, [delivery.entry])
            )
        if action is Action.HOLD:
            assert lane is not None
            return self._hold(delivery, lane, noted, first=str(past.get("first") or ""), seconds=outcome.delay)
        broker = broker if noted is None else noting(broker, noted)
        if action is Action.RETRY:
            assert held is not None
            retry = held
            return self._settled("retry", delivery, lambda: self._retry(broker, delivery, retry))
        death = death or Death()
        attempt = attempt_of(outcome, death.detail, holder or self.consumer, ran_for=ran_for)
        if action is Action.REQUEUE:
            return self._requeue(delivery, broker, outcome, past, attempt)
        record = record_of(delivery, outcome, death, past, hostname=self._hostname, attempt=attempt)
        return self._bury(broker, delivery, outcome, death, record, acked_early=acked_early)

    def _acknowledge(
        self, delivery: Delivery, broker: StreamBroker, noted: notes.Note | None, *, may_wait: bool
    ) -> bool:
        message, entry = delivery.message, delivery.entry
        if message is not None and is_unique(message):
            # At once: whoever sees the result may publish the next one.
            broker = unlocking(broker, entry, message)
        elif may_wait:
            # What is collected, and acknowledged by the parent when this process dies first, has succeeded.
            if noted is not None:
                self._collected.notes[entry] = noted
            self._collected.add(entry)
            return True
        if noted is not None:
            broker = noting(broker, noted.when("0"))
        return self._settled("acknowledge", delivery, lambda: not broker.ack(self.consumer, [entry]))

    def _leave(self, delivery: Delivery, told: dict[str, Any] | None, noted: notes.Note | None) -> None:
        """End what was acknowledged before it ran: its places and its state are all that is left of it."""
        if told is not None:
            entry, places = delivery.entry, told
            self.insist(lambda: give_back(self.broker, entry, places), "give back the places of", entry)
        if noted is not None:
            commands = notes.stand_alone([noted])
            self.insist(lambda: self.broker.client.note(commands), "note the outcome of", delivery)

    def _hold(self, delivery: Delivery, lane: Lane, noted: notes.Note | None, *, first: str, seconds: float) -> bool:
        penalty_ms = int(seconds * 1000)
        noting_it = [noted] if noted is not None else ()

        def hold() -> bool:
            return not admit(
                self.broker,
                self.consumer,
                delivery.entry,
                lane,
                ahead=True,
                published=first,
                penalty_ms=penalty_ms,
                noted=noting_it,
            ).lost

        return self._settled("hold", delivery, hold)

    def _requeue(
        self, delivery: Delivery, broker: StreamBroker, outcome: Outcome, past: dict[str, Any], attempt: Attempt | None
    ) -> bool:
        past.setdefault("first", delivery.entry_id.decode())
        past["worker"] = self._hostname
        if outcome.crash:
            past["crashes"] = int(past.get("crashes") or 0) + 1
        if outcome.redelivered:
            past["redelivered"] = 1
        past = with_attempt(past, attempt)

        def requeue() -> bool:
            return broker.requeue(
                self.consumer,
                delivery.entry,
                history=past,
                delay_ms=int(outcome.delay * 1000),
                behind=outcome.behind,
                kind=outcome.waits_for,
            )

        return self._settled("requeue", delivery, requeue)

    def _retry(self, broker: StreamBroker, delivery: Delivery, held: HeldRetry) -> bool:
        """Store a retry and acknowledge its entry, in one step where that can be; returns whether it was still ours."""
        entry, message = delivery.entry, delivery.message
        where: dict[str, Any] = {"queue": held.queue, "due_ms": held.due_ms, "member": held.member}
        lock = named_lock(held.message)
        if lock is not None and (lock.until_start or held.queue != entry.stream.queue):
            # Else it is the message itself that holds it. What is revoked from now on is revoked after this retry.
            make_way(self.broker, held.queue, held.message)
        if held.queue == entry.stream.queue or not are_apart(broker, held.queue, entry.stream.queue):
            return broker.retry(self.consumer, entry, held.message, **where)
        # The same name when it runs again because this process dies in between.
        first = message.decode_history().get("first", "") if message is not None else ""
        stored = store_retry(broker, self.consumer, entry, held.message, first=first, **where)
        return stored and not broker.ack(self.consumer, [entry])

    def publish(self, held: HeldRetry) -> None:
        """Store the message of a ``self.retry()`` whose task did something else afterwards."""

        def store() -> None:
            if is_unique(held.message):
                make_way(self.broker, held.queue, held.message)
                publish_anyway(self.broker, held.queue, held.message, due_ms=held.due_ms, member=held.member)
            elif held.due_ms:
                self.broker.delay(held.queue, held.message, due_ms=held.due_ms, member=held.member)
            else:
                self.broker.publish(held.queue, held.message)

        self.insist(store, "publish", "a retry")

    def _bury(
        self,
        broker: StreamBroker,
        delivery: Delivery,
        outcome: Outcome,
        death: Death,
        record: bytes,
        *,
        acked_early: bool,
    ) -> bool:
        kept: Message | None = delivery.message if acked_early else None

        def bury() -> bytes | None:
            buried = broker.reject(
                self.consumer,
                delivery.entry,
                death=record,
                max_length=self._conf.dead_letter_max_length,
                ttl=self._conf.dead_letter_ttl,
                max_memory=self._conf.dead_letter_max_memory,
                message=kept,
            )
            if buried:
                announce(self, delivery, outcome, death, buried.decode())
            return buried

        # One that was acknowledged before it ran is pending no longer: nobody would recover it.
        return bool(self._now("dead-letter", delivery, bury, may_wait=not acked_early))

    # -- insisting

    def _settled(self, verb: str, delivery: Delivery, action: Callable[[], Any]) -> bool:
        return bool(self._now(verb, delivery, action))

    def _now(self, verb: str, delivery: Delivery, action: Callable[[], Any], *, may_wait: bool = True) -> Any:
        def later() -> None:
            if not action():
                self._report_lost(delivery.entry)

        result, repeated = self.insist(
            action, verb, delivery, aside=Aside([delivery.entry], later) if may_wait else None
        )
        if not result and not repeated:
            self._report_lost(delivery.entry)
        return result

    def is_aside(self, entry: Entry) -> bool:
        """Return whether the outcome of ``entry`` waits for Redis to permit it."""
        return self.aside is not None and entry in self.aside.entries

    def insist(
        self, action: Callable[[], T], verb: str, what: object, *, aside: Aside | None = None
    ) -> tuple[T | None, bool]:
        """Carry out ``action`` however long Redis is unreachable, or refuses: see :class:`Insistence`."""
        return self._insistence.insist(action, verb, what, aside=aside)

    def _report_lost(self, entry: Entry) -> None:
        self.lost += 1
        logger.warning(
            "Entry %s is no longer held by %s: it was claimed, or deleted, while its task ran here. "
            "Nothing was settled; the task may run twice.",
            entry,
            self.consumer,
        )
        name = entry.stream.queue
        shown = shown_id(name, entry.id.decode())
        entry_lost.send(sender=self, queue=queue_of(name), entry_id=shown, consumer=self.consumer)

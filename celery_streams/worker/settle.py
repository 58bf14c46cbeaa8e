"""Settler: carries out what ``outcome`` decided. The one place that settles messages, in children and in the parent.

Its duties:

1. Collect acknowledgements of tasks that ran, so that many go to Redis in one command (:meth:`Settler.flush`); every
   other action is carried out at once, in one atomic script.
2. Insist: while Redis is away the entry stays pending for us and the call is repeated with growing pauses, because a
   task that ran must not run again.
3. Notice that an entry was no longer ours, count it, and say so (log, signal): then nothing was done to it.

Called by the child's loop, by the pools that run in one process, and by the parent for children that died.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kombu.utils.json import JSONEncoder

from ..broker import Delivery, Entry, StreamBroker, StreamRef
from ..conf import StreamsConf
from ..exceptions import (
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    GroupMissing,
    KeyOfOtherType,
    LoginRefused,
    NotPermitted,
)
from ..hints import command
from ..message import Message
from ..running_task import HeldRetry
from ..signals import entry_lost, message_dead_lettered
from .outcome import Action, Outcome

__all__ = ("Death", "Settler")

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds: least and greatest pause between two attempts while Redis is away.
_PAUSES = (0.05, 2.0)

#: Refusals that last until a person mends something. The task ran: if its process ended over them it would run again,
#: and be refused again.
_LASTING = (LoginRefused, NotPermitted, KeyOfOtherType)

_encode = JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Death:
    """What a dead letter says besides the message and the reason."""

    task: str | None = None
    task_id: str | None = None
    exception: str | None = None
    traceback: str | None = None


class Settler:
    """Settles the entries of one consumer.

    ``insist`` off lets BrokerUnavailable pass (the parent comes back later), and collects nothing; ``give_up`` is asked
    before each new attempt, and says yes when the process is told to end at once.
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
    ) -> None:
        self.broker = broker
        self.consumer = consumer
        #: An outcome could not be stored before this process had to end.
        self.gave_up = False
        #: Entries that were not ours any more when they were settled.
        self.lost = 0
        #: Seconds after which an entry that was read and not started may belong to another worker.
        self.trust = conf.visibility_timeout / 2
        self._conf = conf
        self._hostname = hostname
        self._insists = insist
        self._give_up = give_up
        self._sleep = sleep
        #: Called whenever every collected acknowledgement is known to have reached Redis.
        self.on_confirmed: Callable[[], None] = lambda: None
        self._acks: list[Entry] = []
        self._sent: list[Entry] = []
        self._first_ack = 0.0

    def another(self) -> Settler:
        """Return a settler of the same consumer that collects acknowledgements of its own."""
        return Settler(
            self.broker,
            self.consumer,
            conf=self._conf,
            hostname=self._hostname,
            insist=self._insists,
            give_up=self._give_up,
            sleep=self._sleep,
        )

    # -- acknowledgements, collected

    def _collect(self, entry: Entry) -> None:
        if not self._acks:
            self._first_ack = time.monotonic()
        self._acks.append(entry)

    @property
    def waiting(self) -> int:
        """Acknowledgements that were not sent yet."""
        return len(self._acks)

    def overdue(self, *, now: float, after: float) -> bool:
        """Return whether the oldest collected acknowledgement has waited for ``after`` seconds."""
        return bool(self._acks) and now - self._first_ack >= after

    def command(self) -> tuple[Any, ...] | None:
        """Return the command that sends the collected acknowledgements along with a read; None when there are none.

        Its reply goes to :meth:`take_reply`; until then they stay collected.
        """
        self._sent = list(self._acks)
        return StreamBroker.ack_command(self.consumer, self._sent) if self._sent else None

    def take_reply(self, reply: Any, *, assisted: bool) -> None:
        """Take the reply to :meth:`command`; without a group nothing was ours any more.

        Raises:
            BrokerError: it is an error; the acknowledgements stay collected.
        """
        if isinstance(reply, GroupMissing):
            self._confirm(self._sent, self._sent, assisted=assisted)
            return
        if isinstance(reply, BrokerError):
            raise reply
        self._confirm(self._sent, StreamBroker.parse_ack(self._sent, reply), assisted=assisted)

    def _confirm(self, sent: Sequence[Entry], lost: Sequence[Entry], *, assisted: bool) -> None:
        # ``assisted`` says that the parent may have settled some in our place: then that is why.
        del self._acks[: len(sent)]
        if self._acks:
            self._first_ack = time.monotonic()
        else:
            self.on_confirmed()
        if lost and not assisted:
            for entry in lost:
                self._report_lost(entry)

    def flush(self, *, assisted: bool = False) -> None:
        """Send the collected acknowledgements; insists while Redis is away."""
        sent = list(self._acks)
        if not sent:
            return
        lost, repeated = self.insist(lambda: self.broker.ack(self.consumer, sent), "acknowledge")
        if self.gave_up:
            return
        self._confirm(sent, lost or (), assisted=assisted or repeated)

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Acknowledge what ran in a process that cannot do so itself any more; what is not its own is left alone.

        Raises:
            BrokerError: Redis is away, or refused.
        """
        if entries:
            self.broker.ack(self.consumer, entries)

    # -- what was not started

    def put_back(self, entries: Sequence[Entry], *, insist: bool = True) -> int:
        """Put entries that were not started back for others, with no delivery counted; returns how many.

        Args:
            insist: off lets a BrokerError pass.
        """
        if not entries:
            return 0
        if not insist:
            return self.broker.release(self.consumer, entries)
        count, _ = self.insist(lambda: self.broker.release(self.consumer, entries), "put back")
        return count or 0

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
        return self.broker.release_all(streams, self.consumer)

    # -- at once

    def ack_now(self, delivery: Delivery) -> bool:
        """Acknowledge before the task runs; returns whether it may run: False when another worker has it."""
        lost, repeated = self.insist(lambda: self.broker.ack(self.consumer, [delivery.entry]), "acknowledge")
        if lost is None:
            return False
        if lost and not repeated:
            self._report_lost(delivery.entry)
            return False
        return True  # lost after a repetition: the first attempt had reached Redis

    def settle(
        self,
        delivery: Delivery,
        outcome: Outcome,
        *,
        death: Death | None = None,
        held: HeldRetry | None = None,
        history: dict[str, Any] | None = None,
        acked_early: bool = False,
    ) -> bool:
        """Carry out ``outcome`` for ``delivery``; returns whether the entry was still ours (or needed nothing).

        Args:
            death: what a dead letter shall say.
            held: the message of ``self.retry()``, stored in the same step.
            history: what the message's history says so far.
            acked_early: the entry is gone; a dead letter is written from the delivery itself.
        """
        action = outcome.action
        if action is Action.ACK or (action is Action.RETRY and held is None):
            if self._insists:
                self._collect(delivery.entry)
                return True
            return self._settled("acknowledge", delivery, lambda: not self.broker.ack(self.consumer, [delivery.entry]))
        if action is Action.LEAVE:
            return True
        past = dict(history or {})
        if action is Action.RETRY:
            assert held is not None
            return self._settled(
                "retry",
                delivery,
                lambda: self.broker.retry(
                    self.consumer,
                    delivery.entry,
                    held.message,
                    queue=held.queue,
                    due_ms=held.due_ms,
                    member=held.member,
                ),
            )
        if action is Action.REQUEUE:
            past.setdefault("first", delivery.entry_id.decode())
            past["worker"] = self._hostname
            if outcome.crash:
                past["crashes"] = int(past.get("crashes") or 0) + 1
            if outcome.redelivered:
                past["redelivered"] = 1
            return self._settled(
                "requeue",
                delivery,
                lambda: self.broker.requeue(
                    self.consumer,
                    delivery.entry,
                    history=past,
                    delay_ms=int(outcome.delay * 1000),
                    behind=outcome.behind,
                    kind=outcome.waits_for,
                ),
            )
        return self._bury(delivery, outcome, death or Death(), past, acked_early=acked_early)

    def publish(self, held: HeldRetry) -> None:
        """Store the message of a ``self.retry()`` whose task did something else afterwards."""

        def store() -> None:
            if held.due_ms:
                self.broker.delay(held.queue, held.message, due_ms=held.due_ms, member=held.member)
            else:
                self.broker.publish(held.queue, held.message)

        self.insist(store, "publish")

    def _bury(
        self, delivery: Delivery, outcome: Outcome, death: Death, past: dict[str, Any], *, acked_early: bool
    ) -> bool:
        reason = outcome.reason.value if outcome.reason else "unknown"
        record = _encode(
            {
                "reason": reason,
                "task": death.task,
                "task_id": death.task_id,
                "exception": death.exception,
                "traceback": death.traceback,
                "worker": self._hostname,
                "crashes": int(past.get("crashes") or 0) + (1 if reason == "crashed" else 0),
                "entry_id": past.get("first") or delivery.entry_id.decode(),
                "queue": delivery.stream.queue,
            }
        ).encode()
        kept: Message | None = delivery.message if acked_early else None
        buried = self._now(
            "dead-letter",
            delivery,
            lambda: self.broker.reject(
                self.consumer,
                delivery.entry,
                death=record,
                max_length=self._conf.dead_letter_max_length,
                ttl=self._conf.dead_letter_ttl,
                max_memory=self._conf.dead_letter_max_memory,
                message=kept,
            ),
        )
        if buried:
            shown = buried.decode() if isinstance(buried, bytes) else ""
            # Whatever led here was logged as an error already: as another one, error trackers would count it twice.
            logger.warning(
                "Task %s[%s] of queue %s is a dead letter (%s): %s",
                death.task or "?",
                death.task_id or "?",
                delivery.stream.queue,
                reason,
                command("dead", "show", delivery.stream.queue, shown),
                extra={"data": {"id": death.task_id, "name": death.task, "queue": delivery.stream.queue}},
            )
            message_dead_lettered.send(
                sender=self, queue=delivery.stream.queue, entry_id=shown, reason=reason, task_id=death.task_id
            )
        return bool(buried)

    # -- insisting

    def _settled(self, verb: str, delivery: Delivery, action: Callable[[], Any]) -> bool:
        return bool(self._now(verb, delivery, action))

    def _now(self, verb: str, delivery: Delivery, action: Callable[[], Any]) -> Any:
        result, repeated = self.insist(action, verb)
        if not result and not repeated:
            self._report_lost(delivery.entry)
        return result

    def insist(self, action: Callable[[], T], verb: str) -> tuple[T | None, bool]:
        """Carry out ``action`` however long Redis is away, or refuses; ``verb`` is for the log.

        Returns the result, and whether an earlier attempt may have been carried out too.
        """
        pause, repeated = _PAUSES[0], False
        told = ""
        while True:
            try:
                return action(), repeated
            except (BrokerUnavailable, BrokerFull, *_LASTING) as exc:
                if not self._insists:
                    raise
                if self._give_up():
                    self.gave_up = True
                    logger.warning(
                        "Cannot %s: %s. The worker stops; the entry stays pending, and another worker takes it over.",
                        verb,
                        exc,
                    )
                    return None, True
                if not isinstance(exc, _LASTING):
                    logger.warning("Cannot %s: %s. Trying again in %.1fs.", verb, exc, pause)
                elif str(exc) != told:
                    told = str(exc)
                    logger.error(
                        "Cannot %s: %s. %s runs nothing else until this is fixed.",
                        verb,
                        told.rstrip("."),
                        self.consumer,
                    )
                self._sleep(pause * random.uniform(0.5, 1.0))
                pause, repeated = min(pause * 2, _PAUSES[1]), True
            except GroupMissing:
                return None, repeated

    def _report_lost(self, entry: Entry) -> None:
        self.lost += 1
        logger.warning(
            "Entry %s is no longer held by %s: it was claimed, or deleted, while its task ran here. "
            "Nothing was settled; the task may run twice.",
            entry,
            self.consumer,
        )
        entry_lost.send(sender=self, queue=entry.stream.queue, entry_id=entry.id.decode(), consumer=self.consumer)

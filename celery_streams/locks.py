"""Locks of unique tasks: which message holds one, as Redis knows it; what a task's lock is called, ``unique`` says.

A lock is a field of a hash of its queue. It says where the message that holds it is: an entry of a stream or front, a
member of the delayed set, a field of what is held back. Whatever moves a message moves its lock along in the same
script (``lua/prelude/follow``), and a lock is believed only while its message is where it says (``holder_of``): so
nobody has to free one, however a message ends, and what frees them all the same keeps the hash small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import keys, notes
from .broker import StreamBroker
from .entries import Delivery, Entry
from .exceptions import BrokerError
from .message import Message, pack
from .scripts import load

__all__ = (
    "HEADER",
    "Holder",
    "Lock",
    "count_locks",
    "disown",
    "holders",
    "is_unique",
    "named_lock",
    "publish_anyway",
    "publish_unique",
    "replace_unique",
    "start",
    "sweep",
    "unlocking",
)

#: Header of a message that names its lock; :class:`Lock` says how.
HEADER = "streams_unique"

_MARK = f'"{HEADER}":'.encode()

PUBLISH_UNIQUE, REPLACE_UNIQUE = load("publish_unique"), load("replace_unique")
LET_GO, UNLOCK = load("let_go"), load("unlock")
HOLDER, DISOWN = load("holder"), load("disown")

#: Locks that one step of a sweep looks at.
_STEP = 200


@dataclass(frozen=True, slots=True)
class Lock:
    """The lock of a message: what its header says."""

    #: Hexadecimal digits.
    name: str
    #: Milliseconds after which it ends in any case; None: it ends with the message.
    lasts_ms: int | None = None
    #: It ends when the task starts.
    until_start: bool = False

    def __str__(self) -> str:
        return f"{self.name}:{'' if self.lasts_ms is None else self.lasts_ms}:{'start' if self.until_start else 'end'}"

    @classmethod
    def parse(cls, said: object) -> Lock | None:
        """Undo ``str()``; None for what is no lock."""
        name, _, rest = said.partition(":") if isinstance(said, str) else ("", "", "")
        lasts, _, until = rest.partition(":")
        if not name or not set(name) <= set("0123456789abcdef") or not (not lasts or lasts.isdecimal()):
            return None
        return cls(name, int(lasts) if lasts else None, until == "start")


@dataclass(frozen=True, slots=True)
class Holder:
    """The task whose message holds a lock."""

    task_id: str
    #: Its message, without the body, if it certainly does not run: it is delayed or held back, or the lock ends when it
    #: starts. None: it may be running.
    unstarted: Message | None


def is_unique(message: Message) -> bool:
    """Return whether a message may hold a lock."""
    return _MARK in message.headers


def named_lock(message: Message) -> Lock | None:
    """Return the lock that a message names; None where it is not unique.

    Raises:
        MessageError: its headers cannot be read.
    """
    return Lock.parse(message.decode_headers().get(HEADER)) if is_unique(message) else None


def publish_unique(
    broker: StreamBroker,
    queue: str,
    message: Message,
    lock: Lock,
    *,
    task_id: str,
    token: str,
    due_ms: int = 0,
    member: str = "",
    max_length: int | None = None,
) -> Holder | None:
    """Store a message, at once or until ``due_ms``, with its lock; or return whose message holds the lock.

    The same ``token`` again, because a reply was lost, stores nothing twice.

    Raises:
        QueueFull: as in :meth:`StreamBroker.publish`.
    """
    if broker.is_new(queue):
        broker.introduce(queue)
    names = broker.queue_keys(queue)
    # Not over a later state: a repetition stores nothing, and the task may have run.
    noted = broker.note_of(queue, message, due_ms=due_ms, member=member if due_ms else "", must="none")
    script, names_of_all, args = notes.behind(
        PUBLISH_UNIQUE,
        [
            *(names.unique, names.streams[message.step], names.delayed, names.delayed_messages, names.wake),
            *((*names.streams, *names.fronts, names.shelf[0]) if max_length else ()),
        ],
        [
            *(lock.name, "" if lock.lasts_ms is None else lock.lasts_ms, task_id, token, due_ms, member),
            *(max_length or 0, message.headers, message.properties, message.body),
            pack(message) if due_ms else b"",
        ],
        [noted and noted.when("stored")],
    )
    stored, *said = broker.client.run(script, names_of_all, args)
    if stored < 0:
        raise broker.full(queue, max_length)
    return None if stored else _holder(said)


def holders(broker: StreamBroker, queue: str, locks: Sequence[Lock]) -> list[Holder | None]:
    """Return for each lock whose message holds it; None where nobody's does. One round trip for all of them."""
    key = broker.queue_keys(queue).unique
    replies = broker.client.pipeline([(HOLDER, [key], [lock.name]) for lock in locks]) if locks else []
    for reply in replies:
        if isinstance(reply, BrokerError):
            raise reply
    return [_holder(said) if said else None for said in replies]


def _holder(said: list[bytes]) -> Holder:
    unstarted = Message(headers=said[1], properties=said[2], body=b"") if len(said) > 1 else None
    return Holder(said[0].decode(errors="replace"), unstarted)


def disown(broker: StreamBroker, queue: str, lock: Lock, task_id: str) -> bool:
    """Free the lock of a message that no worker will run; False: it holds it no longer, or may be running by now."""
    return bool(broker.client.run(DISOWN, [broker.queue_keys(queue).unique], [lock.name, task_id]))


def replace_unique(broker: StreamBroker, queue: str, message: Message, lock: Lock, *, first: str) -> bool:
    """Store a message in the place of the one of task ``first``, which holds the lock; False: it does so no longer."""
    # A tracked task stays in the state that it was in: the message takes over the id.
    return bool(
        broker.client.run(
            REPLACE_UNIQUE,
            [broker.queue_keys(queue).unique],
            [
                *(lock.name, first, keys.GROUP, message.step, message.headers, message.properties, message.body),
                *(key.rpartition("}")[2] for key in broker.queue_keys(queue).streams),
            ],
        )
    )


def publish_anyway(broker: StreamBroker, queue: str, message: Message, *, due_ms: int, member: str) -> None:
    """Store a retry whose own entry is gone; it takes its lock again, and where a newer message holds it, goes without.

    Two round trips at most.
    """
    lock = named_lock(message)
    if lock is not None:
        task_id = str(message.decode_headers().get("id"))
        # The member of the delayed set is the same for each attempt at this publish.
        found = publish_unique(
            broker, queue, message, lock, task_id=task_id, token=member, due_ms=due_ms, member=member
        )
        if found is None:
            return
    if due_ms:
        broker.delay(queue, message, due_ms=due_ms, member=member)
    else:
        broker.publish(queue, message)


def start(broker: StreamBroker, consumer: str, delivery: Delivery) -> bool:
    """Free the lock of a message that starts now; returns whether it may: False when it is no longer the consumer's."""
    assert delivery.message is not None
    entry = delivery.entry
    return bool(
        broker.client.run(LET_GO, [entry.stream.key], [keys.GROUP, consumer, entry.id, delivery.message.headers, "1"])
    )


def unlocking(broker: StreamBroker, entry: Entry, message: Message) -> StreamBroker:
    """Return a broker whose verbs free the lock of ``entry`` in the step that settles it."""
    return broker.followed_by(LET_GO, [entry.stream.key], [keys.GROUP, "", entry.id, message.headers, "0"])


def count_locks(broker: StreamBroker, queue: str) -> int:
    """Return how many locks a queue has; one whose message is gone counts until it is swept. Two round trips."""
    names = broker.partitions(queue)
    return sum(map(int, broker.client.call_all([("HLEN", broker.queue_keys(name).unique) for name in names])))


def sweep(broker: StreamBroker, queue: str, cursor: int = 0) -> tuple[int, int]:
    """Free the locks of messages that ended in a way that frees none, some at a time; two round trips at most.

    Nobody believes them, but they take memory. Returns the cursor of the next step, 0 behind the last one, and how many
    locks were freed.
    """
    names = broker.queue_keys(queue)
    after, flat = broker.client.call("HSCAN", names.unique, cursor, "COUNT", _STEP)
    freed = int(broker.client.run(UNLOCK, [names.unique], list(flat))) if flat else 0
    return int(after), freed

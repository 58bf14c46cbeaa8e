"""Block store: stores messages for queues in one pipeline, those of a queue in one atomic step, and never twice.

What is held, for how long, and what became of each message is the matter of ``blocks``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import keys, notes, scripts
from .broker import StreamBroker
from .exceptions import BrokerError, BrokerFull, BrokerUnavailable, CeleryStreamsError, DuplicateTask
from .message import Message, pack
from .partitions import queue_of
from .redis_errors import is_full

__all__ = ("BLOCK_MS", "MESSAGE_WORDS", "MessageBlock", "QueuedMessage", "publish_blocks")

#: Words of a command that one message of a block takes.
MESSAGE_WORDS = 6

#: Milliseconds for which a block of messages is known again (``publish_block.lua``): a repetition stores nothing
#: twice.
BLOCK_MS = 600_000


@dataclass(slots=True)
class QueuedMessage:
    """A message of a block that is yet to be stored."""

    id: str
    message: Message
    #: Milliseconds since the epoch; 0 is now.
    due_ms: int
    #: Its member of the delayed set.
    member: str

    @property
    def size(self) -> int:
        """Its bytes."""
        message = self.message
        return len(message.headers) + len(message.properties) + len(message.body)


@dataclass(slots=True)
class MessageBlock:
    """Messages for one queue that are stored in one step."""

    queue: str
    #: Name of the mark by which a repetition is known.
    name: str
    messages: Sequence[QueuedMessage]
    #: The mark holds the ids of messages, of whatever block; else it stands for this very block.
    by_ids: bool = False
    #: Messages that the queue may hold; None is no bound.
    max_length: int | None = None
    #: They come from another queue, so that their tasks have a state already.
    transferred: bool = False


def publish_blocks(
    broker: StreamBroker, blocks: Sequence[MessageBlock]
) -> list[list[tuple[int, CeleryStreamsError]] | BrokerError]:
    """Store blocks of messages in one pipeline, each block in one atomic step and in its order.

    Returns for each block the positions of the messages that were refused, with the error; or the error when
    nothing of it was stored. A :class:`ReplyLost` leaves open whether it was. The same block again, within
    :data:`BLOCK_MS`, stores nothing twice. Raises nothing.
    """
    commands: list[tuple[Any, ...]] = []
    new = [queue for queue in {block.queue for block in blocks} if broker.is_new(queue)]
    if new:
        commands += [("SADD", keys.queues(broker.prefix), queue) for queue in new]
    commands += [_block_command(broker, block) for block in blocks]
    replies = broker.client.attempt(commands)
    for queue in new:
        added = replies.pop(0)
        if not isinstance(added, BrokerError):
            broker.introduced(queue, added=bool(added))
        elif isinstance(added, BrokerUnavailable):
            broker.not_introduced()
    return [_block_outcome(broker, block, reply) for block, reply in zip(blocks, replies, strict=True)]


def _block_command(broker: StreamBroker, block: MessageBlock) -> tuple[Any, ...]:
    bound = block.max_length or 0
    names = broker.queue_keys(block.queue)
    args: list[Any] = [BLOCK_MS, "ids" if block.by_ids else "attempt", bound]
    noted: list[notes.Note | None] = []
    for position, one in enumerate(block.messages):
        message = one.message
        if notes.is_tracked(message):
            # Not over a later state: a repetition of the block stores nothing, and its tasks may have run.
            member = one.member if one.due_ms else ""
            must = notes.unless_in(block.queue) if block.transferred else "none"
            made = broker.note_of(block.queue, message, due_ms=one.due_ms, member=member, must=must)
            noted.append(made.when(str(position)) if made is not None else None)
        if one.due_ms:
            args += (one.id, one.due_ms, one.member, pack(message), b"", b"")
        else:
            args += (one.id, 0, message.step + 1, message.headers, message.properties, message.body)
    return notes.behind(
        scripts.PUBLISH_BLOCK,
        [
            keys.block(broker.prefix, block.queue, block.name),
            *(names.delayed, names.delayed_messages, names.wake),
            *names.streams,
            *((*names.fronts, names.shelf[0]) if bound else ()),
        ],
        args,
        noted,
    )


def _block_outcome(
    broker: StreamBroker, block: MessageBlock, reply: Any
) -> list[tuple[int, CeleryStreamsError]] | BrokerError:
    if isinstance(reply, BrokerError):
        return reply
    found = json.loads(reply) if reply else ()
    return [(int(at), _refusal(broker, block.queue, said, block.max_length)) for at, said in found]


def _refusal(broker: StreamBroker, queue: str, said: str, max_length: int | None) -> CeleryStreamsError:
    reason, _, first = said.partition(" ")
    if reason in ("duplicate", "waits"):
        return DuplicateTask(f"a duplicate of {first} on queue {queue_of(queue)!r}", first, waits=reason == "waits")
    if said == "full":
        return broker.full(queue, max_length)
    if is_full(said):
        return BrokerFull(f"Redis is full: {said}").of_publish(queue_of(queue))
    return BrokerError(f"Redis refused a message for queue {queue_of(queue)!r}: {said}")

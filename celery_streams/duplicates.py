"""Duplicates: publishes a message of a unique task, or finds that it is there already; what its caller gets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from .broker import StreamBroker
from .exceptions import DuplicateTask
from .locks import Lock, holders, named_lock, publish_unique, replace_unique
from .message import Message, encode_json
from .partitions import queue_of
from .revoked_holders import free_revoked

__all__ = ("groups_set_free", "publish_or_find", "result_of_first", "tell")

logger = logging.getLogger(__name__)

#: Attempts to replace a message whose task starts, or which is replaced, at the same moment.
_ATTEMPTS = 20


def publish_or_find(
    broker: StreamBroker,
    queue: str,
    message: Message,
    lock: Lock,
    *,
    token: str,
    due_ms: int,
    member: str,
    max_length: int | None,
    replaces: bool,
) -> None:
    """Store a message with its lock, or put it in the place of the message that holds it, with the id of that.

    One that has not started binds nobody once it was revoked, for no worker will run it: to find that out takes one
    round trip more, and two if it is so. One more to replace it, and others only while it starts at the same moment.

    Raises:
        DuplicateTask: a message is there already; ``replaced`` says whether it is this one now.
        BrokerError: it was not stored.
    """
    headers = message.decode_headers()
    task_id, in_group = str(headers.get("id")), bool(headers.get("group"))
    first, replaced = "", False
    for _ in range(_ATTEMPTS):
        found = publish_unique(
            broker,
            queue,
            message,
            lock,
            task_id=task_id,
            token=token,
            due_ms=due_ms,
            member=member,
            max_length=max_length,
        )
        if found is None:
            return
        first = found.task_id
        if free_revoked(broker, queue, lock, found):
            continue
        if in_group or not replaces:
            break
        replaced = replace_unique(broker, queue, _with_id(message, first), lock, first=first)
        if replaced:
            break
    raise tell(headers, queue, first, replaced=replaced)


def groups_set_free(broker: StreamBroker, refused: Sequence[tuple[str, Message]]) -> list[int]:
    """Free what messages of groups are duplicates of, where that was revoked before it started.

    Args:
        refused: messages that were not stored, each with its queue: duplicates, and those of their groups.

    Returns the positions of all messages of the groups in which a lock became free. A round trip for each group, and
    those of :func:`.revoked_holders.free_revoked`.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    locks: dict[int, Lock] = {}
    for at, (queue, message) in enumerate(refused):
        headers = message.decode_headers()
        if headers.get("group"):
            groups.setdefault((queue, str(headers["group"])), []).append(at)
            if (lock := named_lock(message)) is not None:
                locks[at] = lock
    again: list[int] = []
    for (queue, _), members in groups.items():
        unique = [locks[at] for at in members if at in locks]
        found = zip(unique, holders(broker, queue, unique), strict=True)
        freed = [holder is not None and free_revoked(broker, queue, lock, holder) for lock, holder in found]
        if any(freed):
            again += members
    return again


def tell(headers: Mapping[str, Any], queue: str, first: str, *, replaced: bool = False) -> DuplicateTask:
    """Return the error of a message with these headers that is a duplicate of the task ``first``."""
    in_group = bool(headers.get("group"))
    text = f"Task {headers.get('task')}[{headers.get('id')}] "
    if replaced:
        text += f"took the place of {first} on queue {queue_of(queue)!r}, and its id"
    else:
        text += f"was not published: it is a duplicate of {first} on queue {queue_of(queue)!r}"
    if in_group:
        text += ", and its group or chord would wait for a result that never comes"
    return DuplicateTask(text, first, str(headers.get("id")), in_group=in_group, replaced=replaced)


def _with_id(message: Message, task_id: str) -> Message:
    """Return a message as one of another task id."""
    headers, properties = message.decode()
    if headers.get("root_id") == headers.get("id"):
        headers["root_id"] = task_id
    headers["id"] = properties["correlation_id"] = task_id
    return message.changed(headers=encode_json(headers).encode(), properties=encode_json(properties).encode())


def result_of_first(app: Any, duplicate: DuplicateTask, given: Mapping[str, Any]) -> Any:
    """Return the result of the message that is there, in the place of that of a duplicate.

    Args:
        given: what ``app.send_task`` was called with, by name.
    """
    logger.info("%s.", duplicate)
    lost = [one for one in ("link", "link_error", "chain", "chord") if given.get(one)]
    if lost and not duplicate.replaced:
        logger.warning("%s; its %s will not be called.", duplicate, " and ".join(lost))
    _forget(app, duplicate.duplicate_id)
    result = (given.get("result_cls") or app.AsyncResult)(duplicate.task_id)
    result.ignored = bool(given.get("ignore_result"))
    parent = app.current_worker_task if given.get("add_to_parent", True) else None
    if parent is not None:
        parent.add_trail(result)
    return result


def _forget(app: Any, task_id: str) -> None:
    """Have a result backend that listens for results listen no more for one that never comes."""
    consumer = getattr(app.backend, "result_consumer", None)
    if consumer is not None:
        consumer.cancel_for(task_id)

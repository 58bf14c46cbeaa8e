"""What a person does: sends messages, sends one again, reads, has pictures fetched."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from django.db import transaction

from celery_streams import state, streams_of
from celery_streams.dead_letters import dead_letters, replay

from . import tasks
from .models import Conversation, Message

__all__ = ("fetch", "mark_as_read", "send", "send_again")


def send(conversation: Conversation, texts: Sequence[str], *, user: Any) -> None:
    """Store messages, and publish their tasks when the transaction commits, in one pipeline."""
    with transaction.atomic():
        for text in texts:
            message = Message.objects.create(conversation=conversation, text=text, task_id=str(uuid.uuid4()))
            _publish(tasks.send_message, message, user=user)


def mark_as_read(conversation: Conversation, *, user: Any) -> int:
    """Publish the tasks for all messages that came in and that nobody has read; returns how many."""
    unread = list(conversation.messages.filter(incoming=True, task_id=""))
    with transaction.atomic():
        # The database's own answer says who was first, where two windows are open.
        claimed = [message for message in unread if _claim(message)]
        for message in claimed:
            _publish(tasks.mark_as_read, message, user=user)
    return len(claimed)


def send_again(message: Message, *, user: Any) -> str:
    """Replay the dead letter of a message's task; returns what to tell the person.

    The task keeps its id, and so its state. Where the letter is gone (deleted, or too old), the task is published anew,
    unless somebody else has replayed it: the operator may do so on the dashboard.

    Raises:
        CannotRun: no worker would run it.
        BrokerError: Redis is away.
    """
    task = tasks.mark_as_read if message.incoming else tasks.send_message
    app = task.app
    broker, queue = streams_of(app).broker, task.name.rpartition(".")[2]
    for letter in dead_letters(broker, queue, ids={message.task_id}):
        if replay(broker, letter) is not None:
            return "It is sent again."
    if state(message.task_id).state not in ("failed", "revoked", "expired", "unknown"):
        return "It is under way already."
    with transaction.atomic():
        message.task_id = str(uuid.uuid4())
        message.save(update_fields=["task_id"])
        _publish(task, message, user=user)
    return "Its dead letter was gone: it is sent anew."


def fetch(conversation: Conversation) -> None:
    """Publish the tasks that fetch what the provider says of a contact; they are on lists."""
    tasks.fetch_profile_pic.delay(conversation.pk)
    if conversation.is_group:
        tasks.fetch_group_info.delay(conversation.pk)


def _claim(message: Message) -> bool:
    message.task_id = str(uuid.uuid4())
    return bool(Message.objects.filter(pk=message.pk, task_id="").update(task_id=message.task_id))


def _publish(task: Any, message: Message, *, user: Any) -> None:
    # The header says whose it is; permissions.may_see_task reads it.
    task.apply_async((message.pk,), task_id=message.task_id, headers={"owner": user.pk})

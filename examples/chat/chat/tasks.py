"""The four tasks, as they were on lists: only ``RateLimited``, for the provider's 429, came with streams.

``send_message`` and ``mark_as_read`` are on streams, ``fetch_profile_pic`` and ``fetch_group_info`` stayed on lists:
the settings say so, and nothing here does.
"""

from __future__ import annotations

from typing import Any

from celery import shared_task
from django.utils import timezone

from celery_streams import RateLimited

from . import pictures
from .evolution import client
from .models import Conversation, Message


@shared_task(bind=True, max_retries=3)
def send_message(self: Any, message_id: int) -> None:
    """Hand a message to the provider, which delivers one with the same key only once."""
    message = Message.objects.select_related("conversation").get(pk=message_id)
    try:
        client.send_text(message.conversation.jid, message.text, key=message.task_id)
    except client.TooManyRequests as exc:
        raise RateLimited(exc.seconds) from exc
    except client.EvolutionError as exc:
        raise self.retry(exc=exc, countdown=2**self.request.retries) from exc
    Message.objects.filter(pk=message_id).update(done=timezone.now())


@shared_task(bind=True, max_retries=3)
def mark_as_read(self: Any, message_id: int) -> None:
    """Tell the provider that a message was read."""
    message = Message.objects.select_related("conversation").get(pk=message_id)
    try:
        client.mark_as_read(message.conversation.jid, message.pk)
    except client.TooManyRequests as exc:
        raise RateLimited(exc.seconds) from exc
    except client.EvolutionError as exc:
        raise self.retry(exc=exc, countdown=2**self.request.retries) from exc
    Message.objects.filter(pk=message_id).update(done=timezone.now())


@shared_task(autoretry_for=(client.EvolutionError,), retry_backoff=True, max_retries=5)
def fetch_profile_pic(conversation_id: int) -> None:
    """Fetch the picture of a contact or group."""
    conversation = Conversation.objects.get(pk=conversation_id)
    picture = pictures.keep(conversation, client.profile_picture(conversation.jid))
    Conversation.objects.filter(pk=conversation_id).update(picture=picture)


@shared_task(autoretry_for=(client.EvolutionError,), retry_backoff=True, max_retries=5)
def fetch_group_info(conversation_id: int) -> None:
    """Fetch how many members a group has."""
    conversation = Conversation.objects.get(pk=conversation_id)
    members = client.group_size(conversation.jid)
    Conversation.objects.filter(pk=conversation_id).update(members=members)

"""Pictures of contacts, as files below the media folder."""

from __future__ import annotations

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from .models import Conversation

__all__ = ("keep",)


def keep(conversation: Conversation, picture: bytes) -> str:
    """Write a picture beside the one before, and return its name; the address changes with it, so no cache is wrong."""
    name = default_storage.save(f"pictures/{conversation.pk}.svg", ContentFile(picture))
    if conversation.picture and conversation.picture != name:
        default_storage.delete(conversation.picture)
    return str(name)

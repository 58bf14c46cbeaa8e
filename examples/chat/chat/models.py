"""Conversations, their messages, and what the fake API remembers."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils import timezone


class Conversation(models.Model):
    """A person's conversation with one contact, or with a group."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="conversations")
    #: The address at the provider; those of groups end with ``@g.us``.
    jid = models.CharField(max_length=80)
    name = models.CharField(max_length=80)
    #: Below the media folder; empty until ``fetch_profile_pic`` ran.
    picture = models.CharField(max_length=120, blank=True)
    #: Of a group; None until ``fetch_group_info`` ran.
    members = models.PositiveIntegerField(null=True)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return str(self.name)

    @property
    def is_group(self) -> bool:
        """Whether it is one."""
        return str(self.jid).endswith("@g.us")

    @property
    def picture_url(self) -> str:
        """The address of the picture; empty until there is one."""
        return f"{settings.MEDIA_URL}{self.picture}" if self.picture else ""


class Message(models.Model):
    """A message that was sent, or came in."""

    conversation = models.ForeignKey(Conversation, models.CASCADE, related_name="messages")
    text = models.TextField()
    incoming = models.BooleanField(default=False)
    created = models.DateTimeField(default=timezone.now)
    #: The task that sends it, or that marks it as read; empty while nobody has read it.
    task_id = models.CharField(max_length=40, blank=True)
    #: When the task was done: it is sent, or marked as read.
    done = models.DateTimeField(null=True)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return str(self.text)[:40]


class ApiSwitch(models.Model):
    """How the fake API behaves; there is one row."""

    MODES = (("works", "works"), ("slow", "is slow"), ("fails", "fails"), ("limits", "answers 429"))

    mode = models.CharField(max_length=10, choices=MODES, default="works")

    @classmethod
    def now(cls) -> str:
        """Return the mode."""
        found = cls.objects.filter(pk=1).values_list("mode", flat=True).first()
        return str(found or "works")


class Delivery(models.Model):
    """A message that the fake API has taken: a second one with the same key is not delivered again."""

    key = models.CharField(max_length=40, unique=True)

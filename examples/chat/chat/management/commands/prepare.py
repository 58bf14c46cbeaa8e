"""``python manage.py prepare``: a database with two people and their conversations."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection

from ...models import ApiSwitch, Conversation
from ...sending import fetch

#: Who writes to whom. The first one may also use the dashboard and the admin.
PEOPLE = {
    "ana": [
        ("5511990000001@s.whatsapp.net", "Maria Souza"),
        ("5511990000002@s.whatsapp.net", "João Lima"),
        ("120363000000000001@g.us", "Padaria do Bairro"),
    ],
    "bruno": [("5511990000003@s.whatsapp.net", "Carla Dias")],
}


class Command(BaseCommand):
    """Make it; a second call changes nothing."""

    help = "Make the database with two people and their conversations."

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it."""
        settings.FOLDER.mkdir(parents=True, exist_ok=True)
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer
        call_command("migrate", verbosity=0)
        ApiSwitch.objects.get_or_create(pk=1)
        users = get_user_model().objects
        for number, (name, contacts) in enumerate(PEOPLE.items()):
            user, new = users.get_or_create(
                username=name, defaults={"is_staff": not number, "is_superuser": not number}
            )
            if new:
                user.set_password(name)
                user.save()
            for jid, title in contacts:
                conversation, new = Conversation.objects.get_or_create(owner=user, jid=jid, defaults={"name": title})
                if new:
                    fetch(conversation)

"""The fake API: it takes messages, answers for the contact, and fails, is slow or refuses as its switch says.

It is served by the project itself, which saves a process; the tasks reach it over HTTP all the same.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any, cast
from zlib import crc32

from django.conf import settings
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt

from ..models import ApiSwitch, Conversation, Delivery, Message

#: Seconds that it takes when it is slow, and for which it wants to be left alone when it answers 429.
SLOW, LIMITED = 3, 4

#: What contacts answer, in turn.
_ANSWERS = ("Got it, thank you.", "Yes, that works.", "See you then!", "One moment, please.", "Perfect.")

View = Callable[..., HttpResponse]


def _behaves(view: View) -> View:
    """Let the call through as the switch says, and only for who knows the key."""

    @csrf_exempt
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not hmac.compare_digest(request.headers.get("apikey", "").encode(), settings.EVOLUTION_KEY.encode()):
            return JsonResponse({"status": 401, "error": "Unauthorized"}, status=401)
        mode = ApiSwitch.now()
        if mode == "fails":
            return JsonResponse({"status": 500, "error": "Internal Server Error"}, status=500)
        if mode == "limits":
            answer = JsonResponse({"status": 429, "error": "Too Many Requests"}, status=429)
            answer["Retry-After"] = str(LIMITED)
            return answer
        if mode == "slow":
            time.sleep(SLOW)
        return view(request, *args, **kwargs)

    return cast(View, guarded)


@_behaves
def send_text(request: HttpRequest, instance: str) -> HttpResponse:
    """Take a message, and let the contact answer; one whose key it knows is not delivered again."""
    said = json.loads(request.body)
    try:
        with transaction.atomic():
            Delivery.objects.create(key=request.headers["Idempotency-Key"])
            _answer(said["number"], Message.objects.get(task_id=request.headers["Idempotency-Key"]))
    except IntegrityError:
        return JsonResponse({"status": "PENDING", "duplicate": True}, status=201)
    return JsonResponse({"status": "PENDING"}, status=201)


def _answer(jid: str, message: Message) -> None:
    """Store what the contact answers; the real API would call a webhook."""
    text = _ANSWERS[crc32(f"{message.pk}".encode()) % len(_ANSWERS)]
    Message.objects.create(conversation=message.conversation, text=text, incoming=True)


@_behaves
def mark_as_read(request: HttpRequest, instance: str) -> HttpResponse:
    """Believe it."""
    return JsonResponse({"message": "Read messages", "read": "success"}, status=201)


@_behaves
def profile_picture_url(request: HttpRequest, instance: str) -> HttpResponse:
    """Tell where the picture of a contact is."""
    jid = json.loads(request.body)["number"]
    address = request.build_absolute_uri(reverse("evolution-picture", kwargs={"jid": jid}))
    return JsonResponse({"wuid": jid, "profilePictureUrl": address})


@_behaves
def group_info(request: HttpRequest, instance: str) -> HttpResponse:
    """Tell about a group."""
    jid = request.GET["groupJid"]
    return JsonResponse({"id": jid, "size": 3 + crc32(jid.encode()) % 20})


def picture(request: HttpRequest, jid: str) -> HttpResponse:
    """Draw a picture: the initials on a colour that follows from the address."""
    name = Conversation.objects.filter(jid=jid).values_list("name", flat=True).first() or jid
    initials = escape("".join(word[0] for word in name.split()[:2]).upper())
    hue = crc32(jid.encode()) % 360
    return HttpResponse(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96"><rect width="96" height="96" '
        f'fill="hsl({hue} 45% 38%)"/><circle cx="76" cy="18" r="34" fill="hsl({(hue + 40) % 360} 50% 48%)"/>'
        f'<text x="48" y="61" font-family="system-ui, sans-serif" font-size="36" font-weight="600" fill="#fff" '
        f'text-anchor="middle">{initials}</text></svg>',
        content_type="image/svg+xml",
    )

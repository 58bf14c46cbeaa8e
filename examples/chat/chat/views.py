"""The pages of the chat, and what their buttons do. All of it works without scripts, by links and forms."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from django.contrib import messages
from django.contrib.auth import get_user_model, login
from django.contrib.auth.decorators import login_required
from django.db.models import Count, Max, Q
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.cache import get_conditional_response
from django.views.decorators.http import require_GET, require_POST

from celery_streams import BrokerError
from celery_streams.exceptions import CannotRun

from . import breaking, sending
from .models import ApiSwitch, Conversation, Message
from .states import WORDS, annotate

#: Messages of a conversation that the page shows.
SHOWN = 60

#: Messages that one press of a button may send.
MOST = 50


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    """Go to the first conversation; who is not logged in becomes the first person: this is a show."""
    if not request.user.is_authenticated:
        _login(request, "ana")
    return redirect("chat:conversation", Conversation.objects.filter(owner=request.user).earliest("pk").pk)


@require_POST
def become(request: HttpRequest) -> HttpResponse:
    """Become one of the people, without a password."""
    _login(request, str(request.POST.get("name")))
    return redirect("chat:home")


def _login(request: HttpRequest, name: str) -> None:
    login(request, get_object_or_404(get_user_model(), username=name), "django.contrib.auth.backends.ModelBackend")


@require_GET
@login_required(login_url="chat:home", redirect_field_name=None)
def conversation(request: HttpRequest, pk: int) -> HttpResponse:
    """Show a conversation."""
    here = _conversation(request, pk)
    context = {
        **_around(request, here),
        "shown": _messages(here),
        "modes": ApiSwitch.MODES,
        "words": WORDS,
        "people": get_user_model().objects.order_by("pk"),
    }
    return render(request, "chat/conversation.html", context)


@require_GET
@login_required(login_url="chat:home", redirect_field_name=None)
def news(request: HttpRequest, pk: int) -> HttpResponseBase:
    """Return the conversations and what came after message ``after``, for a script that polls by ETag.

    The states of messages are not part of it: tasks have addresses of their own.
    """
    here, after = _conversation(request, pk), str(request.GET.get("after", ""))
    context = _around(request, here)
    about = [[one.pk, one.picture, one.members, one.unread, one.newest] for one in context["conversations"]]
    said = json.dumps([request.user.pk, pk, after, context["mode"], about])
    tag = f'"{hashlib.sha256(said.encode()).hexdigest()[:32]}"'
    response = get_conditional_response(request, etag=tag)
    if response is None:
        context["shown"] = _messages(here, after=int(after) if after.isdecimal() else 0)
        response = render(request, "chat/news.html", context)
    response["ETag"] = tag
    response["Cache-Control"] = "private, no-cache"
    return response


def _around(request: HttpRequest, here: Conversation) -> dict[str, Any]:
    """Return what the page shows around the messages."""
    mine = Conversation.objects.filter(owner=request.user).annotate(
        unread=Count("messages", filter=Q(messages__incoming=True, messages__task_id="")), newest=Max("messages")
    )
    return {"conversations": list(mine), "here": here, "mode": ApiSwitch.now()}


def _messages(here: Conversation, *, after: int = 0) -> list[Message]:
    """Return the newest messages, the oldest of them first, with their states."""
    return annotate(reversed(here.messages.filter(pk__gt=after).order_by("-pk")[:SHOWN]))


def _conversation(request: HttpRequest, pk: int) -> Conversation:
    found: Conversation = get_object_or_404(Conversation, pk=pk, owner=request.user)
    return found


@require_POST
@login_required(login_url="chat:home", redirect_field_name=None)
def send(request: HttpRequest, pk: int) -> HttpResponse:
    """Send a message, or a number of them."""
    text, times = str(request.POST.get("text", "")).strip(), str(request.POST.get("times", "1"))
    count = min(int(times), MOST) if times.isdecimal() else 1
    if text:
        texts = [text] if count == 1 else [f"{text} {number} of {count}" for number in range(1, count + 1)]
        sending.send(_conversation(request, pk), texts, user=request.user)
    return _back(request, pk)


@require_POST
@login_required(login_url="chat:home", redirect_field_name=None)
def read(request: HttpRequest, pk: int) -> HttpResponse:
    """Mark what came in as read."""
    sending.mark_as_read(_conversation(request, pk), user=request.user)
    return _back(request, pk)


@require_POST
@login_required(login_url="chat:home", redirect_field_name=None)
def fetch(request: HttpRequest, pk: int) -> HttpResponse:
    """Fetch the picture, and what is known of a group."""
    sending.fetch(_conversation(request, pk))
    return _back(request, pk, "The picture is being fetched, on a list.")


@require_POST
@login_required(login_url="chat:home", redirect_field_name=None)
def again(request: HttpRequest, pk: int) -> HttpResponse:
    """Send a message again that could not be sent."""
    message = get_object_or_404(Message, pk=pk, conversation__owner=request.user)
    try:
        said = sending.send_again(message, user=request.user)
    except (CannotRun, BrokerError) as exc:
        said = f"It could not be sent again: {exc}"
    return _back(request, message.conversation_id, said)


@require_POST
@login_required(login_url="chat:home", redirect_field_name=None)
def switch(request: HttpRequest) -> HttpResponse:
    """Change how the fake API behaves."""
    mode = request.POST.get("mode")
    if mode in dict(ApiSwitch.MODES):
        ApiSwitch.objects.filter(pk=1).update(mode=mode)
    return _back(request, request.POST.get("here"))


@require_POST
@login_required(login_url="chat:home", redirect_field_name=None)
def kill(request: HttpRequest) -> HttpResponse:
    """Kill a child of the stream worker, or all of it; for staff."""
    if not request.user.is_staff:
        return HttpResponse("Only the operator may kill workers.", status=403)
    try:
        said = breaking.kill_worker() if request.POST.get("what") == "worker" else breaking.kill_child()
    except (breaking.NoWorker, ProcessLookupError):
        said = "The worker does not answer; try again in a moment."
    return _back(request, request.POST.get("here"), said)


def _back(request: HttpRequest, pk: Any, said: str = "") -> HttpResponse:
    """Answer a script with what there is to say, and a form with the page."""
    if request.headers.get("X-Requested-With") == "fetch":
        return HttpResponse(said, content_type="text/plain")
    if said:
        messages.info(request, said)
    return redirect("chat:conversation", pk) if str(pk).isdecimal() else redirect("chat:home")

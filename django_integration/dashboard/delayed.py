"""Delayed: messages that are due later (eta, countdown, retries): look, run now, cancel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from celery.states import REVOKED
from django.http import HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_streams.delayed_messages import DelayedMessage, cancel, delayed_messages, run_now
from celery_streams.exceptions import MessageError
from celery_streams.message import Message
from celery_streams.obstacles import task_id_of
from celery_streams.printable import printable

from .arguments import LONG, SHORT, Shown, are_hidden, not_kept, show
from .audit import note
from .exports import FORMATS, MOST, as_file
from .last import see
from .look import Look
from .waiting import parse_member

__all__ = ("change_delayed", "delayed")

#: Messages on a page, and of one step of an export.
PAGE, _STEP = 50, 1_000

#: Messages on the page of all queues, unless there are more queues.
MOST_OF_ALL = 300

#: Messages of a list that are kept for while Redis is away.
MOST_KEPT = 500

COLUMNS = ("queue", "due", "task", "task_id", "retries", "args", "kwargs")


def delayed(look: Look) -> HttpResponse:
    """Show delayed messages of one queue, the next one first; of all queues, the first few of each."""
    queue = look.text("queue")
    skip = look.number("skip", most=10**7)
    broker = look.streams.broker
    kind = look.exported()
    if kind:
        return as_file(kind, "delayed", COLUMNS, _flat(look, [queue] if queue else look.streams.known_queues()))

    def ask() -> tuple[list[dict[str, Any]], list[str]]:
        known = look.streams.known_queues()
        found: list[DelayedMessage] = []
        if queue:
            found = delayed_messages(broker, queue, limit=PAGE + 1, offset=skip)
        else:
            few = max(min(10, MOST_OF_ALL // max(len(known), 1)), 1)
            for name in known:
                found += delayed_messages(broker, name, limit=few)
            found.sort(key=lambda one: one.due)
        return [_row(look, one) for one in found], known

    seen = see(look, f"delayed {skip} {queue}", ask, keep=_without_arguments)
    rows, known = seen.value
    shown = "shown" if look.text("arguments") == "shown" else ""
    more = bool(queue) and len(rows) > PAGE
    context = {
        **seen.context,
        "listed": True,
        "rows": [
            {
                **row,
                "arguments": not_kept() if seen.error else row["arguments"],
                "url": look.place.url("delayed_message", key=row["key"], arguments=shown),
            }
            for row in rows[: PAGE if queue else None]
        ],
        "queue": queue,
        "queues": known,
        "arguments": shown,
        "act": look.place.url("change_delayed"),
        "hidden": are_hidden(look),
        "show_arguments": look.place.url("delayed", queue=queue, skip=skip, arguments="shown"),
        "export": {name: look.place.url("delayed", queue=queue, arguments=shown, format=name) for name in FORMATS},
        "next": look.place.url("delayed", queue=queue, skip=skip + PAGE, arguments=shown) if more else "",
        "first": look.place.url("delayed", queue=queue, arguments=shown) if skip else "",
        "note": _note(look.number("done"), look.number("count")) if look.text("count") else "",
    }
    state = [shown, seen.error, *([row["key"], row["due"]] for row in rows)]
    return look.answer("delayed.html", _("Delayed messages"), context, state=state)


def _without_arguments(seen: tuple[list[dict[str, Any]], list[str]]) -> tuple[list[dict[str, Any]], list[str]]:
    rows, known = seen
    return [{**row, "arguments": None} for row in rows[:MOST_KEPT]], known


def _flat(look: Look, queues: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield all delayed messages of some queues, those of a queue in the order of their time."""
    count = 0
    for queue in queues:
        skip = 0
        while page := delayed_messages(look.streams.broker, queue, limit=_STEP, offset=skip):
            skip += len(page)
            for one in page:
                if count >= MOST:
                    yield {"queue": f"The first {MOST} only"}
                    return
                count += 1
                row = _row(look, one, most=LONG)
                arguments: Shown = row["arguments"]
                yield {
                    "queue": one.queue,
                    "due": datetime.fromtimestamp(one.due, timezone.utc).isoformat(timespec="milliseconds"),
                    "task": row["task"],
                    "task_id": row["task_id"],
                    "retries": row["retries"],
                    "args": arguments.args or None,
                    "kwargs": arguments.kwargs or None,
                }


def _row(look: Look, one: DelayedMessage, *, most: int = SHORT) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    if one.message is not None:
        try:
            headers = one.message.decode_headers()
        except MessageError:
            headers = {}
    task = headers.get("task") if isinstance(headers.get("task"), str) else None
    retries = headers.get("retries")
    return {
        "queue": one.queue,
        "key": " ".join(part.encode(errors="surrogateescape").hex() for part in (one.queue, one.member)),
        "due": one.due,
        "task": task,
        "task_id": None if one.message is None else _id(one.message),
        "retries": retries if isinstance(retries, int) and retries else 0,
        "arguments": show(look, task, one.message, most=most),
    }


def _id(message: Message) -> str | None:
    try:
        return task_id_of(message)
    except MessageError:
        return None


def change_delayed(look: Look) -> HttpResponse:
    """Run some now, or cancel them: asked first, then done."""
    verb = look.text("verb")
    if verb not in ("run_now", "cancel"):
        return _say(look, _("No such action."), 400)
    if not look.may(verb):
        return _say(look, _("You may not do this."), 403)
    keys = look.request.POST.getlist("key")[:1_000]
    chosen: dict[str, list[str]] = {}
    for key in keys:
        place = parse_member(key)
        if place is not None:
            chosen.setdefault(place[0], []).append(place[1])
    count = sum(map(len, chosen.values()))
    if not count:
        return _say(look, _("Nothing was chosen."), 400)
    if look.text("confirmed") != "yes":
        question = (
            ngettext("Run %(n)s delayed message now?", "Run %(n)s delayed messages now?", count)
            if verb == "run_now"
            else ngettext("Cancel %(n)s delayed message for good?", "Cancel %(n)s delayed messages for good?", count)
        ) % {"n": count}
        context = {
            "question": question,
            "hidden": [("verb", verb), ("confirmed", "yes"), *(("key", key) for key in keys)],
            "act": look.place.url("change_delayed"),
            "back": look.place.url("delayed"),
            "danger": verb == "cancel",
        }
        return look.answer("ask.html", _("Delayed messages"), context)
    done_to = "Run now" if verb == "run_now" else "Cancel"
    what = f"{done_to} {count} delayed message{'' if count == 1 else 's'} of {', '.join(map(printable, chosen))}"
    note(look, verb, what, count=count, deletes=verb == "cancel")
    broker = look.streams.broker
    done = 0
    for queue, members in chosen.items():
        if verb == "run_now":
            done += run_now(broker, queue, members)
            continue
        for message in cancel(broker, queue, members):
            done += 1
            _say_revoked(look, message)
    return HttpResponseRedirect(look.place.url("delayed", done=done or "0", count=count))


def _note(done: int, count: int) -> str:
    text = _("%(done)s of %(count)s done; the others had become due.") if done < count else _("%(done)s done.")
    return str(text % {"done": done, "count": count})


def _say_revoked(look: Look, message: Message | None) -> None:
    """Store that a cancelled task will not run, for whoever waits for its result."""
    task_id = _id(message) if message is not None else None
    if message is not None and task_id and not message.decode_headers().get("ignore_result"):
        look.streams.app.backend.mark_as_revoked(task_id, reason="cancelled", state=REVOKED)


def _say(look: Look, text: str, status: int) -> HttpResponse:
    return look.answer(
        "message_only.html", _("Delayed messages"), {"text": text, "back": look.place.url("delayed")}, status=status
    )

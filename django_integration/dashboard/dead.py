"""Dead: the dead letters that match, in bounded steps; one in full; exports. What is done to them is in ``actions``."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from datetime import timezone as clock
from typing import Any

from django.http import HttpResponse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_streams.attempts import FIELD as ATTEMPTS
from celery_streams.dead_letters import DeadLetter, dead_letter, obstacles
from celery_streams.dead_search import Cursor, Found, Wanted, search
from celery_streams.exceptions import MessageError
from celery_streams.printable import printable

from ..permissions import hook
from .arguments import LONG, are_hidden, are_raw_hidden, not_kept, show
from .exports import MOST, as_file
from .last import see
from .look import Look
from .sentences import error_text
from .waiting import attempts_of, family_of

__all__ = ("dead", "describe", "find", "key_of", "message", "parse_key", "read_filter")

#: Letters on a page.
PAGE = 50

#: What a filter consists of, as it stands in addresses and forms.
FILTER = ("queue", "task", "reason", "exception", "text", "id", "family", "since", "until")

COLUMNS = ("queue", "entry_id", "died", "reason", "task", "task_id", "exception", "crashes", "worker", "published",
           "args", "kwargs")  # fmt: skip


def read_filter(look: Look) -> tuple[Wanted, dict[str, str], list[str]]:
    """Return what is looked for, the fields as they were given, and what cannot be understood in them."""
    given = {name: look.text(name) for name in FILTER}
    wrong: list[str] = []
    moments: dict[str, float | None] = {}
    for name in ("since", "until"):
        moments[name] = _moment(given[name])
        if given[name] and moments[name] is None:
            wrong.append(
                _("“%(value)s” is not a date and time; write it as 2026-12-31 23:59.") % {"value": given[name]}
            )
    if given["text"] and are_hidden(look):
        wrong.append(_("Arguments are hidden, so they cannot be searched."))
        given["text"] = ""
    wanted = Wanted(
        task=given["task"] or None,
        reason=given["reason"] or None,
        exception=given["exception"] or None,
        text=given["text"] or None,
        id=given["id"] or None,
        family=given["family"] or None,
        since=moments["since"],
        until=moments["until"],
    )
    return wanted, given, wrong


def key_of(queue: str, entry_id: str) -> str:
    """Return the name of a letter in forms, which change line breaks in what they carry."""
    return f"{queue.encode(errors='surrogateescape').hex()} {entry_id}"


def parse_key(text: str) -> tuple[str, str] | None:
    """Read what :func:`key_of` made; None for what is none."""
    queue, _, entry_id = text.partition(" ")
    try:
        return bytes.fromhex(queue).decode(errors="surrogateescape"), entry_id
    except ValueError:
        return None


def queues_of(look: Look, name: str) -> list[str]:
    """Return the queue of a filter, or all."""
    return [name] if name else look.streams.known_queues()


def find(look: Look, queue: str, wanted: Wanted, **options: Any) -> Found:
    """Search in the queues of a filter."""
    return search(
        look.streams.broker,
        queues_of(look, queue),
        wanted,
        accept=look.streams.app.conf.accept_content,
        redact=hook("CELERY_STREAMS_REDACT_ARGUMENTS"),
        **options,
    )


def describe(given: Mapping[str, str]) -> str:
    """Return a filter in words, for the log: never what was looked for in arguments."""
    said = [f"{name}={printable(value)}" for name, value in given.items() if value and name != "text"]
    return ", ".join([*said, *(["text=…"] if given.get("text") else [])]) or "all queues"


def dead(look: Look) -> HttpResponse:
    """Show the dead letters that match, or export them."""
    # Not at the top: Django starts without the worker's modules.
    from celery_streams.worker.outcome import Reason

    wanted, given, wrong = read_filter(look)
    kind = look.exported()
    if kind and not wrong:
        rows = _rows(look, given["queue"], wanted)
        return as_file(kind, "dead-letters", COLUMNS, rows)
    before = Cursor.parse(look.text("before"))

    def ask() -> tuple[Found, list[str]]:
        if wrong:
            return Found((), 0, 0, None), look.streams.known_queues()
        return find(look, given["queue"], wanted, before=before, limit=PAGE), look.streams.known_queues()

    seen = see(look, f"dead {sorted(given.items())} {before}", ask, keep=_without_arguments)
    found, known = seen.value
    arguments = look.text("arguments") if look.text("arguments") == "shown" else ""
    # Over all steps of this search; between two of them letters come and go.
    looked = min(look.number("looked") + found.looked_at, found.total) if before else found.looked_at
    on = {**given, "arguments": arguments, "before": str(found.next), "looked": looked} if found.next else {}
    goes_on = bool(on) and not found.letters and not seen.error
    context = {
        "letters": [
            {
                "letter": letter,
                "arguments": not_kept() if seen.error else show(look, letter.task, letter.message),
                "key": key_of(letter.queue, letter.entry_id),
                "url": look.place.url("message", queue=letter.queue, id=letter.entry_id, arguments=arguments),
            }
            for letter in found.letters
        ],
        "looked": looked,
        "total": found.total,
        "arguments": arguments,
        "goes_on": [(name, value) for name, value in on.items() if value] if goes_on else [],
        "stays": look.text("stay") == "yes",
        "stop": look.place.url(
            "dead",
            **{**given, "arguments": arguments, "before": str(before or ""), "stay": "yes"},
            looked=look.number("looked"),
        ),
        "given": given,
        "is_filtered": any(given.values()),
        "wrong": wrong,
        "note": _note(look),
        "reasons": [reason.value for reason in Reason],
        "queues": known,
        **seen.context,
        "listed": True,
        "hidden": are_hidden(look),
        "act": look.place.url("act"),
        "first": look.place.url("dead", **given, arguments=arguments) if before else "",
        "older": look.place.url("dead", **on) if on else "",
        "show_arguments": look.place.url("dead", **given, arguments="shown"),
        "export": {name: look.place.url("dead", **given, arguments=arguments, format=name) for name in ("csv", "json")},
    }
    letters = [(one.queue, one.entry_id) for one in found.letters]
    state = [given, wrong, letters, found.looked_at, found.total, seen.error]
    return look.answer("dead.html", _("Dead letters"), context, state=state)


def _without_arguments(seen: tuple[Found, list[str]]) -> tuple[Found, list[str]]:
    """Return what may be kept of a list: nothing that a task was called with, and no more of an exception than fits."""
    found, known = seen
    letters = (
        replace(one, fields=(), traceback=None, exception=one.exception and str(one.exception)[:500])
        for one in found.letters
    )
    return replace(found, letters=tuple(letters)), known


def _note(look: Look) -> str:
    """Return what an action that led here did."""
    verb = look.text("verb")
    if verb not in ("replay", "purge"):
        return ""
    done, stayed, gone = look.number("done"), look.number("stayed"), look.number("gone")
    said = [
        (ngettext("%(n)s dead letter replayed.", "%(n)s dead letters replayed.", done) if verb == "replay"
         else ngettext("%(n)s dead letter deleted.", "%(n)s dead letters deleted.", done)) % {"n": done}
    ]  # fmt: skip
    if stayed:
        said.append(
            ngettext("%(n)s stays: no worker would run it.", "%(n)s stay: no worker would run them.", stayed)
            % {"n": stayed}
        )
    if gone:
        said.append(ngettext("%(n)s had gone meanwhile.", "%(n)s had gone meanwhile.", gone) % {"n": gone})
    return " ".join(said)


def message(look: Look) -> HttpResponse:
    """Show one dead letter in full."""
    queue, entry_id = look.text("queue"), look.text("id")
    letter = dead_letter(look.streams.broker, queue, entry_id)
    if letter is None:
        text = _("This dead letter is no longer there: it was replayed, deleted, or has expired.")
        return look.gone(_("Dead letter"), text, look.place.url("dead"))
    content = letter.message
    headers: dict[str, Any] = {}
    history: dict[str, Any] = {}
    trouble = ""
    if content is not None:
        try:
            headers, history = content.decode_headers(), content.decode_history()
            history.pop(ATTEMPTS, None)
        except MessageError as exc:
            trouble = error_text(exc)
    arguments = "shown" if look.text("arguments") == "shown" else ""
    raw_hidden = are_raw_hidden(look)
    context = {
        "letter": letter,
        "key": key_of(letter.queue, letter.entry_id),
        "arguments": show(look, letter.task, content, most=LONG),
        "hidden": are_hidden(look),
        "show_arguments": look.place.url("message", queue=queue, id=entry_id, arguments="shown"),
        "stays": [one.text for one in obstacles(look.streams.broker, [letter])[0]],
        "headers": _readable(headers, hide=raw_hidden),
        "history": _readable(history, hide=False),
        "retries": headers.get("retries"),
        "family": family_of(look, headers, letter.task_id),
        "attempts": attempts_of(letter.attempts),
        "trouble": trouble,
        "fields": [] if content is not None or raw_hidden else [(_text(one), _text(two)) for one, two in letter.fields],
        "act": look.place.url("act"),
        "back": look.place.url("dead", queue=queue),
        "same_task": look.place.url("dead", task=letter.task) if letter.task else "",
    }
    return look.answer("message.html", letter.task or _("Dead letter"), context, state=[entry_id, arguments])


def _rows(look: Look, queue: str, wanted: Wanted) -> Iterator[dict[str, Any]]:
    before, count = None, 0
    while True:
        found = find(look, queue, wanted, before=before, limit=1_000)
        for letter in found.letters:
            if count >= MOST:
                yield {"queue": f"The first {MOST} only"}
                return
            count += 1
            yield _row(look, letter)
        if found.next is None:
            return
        before = found.next


def _row(look: Look, letter: DeadLetter) -> dict[str, Any]:
    arguments = show(look, letter.task, letter.message, most=LONG)
    return {
        "queue": letter.queue,
        "entry_id": letter.entry_id,
        "died": _iso(letter.died),
        "reason": letter.reason,
        "task": letter.task,
        "task_id": letter.task_id,
        "exception": letter.exception,
        "crashes": letter.crashes,
        "worker": letter.worker,
        "published": _iso(letter.published) if letter.published else None,
        "args": arguments.args or None,
        "kwargs": arguments.kwargs or None,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, clock.utc).isoformat(timespec="milliseconds")


def _moment(text: str) -> float | None:
    try:
        found = parse_datetime(text) or parse_datetime(f"{text} 00:00")
        if found is None:
            return None
        return float((timezone.make_aware(found) if timezone.is_naive(found) else found).timestamp())
    except (ValueError, OverflowError):
        return None


#: Headers that say what a task was called with.
_SECRET = ("argsrepr", "kwargsrepr")


def _readable(values: Mapping[str, Any], *, hide: bool) -> list[tuple[str, str]]:
    return [
        (str(name), "…" if hide and name in _SECRET else str(value))
        for name, value in values.items()
        if value is not None
    ]


def _text(raw: bytes) -> str:
    try:
        return printable(raw.decode())
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()

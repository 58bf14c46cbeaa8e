"""Actions: replay and delete dead letters: one, those that were chosen, or all that match a filter.

First they are counted, then a person confirms, then it is done in steps of a bounded time. Each step is a form that
carries what the next one needs; a script of the page sends it on, and without scripts a person does. The filter is
applied here, at each step; what dies after the count began is left out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.core import signing
from django.http import HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_streams.dead_letters import DeadLetter, dead_letter, obstacles, purge_dead, replay
from celery_streams.dead_search import Cursor, Wanted
from celery_streams.exceptions import CannotRun, MessageError
from celery_streams.inspect import redis_time

from .audit import note
from .dead import describe, find, key_of, parse_key, read_filter
from .look import Look

__all__ = ("act",)

VERBS = ("replay", "purge")

#: Letters that one step counts, and takes; seconds after which a step that changes something ends.
COUNT_STEP, TAKE_STEP, STEP_SECONDS = 5_000, 500, 0.2

#: Of the signature under what was counted; it holds for a day (seconds).
_SALT, _DAY = "celery_streams.dashboard.counted", 86_400

#: Letters that can be chosen one by one.
MOST_CHOSEN = 1_000


@dataclass
class Work:
    """What is to be done, and how far it is."""

    verb: str
    #: Queue and entry id of those that were chosen; None: all that match.
    chosen: list[tuple[str, str]] | None
    given: dict[str, str]
    wanted: Wanted
    #: ``shown`` when somebody asked for arguments that are hidden until then, and not searched either.
    arguments: str
    ignore_expires: bool
    ignore_revoked: bool
    #: Where the next step begins.
    cursor: Cursor | None
    #: What died later is left out: seconds since the epoch, by Redis' clock.
    until: float
    looked_at: int = 0
    total: int = 0
    #: Counted: those that match, and of these those that no worker would run.
    matched: int = 0
    staying: int = 0
    #: Done.
    done: int = 0
    stayed: int = 0
    gone: int = 0
    wrong: list[str] = field(default_factory=list)
    finished: bool = False


def act(look: Look) -> HttpResponse:
    """Count, ask, and carry out."""
    work = _read(look)
    if work.verb not in VERBS:
        return _say(look, _("No such action."), status=400)
    if not look.may(work.verb):
        return _say(look, _("You may not do this."), status=403)
    if work.wrong:
        return _say(look, " ".join(work.wrong), status=400)
    if work.chosen == []:
        return _say(look, _("Nothing was chosen."), status=400)
    confirmed = look.text("confirmed") == "yes"
    if work.chosen is None and not _was_counted(look, work, "" if confirmed else look.text("cursor")):
        # Whatever the form says was counted was not counted here, or not for this.
        confirmed = False
        work.cursor, work.looked_at, work.matched, work.staying = None, 0, 0, 0
    if not confirmed:
        _count(look, work)
        return _ask(look, work)
    if work.chosen is not None:
        _count(look, work)
    if look.text("cursor") == "":
        note(look, work.verb, _sentence(work), count=work.matched, deletes=work.verb == "purge")
    _carry_out(look, work)
    if work.finished:
        return HttpResponseRedirect(
            look.place.url(
                "dead",
                **work.given,
                arguments=work.arguments,
                verb=work.verb,
                done=work.done or "0",
                stayed=work.stayed,
                gone=work.gone,
            )
        )
    return _go_on(look, work)


def _read(look: Look) -> Work:
    wanted, given, wrong = read_filter(look)
    chosen: list[tuple[str, str]] | None = None
    if look.text("scope") != "matching":
        keys = look.request.POST.getlist("key")[:MOST_CHOSEN]
        chosen = [one for key in keys if (one := parse_key(key)) is not None]
    now = redis_time(look.streams.broker)
    said = look.text("bound")
    try:
        until = min(float(said), now) if said else now
    except ValueError:
        until = now
    until = min(until, wanted.until) if wanted.until is not None else until
    return Work(
        verb=look.text("verb"),
        chosen=chosen,
        given=given,
        arguments="shown" if look.text("arguments") == "shown" else "",
        wanted=replace(wanted, until=until),
        ignore_expires=look.text("ignore_expires") == "yes",
        ignore_revoked=look.text("ignore_revoked") == "yes",
        cursor=Cursor.parse(look.text("cursor")),
        until=until,
        looked_at=look.number("looked_at"),
        total=look.number("total"),
        matched=look.number("matched"),
        staying=look.number("staying"),
        done=look.number("done"),
        stayed=look.number("stayed"),
        gone=look.number("gone"),
        wrong=wrong,
    )


def _count(look: Look, work: Work) -> None:
    """Count on from where the last step stopped."""
    if work.chosen is not None:
        letters = [one for key in work.chosen if (one := dead_letter(look.streams.broker, *key)) is not None]
        work.matched, work.total, work.looked_at, work.finished = len(letters), len(work.chosen), len(work.chosen), True
    else:
        found = find(
            look, work.given["queue"], work.wanted, before=work.cursor, limit=COUNT_STEP, look_at=COUNT_STEP,
            oldest_first=True,
        )  # fmt: skip
        letters = list(found.letters)
        work.matched += len(letters)
        work.looked_at += found.looked_at
        work.total = found.total
        work.cursor, work.finished = found.next, found.next is None
    if work.verb == "replay":
        work.staying += sum(_stays(letter, why, work) for letter, why in _with_obstacles(look, letters))


def _with_obstacles(look: Look, letters: Sequence[DeadLetter]) -> list[tuple[DeadLetter, tuple[Any, ...]]]:
    return list(zip(letters, obstacles(look.streams.broker, letters), strict=True)) if letters else []


def _stays(letter: DeadLetter, in_its_way: Sequence[Any], work: Work) -> bool:
    ignored = {"expired": work.ignore_expires, "revoked": work.ignore_revoked}
    return letter.message is None or any(not ignored[one.kind] for one in in_its_way)


def _carry_out(look: Look, work: Work) -> None:
    """Work for :data:`STEP_SECONDS`, then say how far it is."""
    ends = time.monotonic() + STEP_SECONDS
    broker = look.streams.broker
    if work.chosen is not None:
        letters = [dead_letter(broker, *key) for key in work.chosen]
        work.gone += letters.count(None)
        _take(look, work, [letter for letter in letters if letter is not None])
        work.finished = True
        return
    while True:
        found = find(
            look, work.given["queue"], work.wanted, before=work.cursor, limit=TAKE_STEP if work.verb == "purge" else 50,
            look_at=COUNT_STEP, oldest_first=True,
        )  # fmt: skip
        _take(look, work, found.letters)
        work.looked_at += found.looked_at
        work.cursor = found.next
        work.finished = found.next is None
        if work.finished or time.monotonic() >= ends:
            return


def _take(look: Look, work: Work, letters: Sequence[DeadLetter]) -> None:
    broker = look.streams.broker
    if work.verb == "purge":
        for queue, count in Counter(letter.queue for letter in letters).items():
            deleted = purge_dead(broker, queue, [one.entry_id for one in letters if one.queue == queue])
            work.done += deleted
            work.gone += count - deleted
        return
    for letter in letters:
        try:
            moved = replay(broker, letter, ignore_expires=work.ignore_expires, ignore_revoked=work.ignore_revoked)
        except (CannotRun, MessageError):
            work.stayed += 1
        else:
            work.done += moved is not None
            work.gone += moved is None


def _sentence(work: Work) -> str:
    """Return what is done, for the log; in English, for logs are searched."""
    verb = "Replay" if work.verb == "replay" else "Delete"
    which = "chosen" if work.chosen is not None else f"that match {describe(work.given)}"
    more = (" although expired" if work.ignore_expires else "") + (" although revoked" if work.ignore_revoked else "")
    return f"{verb} {work.matched} dead letter{'' if work.matched == 1 else 's'} {which}{more}"


def _hidden(work: Work, **more: Any) -> list[tuple[str, str]]:
    """Return the fields of a form that carries the work on."""
    fields = [(name, value) for name, value in work.given.items() if value]
    fields += [("arguments", work.arguments)] if work.arguments else []
    fields += [("verb", work.verb), ("scope", "selected" if work.chosen is not None else "matching")]
    fields += [("key", key_of(queue, entry_id)) for queue, entry_id in work.chosen or ()]
    fields += [("bound", repr(work.until)), ("matched", str(work.matched)), ("staying", str(work.staying))]
    counted = _counted(work, "" if more.get("confirmed") else more.get("cursor", ""))
    fields.append(("counted", signing.dumps(counted, salt=_SALT)))
    fields += [(name, str(value)) for name, value in more.items() if value not in ("", None)]
    return fields


def _counted(work: Work, cursor: str) -> list[Any]:
    """Return what is signed: the action, the filter, what was counted, until when, and where the count goes on."""
    given = [[name, value] for name, value in sorted(work.given.items()) if value]
    return [work.verb, given, work.matched, work.staying, repr(work.until), cursor]


def _was_counted(look: Look, work: Work, cursor: str) -> bool:
    """Return whether the form carries a count that was made here, for this very work."""
    try:
        counted = signing.loads(look.text("counted", most=10_000), salt=_SALT, max_age=_DAY)
    except signing.BadSignature:
        return False
    return bool(counted == _counted(work, cursor))


def _ask(look: Look, work: Work) -> HttpResponse:
    runs = work.matched - work.staying
    title = _("Replay dead letters") if work.verb == "replay" else _("Delete dead letters")
    if work.finished:
        hidden = _hidden(work, total=work.total, confirmed="yes")
    else:
        hidden = _hidden(
            work, cursor=str(work.cursor), looked_at=work.looked_at, total=work.total,
            ignore_expires="yes" if work.ignore_expires else "", ignore_revoked="yes" if work.ignore_revoked else "",
        )  # fmt: skip
    context = {
        "work": work,
        "runs": runs,
        "hidden": hidden,
        "act": look.place.url("act"),
        "back": look.place.url("dead", **work.given, arguments=work.arguments),
        "filter": [(name, value) for name, value in work.given.items() if value],
        "question": ngettext("Replay %(n)s dead letter?", "Replay %(n)s dead letters?", runs) % {"n": runs}
        if work.verb == "replay"
        else ngettext(
            "Delete %(n)s dead letter for good?", "Delete %(n)s dead letters for good?", work.matched
        ) % {"n": work.matched},
    }  # fmt: skip
    return look.answer("confirm.html", title, context)


def _go_on(look: Look, work: Work) -> HttpResponse:
    hidden = _hidden(
        work, cursor=str(work.cursor), total=work.total, confirmed="yes", looked_at=work.looked_at, done=work.done,
        stayed=work.stayed, gone=work.gone, ignore_expires="yes" if work.ignore_expires else "",
        ignore_revoked="yes" if work.ignore_revoked else "",
    )  # fmt: skip
    context = {
        "work": work,
        "hidden": hidden,
        "act": look.place.url("act"),
        "back": look.place.url("dead", **work.given, arguments=work.arguments),
        "so_far": work.done + work.stayed + work.gone,
    }
    title = _("Replaying …") if work.verb == "replay" else _("Deleting …")
    return look.answer("progress.html", title, context)


def _say(look: Look, text: str, *, status: int) -> HttpResponse:
    return look.answer(
        "message_only.html", _("Dead letters"), {"text": text, "back": look.place.url("dead")}, status=status
    )

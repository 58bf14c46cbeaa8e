"""``celery-streams dead``: list, show, replay and purge dead letters; ``dead_letters`` does what is done to Redis."""

from __future__ import annotations

import base64
from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE

from ..app import Streams, streams_of
from ..attempts import FIELD as ATTEMPTS
from ..attempts import Attempt
from ..dead_letters import (
    DeadLetter,
    dead_letter,
    dead_letters,
    decode_arguments,
    obstacles,
    purge_dead,
    replay,
)
from ..exceptions import CannotRun, HolderThere, MessageError
from ..hints import command
from ..inspect import redis_time
from ..obstacles import Obstacle
from ..pauses import paused_queues
from ..printable import printable
from .dead_filters import Selection, choose, option, selecting
from .queue_names import read_target
from .tables import Rows, console, progress_bar
from .terminal import (
    age,
    echo,
    echo_json,
    iso,
    one_line_errors,
    plural,
    select_queues,
)

__all__ = ("dead",)

#: Dead letters in a table, unless ``--limit`` says otherwise.
_TABLE_LIMIT = 100

#: Dead letters deleted in one command.
_PURGE_STEP = 100

_as_json = option("--json", "as_json", is_flag=True, help_group="Output", help="Print JSON.")
_dry_run = option("--dry-run", is_flag=True, help_group="Output", help="Only show what would be done.")


@click.group(
    epilog="""\b
Examples:
  celery-streams -A proj dead list
  celery-streams -A proj dead list -Q send_message --reason failed --newer-than 2h
  celery-streams -A proj dead show send_message 1718000000000-0
  celery-streams -A proj dead replay --task 'chat.*' --dry-run
  celery-streams -A proj dead purge -Q send_message --older-than 30d
"""
)
def dead() -> None:
    """List, show, replay and purge dead letters: messages that were given up, complete and with the reason."""


# -- list -------------------------------------------------------------------------------------------------------------


@dead.command(
    "list",
    cls=CeleryCommand,
    epilog="""\b
Examples:
  celery-streams -A proj dead list
  celery-streams -A proj dead list --reason crashed --newer-than 1d
  celery-streams -A proj dead list -Q send_message --json | jq '.dead_letters[].task_id'
""",
)
@selecting
@option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help_group="Output",
    help=f"Show the newest N; default: {_TABLE_LIMIT} in a table, all as JSON.",
)
@_as_json
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def list_dead(ctx: click.Context, selection: Selection, limit: int | None, as_json: bool, **kwargs: Any) -> None:
    """List dead letters, the oldest first."""
    newest: deque[dict[str, Any]] = deque(maxlen=limit if limit or as_json else _TABLE_LIMIT)
    total = 0
    streams = streams_of(ctx.obj.app)
    for letter in selection.letters(streams):
        newest.append(_summary(letter))
        total += 1
    if as_json:
        echo_json({"total": total, "dead_letters": list(newest)})
        return
    if not total:
        click.echo("No dead letters.")
        return
    table = Rows(
        ("queue", "entry id", "died", "reason", "task", "task id", "exception"), folded=("task", "task id", "exception")
    )
    now = redis_time(streams.broker)
    for row in newest:
        died = age(max(now - row["died_at"], 0.0)) + " ago"
        words = (row["queue"], row["entry_id"], died, row["reason"], row["task"], row["task_id"], row["exception"])
        table.add(*(" ".join(str(word or "-").split())[:120] for word in words))
    out = console(no_color=ctx.obj.no_color)
    out.print(table)
    if total > len(newest):
        click.echo(f"Showing the newest {len(newest):,} of {total:,}; use --limit for more.")


# -- show -------------------------------------------------------------------------------------------------------------


@dead.command(
    "show",
    cls=CeleryCommand,
    epilog="""\b
Examples:
  celery-streams -A proj dead show send_message 1718000000000-0
  celery-streams -A proj dead show send_message 6f9b2c0e-9d52-4c55-8a0a-6e0f1f3f2a11 --json
""",
)
@click.argument("queue")
@click.argument("entry_id", metavar="ID")
@_as_json
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def show_dead(ctx: click.Context, queue: str, entry_id: str, as_json: bool, **kwargs: Any) -> None:
    """Show one dead letter in full.

    ID is its entry id or its task id. The arguments are decoded only if accept_content allows their content type: a
    pickle is never loaded unless the project's own workers would load it.
    """
    streams = streams_of(ctx.obj.app)
    broker = streams.broker
    select_queues(streams, [queue])
    letter = dead_letter(broker, queue, entry_id) or next(dead_letters(broker, queue, ids=[entry_id]), None)
    if letter is None:
        raise CeleryCommandException(f"Queue {queue!r} has no dead letter {entry_id!r}", EX_FAILURE)
    details = _details(letter, ctx.obj.app.conf.accept_content)
    if as_json:
        echo_json(details)
        return
    for name, value in details.items():
        if name == "attempts":
            _show_attempts(letter)
        else:
            _show(name.replace("_", " "), value)


def _show(name: str, value: Any) -> None:
    if isinstance(value, dict):
        echo(f"{name}:")
        for key, one in value.items():
            echo(f"  {_plain(str(key))}: {_plain(one)}")
    elif isinstance(value, str) and "\n" in value:
        echo(f"{name}:")
        click.echo("\n".join(f"  {_plain(line)}" for line in value.rstrip().split("\n")))
    elif value is not None:
        echo(f"{name}: {_plain(value)}")


def _show_attempts(letter: DeadLetter) -> None:
    echo("attempts:")
    for one in letter.attempts:
        took = "" if one.began is None or one.ended is None else f" after {age(max(one.ended - one.began, 0.0))}"
        where = f" on {_plain(one.worker)}" if one.worker else ""
        detail = f": {_plain(one.detail)}" if one.detail else ""
        echo(f"  {one.number}. {iso(one.ended) or '?'} {_plain(one.outcome)}{took}{where}{detail}")


def _plain(value: Any) -> str:
    # What a message holds must not reach the terminal as a control sequence.
    return printable(value if isinstance(value, str) else repr(value))


# -- replay -----------------------------------------------------------------------------------------------------------


@dead.command(
    "replay",
    cls=CeleryCommand,
    epilog="""\b
Examples:
  celery-streams -A proj dead replay --id 1718000000000-0
  celery-streams -A proj dead replay -Q send_message --reason failed --dry-run
  celery-streams -A proj dead replay -Q send_message --to send_message_slow
  celery-streams -A proj dead replay --id 1718000000000-0 --ignore-expires
  celery-streams -A proj dead replay --all
""",
)
@selecting
@option("--all", "everything", is_flag=True, help_group="Filters", help="All dead letters of all queues.")
@option("--to", metavar="QUEUE", help_group="Replay Options", help="Put them on this queue instead of their own.")
@option(
    "--ignore-expires",
    is_flag=True,
    help_group="Replay Options",
    help="Also replay messages that have expired, without their expiry.",
)
@option(
    "--ignore-revoked",
    is_flag=True,
    help_group="Replay Options",
    help="Also replay revoked messages, under a new task id.",
)
@_dry_run
@_as_json
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def replay_dead(
    ctx: click.Context,
    selection: Selection,
    everything: bool,
    to: str | None,
    ignore_expires: bool,
    ignore_revoked: bool,
    dry_run: bool,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Put dead letters back on their queues.

    They become new messages with the same task ids. Messages that no worker would run, because they have expired or
    were revoked, stay dead letters, and the reason is printed.

    Each letter is moved in one atomic step. If the command is interrupted, run it again: nothing is replayed twice.
    Letters that arrive meanwhile are left for the next run.
    """
    streams = streams_of(ctx.obj.app)
    broker = streams.broker
    to = None if to is None else read_target("--to", to, streams)
    ignored = {kind for kind, given in (("expired", ignore_expires), ("revoked", ignore_revoked)) if given}
    chosen = choose(streams, selection, everything=everything)
    if dry_run:
        _tell_dry_run("replay", chosen, as_json=as_json, staying=_staying(streams, chosen, ignored))
        return
    moved: list[dict[str, Any]] = []
    #: What could not be put back, and what no worker would run.
    refused: list[str] = []
    stay: list[str] = []
    gone, may_be_ignored = 0, False
    with progress_bar("Replaying", len(chosen), quiet=as_json) as advance:
        for queue, entry_id, _ in chosen:
            letter = dead_letter(broker, queue, entry_id)
            try:
                new_id = None
                if letter is not None:
                    new_id = replay(
                        broker, letter, queue=to, ignore_expires=ignore_expires, ignore_revoked=ignore_revoked
                    )
            except CannotRun as exc:
                stay.append(str(exc))
                may_be_ignored = may_be_ignored or not isinstance(exc, HolderThere)
            except MessageError as exc:
                refused.append(str(exc))
            else:
                if letter is None or new_id is None:
                    gone += 1
                else:
                    moved.append(
                        {
                            "queue": queue,
                            "entry_id": entry_id,
                            "task_id": letter.task_id,
                            "to": to or queue,
                            "new_entry_id": new_id,
                        }
                    )
            advance(1)
    if as_json:
        answer = {"matched": len(chosen), "replayed": moved, "gone": gone, "refused": refused, "stay": stay}
        echo_json(answer)
    else:
        more = f"; {gone:,} no longer existed" if gone else ""
        echo(f"Replayed {len(moved):,} of {_letters(len(chosen))}{f' to {to}' if to else ''}{more}.")
        for name in paused_queues(broker, sorted({str(one["to"]) for one in moved})):
            echo(f"Queue {name} is paused: they wait until it is resumed ({command('resume', name)}).")
        for text in (*refused, *stay):
            echo(text, err=True)
        if may_be_ignored:
            click.echo("Use --ignore-expires or --ignore-revoked to replay them all the same.", err=True)
    ctx.exit(EX_FAILURE if refused or stay else 0)


# -- purge ------------------------------------------------------------------------------------------------------------


@dead.command(
    "purge",
    cls=CeleryCommand,
    epilog="""\b
Examples:
  celery-streams -A proj dead purge --older-than 30d
  celery-streams -A proj dead purge -Q send_message --reason malformed --yes
  celery-streams -A proj dead purge --all --dry-run
""",
)
@selecting
@option("--all", "everything", is_flag=True, help_group="Filters", help="All dead letters of all queues.")
@option("--yes", "-y", is_flag=True, help_group="Purge Options", help="Do not ask.")
@_dry_run
@_as_json
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def purge_dead_letters(
    ctx: click.Context,
    selection: Selection,
    everything: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Delete dead letters for good."""
    streams = streams_of(ctx.obj.app)
    broker = streams.broker
    chosen = choose(streams, selection, everything=everything)
    if dry_run:
        _tell_dry_run("purge", chosen, as_json=as_json)
        return
    if chosen and not yes:
        try:
            click.confirm(f"Delete {_letters(len(chosen))} for good?", abort=True, err=True)
        except click.Abort:
            raise CeleryCommandException("Nothing was deleted; --yes deletes without asking.", EX_FAILURE) from None
    deleted = 0
    with progress_bar("Purging", len(chosen), quiet=as_json) as advance:
        for queue in dict.fromkeys(queue for queue, _, _ in chosen):
            ids = [entry_id for owner, entry_id, _ in chosen if owner == queue]
            for start in range(0, len(ids), _PURGE_STEP):
                step = ids[start : start + _PURGE_STEP]
                deleted += purge_dead(broker, queue, step)
                advance(len(step))
    if as_json:
        echo_json({"matched": len(chosen), "purged": deleted}, indent=None)
    else:
        click.echo(f"Deleted {deleted:,} of {_letters(len(chosen))}.")


# -- what the commands share ------------------------------------------------------------------------------------------


def _staying(
    streams: Streams, chosen: Sequence[tuple[str, str, str]], ignored: Collection[str]
) -> list[tuple[str, str, str]]:
    """Return (queue, entry id, why) of what would not be replayed."""
    found: list[tuple[str, str, str]] = []
    for start in range(0, len(chosen), _PURGE_STEP):
        letters = [dead_letter(streams.broker, queue, entry_id) for queue, entry_id, _ in chosen[start:][:_PURGE_STEP]]
        there = [letter for letter in letters if letter is not None]
        for letter, in_its_way in zip(there, obstacles(streams.broker, there), strict=True):
            why = _why_not(letter, in_its_way, ignored)
            if why:
                found.append((letter.queue, letter.entry_id, why))
    return found


def _why_not(letter: DeadLetter, in_its_way: Sequence[Obstacle], ignored: Collection[str]) -> str | None:
    if letter.message is None:
        return "it is not a task message"
    return next((one.text for one in in_its_way if one.kind not in ignored), None)


def _tell_dry_run(
    verb: str,
    chosen: Sequence[tuple[str, str, str]],
    *,
    as_json: bool,
    staying: Sequence[tuple[str, str, str]] = (),
) -> None:
    left = {(queue, entry_id) for queue, entry_id, _ in staying}
    counts = Counter((queue, reason) for queue, entry_id, reason in chosen if (queue, entry_id) not in left)
    if as_json:
        groups = [{"queue": queue, "reason": reason, "count": count} for (queue, reason), count in counts.items()]
        stay = [{"queue": queue, "entry_id": entry_id, "why": why} for queue, entry_id, why in staying]
        answer = {"dry_run": True, "matched": len(chosen), "groups": groups}
        echo_json({**answer, "stay": stay} if verb == "replay" else answer)
        return
    some = f"{len(chosen) - len(left):,} of " if left else ""
    click.echo(f"Would {verb} {some}{_letters(len(chosen))}.")
    for (queue, reason), count in sorted(counts.items()):
        echo(f"  {queue}: {count:,} {reason}")
    for queue, entry_id, why in staying:
        echo(f"  {queue}: {entry_id} would stay: {why}")


def _letters(count: int) -> str:
    return plural(count, "dead letter")


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "queue": letter.queue,
        "entry_id": letter.entry_id,
        "reason": letter.reason,
        "task": letter.task,
        "task_id": letter.task_id,
        "exception": letter.exception,
        "worker": letter.worker,
        "crashes": letter.crashes,
        "died": iso(letter.died),
        "died_at": letter.died,
        "published": iso(letter.published),
    }


def _details(letter: DeadLetter, accept: Sequence[str] | None) -> dict[str, Any]:
    details = _summary(letter)
    del details["died_at"]
    details["traceback"] = letter.traceback
    message = letter.message
    if message is not None:
        called = decode_arguments(message, accept=accept)
        if called.error is None:
            details.update(args=called.args, kwargs=called.kwargs)
        else:
            details["body_not_decoded"] = called.error
        try:
            details["headers"] = message.decode_headers()
            details["properties"] = message.decode_properties()
            details["history"] = {name: said for name, said in message.decode_history().items() if name != ATTEMPTS}
        except MessageError as exc:
            details["body_not_decoded"] = str(exc)
    if letter.attempts:
        details["attempts"] = [_attempt(one) for one in letter.attempts]
    if "body_not_decoded" in details or message is None:
        details["fields"] = {_text(name): _text(value) for name, value in letter.fields}
    return details


def _attempt(one: Attempt) -> dict[str, Any]:
    return {**one.as_dict(), **{name: iso(at) for name, at in (("began", one.began), ("ended", one.ended))}}


def _text(raw: bytes) -> str:
    """Return bytes as text where they are text, else as base64 with that said in front."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()
    return text if text.isprintable() else repr(text)

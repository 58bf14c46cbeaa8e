"""``celery-streams dead``: list, show, replay and purge dead letters; ``inspect`` does what is done to Redis."""

from __future__ import annotations

import base64
import functools
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE

from ..app import Streams, streams_of
from ..conf import nearest
from ..exceptions import CannotRun, MessageError
from ..inspect import (
    DeadLetter,
    dead_letter,
    dead_letters,
    decode_arguments,
    obstacles,
    purge_dead,
    redis_time,
    replay,
)
from ..obstacles import Obstacle
from ..printable import printable
from ..worker.outcome import Reason
from .terminal import (
    AGE,
    Rows,
    age,
    bad_input,
    console,
    echo,
    echo_json,
    iso,
    one_line_errors,
    plural,
    progress_bar,
    select_queues,
)

__all__ = ("dead",)

#: Dead letters in a table, unless ``--limit`` says otherwise.
_TABLE_LIMIT = 100

#: Dead letters deleted in one command.
_PURGE_STEP = 100

_option = functools.partial(click.option, cls=CeleryOption)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant."""

    queues: tuple[str, ...]
    task: str | None
    reason: str | None
    older_than: float | None
    newer_than: float | None
    ids: frozenset[str] | None

    @property
    def is_everything(self) -> bool:
        """Whether nothing at all was said."""
        return not self.queues and all(
            value is None for value in (self.task, self.reason, self.older_than, self.newer_than, self.ids)
        )

    def letters(self, streams: Streams) -> Iterator[DeadLetter]:
        """Yield the dead letters, queue after queue, the oldest of a queue first."""
        now = redis_time(streams.broker)
        for queue in select_queues(streams, self.queues):
            yield from dead_letters(
                streams.broker,
                queue,
                task=self.task,
                reason=self.reason,
                older_than=self.older_than,
                newer_than=self.newer_than,
                ids=self.ids,
                now=now,
            )


def _selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters to a command, which gets them as one ``selection``."""
    group = functools.partial(_option, help_group="Filters")

    @functools.wraps(command)
    def select(
        *args: Any,
        queues: str | None,
        task: str | None,
        reason: str | None,
        older_than: float | None,
        newer_than: float | None,
        ids: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        names = tuple(name.strip() for name in (queues or "").split(",") if name.strip())
        chosen = Selection(names, task, reason, older_than, newer_than, frozenset(ids) if ids else None)
        return command(*args, selection=chosen, **kwargs)

    for option in reversed(
        (
            group("-Q", "--queues", metavar="QUEUE,...", help="These queues; default: all."),
            group("--task", metavar="NAME", help="This task, or those that match a shell pattern."),
            group("--reason", type=click.Choice([reason.value for reason in Reason]), help="Died for this reason."),
            group("--older-than", type=AGE, metavar="AGE", help="Died longer ago: seconds, or 10m, 2h, 3d."),
            group("--newer-than", type=AGE, metavar="AGE", help="Died later than so long ago."),
            group("--id", "ids", multiple=True, metavar="ID", help="This entry id or task id; may be repeated."),
        )
    ):
        select = option(select)
    return select


_as_json = _option("--json", "as_json", is_flag=True, help_group="Output", help="Print JSON.")
_dry_run = _option("--dry-run", is_flag=True, help_group="Output", help="Only say what would be done.")


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
    """Dead letters: messages that were given up, whole, with the reason."""


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
@_selecting
@_option(
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
        click.echo("No dead letter.")
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
        click.echo(f"The newest {len(newest):,} of {total:,}; more with --limit.")


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
    """Show one dead letter with everything that is known: ID is its entry id or its task id.

    The arguments are decoded only from the content types in accept_content: a pickle is never loaded unless the
    project's own workers would.
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
@_selecting
@_option("--all", "everything", is_flag=True, help_group="Filters", help="All dead letters of all queues.")
@_option("--to", metavar="QUEUE", help_group="Replay Options", help="Put them on this queue, not where they came from.")
@_option(
    "--ignore-expires",
    is_flag=True,
    help_group="Replay Options",
    help="Replay what has expired, too, without its expiry.",
)
@_option(
    "--ignore-revoked",
    is_flag=True,
    help_group="Replay Options",
    help="Replay what was revoked, too, under a new task id.",
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
    """Put dead letters back on their queue, as new messages that keep their task ids.

    What no worker would run stays where it is, with the reason: what has expired meanwhile, or was revoked.

    Each is moved in one step: run it twice, or kill it and run it again, and each is replayed once. What dies
    meanwhile is left for the next time.
    """
    if to is not None and not to.strip():
        raise bad_input("--to needs the name of a queue")
    streams = streams_of(ctx.obj.app)
    broker = streams.broker
    if to is not None and (near := nearest(to, known := {*streams.known_queues(), *ctx.obj.app.amqp.queues}, 0.75)):
        if to not in known:
            raise bad_input(f"Queue {to!r} was never used, and the project has no such queue{near}")
    ignored = {kind for kind, given in (("expired", ignore_expires), ("revoked", ignore_revoked)) if given}
    chosen = _choose(streams, selection, everything=everything)
    if dry_run:
        _tell_dry_run("replay", chosen, as_json=as_json, staying=_staying(streams, chosen, ignored))
        return
    moved: list[dict[str, Any]] = []
    #: What could not be put back, and what no worker would run.
    refused: list[str] = []
    stay: list[str] = []
    gone = 0
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
        more = f"; {gone:,} had gone meanwhile" if gone else ""
        echo(f"Replayed {len(moved):,} of {_letters(len(chosen))}{f' to {to}' if to else ''}{more}.")
        for text in (*refused, *stay):
            echo(text, err=True)
        if stay:
            click.echo("--ignore-expires and --ignore-revoked replay what would not run otherwise.", err=True)
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
@_selecting
@_option("--all", "everything", is_flag=True, help_group="Filters", help="All dead letters of all queues.")
@_option("--yes", "-y", is_flag=True, help_group="Purge Options", help="Do not ask.")
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
    chosen = _choose(streams, selection, everything=everything)
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


def _choose(streams: Streams, selection: Selection, *, everything: bool) -> list[tuple[str, str, str]]:
    """Return (queue, entry id, reason) of what is meant: what was counted is what will be done, nothing newer."""
    if selection.is_everything and not everything:
        raise bad_input("Which dead letters? Name queues or filters, or say --all")
    return [(letter.queue, letter.entry_id, letter.reason) for letter in selection.letters(streams)]


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
            details["history"] = message.decode_history()
        except MessageError as exc:
            details["body_not_decoded"] = str(exc)
    if "body_not_decoded" in details or message is None:
        details["fields"] = {_text(name): _text(value) for name, value in letter.fields}
    return details


def _text(raw: bytes) -> str:
    """Return bytes as text where they are text, else as base64 with that said in front."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()
    return text if text.isprintable() else repr(text)

"""``celery-streams migrate``: moves what is queued between Celery's lists and the streams; ``migration`` does it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options

from ..app import Streams, streams_of
from ..installation import is_installed
from ..migration import Direction, Migration, Moves, Plan
from ..spelling import nearest
from .tables import Rows, console, progress_bar
from .terminal import bad_input, echo, echo_json, one_line_errors, plural

__all__ = ("migrate",)

#: What it means that limits, and locks of unique tasks, end on lists.
_WITHOUT_LIMITS = "Celery's rate_limit counts for each worker, and nothing else is limited"
_WITHOUT_LOCKS = "the same task is stored again and again"


@click.command(
    cls=CeleryCommand,
    epilog="""\b
Examples:
  celery-streams -A proj migrate send_message mark_as_read --to streams --dry-run
  celery-streams -A proj migrate send_message mark_as_read --to streams
  celery-streams -A proj migrate send_message --to streams --include-unacked
  celery-streams -A proj migrate send_message --to lists
""",
)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@click.option(
    "--to",
    "to",
    type=click.Choice(["streams", "lists"]),
    required=True,
    cls=CeleryOption,
    help_group="Migrate Options",
    help="The side to move the messages to.",
)
@click.option(
    "--include-unacked",
    is_flag=True,
    cls=CeleryOption,
    help_group="Migrate Options",
    help="With --to streams: also take messages that stock workers have fetched and not acknowledged. Tasks that they "
    "are still running will run again, so stop these workers first.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    cls=CeleryOption,
    help_group="Migrate Options",
    help="Only count what would be moved.",
)
@click.option("--json", "as_json", is_flag=True, cls=CeleryOption, help_group="Migrate Options", help="Print JSON.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def migrate(
    ctx: click.Context,
    queues: tuple[str, ...],
    to: Direction,
    include_unacked: bool,
    dry_run: bool,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Move the queued messages of QUEUEs between Celery's lists and the streams.

    To streams: everything on the lists; messages with an eta in the future become delayed messages. To lists: messages
    that are waiting, delayed, or held by dead consumers. Running tasks stay where they are, and dead letters stay on
    the streams.

    Publishers and workers may keep running. Turn the switch first (streams_enabled), or publishers keep filling the
    other side. If the command is interrupted, run it again: no message is lost or duplicated.
    """
    if include_unacked and to == "lists":
        raise bad_input("--include-unacked works only with --to streams: it takes messages back from stock workers")
    streams = streams_of(ctx.obj.app)
    migration = Migration(
        streams.new_broker(),
        streams.new_list_client(),
        options=dict(ctx.obj.app.conf.broker_transport_options or {}),
        visibility_timeout=streams.conf.visibility_timeout,
        time_zone=ctx.obj.app.timezone,
    )
    names = list(dict.fromkeys(queues))
    plans = [migration.plan(queue, to) for queue in names]
    known = {*streams.known_queues(), *ctx.obj.app.amqp.queues}
    for plan in plans:
        if plan.queue not in known and not (plan.queued or plan.unacked or plan.in_transit):
            raise bad_input(
                f"Queue {plan.queue!r} holds no message, and the project does not define it{nearest(plan.queue, known)}"
            )
        _warn(streams, plan.queue, to)
    if dry_run:
        _tell_plans(plans, include_unacked=include_unacked, as_json=as_json, no_color=ctx.obj.no_color)
        return
    done: list[Moves] = []
    total = sum(plan.total + (plan.unacked if include_unacked else 0) for plan in plans)
    try:
        with progress_bar(f"To {to}", total, quiet=as_json) as advance:
            migration.progress = advance
            for queue in names:
                moves = Moves(queue, to)
                done.append(moves)
                if to == "streams":
                    migration.to_streams(queue, include_unacked=include_unacked, moves=moves)
                else:
                    migration.to_lists(queue, moves=moves)
    finally:
        # Also when it was interrupted: what was moved was moved.
        _tell_moves(done, as_json=as_json)
    if not as_json:
        for queue in names:
            _tell_rest(migration.plan(queue, to))


def _warn(streams: Streams, queue: str, to: Direction) -> None:
    share = streams.conf.queues.share(queue) if is_installed(streams.app) and streams.enabled() else 0.0
    other = 1.0 - share if to == "streams" else share
    if other:
        some = f"{other * 100:.3g} % of " if other < 1.0 else ""
        where = "to Celery's lists" if to == "streams" else "to streams"
        echo(
            f"Warning: publishers still write {some}queue {queue} {where}, by this process' settings (streams_enabled, "
            "streams_queues); new messages stay there.",
            err=True,
        )


def _tell_plans(plans: list[Plan], *, include_unacked: bool, as_json: bool, no_color: bool) -> None:
    if as_json:
        rows = [{**asdict(plan), "total": plan.total} for plan in plans]
        echo_json({"dry_run": True, "queues": rows})
        return
    to_streams = plans[0].to == "streams"
    unacked = "unacked" if include_unacked else "unacked (stays)"
    headers = ("on lists", unacked) if to_streams else ("waiting", "delayed", "held", "abandoned", "running (stays)")
    numbers = (*headers, "in transit", "would move")
    table = Rows(("queue", *numbers), right=numbers)
    for plan in plans:
        counts = (
            (plan.queued, plan.unacked)
            if to_streams
            else (plan.waiting, plan.delayed, plan.held, plan.abandoned, plan.running)
        )
        total = plan.total + (plan.unacked if to_streams and include_unacked else 0)
        table.add(plan.queue, *(f"{count:,}" for count in (*counts, plan.in_transit, total)))
    console(no_color=no_color).print(table)
    for plan in plans:
        if not to_streams and plan.held:
            echo(
                f"{plan.queue}: {plan.held:,} of them {_is(plan.held)} held back by limits, which end on lists: "
                f"{_WITHOUT_LIMITS}."
            )
        if plan.locks:
            echo(f"{plan.queue}: {plural(plan.locks, 'lock')} of unique tasks would end: on lists {_WITHOUT_LOCKS}.")


def _tell_moves(done: list[Moves], *, as_json: bool) -> None:
    if as_json:
        echo_json({"queues": [{**asdict(moves), "total": moves.total} for moves in done]})
        return
    for moves in done:
        parts = [f"{moves.moved:,} waiting", f"{moves.delayed:,} delayed"]
        parts += [
            f"{count:,} {name}"
            for count, name in (
                (moves.abandoned, "of dead consumers"),
                (moves.malformed, "malformed (a worker will dead-letter them)"),
                (moves.skipped, "not messages, left on the stream"),
            )
            if count
        ]
        if moves.recalled:
            parts.append(f"{moves.recalled:,} of them taken back from stock workers")
        echo(f"{moves.queue}: moved {moves.total:,} to {moves.to} ({', '.join(parts)}).")

        if moves.held:
            were = "was" if moves.held == 1 else "were"
            echo(
                f"{moves.queue}: {moves.held:,} of them {were} held back by limits, which end here: on lists, "
                f"{_WITHOUT_LIMITS}."
            )
        if moves.locks:
            echo(f"{moves.queue}: {plural(moves.locks, 'lock')} of unique tasks ended: on lists {_WITHOUT_LOCKS}.")


def _are(count: int) -> str:
    return f"{plural(count, 'message')} {_is(count)}"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _tell_rest(plan: Plan) -> None:
    if plan.to == "streams" and plan.unacked:
        echo(
            f"{plan.queue}: {_are(plan.unacked)} held by stock workers. Let these finish, or stop them and run this "
            "command again."
        )
    if plan.to == "lists" and plan.running:
        echo(
            f"{plan.queue}: {_are(plan.running)} held by stream workers. Let these finish, or stop them and run this "
            "command again."
        )

"""``limits``: how often, and how many at once, tasks may start, and how many messages wait for it; set at run time."""

from __future__ import annotations

from typing import Any

import click
from celery import Celery
from celery.bin.base import CeleryCommand, CeleryOption

from ..app import Streams, streams_of
from ..exceptions import ConfigurationError
from ..lanes import held_lanes, limits_in_redis, reset_limits, set_limits
from ..limits import Limits, limits_of, parse_numbers, without_task, written_rate
from ..locks import count_locks
from ..printable import printable
from ..spelling import nearest
from .base import ASKS_FOR_HELP, require_installed, tasks_of
from .tables import Rows, console
from .terminal import bad_input, echo, echo_json, one_line_errors, plural

__all__ = ("limits",)


@click.group(invoke_without_command=True)
@click.option(
    "--json", "as_json", is_flag=True, cls=CeleryOption, help_group="Streams Options", help="Print JSON, not a table."
)
@click.pass_context
@one_line_errors
def limits(ctx: click.Context, as_json: bool) -> None:
    """Show and set the limits of tasks, how many messages each holds back, and how many locks unique tasks have.

    A limit comes from the task's options, from streams_limits, or was set here; what was set here wins, is kept in
    Redis, and outlives the code until it is reset. A task with messages on two queues has its limits on each of them.

    \b
    Examples
    --------

    \b
    $ celery-streams -A proj limits
    $ celery-streams -A proj limits set chat.tasks.send_message concurrency=3 rate=10/s
    $ celery-streams -A proj limits reset chat.tasks.send_message
    """
    if ctx.meta.get(ASKS_FOR_HELP):
        return
    require_installed(ctx.obj.app)
    if ctx.invoked_subcommand is None:
        _show(ctx.obj.app, as_json=as_json, no_color=ctx.obj.no_color)


@limits.command(name="set", cls=CeleryCommand, short_help="Set limits of a task at run time.")
@click.argument("task")
@click.argument("numbers", nargs=-1, required=True, metavar="NAME=NUMBER...")
@click.pass_context
@one_line_errors
def set_(ctx: click.Context, task: str, numbers: tuple[str, ...]) -> None:
    """Set limits of a task at run time: rate=10/s, concurrency=3, concurrency_per_key=1; NAME=none is no limit.

    Workers follow within seconds.
    """
    app = ctx.obj.app
    try:
        said = parse_numbers(numbers, f"Task {task}")
    except ConfigurationError as exc:
        raise bad_input(str(exc)) from exc
    tasks = tasks_of(app)
    if task not in tasks:
        raise bad_input(f"The project has no task {task!r}{nearest(task, tasks)}")
    streams = streams_of(app)
    before = limits_in_redis(streams.broker).get(task, {})
    try:
        limits_of(tasks[task], streams.conf.limits.get(task, {}), {**before, **said})
        streams.check_partitions(tasks[task], run_time={**before, **said})
    except ConfigurationError as exc:
        raise bad_input(str(exc)) from exc
    found = set_limits(streams.broker, task, said)
    echo(f"Task {task}: {', '.join(f'{name}={value}' for name, value in found.items())}.")


@limits.command(cls=CeleryCommand, short_help="Drop what was set at run time.")
@click.argument("task")
@click.pass_context
@one_line_errors
def reset(ctx: click.Context, task: str) -> None:
    """Drop what was set at run time: the task's options and streams_limits are in force again."""
    streams = streams_of(ctx.obj.app)
    known = limits_in_redis(streams.broker)
    if not reset_limits(streams.broker, task):
        raise bad_input(f"No limit of task {task!r} was set at run time{nearest(task, known)}")
    echo(f"Task {task} has the limits of its code and settings again.")


def _show(app: Celery, *, as_json: bool, no_color: bool) -> None:
    streams = streams_of(app)
    rows, locks = _rows(app, streams), _locks(streams)
    unknown = without_task(streams.conf.limits, tasks_of(app))
    if as_json:
        echo_json({"limits": rows, "locks": locks, "unknown": unknown})
        return
    table = Rows(
        ("task", "rate", "concurrency", "per key", "keys", "held", "set in"),
        right=("rate", "concurrency", "per key", "held"),
    )
    for row in rows:
        table.add(
            row["task"],
            row["rate_written"] or "-",
            row["concurrency"] or "-",
            row["concurrency_per_key"] or "-",
            ", ".join(sorted({key for key in (row["rate_key"], row["concurrency_key"]) if key})) or "-",
            f"{row['held']:,}",
            row["source"],
        )
    console(no_color=no_color).print(table if rows else "No task is limited.")
    for sentence in unknown:
        echo(printable(f"{sentence}{'' if sentence.endswith('?') else '.'}"))
    for queue, count in locks.items():
        echo(printable(f"Queue {queue} has {plural(count, 'lock')} of unique tasks."))


def _locks(streams: Streams) -> dict[str, int]:
    """Return how many locks the queues have that have any."""
    found = {queue: count_locks(streams.broker, queue) for queue in streams.known_queues()}
    return {queue: count for queue, count in found.items() if count}


def _rows(app: Celery, streams: Streams) -> list[dict[str, Any]]:
    in_redis = limits_in_redis(streams.broker)
    held: dict[str, list[dict[str, Any]]] = {}
    for queue in streams.known_queues():
        for lane in held_lanes(streams.broker, queue):
            held.setdefault(lane.task, []).append({"queue": queue, "lane": lane.name, "held": lane.held})
    tasks = tasks_of(app)
    rows = []
    for name in sorted({*tasks, *in_redis, *held}):
        found = Limits()
        if name in tasks:
            setting = streams.conf.limits.get(name, {})
            try:
                found = limits_of(tasks[name], setting, in_redis.get(name))
            except ConfigurationError:
                found = limits_of(tasks[name], setting)  # as workers do, which say so
        if not found and name not in in_redis and name not in held:
            continue
        rows.append(
            {
                "task": name,
                "rate": found.rate or None,
                "rate_written": written_rate(found.rate) if found.rate else None,
                "rate_key": _shown(found.rate_key),
                "concurrency": found.concurrency,
                "concurrency_key": _shown(found.concurrency_key),
                "concurrency_per_key": found.concurrency_per_key,
                "held": sum(lane["held"] for lane in held.get(name, ())),
                "lanes": held.get(name, [])[:100],
                "source": "redis" if name in in_redis else ("code" if found else "gone"),
                "set_at_run_time": in_redis.get(name, {}),
            }
        )
    return rows


def _shown(key: Any) -> str | None:
    return key if key is None or isinstance(key, str) else getattr(key, "__name__", repr(key))

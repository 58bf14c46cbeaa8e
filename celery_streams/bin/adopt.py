"""``celery-streams adopt``: makes messages of what home-made code has left in a stream of its own."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click
from celery import Celery
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from celery.platforms import EX_FAILURE
from kombu.serialization import dumps

from ..app import Streams, streams_of
from ..exceptions import ConfigurationError
from ..foreign_streams import ForeignEntry, ForeignStream
from ..message import Message, encode
from ..printable import printable
from ..redis_url import place
from ..spelling import nearest
from .base import tasks_of
from .queue_names import read_target
from .terminal import bad_input, echo, echo_json, one_line_errors, plural

__all__ = ("adopt",)

#: Namespace of the task ids that are made of a stream's key and an entry's id: the same each time.
_IDS = uuid.UUID("5a6d3f3c-0a2f-4d0e-9d3b-5a0c1f7ce0aa")

#: Entries that cannot be understood, of which the command tells.
_TOLD = 20


@dataclass(frozen=True, slots=True)
class Mapped:
    """Which field becomes which argument."""

    field: bytes
    #: Name of the keyword argument; ``*``: the field is a JSON object, and its members are the arguments.
    argument: str
    #: The field's value is JSON, and not text.
    is_json: bool

    @classmethod
    def parse(cls, text: str) -> Mapped:
        """Read ``FIELD=ARGUMENT``, ``FIELD=ARGUMENT:json`` or ``FIELD=*``."""
        name, equals, argument = text.partition("=")
        argument, colon, kind = argument.partition(":")
        if not name or not equals or (colon and kind not in ("json", "text")):
            raise bad_input(f"--map {text!r}: write FIELD=ARGUMENT, FIELD=ARGUMENT:json or FIELD=*")
        if argument != "*" and not argument.isidentifier():
            raise bad_input(f"--map {text!r}: {argument!r} cannot be the name of an argument")
        return cls(name.encode(), argument, argument == "*" or kind == "json")


@dataclass
class _Done:
    adopted: int = 0
    pending: int = 0
    gone: int = 0
    left: list[dict[str, str]] = field(default_factory=list)


@click.command(
    cls=CeleryCommand,
    epilog="""\b
Examples:
  celery-streams -A proj adopt chat:send --task chat.tasks.send_message --map chat_id=chat_id --map text=text --dry-run
  celery-streams -A proj adopt chat:send --task chat.tasks.send_message --map 'data=*' --db 1 --group senders
  celery-streams -A proj adopt chat:send --task chat.tasks.send_message --map 'data=*' --url redis://old:6379/1
""",
)
@click.argument("key")
@click.option("--task", required=True, metavar="NAME", cls=CeleryOption, help_group="Adopt Options",
              help="The task that each entry becomes.")  # fmt: skip
@click.option("--map", "maps", multiple=True, metavar="FIELD=ARGUMENT", cls=CeleryOption, help_group="Adopt Options",
              help="Pass this field as this argument, as text; FIELD=ARGUMENT:json decodes JSON; FIELD=* takes the "
              "members of a JSON object as arguments. May be repeated.")  # fmt: skip
@click.option("-Q", "--queue", metavar="QUEUE", cls=CeleryOption, help_group="Adopt Options",
              help="The queue for the messages; default: where the project routes the task.")  # fmt: skip
@click.option("--db", "database", type=click.IntRange(0), metavar="N", cls=CeleryOption, help_group="Adopt Options",
              help="The Redis database that KEY is in; default: that of the streams.")  # fmt: skip
@click.option("--url", metavar="URL", cls=CeleryOption, help_group="Adopt Options",
              help="The Redis that KEY is in, where that is another one than the streams'.")  # fmt: skip
@click.option("--group", metavar="NAME", cls=CeleryOption, help_group="Adopt Options",
              help="The consumer group of KEY that the old workers used; needed only if it has several.")  # fmt: skip
@click.option("--dry-run", is_flag=True, cls=CeleryOption, help_group="Adopt Options",
              help="Only show what would be done.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, cls=CeleryOption, help_group="Adopt Options", help="Print JSON.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def adopt(
    ctx: click.Context,
    key: str,
    task: str,
    maps: tuple[str, ...],
    queue: str | None,
    database: int | None,
    url: str | None,
    group: str | None,
    dry_run: bool,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Turn what is left in the stream KEY of your own code into messages of a task.

    Stop the old workers first. Entries that nobody has read and those that a consumer still holds become messages, the
    oldest first, each in one step; entries that were acknowledged have run, and stay. What cannot be understood stays
    and is listed. If the command is interrupted, run it again: no entry is lost or doubled.

    Exits with 1 when entries were left because they could not be understood.
    """
    if url is not None and database is not None:
        raise bad_input("--db and --url exclude each other: write the number of the database into the URL")
    app = ctx.obj.app
    streams = streams_of(app)
    mapping = [Mapped.parse(text) for text in maps]
    if not mapping:
        raise bad_input("Which field is which argument? Give --map FIELD=ARGUMENT")
    for argument, count in Counter(one.argument for one in mapping if one.argument != "*").items():
        if count > 1:
            raise bad_input(f"--map names the argument {argument!r} {count} times: which field is it?")
    tasks = tasks_of(app)
    if task not in tasks:
        raise bad_input(f"The project has no task {task!r}{nearest(task, tasks)}")
    target = _queue_of(app, task) if queue is None else read_target("-Q", queue, streams)
    if url is not None:
        # Wherever it is: the way between two databases is right for one as well.
        here, client = False, streams.new_client_of(url)
    else:
        here = database is None or str(database) == place(streams.url)[2]
        client = streams.broker.client if here else streams.new_client(int(database or 0))
    try:
        foreign = ForeignStream(client, key, group=group)
    except ConfigurationError as exc:
        raise bad_input(str(exc)) from exc
    done = _Done()
    for entry in foreign.entries():
        try:
            message = _message(streams, task, target, key, entry, mapping)
        except ValueError as exc:
            done.left.append({"entry_id": entry.entry_id, "why": str(exc)})
            continue
        if not dry_run and not foreign.take_over(streams.broker, target, entry, message, here=here):
            done.gone += 1
            continue
        done.adopted += 1
        done.pending += entry.consumer is not None
    _tell(done, key, target, dry_run=dry_run, as_json=as_json)
    ctx.exit(EX_FAILURE if done.left else 0)


def _queue_of(app: Celery, task: str) -> str:
    options = app.amqp.router.route({}, task, (), {}, task_type=app.tasks[task])
    found = options.get("queue") or getattr(app.tasks[task], "queue", None) or app.conf.task_default_queue
    return str(getattr(found, "name", found))


def _message(streams: Streams, task: str, queue: str, key: str, entry: ForeignEntry, mapping: list[Mapped]) -> Message:
    """Return the message that an entry becomes.

    Raises:
        ValueError: the entry cannot be understood.
    """
    app = streams.app
    known = app.tasks[task]
    task_id = str(uuid.uuid5(_IDS, f"{key} {entry.entry_id}"))
    kwargs = _arguments(entry.fields, mapping)
    options = {name: getattr(known, name, None) for name in ("expires", "time_limit", "soft_time_limit")}
    made = app.amqp.as_task_v2(task_id, task, (), kwargs, ignore_result=bool(known.ignore_result), **options)
    serializer = known.serializer or app.conf.task_serializer
    content_type, content_encoding, body = dumps(made.body, serializer=serializer)
    priority = known.priority or app.conf.task_default_priority or 0
    properties = {
        **made.properties,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "delivery_tag": task_id,
        "content_type": content_type,
        "content_encoding": content_encoding,
        "priority": priority,
    }
    return encode(made.headers, properties, body, step=streams.conf.queue_keys(queue).step_index(priority))


def _arguments(fields: Mapping[bytes, bytes], mapping: list[Mapped]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in mapping:
        name = one.field.decode(errors="replace")
        if one.field not in fields:
            raise ValueError(f"it has no field {name!r}")
        try:
            text = fields[one.field].decode()
        except UnicodeDecodeError:
            raise ValueError(f"the field {name!r} is not text") from None
        value: Any = text
        if one.is_json:
            try:
                value = json.loads(text)
            except ValueError:
                raise ValueError(f"the field {name!r} is not JSON") from None
        if one.argument != "*":
            found[one.argument] = value
        elif isinstance(value, dict):
            found.update(value)
        else:
            raise ValueError(f"the field {name!r} is not a JSON object")
    return found


def _tell(done: _Done, key: str, queue: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        about = {"dry_run": dry_run, "key": key, "queue": queue, "adopted": done.adopted, "pending": done.pending}
        echo_json({**about, "gone": done.gone, "left": done.left})
        return
    verb = "Would adopt" if dry_run else "Adopted"
    held = f" ({done.pending:,} of them held by old consumers)" if done.pending else ""
    echo(f"{verb} {plural(done.adopted, 'entry', 'entries')} of {printable(key)} for queue {printable(queue)}{held}.")
    if done.gone:
        echo(f"{plural(done.gone, 'entry was', 'entries were')} gone, or adopted before.")
    for one in done.left[:_TOLD]:
        echo(f"{one['entry_id']} stays: {one['why']}.", err=True)
    if len(done.left) > _TOLD:
        echo(f"{len(done.left) - _TOLD:,} more stay.", err=True)

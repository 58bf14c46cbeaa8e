"""Dead filters: the options of ``celery-streams dead`` that select dead letters, and what they select."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
from celery.bin.base import CeleryOption
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE

from ..app import Streams
from ..dead_letters import DeadLetter, dead_letters
from ..inspect import redis_time
from ..worker.outcome import Reason
from .queue_names import read_queue_names
from .terminal import AGE, bad_input, one_line, select_queues

__all__ = ("Selection", "choose", "option", "selecting")

option = functools.partial(click.option, cls=CeleryOption)


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


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters to a command, which gets them as one ``selection``."""
    group = functools.partial(option, help_group="Filters")

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
        names = tuple(read_queue_names("-Q", None if queues is None else queues.split(",")))
        # What an unset variable leaves would choose more than was meant.
        for name, value in (("--task", task), *(("--id", one) for one in ids)):
            if value is not None and not value.strip():
                raise click.UsageError(f"{name} is empty: is a shell variable not set?")
        chosen = Selection(names, task, reason, older_than, newer_than, frozenset(ids) if ids else None)
        return command(*args, selection=chosen, **kwargs)

    for one in reversed(
        (
            group("-Q", "--queues", metavar="QUEUE,...", help="Only these queues; default: all."),
            group("--task", metavar="NAME", help="Only this task, or tasks that match a shell pattern."),
            group(
                "--reason",
                type=click.Choice([reason.value for reason in Reason]),
                help="Only this reason.",
            ),
            group(
                "--older-than", type=AGE, metavar="AGE", help="Only letters older than this: seconds, or 10m, 2h, 3d."
            ),
            group("--newer-than", type=AGE, metavar="AGE", help="Only letters newer than this age."),
            group("--id", "ids", multiple=True, metavar="ID", help="Only this entry id or task id; may be repeated."),
        )
    ):
        select = one(select)
    return select


def choose(streams: Streams, selection: Selection, *, everything: bool) -> list[tuple[str, str, str]]:
    """Return (queue, entry id, reason) of what is meant: what was counted is what will be done, nothing newer."""
    if selection.is_everything and not everything:
        raise bad_input("Which dead letters? Give a queue or another filter, or --all")
    letters = list(selection.letters(streams))
    found = {name for letter in letters for name in (letter.entry_id, letter.task_id)}
    missing = sorted((selection.ids or frozenset()) - found)
    if missing:
        raise CeleryCommandException(one_line(f"No dead letter here has the id {', '.join(missing)}"), EX_FAILURE)
    return [(letter.queue, letter.entry_id, letter.reason) for letter in letters]

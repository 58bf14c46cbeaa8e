"""What commands share at the terminal: exit codes, errors as one line, ages, queue names, tables, progress bars."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

import click
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE, EX_USAGE
from kombu.exceptions import OperationalError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..app import Streams
from ..conf import nearest
from ..exceptions import CeleryStreamsError, ConfigurationError

__all__ = (
    "AGE",
    "EXIT_CONFIG",
    "EXIT_CRITICAL",
    "EXIT_OK",
    "EXIT_UNAVAILABLE",
    "EXIT_WARNING",
    "age",
    "bad_input",
    "console",
    "iso",
    "one_line",
    "one_line_errors",
    "progress_bar",
    "select_queues",
)

#: The first three are the codes of Nagios plugins, the others come from sysexits.h.
EXIT_OK = 0
EXIT_WARNING = 1
EXIT_CRITICAL = 2
#: Redis is away, or refuses.
EXIT_UNAVAILABLE = 69
#: A setting is wrong, or the URL is not one of a Redis.
EXIT_CONFIG = 78

F = TypeVar("F", bound=Callable[..., Any])

#: Columns of a table that does not go to a terminal, so that a pipe or log gets whole lines.
_PLAIN_WIDTH = 200

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw]?)")


class Age(click.ParamType):  # type: ignore[type-arg]
    """An age: ``90``, ``90s``, ``10m``, ``2h``, ``3d``, ``1w``; its value is in seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the age in seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        found = _AGE.fullmatch(str(value).strip().lower())
        if found is None:
            self.fail(f"{value!r} is no age; write seconds, or 10m, 2h, 3d", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


AGE = Age()


def bad_input(text: str) -> CeleryCommandException:
    """Return the error for input that cannot be right: one line, exit code 64."""
    return CeleryCommandException(one_line(text), EX_USAGE)


def one_line_errors(function: F) -> F:
    """Turn errors into one line and an exit code, also where ``celery -A proj streams`` runs the command."""

    @functools.wraps(function)
    def reported(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ConfigurationError as exc:
            raise CeleryCommandException(one_line(exc), EXIT_CONFIG) from exc
        except OperationalError as exc:  # ours are kombu's, too
            raise CeleryCommandException(one_line(exc), EXIT_UNAVAILABLE) from exc
        except CeleryStreamsError as exc:
            raise CeleryCommandException(one_line(exc), EX_FAILURE) from exc

    return reported  # type: ignore[return-value]


def select_queues(streams: Streams, wanted: Sequence[str]) -> list[str]:
    """Return ``wanted``, or all of the project's stream queues when there are none.

    Raises:
        CeleryCommandException: a queue is none of them; the message suggests the nearest name.
    """
    known = streams.known_queues()
    for name in wanted:
        if name not in known:
            raise bad_input(f"Queue {name!r} was never used on streams{nearest(name, known)}")
    return list(dict.fromkeys(wanted)) or known


def console(*, no_color: bool) -> Console:
    """Return the console for results."""
    return Console(no_color=no_color, highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)


@contextlib.contextmanager
def progress_bar(text: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr while it is a terminal; yields what is called with the number of items just done."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, advance=done)


def age(seconds: float | None) -> str:
    """Write an age in its two greatest units; ``-`` for none."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for unit, smaller, size, part in (("d", "h", 86_400, 3_600), ("h", "m", 3_600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // part}{smaller}"
    return f"{whole}s"


def iso(seconds: float | None) -> str | None:
    """Write seconds since the epoch as ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def one_line(error: object) -> str:
    """Return what ``error`` says, without line breaks."""
    return " ".join(str(error).split())

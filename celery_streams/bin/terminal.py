"""What commands share at the terminal: exit codes, errors as one line, ages, queue names.

Workers and probes import it, too: what rich prints is in ``tables``. What comes from messages is shown through
``printable``.
"""

from __future__ import annotations

import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

import click
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps as kombu_dumps

from ..app import Streams
from ..exceptions import CeleryStreamsError, ConfigurationError
from ..printable import printable
from ..spelling import nearest

__all__ = (
    "AGE",
    "EXIT_CONFIG",
    "EXIT_CRITICAL",
    "EXIT_OK",
    "EXIT_UNAVAILABLE",
    "EXIT_UNHEALTHY",
    "EXIT_USAGE",
    "EXIT_WARNING",
    "Seconds",
    "age",
    "bad_input",
    "echo",
    "echo_json",
    "iso",
    "one_line",
    "one_line_errors",
    "plural",
    "select_queues",
)

#: The first three are the codes of Nagios plugins, the others come from sysexits.h.
EXIT_OK = 0
EXIT_WARNING = 1
EXIT_CRITICAL = 2
#: What probes of Docker and Kubernetes take for "not healthy".
EXIT_UNHEALTHY = 1
#: The command line is wrong, in whatever way: click's code, and so that of Celery's own program.
EXIT_USAGE = 2
#: Redis cannot be reached, or refuses the commands.
EXIT_UNAVAILABLE = 69
#: A setting is wrong, or the URL is not one of a Redis.
EXIT_CONFIG = 78

F = TypeVar("F", bound=Callable[..., Any])

#: Seconds: a year, far below what the system takes.
_LONGEST_WAIT = 31_536_000.0

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
            self.fail(f"{value!r} is not an age: give seconds, or 10m, 2h, 3d", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


AGE = Age()


class Seconds(click.FloatRange):
    """A time in seconds; ``nan`` and ``inf``, which a range lets through, are none that a socket could wait."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the time."""
        found = super().convert(value, param, ctx)
        if not found < _LONGEST_WAIT:
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return found


def bad_input(text: str) -> CeleryCommandException:
    """Return the error for input that cannot be right: one line, exit code 2."""
    return CeleryCommandException(one_line(text), EXIT_USAGE)


def one_line_errors(function: F) -> F:
    """Turn errors into one line and an exit code, also where ``celery -A proj streams`` runs the command."""

    @functools.wraps(function)
    def reported(*args: Any, **kwargs: Any) -> Any:
        _escape_what_cannot_be_encoded()
        try:
            return function(*args, **kwargs)
        except ConfigurationError as exc:
            raise CeleryCommandException(one_line(exc), EXIT_CONFIG) from exc
        except OperationalError as exc:  # ours are kombu's, too
            raise CeleryCommandException(one_line(exc), EXIT_UNAVAILABLE) from exc
        except CeleryStreamsError as exc:
            raise CeleryCommandException(one_line(exc), EX_FAILURE) from exc

    return reported  # type: ignore[return-value]


def _escape_what_cannot_be_encoded() -> None:
    """Have stdout escape what its encoding (ascii, latin-1) has no letters for, as stderr does, instead of raising.

    In the locale C Python would let pass undecoded bytes alone; what we print has none, for it is escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


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


def echo(text: str, *, err: bool = False) -> None:
    """Print one line, with everything that is not printable escaped."""
    click.echo(printable(text), err=err)


def echo_json(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON, in characters that do nothing to a terminal (DEL is the one that JSON leaves alone)."""
    click.echo(kombu_dumps(value, indent=indent, default=repr).replace("\x7f", "\\u007f"))


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
    """Return what ``error`` says, without line breaks and with nothing that is not printable."""
    return printable(" ".join(str(error).split()))


def plural(count: int, one: str, many: str = "") -> str:
    """Write a number of things: ``1 dead letter``, ``1,024 dead letters``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"

"""daemon_options: options of ``worker`` that Celery answers with a stack trace when they are wrong: one line here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from celery.bin.worker import WorkersPool
from celery.platforms import parse_gid, parse_uid
from celery.utils.nodenames import node_format

__all__ = ("Autoscale", "Pool", "check_daemon_options", "custom_pool_refusal")

#: Where Celery takes the class of ``-P custom`` from.
_CUSTOM_POOL = "CELERY_CUSTOM_WORKER_POOL"


class Autoscale(click.ParamType):  # type: ignore[type-arg]
    """``MAX,MIN`` in either order; a single number is the maximum, and the minimum 0."""

    name = "<max>,<min>"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return the maximum and the minimum."""
        words = [str(word) for word in value] if isinstance(value, (tuple, list)) else str(value).split(",")
        if not 1 <= len(words) <= 2 or not all(word.strip().isdecimal() for word in words):
            self.fail(f"{value!r} is not MAX,MIN, two numbers of children such as 10,3", param, ctx)
        numbers = sorted(int(word) for word in words)
        most, least = numbers[-1], numbers[0] if len(numbers) > 1 else 0
        if most < 1:
            self.fail(f"{value!r} allows no child at all; give a maximum and a minimum such as 10,3", param, ctx)
        if len(numbers) == 1 and most == 1:
            self.fail(f"{value!r} leaves nothing to scale; give a maximum and a minimum such as 10,3", param, ctx)
        return most, least


class Pool(WorkersPool):  # type: ignore[misc]
    """Celery's type of ``-P``; a class that cannot be imported is named."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the pool class."""
        try:
            return super().convert(value, param, ctx)
        except (ImportError, AttributeError, ValueError) as exc:
            named = ctx.obj.app.conf.worker_pool if ctx is not None and value == "prefork" else value
            self.fail(
                custom_pool_refusal(exc) if value == "custom" else f"{named!r} cannot be loaded: {exc}", param, ctx
            )


def custom_pool_refusal(exc: BaseException) -> str:
    """Return what is wrong with ``-P custom``."""
    named = os.environ.get(_CUSTOM_POOL)
    if not named:
        return f"-P custom takes its class from {_CUSTOM_POOL} (package.module:Class), which is not set"
    return f"{_CUSTOM_POOL} names {named!r}, which cannot be imported: {exc}"


def check_daemon_options(options: dict[str, Any]) -> None:
    """Check user, group, umask and the files that a worker writes.

    Raises:
        click.UsageError: one of them cannot be; with the option's name.
    """
    for option, parse in (("uid", parse_uid), ("gid", parse_gid)):
        if options.get(option):
            try:
                wanted = parse(options[option])
            except KeyError as exc:
                raise click.UsageError(f"--{option} {options[option]}: {exc.args[0]}") from exc
            if os.geteuid() and wanted != (os.geteuid() if option == "uid" else os.getegid()):
                raise click.UsageError(f"--{option} {options[option]}: only root can become somebody else")
    umask = options.get("umask")
    if isinstance(umask, str) and umask:
        try:
            int(umask, 8 if umask.startswith("0") else 10)
        except ValueError:
            raise click.UsageError(f"--umask {umask}: that is no number such as 022") from None
    for option, used in (
        ("logfile", True),
        ("pidfile", True),
        ("statedb", True),
        ("schedule_filename", options.get("beat")),
    ):
        if used and options.get(option):
            _check_file(f"--{option.partition('_')[0]}", node_format(options[option], options.get("hostname")))


def _check_file(option: str, name: str) -> None:
    path = Path(name).absolute()
    if path.is_dir():
        raise click.UsageError(f"{option} {name}: that is a directory")
    if not path.parent.is_dir():
        raise click.UsageError(f"{option} {name}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise click.UsageError(f"{option} {name}: this user may not write there")

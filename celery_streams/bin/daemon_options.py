"""daemon_options: options of ``worker`` that Celery answers with a stack trace when they are wrong: one line here."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from celery.bin.worker import WorkersPool
from celery.platforms import parse_gid, parse_uid
from celery.utils.imports import load_extension_class_names, symbol_by_name
from celery.utils.nodenames import node_format

__all__ = ("Address", "Autoscale", "ListenAt", "Pool", "check_daemon_options", "custom_pool_refusal")

#: Where Celery takes the class of ``-P custom`` from.
_CUSTOM_POOL = "CELERY_CUSTOM_WORKER_POOL"


#: The number that means "no change" to the system: numbers of users and groups are less.
_NOBODY = 2**32 - 1

#: What the two options name.
_OF_IDS = {"uid": "user", "gid": "group"}

#: Bytes of a pidfile that are looked at.
_LONGEST_PID = 64


class Autoscale(click.ParamType):  # type: ignore[type-arg]
    """``MAX,MIN`` in either order; a single number is the maximum, and the minimum 0."""

    name = "<max>,<min>"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return the maximum and the minimum."""
        words = [str(word) for word in value] if isinstance(value, (tuple, list)) else str(value).split(",")
        if not 1 <= len(words) <= 2 or not all(word.strip().isdecimal() for word in words):
            self.fail(f"{value!r} is not MAX,MIN: give two numbers of children, such as 10,3", param, ctx)
        numbers = sorted(int(word) for word in words)
        most, least = numbers[-1], numbers[0] if len(numbers) > 1 else 0
        if most < 1:
            self.fail(f"{value!r} allows no child at all; give a maximum and a minimum such as 10,3", param, ctx)
        if len(numbers) == 1 and most == 1:
            self.fail(f"{value!r} leaves nothing to scale; give a maximum and a minimum such as 10,3", param, ctx)
        return most, least


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens; port 0 is any that is free."""

    host: str
    port: int

    def plus(self, number: int) -> Address:
        """Return the address so many ports above; any free port stays one."""
        return Address(self.host, self.port and self.port + number)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ListenAt(click.ParamType):  # type: ignore[type-arg]
    """``PORT``, ``HOST:PORT`` or ``[IPV6]:PORT``; without a host nobody but this machine reaches it."""

    name = "[host:]port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """Return the address."""
        if isinstance(value, Address):
            return value
        host, _, port = str(value).strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            self.fail(f"{value!r}: put an IPv6 address in brackets, such as [::1]:9808", param, ctx)
        if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65_535):
            self.fail(f"{value!r} is not [HOST:]PORT: give a port from 0 to 65535, such as 9808", param, ctx)
        return Address(host or "127.0.0.1", int(port))


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
            if not 0 <= wanted < _NOBODY or (option == "uid" and not _has_account(wanted)):
                raise click.UsageError(f"--{option} {options[option]}: there is no such {_OF_IDS[option]}")
            if os.geteuid() and wanted != (os.geteuid() if option == "uid" else os.getegid()):
                raise click.UsageError(f"--{option} {options[option]}: only root can switch to another user")
    if options.get("executable") and not os.access(options["executable"], os.X_OK):
        raise click.UsageError(f"--executable {options['executable']}: that is no program")
    if options.get("beat"):
        _check_scheduler(options.get("scheduler"))
    umask = options.get("umask")
    if isinstance(umask, str) and umask:
        try:
            int(umask, 8 if umask.startswith("0") else 10)
        except ValueError:
            raise click.UsageError(f"--umask {umask}: not an octal number such as 022") from None
    for option, used in (
        ("logfile", True),
        ("pidfile", True),
        ("statedb", True),
        ("schedule_filename", options.get("beat")),
    ):
        if used and options.get(option):
            name = node_format(options[option], options.get("hostname"))
            _check_file(f"--{option.partition('_')[0]}", name)
            if option == "pidfile":
                _check_pidfile(name)


def _has_account(uid: int) -> bool:
    """Return whether a user has an account: Celery takes the groups from there, whatever is given besides."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _check_scheduler(name: Any) -> None:
    """Check that Beat's process, which would end at its start while the worker goes on without it, finds its class."""
    if not isinstance(name, str) or not name:
        return
    aliases = dict(load_extension_class_names("celery.beat_schedulers"))
    try:
        symbol_by_name(name, aliases)
    except (ImportError, AttributeError, ValueError) as exc:
        raise click.UsageError(f"--scheduler {name}: there is no such class ({exc})") from exc


def _check_file(option: str, name: str) -> None:
    path = Path(name).absolute()
    if path.is_dir():
        raise click.UsageError(f"{option} {name}: that is a directory")
    if not path.parent.is_dir():
        raise click.UsageError(f"{option} {name}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise click.UsageError(f"{option} {name}: no permission to write there")


def _check_pidfile(name: str) -> None:
    """Check that a file which is there may be a pidfile: Celery deletes what holds no process id, whatever it is."""
    path = Path(name)
    if not path.exists():
        return
    if not path.is_file():
        raise click.UsageError(f"--pidfile {name}: that is no ordinary file")
    with path.open("rb") as file:
        held = file.read(_LONGEST_PID).strip(b" \t\r\n\0")  # zeros: the machine went down before it was written
    if held and not held.isdigit():
        raise click.UsageError(f"--pidfile {name}: that file holds no process id; delete it if it is not needed")

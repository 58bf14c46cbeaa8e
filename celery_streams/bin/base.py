"""What the root group and the commands share: global options, and what they ask of the app."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import click
from click_didyoumean import DYMGroup  # type: ignore[import-untyped]

from ..installation import is_installed

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "ASKS_FOR_HELP",
    "GroupOfModules",
    "InModule",
    "RootGroup",
    "hoist",
    "require_installed",
    "tasks_of",
)

#: In ``Context.meta``: whether the help of a command is all that was asked for.
ASKS_FOR_HELP = f"{__name__}.help"


@dataclass(frozen=True, slots=True)
class InModule:
    """Where a command is: a module of this package, and what lists of commands say of it instead of its first line."""

    module: str
    short_help: str = ""


class GroupOfModules(DYMGroup):  # type: ignore[misc]
    """A group that imports the module of a command when somebody asks for it: no worker needs what draws tables.

    Args:
        modules: where each command is, under its name.
    """

    def __init__(self, *args: Any, modules: Mapping[str, InModule], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, imported or not."""
        return sorted({*super().list_commands(ctx), *self._modules})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command."""
        found: click.Command | None = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in self._modules:
            place = self._modules[cmd_name]
            found = getattr(import_module(f"{__package__}.{place.module}"), cmd_name)
            assert isinstance(found, click.Command)
            found.short_help = place.short_help or found.short_help
            self.add_command(found)
        return found


class RootGroup(GroupOfModules):
    """Takes the global options before and after the name of the command."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; its examples are in the form in which this program was started."""
        command = super().get_command(ctx, cmd_name)
        return None if command is None else _as_started(command, ctx)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the text above the options, likewise."""
        click.Command.format_help_text(_as_started(self, ctx), ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move global options to the front, then parse as click does."""
        ctx.meta[ASKS_FOR_HELP] = not {"-h", "--help"}.isdisjoint(takewhile(lambda word: word != "--", args))
        return list(super().parse_args(ctx, hoist(args, self.params)))


#: How examples start a program, and what ``Context.info_name`` is then.
_EXAMPLE, _PROGRAM = "celery-streams -A proj", "celery-streams"


def _as_started(command: click.Command, ctx: click.Context) -> click.Command:
    """Return ``command`` with examples for ``manage.py celery_streams``, if that is what runs; its commands too."""
    program = ctx.find_root().info_name or _PROGRAM
    if program == _PROGRAM:
        return command
    form = f"python {program}" if program.startswith("manage.py") else program
    found = copy.copy(command)
    for name in ("help", "epilog"):
        text = getattr(command, name)
        setattr(found, name, text and text.replace(_EXAMPLE, form))
    if isinstance(found, click.Group) and not isinstance(found, RootGroup):
        found.commands = {name: _as_started(one, ctx) for name, one in found.commands.items()}
    return found


def hoist(args: Sequence[str], params: Sequence[click.Parameter]) -> list[str]:
    """Return ``args`` with the options of ``params`` in front, wherever they stood before a ``--``.

    Celery takes ``-A`` only before the name of the command; people write it after it, too.
    """
    takes_value: dict[str, bool] = {}
    for param in params:
        if isinstance(param, click.Option):
            for name in param.opts:
                takes_value[name] = not param.is_flag
    front: list[str] = []
    rest: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        if word == "--":
            rest += [word, *words]
            break
        if name in takes_value and name not in ("--version", "--help"):
            front.append(word)
            if takes_value[name] and not equals and words:
                front.append(words.pop(0))
        elif len(word) > 2 and word[:2] in takes_value and takes_value[word[:2]] and not word.startswith("--"):
            front.append(word)
        else:
            rest.append(word)
    return front + rest


def tasks_of(app: Celery) -> dict[str, Any]:
    """Return the tasks of ``app`` by name; its modules are imported first, and shared tasks become its own."""
    app.loader.import_default_modules()
    app.finalize()
    return dict(app.tasks)


def require_installed(app: Celery) -> None:
    """Check that ``app`` is on streams; its modules are imported first, for Django's apps install it only then.

    Raises:
        click.UsageError: ``celery_streams.install`` was never called for it.
    """
    if not is_installed(app):
        app.loader.import_default_modules()
        app.conf.get("streams_enabled")  # reading a setting configures the app, which is when Django's is installed
    if not is_installed(app):
        raise click.UsageError(
            f"App {app.main or app!r} is not on streams: call celery_streams.install(app) where it is made "
            '(with Django: INSTALLED_APPS += ["django_integration"])'
        )

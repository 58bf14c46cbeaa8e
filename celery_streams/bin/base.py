"""The root group: Celery's own global options, Celery's own commands, and ours beside them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from celery import _state
from celery.app.utils import find_app
from celery.bin.celery import celery as celery_group
from celery.platforms import EX_FAILURE, EX_UNAVAILABLE, EX_USAGE
from click_didyoumean import DYMGroup  # type: ignore[import-untyped]
from kombu.exceptions import OperationalError

from ..amqp import is_installed
from ..exceptions import BrokerError, CeleryStreamsError, ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("EX_CONFIG", "EX_FAILURE", "EX_UNAVAILABLE", "EX_USAGE", "main", "require_installed", "streams")

#: Exit code: a setting, URL or option is wrong (sysexits.h).
EX_CONFIG = 78

#: Commands that need no app.
_WITHOUT_APP = {"demo"}

#: Celery's commands that mean the same here, or leave streams alone.
_CELERY_COMMANDS = frozenset(
    ("amqp", "beat", "call", "control", "events", "inspect", "list", "logtool", "purge", "report", "result", "shell")
)


class RootGroup(DYMGroup):  # type: ignore[misc]
    """Takes the global options before and after the name of the command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move global options to the front, then parse as click does."""
        return list(super().parse_args(ctx, hoist(args, self.params)))


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


def load_app(name: str) -> Celery:
    """Load the app that ``-A`` names.

    Raises:
        click.UsageError: there is no such module or app; in one line.
        click.ClickException: the module is there and failed; with the traceback of the project's own code.
    """
    try:
        return find_app(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (name == exc.name or name.startswith((f"{exc.name}.", f"{exc.name}:"))):
            raise click.ClickException(f"-A {name} failed to load:\n{traceback.format_exc()}") from exc
        raise click.UsageError(
            f"-A {name}: there is no module {exc.name!r} (looked in {os.getcwd()} and sys.path)"
        ) from exc
    except AttributeError as exc:
        raise click.UsageError(f"-A {name}: no Celery app there ({exc})") from exc
    except Exception as exc:
        # The project's module may raise anything; its author needs to see where.
        raise click.ClickException(f"-A {name} failed to load:\n{traceback.format_exc()}") from exc


@click.group(
    cls=RootGroup,
    invoke_without_command=True,
    params=list(celery_group.params),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def celery_streams(ctx: click.Context, /, **options: Any) -> None:
    """Celery on Redis Streams.

    \b
    Examples
    --------

    \b
    $ celery-streams -A proj worker -Q send_message -c 4 -l INFO
    $ celery-streams -A proj status
    $ celery-streams demo
    """
    app = options.pop("app")
    sys.path.insert(0, os.getcwd())
    if isinstance(app, str):
        app = load_app(app)
    if app is None and ctx.invoked_subcommand not in _WITHOUT_APP and ctx.invoked_subcommand is not None:
        if _state.default_app is None or not is_installed(_state.default_app):
            raise click.UsageError("Which app? Name it: celery-streams -A proj COMMAND (or set CELERY_APP)")
    if ctx.invoked_subcommand is None and not options.get("version"):
        click.echo(ctx.get_help())
        ctx.exit()
    assert celery_group.callback is not None
    celery_group.callback(app=app, **options)


@click.group()
def streams() -> None:
    """Celery on Redis Streams: the commands of celery-streams."""


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


def main(argv: Sequence[str] | None = None, *, prog_name: str = "celery-streams", app: Celery | None = None) -> None:
    """Run the command line; never returns.

    Args:
        argv: the words after the program's name; those of the process by default.
        app: the app to use when no ``-A`` is given (Django's management command).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if app is not None:
        app.set_default()
        app.set_current()
    try:
        celery_streams.main(words, prog_name=prog_name, auto_envvar_prefix="CELERY", standalone_mode=True)
    except ConfigurationError as exc:
        _fail(str(exc), EX_CONFIG)
    except (BrokerError, OperationalError) as exc:
        _fail(str(exc), EX_UNAVAILABLE)
    except CeleryStreamsError as exc:
        _fail(str(exc), EX_FAILURE)


def _fail(text: str, code: int) -> None:
    click.echo(f"Error: {text}", err=True)
    sys.exit(code)


def _add_commands() -> None:
    for name in ("worker", "status", "dead", "migrate", "doctor", "demo"):
        if importlib.util.find_spec(f"{__package__}.{name}") is None:
            continue
        command: click.Command = getattr(importlib.import_module(f".{name}", __package__), name)
        celery_streams.add_command(command)
        streams.add_command(command)
    for name in sorted(_CELERY_COMMANDS):
        celery_streams.add_command(celery_group.commands[name])


_add_commands()

"""The root group: Celery's own global options and commands, ours beside them, and the entry point."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from celery.bin.celery import celery as celery_group
from celery.loaders import LOADER_ALIASES
from celery.platforms import EX_FAILURE
from celery.utils.imports import symbol_by_name
from kombu.exceptions import OperationalError

from .. import __version__, celery_private
from ..exceptions import CeleryStreamsError, ConfigurationError
from ..installation import is_installed
from .app_name import load_app
from .base import ASKS_FOR_HELP, InModule, RootGroup
from .commands import COMMANDS, add_user_options
from .terminal import EXIT_CONFIG, EXIT_UNAVAILABLE, one_line

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("celery_streams", "main")

#: Commands that need no app.
_WITHOUT_APP = {"demo"}

#: Global options that Celery hands to the project through the environment.
_EXPORTED = {
    "loader": "CELERY_LOADER",
    "broker": "CELERY_BROKER_URL",
    "result_backend": "CELERY_RESULT_BACKEND",
    "config": "CELERY_CONFIG_MODULE",
    "skip_checks": "CELERY_SKIP_CHECKS",
}

#: Celery's commands with something of ours.
_OURS_OF_CELERYS = {
    "call": InModule("call"),
    "report": InModule("report", "Show versions and settings, for a bug report."),
}

#: Celery's commands that mean the same here, or leave streams alone.
_CELERY_COMMANDS = (
    *("amqp", "beat", "control", "events", "inspect"),
    *("list", "logtool", "result", "shell"),
)


def _enter(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Change into ``--workdir``, before anything is imported."""
    if value:
        try:
            os.chdir(value)
        except OSError as exc:
            raise click.BadParameter(f"{value}: {exc.strerror}", ctx, param) from exc


def _our_param(param: click.Parameter) -> click.Parameter:
    if param.name == "workdir":
        param = copy.copy(param)
        param.callback = _enter
    return param


@click.group(
    cls=RootGroup,
    modules={**COMMANDS, **_OURS_OF_CELERYS},
    invoke_without_command=True,
    params=[_our_param(param) for param in celery_group.params],
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
    $ python manage.py celery_streams doctor
    $ celery-streams demo
    """
    if options.get("version"):
        click.echo(f"celery-streams {__version__}")
    app = options.pop("app")
    sys.path.insert(0, os.getcwd())
    _export(options)
    needs_app = ctx.invoked_subcommand not in (None, *_WITHOUT_APP) and not ctx.meta[ASKS_FOR_HELP]
    if isinstance(app, str):
        try:
            app = load_app(app)
        except click.ClickException:
            if needs_app:
                raise
            app = None  # CELERY_APP is wrong, or the project has a fault: the help is there all the same
    if needs_app:
        _check_modules(options)
    if app is None and needs_app:
        made = celery_private.default_app()
        if made is None or not is_installed(made):
            raise click.UsageError("Which app? Use celery-streams -A proj COMMAND, or set CELERY_APP")
    if ctx.invoked_subcommand is None and not options.get("version"):
        click.echo(ctx.get_help())
        ctx.exit()
    assert celery_group.callback is not None
    celery_group.callback(app=app, **options)
    add_user_options(ctx)


def _check_modules(options: Mapping[str, Any]) -> None:
    """Check that what ``--config`` and ``--loader`` name is there, which Celery would find out with a stack trace.

    Raises:
        click.UsageError: it is not.
    """
    for option, aliases in (("config", {}), ("loader", LOADER_ALIASES)):
        name = options.get(option)
        if not name:
            continue
        try:
            symbol_by_name(name, aliases)
        except ModuleNotFoundError as exc:
            if not f"{name}.".replace(":", ".").startswith(f"{exc.name}."):
                raise  # the module is there: something that it imports is not
            raise click.UsageError(f"--{option} {name}: there is no module {exc.name!r}") from exc
        except AttributeError as exc:
            if option == "loader":
                raise click.UsageError(f"--{option} {name}: {exc}") from exc


def _export(options: Mapping[str, Any]) -> None:
    """Put the global options into the environment, as Celery does, before the project's modules can read it."""
    for name, variable in _EXPORTED.items():
        if options.get(name):
            os.environ[variable] = "true" if name == "skip_checks" else str(options[name])


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
        _fail(str(exc), EXIT_CONFIG)
    except OperationalError as exc:  # ours are kombu's, too
        _fail(str(exc), EXIT_UNAVAILABLE)
    except CeleryStreamsError as exc:
        _fail(str(exc), EX_FAILURE)


def _fail(text: str, code: int) -> None:
    click.echo(f"Error: {one_line(text)}", err=True)
    sys.exit(code)


for _name in _CELERY_COMMANDS:
    celery_streams.add_command(celery_group.commands[_name])

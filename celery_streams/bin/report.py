"""``report``: Celery's own report, and which celery-streams this is, with the settings as they are in force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from .. import __file__ as package
from .. import __version__
from ..app import streams_of
from ..conf import settings_in_force
from ..exceptions import ConfigurationError
from ..installation import is_installed
from ..redis_url import safe_url
from .terminal import echo, one_line_errors

__all__ = ("report",)


@click.command(
    cls=CeleryCommand,
    epilog="""\b
Examples:
  celery-streams -A proj report
""",
)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def report(ctx: click.Context, **kwargs: Any) -> None:
    """Show versions and settings for a bug report: Celery's, and the streams settings with their sources."""
    app = ctx.obj.app
    app.loader.import_default_modules()
    ctx.obj.echo(app.bugreport())
    echo(f"celery-streams -> {__version__} in {Path(package).parent}")
    streams = streams_of(app)
    echo(f"install -> {'celery_streams.install was called for this app' if is_installed(app) else 'never called'}")
    try:
        echo(f"redis -> {safe_url(streams.url)}")
    except ConfigurationError as exc:
        echo(f"redis -> {exc}")
    for setting in settings_in_force(app.conf):
        shown = safe_url(str(setting.value)) if setting.name == "streams_url" and setting.value else setting.value
        echo(f"{setting.name} -> {shown!r} ({setting.source})")

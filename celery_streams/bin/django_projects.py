"""Django projects on the command line: their Celery app is on streams although nobody calls ``django.setup()``.

``INSTALLED_APPS`` installs celery-streams when Django is set up, and ``celery -A proj call`` publishes without that:
the message would go to a list that nobody reads. This module is imported by ``celery`` (as a plugin) and by
``celery-streams`` before they load the project, and looks at each app when it reads its configuration. It does not
import Django; ``django_integration`` does, where the project names it.
"""

from __future__ import annotations

import os
from importlib import import_module, util
from typing import Any

from celery import Celery
from celery.utils.dispatch import Signal

__all__ = ("await_configuration", "follow_apps")

_FIXUP = f"{__name__}:await_configuration"


def follow_apps() -> None:
    """Look at each app that is made from now on."""
    Celery.builtin_fixups.add(_FIXUP)


def await_configuration(app: Celery) -> None:
    """Look at ``app`` when it reads its configuration (a Celery fixup, called when an app is made)."""
    if app.on_configure is None:
        app.on_configure = Signal(name="app.on_configure")
    if isinstance(app.on_configure, Signal):
        app.on_configure.connect(_on_configure, dispatch_uid="celery-streams-command-line")


def _on_configure(sender: Celery, **kwargs: Any) -> None:
    if os.environ.get("DJANGO_SETTINGS_MODULE") and util.find_spec("django_integration") is not None:
        import_module("django_integration.project").install_if_listed(sender)

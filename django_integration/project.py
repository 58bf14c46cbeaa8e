"""The project's Celery app: which one it is, putting it on streams, and following Django's settings when they change.

An app is the project's when it reads Django's settings (``app.config_from_object("django.conf:settings", ...)``).
Other apps in the process are left alone; ``celery_streams.install(app)`` is there for them.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.app.utils import find_app
from celery.utils.dispatch import Signal
from django.conf import ENVIRONMENT_VARIABLE, LazySettings, settings
from django.core.exceptions import ImproperlyConfigured

import celery_streams
from celery_streams import celery_private
from celery_streams.app import hold_in_transactions

from .transactions import TRANSACTIONS

__all__ = (
    "follow_setting",
    "install_if_listed",
    "install_on_existing_apps",
    "install_on_later_apps",
    "is_installed_by_django_only",
    "project_app",
    "reads_django_settings",
)

#: How ``config_from_object`` may name Django's settings, besides the object and the settings module itself.
_SETTINGS_NAMES = ("django.conf:settings", "django.conf.settings")

#: Says in an app that this module put it on streams.
_BY_DJANGO = "_celery_streams_by_django"

#: This module's fixup, as ``Celery.builtin_fixups`` wants it.
_FIXUP = "django_integration.project:await_configuration"


def reads_django_settings(app: Celery) -> bool:
    """Return whether ``app`` was told to take its configuration from Django's settings; it is not read here."""
    source = celery_private.config_source(app)
    if isinstance(source, str):
        return source in (*_SETTINGS_NAMES, os.environ.get(ENVIRONMENT_VARIABLE))
    return isinstance(source, LazySettings) or (
        source is not None and getattr(source, "__name__", None) == os.environ.get(ENVIRONMENT_VARIABLE)
    )


def project_app() -> Celery:
    """Return the project's Celery app, on streams if it reads Django's settings.

    Imports ``<package of the settings>.celery`` when no app is there yet.

    Raises:
        ImproperlyConfigured: there is none, or there are several and none of them is Celery's current or default app.
    """
    app = _find_project_app()
    return _install(app) if reads_django_settings(app) else app


def _find_project_app() -> Celery:
    preferred = celery_private.preferred_apps()
    for app in preferred:
        if reads_django_settings(app):
            return app
    others = [app for app in celery_private.active_apps() if reads_django_settings(app)]
    if len(others) == 1:
        return others[0]
    if others:
        names = ", ".join(sorted(repr(app.main) for app in others))
        raise ImproperlyConfigured(
            f"Several Celery apps read Django's settings ({names}), and none is the default app."
        )
    found = _import_app()
    if found is not None:
        return found
    for app in preferred:
        if app.main != "default":  # Celery's own stop-gap is called so
            return app
    raise ImproperlyConfigured("No Celery app was found that belongs to this Django project.")


def _import_app() -> Celery | None:
    package = os.environ.get(ENVIRONMENT_VARIABLE, "").partition(".")[0]
    if not package:
        return None
    try:
        return find_app(package)
    except ModuleNotFoundError as exc:
        if exc.name in (package, f"{package}.celery"):
            return None
        raise
    except AttributeError:
        return None


# -- installation -----------------------------------------------------------------------------------------------------


def install_on_existing_apps() -> None:
    """Install on each app that reads Django's settings; on those that are not configured yet, when they are."""
    for app in celery_private.active_apps():
        if reads_django_settings(app):
            _install(app)
        elif not app.configured:
            await_configuration(app)


def install_on_later_apps() -> None:
    """Look at each app that is made from now on; calling it again changes nothing."""
    Celery.builtin_fixups.add(_FIXUP)


def await_configuration(app: Celery) -> None:
    """Install on ``app`` at the moment when it reads its configuration, if that is Django's settings.

    A Celery fixup: when an app is made, nobody can know yet where it will take its configuration from. Finalization
    would be too late, because ``send_task`` by name publishes without it.
    """
    if app.on_configure is None:
        app.on_configure = Signal(name="app.on_configure")
    if isinstance(app.on_configure, Signal):
        app.on_configure.connect(_on_configure, dispatch_uid="celery-streams")


def _on_configure(sender: Celery, **kwargs: Any) -> None:
    if reads_django_settings(sender):
        _install(sender)


def install_if_listed(app: Celery) -> None:
    """Install on ``app`` where Django is not set up, if it reads Django's settings and those list this Django app."""
    if reads_django_settings(app) and any(
        name == "django_integration" or name.startswith("django_integration.") for name in settings.INSTALLED_APPS
    ):
        _install(app)


def _install(app: Celery) -> Celery:
    hold_in_transactions(TRANSACTIONS)
    if not celery_streams.is_installed(app):
        app.__dict__[_BY_DJANGO] = True
    return celery_streams.install(app)


def is_installed_by_django_only(app: Celery) -> bool:
    """Return whether nobody called ``celery_streams.install(app)`` before Django did."""
    return bool(app.__dict__.get(_BY_DJANGO))


# -- override_settings ------------------------------------------------------------------------------------------------


def follow_setting(*, setting: str, **kwargs: Any) -> None:
    """Make the apps that read a changed ``CELERY_STREAMS_X`` read it again (a receiver of ``setting_changed``).

    ``app.conf`` follows ``override_settings`` by itself, and so does the switch; the other settings are kept once
    they were read. What ``install`` was given goes on to win over Django's settings.
    """
    for app in celery_private.active_apps():
        if app.namespace and setting.startswith(f"{app.namespace}_STREAMS_") and reads_django_settings(app):
            if setting != f"{app.namespace}_STREAMS_ENABLED":
                celery_streams.streams_of(app).reload()

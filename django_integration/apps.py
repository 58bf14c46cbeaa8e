"""The Django app: what happens when the project starts."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register
from django.core.signals import setting_changed

from . import project
from .checks import check_celery_streams


class CeleryStreamsConfig(AppConfig):
    """Put the project's Celery app on streams, as far as the settings say so."""

    name = "django_integration"
    label = "celery_streams"
    verbose_name = "Celery Streams"

    def ready(self) -> None:
        """Start each part; none of them connects to Redis or reads Celery's configuration."""
        self.install_on_apps_that_exist()
        self.install_on_apps_that_come_later()
        self.follow_overridden_settings()
        self.register_checks()

    def install_on_apps_that_exist(self) -> None:
        """The standard layout: ``proj/__init__.py`` imported ``proj/celery.py`` before Django was set up."""
        project.install_on_existing_apps()

    def install_on_apps_that_come_later(self) -> None:
        """``proj/celery.py`` is imported by a view or a task module only."""
        project.install_on_later_apps()

    def follow_overridden_settings(self) -> None:
        """``override_settings(CELERY_STREAMS_...)`` takes effect, although the settings are read only once."""
        setting_changed.connect(project.follow_setting, dispatch_uid="celery-streams")

    def register_checks(self) -> None:
        """``manage.py check`` reports what is wrong with the settings."""
        register(check_celery_streams, "celery_streams")

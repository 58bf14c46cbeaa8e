"""The Django app: what happens when the project starts."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register
from django.core.signals import setting_changed

from celery_streams.app import hold_in_transactions

from . import alerting, project
from .checks import check_celery_streams
from .transactions import TRANSACTIONS, hold_delay_on_commit


class CeleryStreamsConfig(AppConfig):
    """Put the project's Celery app on streams, as far as the settings say so."""

    name = "django_integration"
    label = "celery_streams"
    verbose_name = "Celery Streams"

    def ready(self) -> None:
        """Start each part; none of them connects to Redis or reads Celery's configuration."""
        self.install_on_apps_that_exist()
        self.install_on_apps_that_come_later()
        self.publish_on_commit()
        self.follow_overridden_settings()
        self.register_checks()
        self.watch_alerts()

    def install_on_apps_that_exist(self) -> None:
        """The standard layout: ``proj/__init__.py`` imported ``proj/celery.py`` before Django was set up."""
        project.install_on_existing_apps()

    def install_on_apps_that_come_later(self) -> None:
        """``proj/celery.py`` is imported by a view or a task module only."""
        project.install_on_later_apps()

    def publish_on_commit(self) -> None:
        """``streams_publish_on_commit``, ``bulk(using=...)`` and ``delay_on_commit`` know of Django's transactions."""
        hold_in_transactions(TRANSACTIONS)
        hold_delay_on_commit()

    def follow_overridden_settings(self) -> None:
        """``override_settings(CELERY_STREAMS_...)`` takes effect, although the settings are read only once."""
        setting_changed.connect(project.follow_setting, dispatch_uid="celery-streams")

    def watch_alerts(self) -> None:
        """Workers look at the alerts, and send ``queue_alert``."""
        alerting.start_watching()

    def register_checks(self) -> None:
        """``manage.py check`` reports what is wrong with the settings."""
        register(check_celery_streams, "celery_streams")

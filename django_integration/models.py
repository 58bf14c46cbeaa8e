"""Models: one without a table, so that Django's permissions and admin know of the dashboard."""

from __future__ import annotations

from django.db import models

__all__ = ("Dashboard",)


class Dashboard(models.Model):
    """The dashboard; ``migrate`` makes its permissions, and no table.

    This app has no ``migrations`` package on purpose: with an empty one Django would make no permissions, and
    ``makemigrations --check`` of the project would fail.
    """

    class Meta:
        app_label = "celery_streams"
        managed = False
        verbose_name = "Celery Streams"
        verbose_name_plural = "Celery Streams"
        default_permissions = ()
        permissions = (
            ("view_queues", "Can see queues, workers and dead letters"),
            ("view_arguments", "Can see the arguments and results of tasks"),
            ("replay", "Can replay dead letters"),
            ("purge", "Can delete dead letters and waiting messages"),
            ("pause", "Can pause and resume queues"),
            ("run_now", "Can run delayed messages now"),
            ("cancel", "Can cancel delayed messages"),
            ("revoke", "Can revoke tasks"),
            ("terminate", "Can terminate running tasks"),
        )

    def __str__(self) -> str:
        return "Celery Streams"

"""The app of the sample project: ``celery -A tests.proj worker``, ``celery-streams worker -A tests.proj``."""

from __future__ import annotations

from celery import Celery

from . import settings, signals

app = Celery("proj", include=["tests.proj.tasks", "tests.proj.actions"])
app.conf.update(settings.from_environment())

if settings.flag(settings.INSTALL):
    import celery_streams

    celery_streams.install(app)

signals.connect(watched=settings.flag(settings.WATCHED))

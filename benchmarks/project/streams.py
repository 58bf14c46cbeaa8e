"""The same app on streams."""

from __future__ import annotations

from celery import Celery

import celery_streams

app = Celery("benchmarks", include=["benchmarks.project.tasks"])
app.config_from_object("benchmarks.project.settings")
celery_streams.install(app, enabled=True)

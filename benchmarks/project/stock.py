"""The app as Celery runs it."""

from __future__ import annotations

from celery import Celery

app = Celery("benchmarks", include=["benchmarks.project.tasks"])
app.config_from_object("benchmarks.project.settings")

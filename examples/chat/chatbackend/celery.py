"""The Celery app, as Celery's documentation has it, and one line for scripts that import it without Django's set-up."""

import os

from celery import Celery

import celery_streams

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatbackend.settings")

app = Celery("chatbackend")
app.config_from_object("django.conf:settings", namespace="CELERY")
celery_streams.install(app)
app.autodiscover_tasks()

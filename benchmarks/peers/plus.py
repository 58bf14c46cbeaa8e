"""Celery's tasks on celery-redis-plus: another transport, the stock worker."""

from __future__ import annotations

import os
from typing import Any

import celery_redis_plus  # noqa: F401  (registers its transport)
from celery import Celery

from ..project import tasks
from ..project.settings import QUEUE, URL

__all__ = ("app", "send")

app = Celery("benchmarks", include=["benchmarks.project.tasks"])
app.config_from_object(
    {
        "broker_url": os.environ.get(URL, "redis://").replace("redis://", "valkey://", 1),
        "task_default_queue": QUEUE,
        "broker_connection_retry_on_startup": True,
    }
)


def send(task: str, *args: Any) -> None:
    """Publish a task."""
    getattr(tasks, task).delay(*args)

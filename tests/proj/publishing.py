"""Tasks that publish, each in another way; plain Celery but for the block."""

from __future__ import annotations

from celery import current_app, shared_task

import celery_streams


@shared_task
def nothing():
    """Be published."""


@shared_task
def publish(queue, count, options=None):
    """Publish one by one."""
    for _ in range(count):
        nothing.apply_async(queue=queue, **(options or {}))


@shared_task
def publish_together(queue, count):
    """Publish in one block."""
    with celery_streams.bulk(current_app._get_current_object()):
        publish(queue, count)

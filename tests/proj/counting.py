"""A task that counts, while it runs, what its worker holds, and one that does nothing; for streams only."""

from __future__ import annotations

from celery import shared_task

from celery_streams import streams_of
from celery_streams.inspect import queue_status


@shared_task(bind=True)
def count_held(self):
    """Return how many messages of this task's queue are in a worker's hands, this one among them."""
    return queue_status(streams_of(self.app).broker, self.request.delivery_info["routing_key"]).pending


@shared_task(ignore_result=True)
def nothing():
    """Do nothing: as fast as a task can be."""

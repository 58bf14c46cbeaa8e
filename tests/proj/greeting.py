"""Broadcasts as soon as the worker says that it is ready, from its own process."""

from __future__ import annotations

from celery import signals


@signals.worker_ready.connect
def add_a_queue(sender, **_):
    """Nothing answers, and nothing is sent again."""
    sender.app.control.add_consumer("greeted", destination=[sender.hostname])

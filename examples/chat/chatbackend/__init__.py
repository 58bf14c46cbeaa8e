"""The project: settings, addresses, and its Celery app, as Celery's documentation has them."""

from .celery import app as celery_app

__all__ = ("celery_app",)

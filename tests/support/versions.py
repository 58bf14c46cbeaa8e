"""versions: which Celery and kombu the tests run with, and marks for what only newer ones do."""

from __future__ import annotations

import kombu
import pytest
from celery import VERSION

#: (major, minor), and (major, minor, micro) of what is installed.
CELERY = (VERSION.major, VERSION.minor)
KOMBU = tuple(kombu.VERSION[:3])


def needs_celery(version: tuple[int, int], reason: str) -> pytest.MarkDecorator:
    """Leave a test out with an older Celery; ``reason`` says what that one does instead, or lacks."""
    return pytest.mark.skipif(version > CELERY, reason=f"Celery {version[0]}.{version[1]}: {reason}")


def needs_kombu(version: tuple[int, int], reason: str) -> pytest.MarkDecorator:
    """Leave a test out with an older kombu; ``reason`` says what that one does instead, or lacks."""
    return pytest.mark.skipif(version > KOMBU, reason=f"kombu {version[0]}.{version[1]}: {reason}")

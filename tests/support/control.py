"""Remote control in tests: a question that is asked until somebody hears it."""

from __future__ import annotations

from typing import Any

from celery import Celery

from tests.support.eventually import eventually


def asked(app: Celery, question: str, *hostnames: str, answers: int = 1) -> dict[str, Any]:
    """Return what so many workers answer to a question of Celery's ``inspect``: hostname -> answer.

    What is broadcast between a worker's "ready" and its subscription is heard by nobody, so it is asked again.

    Args:
        hostnames: who is asked; without any, everybody.
    """
    inspect = app.control.inspect(list(hostnames) or None, timeout=2, limit=answers)

    def found() -> dict[str, Any] | None:
        told = getattr(inspect, question)() or {}
        return told if len(told) >= answers else None

    return eventually(found, timeout=20, message=f"{answers} answers to {question}")

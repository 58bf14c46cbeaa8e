"""A publisher as a process of its own: ``python -m tests.proj.publish COUNT``.

It publishes the chat tasks in turn, some with a countdown and some that will retry, and notes each id in the ledger
once its publish has returned.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .ledger import Ledger
from .settings import LEDGER


def publish(celery: Any, number: int, note: Any) -> None:
    """Publish the task whose turn it is, and note its id and how often it will be started."""
    task, args, starts = (
        ("send_message", (number, "hello"), 1),
        ("mark_as_read", (number,), 1),
        ("fetch_profile_pic", (number,), 1),
        ("fetch_group_info", (number, 1), 2),
    )[number % 4]
    result = celery.tasks[f"tests.proj.tasks.{task}"].apply_async(args, countdown=0.3 if number % 5 == 0 else None)
    note("published", result.id, task=task, starts=starts)


def main(celery: Any, count: int) -> None:
    """Publish ``count`` tasks and note them in the ledger that the environment names."""
    celery.loader.import_default_modules()
    ledger = Ledger(os.environ[LEDGER])

    def note(kind: str, task_id: str, **fields: Any) -> None:
        ledger.write(kind, task_id, **fields)
        ledger.client.rpush("ledger:published", task_id)

    for number in range(count):
        publish(celery, number, note)


if __name__ == "__main__":
    from .celery import app  # here only: tests import ``publish`` and have apps of their own

    main(app, int(sys.argv[1]))

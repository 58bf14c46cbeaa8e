"""The app of ``celery-streams demo``: four tasks of a chat, two queues on streams and two on lists.

Each execution is written to a ledger, a plain file beside Redis, so that the account at the end does not rest on what
is being shown. Its lines are ``TASK NUMBER PID TIME``; a line is one write in append mode, which no kill tears apart.
"""

from __future__ import annotations

import os
import time

from celery import Celery

from . import install

__all__ = ("LEDGER", "LIST_TASKS", "REDIS", "STREAM_TASKS", "TASKS", "app")

#: Environment variables through which the demo tells its workers where Redis and the ledger are.
REDIS = "STREAMS_DEMO_REDIS"
LEDGER = "STREAMS_DEMO_LEDGER"

#: Each task has a queue of its name.
STREAM_TASKS = ("send_message", "mark_as_read")
LIST_TASKS = ("fetch_profile_pic", "fetch_group_info")

app = Celery("celery_streams_demo", set_as_current=False)
app.conf.update(
    broker_url=os.environ.get(REDIS, "redis://localhost"),
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    task_routes={name: {"queue": name} for name in (*STREAM_TASKS, *LIST_TASKS)},
    worker_hijack_root_logger=True,
)
install(app, queues=STREAM_TASKS, enabled=True)


def record(task: str, number: int, seconds: float) -> None:
    """Work for ``seconds``, then write the execution down."""
    if seconds:
        time.sleep(seconds)  # the work that the task stands for
    line = f"{task} {number} {os.getpid()} {time.time():.6f}\n".encode()
    file = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


@app.task(name="send_message", shared=False)
def send_message(number: int, seconds: float = 0.0) -> None:
    """Stand for a message that must reach a chat."""
    record("send_message", number, seconds)


@app.task(name="mark_as_read", shared=False)
def mark_as_read(number: int, seconds: float = 0.0) -> None:
    """Stand for a receipt."""
    record("mark_as_read", number, seconds)


@app.task(name="fetch_profile_pic", shared=False)
def fetch_profile_pic(number: int, seconds: float = 0.0) -> None:
    """Stand for a fetch that may be repeated."""
    record("fetch_profile_pic", number, seconds)


@app.task(name="fetch_group_info", shared=False)
def fetch_group_info(number: int, seconds: float = 0.0) -> None:
    """Stand for another one."""
    record("fetch_group_info", number, seconds)


TASKS = {task.name: task for task in (send_message, mark_as_read, fetch_profile_pic, fetch_group_info)}

"""Receivers of Celery's signals that raise; a worker has them by ``imports``."""

from __future__ import annotations

from typing import Any

from celery import signals

#: All but those that set up logging, which with a receiver Celery leaves to it.
NAMES = (
    "before_task_publish", "after_task_publish", "task_received", "task_prerun", "task_postrun", "task_success",
    "task_retry", "task_failure", "task_internal_error", "task_revoked", "task_rejected", "task_unknown", "worker_init",
    "worker_before_create_process", "worker_process_init", "worker_process_shutdown", "worker_ready", "worker_shutdown",
    "worker_shutting_down", "heartbeat_sent", "celeryd_after_setup", "after_setup_logger", "after_setup_task_logger",
)  # fmt: skip


def _raising(name: str) -> None:
    def receive(sender: Any = None, **fields: Any) -> None:
        raise RuntimeError(f"RECEIVER {name}")

    getattr(signals, name).connect(receive, weak=False, dispatch_uid=f"tests.proj.raising.{name}")


for _name in NAMES:
    _raising(_name)

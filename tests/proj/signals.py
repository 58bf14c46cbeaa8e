"""Receivers that write Celery's signals to the ledger."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from celery import signals

from . import ledger
from .settings import WORKER

#: Signals with a ``task_id``.
_TASK_SIGNALS = ("task_prerun", "task_postrun", "task_failure", "task_internal_error")

#: Signals of a worker and its processes.
_WORKER_SIGNALS = (
    "import_modules",
    "celeryd_init",
    "worker_init",
    "celeryd_after_setup",
    "worker_ready",
    "worker_before_create_process",
    "worker_process_init",
    "worker_shutting_down",
    "worker_process_shutdown",
    "worker_shutdown",
    "beat_init",
    "beat_embedded_init",
    "eventlet_pool_started",
    "eventlet_pool_preshutdown",
    "eventlet_pool_postshutdown",
)


def connect(*, watched: bool = False) -> None:
    """Connect the receivers; those of task_received and heartbeat_sent only if ``watched``.

    Some workers take a shorter way without the first, and the second writes a line every two seconds.
    """
    for name in _TASK_SIGNALS:
        _connect(name, _by_task_id)
    for name in ("task_success", "task_retry"):
        _connect(name, _by_sender)
    for name in ("task_revoked", *(("task_received",) if watched else ())):
        _connect(name, _by_request)
    _connect("task_unknown", _by_id)
    _connect("task_rejected", _by_message)
    for name in _WORKER_SIGNALS:
        _connect(name, _by_worker)
    if watched:
        _connect("heartbeat_sent", _by_heart)


def _connect(name: str, receiver: Callable[..., None]) -> None:
    def receive(sender: Any = None, **fields: Any) -> None:
        receiver(name, sender, fields)

    getattr(signals, name).connect(receive, weak=False, dispatch_uid=f"tests.proj.{name}")


def _by_task_id(name: str, sender: Any, fields: dict[str, Any]) -> None:
    ledger.write(
        "signal",
        fields["task_id"],
        signal=name,
        sender=sender.name,
        args=list(fields["args"]),
        kwargs=fields["kwargs"],
        retries=sender.request.retries,
        state=fields.get("state"),
        retval=fields.get("retval"),
        exception=repr(fields["exception"]) if "exception" in fields else None,
        einfo=repr(fields["einfo"].exception) if "einfo" in fields else None,
    )


def _by_sender(name: str, sender: Any, fields: dict[str, Any]) -> None:
    ledger.write(
        "signal",
        sender.request.id,
        signal=name,
        sender=sender.name,
        retries=sender.request.retries,
        result=fields.get("result"),
        reason=str(fields["reason"]) if "reason" in fields else None,
    )


def _by_request(name: str, sender: Any, fields: dict[str, Any]) -> None:
    request = fields["request"]
    ledger.write(
        "signal",
        request.id,
        signal=name,
        sender=getattr(sender, "name", type(sender).__name__),
        terminated=fields.get("terminated"),
        # Of task_received it is the Request, of task_revoked a Context.
        retries=request.request_dict.get("retries") if hasattr(request, "request_dict") else request.retries,
        expired=fields.get("expired"),
        signum=fields.get("signum"),
    )


def _by_id(name: str, sender: Any, fields: dict[str, Any]) -> None:
    ledger.write("signal", fields["id"], signal=name, name=fields["name"])


def _by_message(name: str, sender: Any, fields: dict[str, Any]) -> None:
    headers = fields["message"].headers or {}
    ledger.write("signal", headers.get("id", "without-id"), signal=name)


def _by_worker(name: str, sender: Any, fields: dict[str, Any]) -> None:
    ledger.write("process", os.environ.get(WORKER, "worker"), signal=name, how=fields.get("how"))


def _by_heart(name: str, sender: Any, fields: dict[str, Any]) -> None:
    ledger.write("heartbeat", os.environ.get(WORKER, "worker"), sender=type(sender).__name__)

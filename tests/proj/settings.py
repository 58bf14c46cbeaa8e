"""The settings of the sample project, from environment variables; it makes no app.

==================  ==================================================================================================
variable            meaning
==================  ==================================================================================================
``PROJ_BROKER``     URL of the broker
``PROJ_RESULTS``    URL of the result backend
``PROJ_LEDGER``     URL of the ledger's database; without it nothing is recorded
``PROJ_QUEUE``      the default queue
``PROJ_INSTALL``    1: ``celery_streams.install(app)`` is called; else the project has never heard of streams
``PROJ_WATCHED``    1: receivers for task_received and heartbeat_sent are connected too (others always are)
``PROJ_WORKER``     name under which a worker's own signals are recorded
``PROJ_SETTINGS``   JSON object of more Celery settings
==================  ==================================================================================================
"""

from __future__ import annotations

import json
import os
from typing import Any

BROKER = "PROJ_BROKER"
RESULTS = "PROJ_RESULTS"
LEDGER = "PROJ_LEDGER"
QUEUE = "PROJ_QUEUE"
INSTALL = "PROJ_INSTALL"
WATCHED = "PROJ_WATCHED"
WORKER = "PROJ_WORKER"
SETTINGS = "PROJ_SETTINGS"

#: What every serializer test needs; a worker refuses anything else.
ACCEPTED = ("json", "pickle", "yaml", "msgpack")


def celery_settings(*, broker: str, results: str, queue: str, **more: Any) -> dict[str, Any]:
    """Return Celery settings, for a worker's process and for a publisher inside the tests alike."""
    return {
        "broker_url": broker,
        "result_backend": results,
        "task_default_queue": queue,
        "accept_content": list(ACCEPTED),
        "broker_connection_retry_on_startup": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        **more,
    }


def from_environment() -> dict[str, Any]:
    """Return the settings that the environment asks for."""
    return celery_settings(
        broker=os.environ.get(BROKER, "redis://localhost:6379/0"),
        results=os.environ.get(RESULTS, "redis://localhost:6379/1"),
        queue=os.environ.get(QUEUE, "celery"),
        **json.loads(os.environ.get(SETTINGS) or "{}"),
    )


def flag(name: str) -> bool:
    """Return whether an environment variable says 1."""
    return os.environ.get(name) == "1"

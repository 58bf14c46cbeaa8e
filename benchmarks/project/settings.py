"""Settings of both apps: Celery's defaults, on the benchmark's own Redis."""

from __future__ import annotations

import os

__all__ = ("QUEUE", "URL")

#: Environment variable: the Redis of this run.
URL = "BENCHMARKS_REDIS"

#: The queue of all tasks.
QUEUE = "bench"

broker_url = os.environ.get(URL, "redis://127.0.0.1:6379/0")
result_backend = broker_url
task_default_queue = QUEUE
broker_connection_retry_on_startup = True

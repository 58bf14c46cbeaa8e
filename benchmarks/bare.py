"""The limit: redis-py and nothing else. ``python -m benchmarks.bare NAME`` is one of the two processes that read.

It reads a hundred entries at a time, decodes them, calls a function, and acknowledges and deletes the batch in one
pipeline. It has no tracer, no retries, no signals, no heartbeat: what it leaves out is what a task queue is for.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import redis

from .project.settings import URL
from .project.tasks import mark, mark_start

__all__ = ("GROUP", "KEY", "entry", "work")

#: The stream and its consumer group.
KEY = "bare"
GROUP = "bare"

#: Entries read at once.
COUNT = 100

#: Milliseconds that a read waits.
BLOCK_MS = 2_000

#: Headers of about the size that Celery's protocol 2 has.
_HEADERS = {
    "lang": "py",
    "task": "noop",
    "id": "8f0c3b0a-6e3c-4a53-9f4e-3f7e8a6b7c5d",
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "root_id": "8f0c3b0a-6e3c-4a53-9f4e-3f7e8a6b7c5d",
    "parent_id": None,
    "argsrepr": "(1, 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx')",
    "kwargsrepr": "{}",
    "origin": "gen1@benchmarks",
}

_TASKS: dict[str, Callable[..., None]] = {
    "noop": lambda number, padding: mark(),
    "stamp": lambda since_ns: mark_start(since_ns),
}


def entry(task: str, *args: Any) -> dict[Any, Any]:
    """Return the fields of a message."""
    return {
        "headers": json.dumps({**_HEADERS, "task": task}),
        "body": json.dumps([args, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]),
    }


def work(url: str, name: str) -> None:
    """Read and run until killed."""
    client = redis.Redis.from_url(url, socket_timeout=BLOCK_MS / 1000 + 3)
    try:
        client.xgroup_create(KEY, GROUP, id="0", mkstream=True)
    except redis.ResponseError as exc:
        if "BUSYGROUP" not in str(exc):
            raise
    while True:
        found: Any = client.xreadgroup(GROUP, name, {KEY: ">"}, count=COUNT, block=BLOCK_MS)
        for _, entries in found or ():
            ids = []
            for entry_id, fields in entries:
                headers = json.loads(fields[b"headers"])
                args, kwargs, _ = json.loads(fields[b"body"])
                _TASKS[headers["task"]](*args, **kwargs)
                ids.append(entry_id)
            pipeline = client.pipeline(transaction=False)
            pipeline.xack(KEY, GROUP, *ids)
            pipeline.xdel(KEY, *ids)
            pipeline.execute()


if __name__ == "__main__":
    work(os.environ[URL], sys.argv[1])

"""The limit: redis-py and nothing else. ``python -m benchmarks.bare NAME`` is one of the two processes that read.

It reads a hundred entries at a time, decodes them, calls a function, and acknowledges and deletes the batch in one
pipeline. It has no tracer, no retries, no signals, no heartbeat: what it leaves out is what a task queue is for.

``python -m benchmarks.bare NAME traced`` is the same loop, but runs Celery's tasks through Celery's tracer, as a worker
has to: signals, results, error handling and logging are all there. What a worker costs beyond that is its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import redis

from .marks import mark, mark_start
from .project.settings import URL

__all__ = ("GROUP", "KEY", "Run", "entry", "traced", "work")

#: Runs a task: its headers, positional and keyword arguments, and what else its body says.
Run = Callable[[dict[str, Any], list[Any], dict[str, Any], dict[str, Any]], Any]

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


def called(headers: dict[str, Any], args: list[Any], kwargs: dict[str, Any], embed: dict[str, Any]) -> None:
    """Call the function of a task."""
    _TASKS[headers["task"]](*args, **kwargs)


def traced() -> Run:
    """Return what runs a task as a worker of Celery's does, whose set-up this process gets."""
    from celery.app import trace

    from .project.stock import app

    hostname = "bare@benchmarks"
    app.loader.init_worker()
    trace.setup_worker_optimizations(app, hostname)
    tracers = {
        name.rpartition(".")[2]: trace.build_tracer(name, task, app.loader, hostname, app=app)
        for name, task in app.tasks.items()
    }

    def run(headers: dict[str, Any], args: list[Any], kwargs: dict[str, Any], embed: dict[str, Any]) -> None:
        request = {**headers, "args": args, "kwargs": kwargs, "hostname": hostname, "delivery_info": {}, **embed}
        _, info, _, _ = tracers[headers["task"]](headers["id"], args, kwargs, request)
        if info is not None:
            raise RuntimeError(f"the task ended with {info}")

    return run


def work(url: str, name: str, run: Run = called) -> None:
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
                run(json.loads(fields[b"headers"]), *json.loads(fields[b"body"]))
                ids.append(entry_id)
            pipeline = client.pipeline(transaction=False)
            pipeline.xack(KEY, GROUP, *ids)
            pipeline.xdel(KEY, *ids)
            pipeline.execute()


if __name__ == "__main__":
    work(os.environ[URL], sys.argv[1], traced() if sys.argv[2:] == ["traced"] else called)

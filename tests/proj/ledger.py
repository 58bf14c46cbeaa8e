"""The ledger: what really happened, written by tasks and signal receivers through a connection of their own.

A list for each kind and id, ``ledger:KIND:ID``, and one of all executions, ``ledger:runs``. It knows nothing of Celery
or streams, so that it can be the judge of both.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis

from .settings import LEDGER

_clients: dict[tuple[int, str], redis.Redis] = {}


class Ledger:
    """The ledger in the database at ``url``; forked processes get connections of their own."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def client(self) -> redis.Redis:
        key = (os.getpid(), self.url)
        client = _clients.get(key)
        if client is None:
            # No bound: redis-py 8 would stop the writer that comes while a hundred others write.
            client = _clients[key] = redis.Redis.from_url(self.url, socket_timeout=10, max_connections=2**31)
        return client

    def write(self, kind: str, task_id: str | None, **fields: Any) -> float:
        """Append one line; returns how many seconds a paced task takes now, which costs no further round trip."""
        line = json.dumps({"id": task_id, "kind": kind, "pid": os.getpid(), "at": time.time(), **fields}, default=repr)
        with self.client.pipeline(transaction=False) as pipe:
            pipe.rpush(f"ledger:{kind}:{task_id}", line)
            if kind == "run":
                pipe.rpush("ledger:runs", line)
            pipe.get("ledger:pace")
            return float(pipe.execute()[-1] or 0.0)

    def read(self, kind: str, task_id: str) -> list[dict[str, Any]]:
        """Return the lines of one kind and id, the oldest first."""
        return [json.loads(line) for line in self.client.lrange(f"ledger:{kind}:{task_id}", 0, -1)]

    def runs(self, task_id: str | None = None) -> list[dict[str, Any]]:
        """Return the executions of one task id, or of all."""
        if task_id is not None:
            return self.read("run", task_id)
        return [json.loads(line) for line in self.client.lrange("ledger:runs", 0, -1)]

    def signals(self, task_id: str) -> list[str]:
        """Return the names of the signals that were sent for one task id, in their order within each attempt."""
        return [line["signal"] for line in self._by_attempt("signal", task_id)]

    def hooks(self, task_id: str) -> list[str]:
        """Return the names of the Task methods that were called around one task id, in order within each attempt."""
        return [line["hook"] for line in self._by_attempt("hook", task_id)]

    def _by_attempt(self, kind: str, task_id: str) -> list[dict[str, Any]]:
        # A retry is stored before on_retry and its signal: another process may start it before this one comes to them.
        return sorted(self.read(kind, task_id), key=lambda line: line.get("retries") or 0)

    def pace(self, seconds: float) -> None:
        """Say how long paced tasks take from now on."""
        self.client.set("ledger:pace", seconds)

    def close(self) -> None:
        """Close this process' connections."""
        for key in [key for key in _clients if key[1] == self.url]:
            _clients.pop(key).close()


def write(kind: str, task_id: str | None, **fields: Any) -> float:
    """Append one line to the ledger that the environment names, if it names one; returns the pace."""
    url = os.environ.get(LEDGER)
    return Ledger(url).write(kind, task_id, **fields) if url else 0.0


def count(kind: str, task_id: str) -> int:
    """Return the number of lines of one kind and id in the ledger that the environment names."""
    url = os.environ.get(LEDGER)
    return len(Ledger(url).read(kind, task_id)) if url else 0

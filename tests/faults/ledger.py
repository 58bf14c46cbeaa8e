"""The ledger: who submitted what, and what really ran; on a Redis of its own that no fault touches.

Lists of JSON lines, appended through connections of the writer's own: ``submitted`` (after the publish returned),
``uncertain`` (the publish raised: stored or not), ``runs`` (a line when a task starts, one when its body ends),
``offers`` (publishes of unique tasks, and what they were told) and ``notes`` (whatever a task has to say). It knows
nothing of Celery or streams, so that it can judge both.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from typing import Any

import redis

from tests.faults.uniqueness import Offer
from tests.faults.verdict import Run, Submission
from tests.proj.settings import LEDGER

_PAGE = 20_000


class Ledger:
    """The ledger at ``url``; a forked process gets a connection of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client: redis.Redis | None = None
        self._pid = 0

    @classmethod
    def from_environment(cls) -> Ledger:
        return cls(os.environ[LEDGER])

    @property
    def client(self) -> redis.Redis:
        if self._client is None or self._pid != os.getpid():
            self._client, self._pid = redis.Redis.from_url(self.url, socket_timeout=30), os.getpid()
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def clear(self) -> None:
        self.client.flushdb()

    # -- writing

    def append(self, name: str, **fields: Any) -> None:
        self.client.rpush(name, json.dumps(fields, default=repr))

    def first(self, task_id: str) -> bool:
        """Return whether this is the first time that anybody asks for this id."""
        return bool(self.client.set(f"first:{task_id}", 1, nx=True))

    def note(self, task_id: str, **fields: Any) -> None:
        self.append("notes", id=task_id, pid=os.getpid(), at=time.time(), **fields)

    # -- reading

    def lines(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self.client.lrange(name, len(found), len(found) + _PAGE - 1)
            found += map(json.loads, page)
            if len(page) < _PAGE:
                return found

    def count(self, name: str) -> int:
        return int(self.client.llen(name))

    def notes(self, task_id: str | None = None) -> list[dict[str, Any]]:
        return [line for line in self.lines("notes") if task_id in (None, line["id"])]

    def submissions(self) -> list[Submission]:
        return [Submission(**line) for line in self.lines("submitted")]

    def offers(self) -> list[Offer]:
        """Return the publishes of unique tasks whose answer came."""
        return [Offer(**line) for line in self.lines("offers")]

    def runs(self, task_id: str | None = None) -> list[Run]:
        """Return the executions in the order in which they started."""
        open_runs: dict[tuple[str, int, int], list[Run]] = defaultdict(list)
        found: list[Run] = []
        for line in self.lines("runs"):
            if task_id not in (None, line["id"]):
                continue
            key = (line["id"], line["retries"], line["pid"])
            if line["what"] == "start":
                run = Run(line["id"], line["retries"], line["redelivered"], line["worker"], line["pid"], line["at"])
                found.append(run)
                open_runs[key].append(run)
            else:
                for run in open_runs[key]:
                    if run.end is None:
                        run.end = line["at"]
                        break
        return found

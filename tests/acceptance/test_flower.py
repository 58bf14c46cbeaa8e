"""A real Flower, through its HTTP API: what it sees of a streams worker, and what its buttons do."""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.control import asked
from tests.support.eventually import eventually
from tests.support.processes import Program

ACT = "tests.proj.actions.act"


class Flower:
    """Flower's process and its API."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self._base = f"http://127.0.0.1:{port}/api"

    def get(self, path: str, **query: Any) -> Any:
        return self._ask(f"{path}?{urllib.parse.urlencode(query)}")

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        return self._ask(f"{path}?{urllib.parse.urlencode(query)}", data=data)

    def _ask(self, path: str, data: bytes | None = None) -> Any:
        with urllib.request.urlopen(urllib.request.Request(f"{self._base}/{path}", data=data), timeout=10) as answer:
            return json.loads(answer.read())

    def task(self, task_id: str, state: str) -> dict[str, Any]:
        """Wait until Flower has a task in a state, and return what it knows of it."""

        def known() -> dict[str, Any] | None:
            found = self.get("tasks", limit=100).get(task_id)
            return found if found and found["state"] == state else None

        return eventually(known, message=f"Flower sees {task_id} in {state}")


@pytest.fixture
def flower(project, app, tmp_path) -> Iterator[Flower]:
    """Flower beside the sample project, once it answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    program = Program(
        [
            *(sys.executable, "-m", "celery", "-A", "tests.proj", "flower", "--address=127.0.0.1", f"--port={port}"),
            *("--inspect_timeout=5000", "--logging=INFO"),
        ],
        log=tmp_path / "flower.log",
        environment={**project.environment(enabled=True), "FLOWER_UNAUTHENTICATED_API": "true"},
    )
    program.start()
    made = Flower(program, port)

    def answers() -> bool:
        assert program.running, program.log
        try:
            return isinstance(made.get("workers"), dict)
        except (urllib.error.URLError, ConnectionError):
            return False

    try:
        eventually(answers, timeout=30, message="Flower answers")
        yield made
    finally:
        program.kill()


def inspected(flower, hostname):
    """Return what the worker said of itself; Flower asks all commands at once, and keeps what came in time."""
    found = flower.get("workers", refresh=1, workername=hostname).get(hostname, {})
    return found if {"stats", "active", "active_queues", "registered", "conf"} <= found.keys() else None


def test_flower_sees_a_streams_worker_and_its_tasks_and_its_buttons_work(project, act, worker, flower):
    one = worker(concurrency=1)
    workers = eventually(lambda: inspected(flower, one.hostname), timeout=20, message="all commands are answered")
    known = eventually(lambda: (flower.get("workers", status=1) or {}).get(one.hostname), message="it is online")

    # It has asked for task events: those of any task tell that the children have heard of it.
    published = []

    def seen():
        published.append(act.delay("ok", 5))
        published[-1].get(timeout=10)
        known = flower.get("tasks")
        return next((result for result in published if result.id in known), None)

    first = eventually(seen, timeout=20, interval=0.1, message="Flower gets task events")
    succeeded = flower.task(first.id, "SUCCESS")
    failed = flower.task(act.delay("error", "boom").id, "FAILURE")
    exited = flower.task(act.delay("exit").id, "FAILURE")
    running = act.apply_async(("sleep",), {"seconds": 60})
    started = flower.task(running.id, "STARTED")

    assert known is True
    assert workers["stats"]["pool"]["max-concurrency"] == 1
    assert workers["stats"]["pid"] == one.pid
    assert [queue["name"] for queue in workers["active_queues"]] == ["celery"]
    assert any(name.startswith(ACT) for name in workers["registered"])
    assert workers["conf"]["task_default_queue"] == "celery"
    assert [task["id"] for task in workers["active"]] in ([], [running.id])
    assert (succeeded["name"], succeeded["worker"], succeeded["result"]) == (ACT, one.hostname, "5")
    assert succeeded["args"] == "('ok', 5)"
    assert 0 <= succeeded["runtime"] < 5
    assert succeeded["received"] <= succeeded["started"] <= succeeded["succeeded"]
    assert failed["exception"] == "ActionError('boom')"
    # Its process ended before it had told anybody.
    assert (exited["name"], exited["args"]) == (ACT, "('exit',)")
    assert started["worker"] == one.hostname

    flower.post(f"task/revoke/{running.id}", terminate="true")
    flower.task(running.id, "REVOKED")
    grown = flower.post(f"worker/pool/grow/{one.hostname}", n=2)
    # Flower waits a second for an answer, and the main thread, which answers, starts children.
    eventually(lambda: len(asked(act.app, "stats", one.hostname)[one.hostname]["pool"]["processes"]) == 3)
    added = flower.post(f"worker/queue/add-consumer/{one.hostname}", queue="added")
    limited = flower.post(f"task/rate-limit/{ACT}", workername=one.hostname, ratelimit="50/s")
    published = flower.post(f"task/async-apply/{ACT}", {"args": ["ok", "from Flower"], "options": {"queue": "added"}})

    assert grown["message"] == f"Growing '{one.hostname}' worker's pool by 2"
    assert added["message"] == "add consumer added"
    assert limited["message"] == "new rate limit set successfully"
    assert flower.task(published["task-id"], "SUCCESS")["result"] == "'from Flower'"

    flower.post(f"worker/shutdown/{one.hostname}")

    assert one.wait() == os.EX_OK
    assert "Traceback" not in flower.program.log

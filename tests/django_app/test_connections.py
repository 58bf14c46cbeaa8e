"""Database connections in a worker: Celery's Django fixup closes them around tasks and after a fork, here as there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_streams.embedded import EmbeddedRedis
from tests.support.django_site import PROJECT, answer, environment, manage
from tests.support.processes import PROGRAMS, Program
from tests.support.versions import needs_celery

TASKS = 60

#: Publishes to a worker with two children, and prints what the tasks found.
LOOK = f"""
import django, json; django.setup()
from chat.tasks import look_at_connection
print(json.dumps([one.get(timeout=20) for one in [look_at_connection.delay() for _ in range({TASKS})]]))
"""


@pytest.fixture(params=["streams", "lists"])
def look(request: pytest.FixtureRequest, redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path) -> Iterator[Any]:
    """Start a worker, ours or Celery's own, and return what tasks find; keywords are environment variables."""
    env = environment(
        redis_url,
        CHAT_DATABASE=str(tmp_path / "chat.sqlite3"),
        CHAT_RESULTS=redis_server.database_url(1),
        CHAT_PARENT_USES_DATABASE="1",
        CELERY_STREAMS_ENABLED=str(request.param == "streams"),
    )
    assert manage("migrate", "--run-syncdb", env=env).returncode == 0
    words = ["-A", "chatsite", "worker", "-Q", "send_message", "-c", "2", "-l", "INFO"]
    started: list[Program] = []

    def found(**more: str) -> list[dict[str, Any]]:
        command = [*PROGRAMS[request.param], *words]
        worker = Program(command, log=tmp_path / "worker.log", environment={**env, **more}, directory=PROJECT)
        started.append(worker)
        worker.start()
        return list(answer(LOOK, env={**env, **more}))

    yield found
    for worker in started:
        worker.kill()


def test_connection_is_closed_around_each_task(look: Any) -> None:
    found = look()

    assert [one["open"] for one in found] == [False] * TASKS


@needs_celery((5, 7), "before, Celery does not find CELERY_DB_REUSE_MAX in Django's settings")
def test_connection_that_is_reused_is_kept_from_task_to_task_and_is_none_of_the_parents(look: Any) -> None:
    found = look(CHAT_DB_REUSE_MAX="1000")

    children = {one["pid"] for one in found}
    assert [one["parent_has_one"] for one in found] == [True] * TASKS
    assert [one["of_parent"] for one in found] == [False] * TASKS
    first = [one["pid"] for one in found if not one["open"]]
    assert sorted(first) == sorted(children), "each child began with none"
    assert [one["same_as_before"] for one in found if one["open"]] == [True] * (TASKS - len(children))

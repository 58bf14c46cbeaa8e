"""An app of the sample project that publishes from this process, by itself or beside a worker in another process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery

import celery_streams
from tests.proj.ledger import Ledger
from tests.proj.settings import celery_settings
from tests.support.processes import Program, project_environment


@contextlib.contextmanager
def publisher(*, broker: str, results: str, queue: str = "celery", **settings: Any) -> Iterator[Celery]:
    """An installed app that knows the tasks of the sample project; ``settings`` are Celery's and ours."""
    app = Celery("publisher", set_as_current=False)
    app.conf.update(celery_settings(broker=broker, results=results, queue=queue, **settings))
    app.conf.include = ["tests.proj.actions"]
    app.loader.import_default_modules()
    celery_streams.install(app, enabled=True)
    try:
        yield app
    finally:
        celery_streams.streams_of(app).reload()
        app.close()


@dataclass(frozen=True, slots=True)
class Pair:
    """A worker that was started, what publishes to it, and what its tasks note."""

    worker: Program
    #: The action task, as the publisher knows it.
    act: Any
    ledger: Ledger
    environment: dict[str, str]


@contextlib.contextmanager
def worker_and_publisher(
    redis_url: str,
    directory: Path,
    *options: str,
    worker_url: str,
    queue: str = "celery",
    settings: dict[str, Any] | None = None,
    words: Sequence[str] = (sys.executable, "-m", "celery_streams", "-A", "tests.proj"),
) -> Iterator[Pair]:
    """A worker whose streams are at ``worker_url``, started with ``options``; the publisher has ``settings``."""
    ledger = Ledger(redis_url.rpartition("/")[0] + "/3")
    environment = project_environment(
        broker=redis_url, results=redis_url, ledger=ledger.url, enabled=True, streams_url=worker_url
    )
    worker = Program([*words, "worker", *options], log=directory / "w.log", environment=environment)
    with publisher(broker=redis_url, results=redis_url, queue=queue, **(settings or {})) as app:
        worker.start()
        try:
            yield Pair(worker, app.tasks["tests.proj.actions.act"], ledger, environment)
        finally:
            worker.stop()
            ledger.close()

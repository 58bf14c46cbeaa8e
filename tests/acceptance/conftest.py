"""A project for each test: an empty Redis, publishers, and worker processes that may be killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import celery_streams
from celery_streams import inspect as streams_inspect
from celery_streams.broker import StreamBroker
from celery_streams.dead_letters import DeadLetter, dead_letters
from celery_streams.embedded import EmbeddedRedis
from tests.proj.ledger import Ledger
from tests.proj.settings import celery_settings
from tests.support.eventually import eventually
from tests.support.processes import PROGRAMS, ROOT, Program, Worker, project_environment


class Project:
    """The sample project on one Redis: broker in database 0, results in 1, ledger in 3.

    Args:
        settings: of Celery, for all its workers and publishers.
    """

    def __init__(self, server: EmbeddedRedis, directory: Path, **settings: Any) -> None:
        self._settings = settings
        self.urls = {"broker": server.database_url(0), "results": server.database_url(1)}
        self.ledger = Ledger(server.database_url(3))
        self._directory = directory
        self._workers: list[Worker] = []
        self._programs: list[Program] = []
        self._apps: list[Celery] = []

    def environment(self, **options: Any) -> dict[str, str]:
        """Return the environment of a process of this project; see ``project_environment``."""
        return project_environment(**{**self.urls, "ledger": self.ledger.url, **self._settings, **options})

    def worker(
        self,
        program: str = "streams",
        *,
        name: str = "worker",
        queues: str = "celery",
        concurrency: int | None = 2,
        pool: str = "prefork",
        options: Sequence[str] = (),
        wait: bool = True,
        **environment: Any,
    ) -> Worker:
        """Start a worker of the sample project."""
        environment.setdefault("install", program == "streams")
        environment.setdefault("enabled", True if program == "streams" else None)
        worker = Worker(
            program,
            name=name,
            queues=queues,
            directory=self._directory,
            environment=self.environment(**environment),
            concurrency=concurrency,
            pool=pool,
            options=options,
        )
        self._workers.append(worker)
        worker.start()
        if wait:
            worker.wait_ready()
        return worker

    def command(self, *words: str, program: str = "streams", directory: Path = ROOT, **environment: Any) -> Program:
        """Start ``celery-streams`` (or ``celery``: "lists") with these words and nothing else."""
        log = self._directory / f"command-{len(self._programs)}.log"
        settings = {"enabled": True, **environment}
        made = Program(
            [*PROGRAMS[program], *words], log=log, environment=self.environment(**settings), directory=directory
        )
        self._programs.append(made)
        made.start()
        return made

    def app(self, *, enabled: Any = True, include: Sequence[str] = (), **settings: Any) -> Celery:
        """Return an installed app that publishes from this process; ``include`` are more modules with tasks."""
        app = Celery("publisher", set_as_current=False)
        app.conf.update(celery_settings(**self.urls, queue="celery", **{**self._settings, **settings}))
        app.conf.include = ["tests.proj.tasks", "tests.proj.actions", *include]
        app.loader.import_default_modules()
        celery_streams.install(app, enabled=enabled)
        app.finalize()
        self._apps.append(app)
        return app

    @property
    def broker(self) -> StreamBroker:
        """The streams' broker of the last app."""
        return celery_streams.streams_of(self._apps[-1]).broker

    def status(self, queue: str = "celery") -> streams_inspect.QueueStatus:
        """Return what Redis says of a queue."""
        return streams_inspect.queue_status(self.broker, queue)

    def dead_letters(self, queue: str = "celery") -> list[DeadLetter]:
        """Return the dead letters of a queue."""
        return list(dead_letters(self.broker, queue))

    def starts(self, task_id: str, times: int = 1, *, timeout: float = 15.0) -> list[dict[str, Any]]:
        """Wait until a task was started so many times, and return its executions."""

        def found() -> list[dict[str, Any]]:
            runs = self.ledger.runs(task_id)
            return runs if len(runs) >= times else []

        return eventually(found, timeout=timeout, message=f"task {task_id} started {times} times")

    def counted(self) -> Counter[str]:
        """Return how often each task id was started."""
        return Counter(run["id"] for run in self.ledger.runs())

    def close(self) -> None:
        for program in (*self._workers, *self._programs):
            program.kill()
        for app in self._apps:
            app.backend.result_consumer.stop()
            app.backend.result_consumer.subscribed_to.clear()
            app.backend.client.close()
            celery_streams.streams_of(app).reload()
            app.close()
        self.ledger.close()


@pytest.fixture
def project(
    redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Project]:
    """The sample project on an empty Redis; with ``--on-cluster`` all but its ledger is on an empty Redis Cluster."""
    made = Project(redis_server, tmp_path)
    if request.config.getoption("--on-cluster"):
        nodes = request.getfixturevalue("three_masters")
        nodes.flush()
        made.urls = {"broker": nodes.url, "results": nodes.url}
    yield made
    made.close()


@pytest.fixture
def app(project: Project) -> Celery:
    """A publisher of the sample project, on streams."""
    return project.app()


@pytest.fixture
def act(app: Celery) -> Any:
    """The action task, published to streams."""
    return app.tasks["tests.proj.actions.act"]


@pytest.fixture
def worker(project: Project) -> Callable[..., Worker]:
    """Start workers of the sample project: ``worker("streams", name="first")``."""
    return project.worker

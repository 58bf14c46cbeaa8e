"""Fixtures of the scenarios: a stage with a Redis of its own, the ledger, workers, and a publisher."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery._state import _set_current_app, get_current_app

import celery_streams
from celery_streams import inspect, keys
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.dead_letters import DeadLetter, dead_letters
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerUnavailable
from tests.faults.ledger import Ledger
from tests.faults.verdict import Run
from tests.faults.workers import FaultWorker
from tests.proj.settings import celery_settings
from tests.support.cluster import Cluster, cluster
from tests.support.eventually import eventually
from tests.support.processes import project_environment

QUEUE = "stage"

#: Seconds; short, so that recovery is quick, and long enough for a machine that is busy.
VISIBILITY_TIMEOUT = 2.0

#: Settings of workers and publisher alike.
SETTINGS: dict[str, Any] = {
    "streams_visibility_timeout": VISIBILITY_TIMEOUT,
    "broker_connection_retry_on_startup": True,
}


@dataclass
class Stage:
    """One scenario: a Redis to harm, a ledger that nothing harms, a publisher, and as many workers as are started."""

    server: EmbeddedRedis
    books: EmbeddedRedis
    ledger: Ledger
    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)
    #: Where workers and publisher find Redis; a proxy may stand in between.
    url: str = ""
    #: The cluster that the server is a node of: that with the queue.
    nodes: Cluster | None = None
    workers: list[FaultWorker] = field(default_factory=list)
    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _app: Celery | None = None
    _client: RedisClient | None = None
    _node: RedisClient | None = None

    # -- workers

    def worker(self, name: str = "w1", *, ready: bool = True, **options: Any) -> FaultWorker:
        """Start a worker; ``point`` names a place of :mod:`tests.faults.points` at which it kills itself once,
        ``broken`` a build of :mod:`tests.faults.broken`.
        """
        environment = dict(options.pop("environment", {}))
        point, broken = options.pop("point", None), options.pop("broken", None)
        include: Sequence[str] = options.pop("include", ())
        settings = {**SETTINGS, **self.settings, **options.pop("settings", {})}
        if point is not None:
            environment |= {"FAULTS_POINT": point, "FAULTS_POINT_FILE": os.fspath(self.directory / f"{point}.died")}
            include = ["tests.faults.points"]
        if broken is not None:
            environment["FAULTS_BROKEN"] = broken
            include = ["tests.faults.broken", *include]
        made = FaultWorker(
            name=name,
            queues=options.pop("queues", QUEUE),
            directory=self.directory,
            include=include,
            environment={
                **project_environment(
                    broker=options.pop("url", self.url),
                    results=self.books.database_url(1),
                    ledger=self.books.url,
                    queue=QUEUE,
                    enabled=True,
                    **settings,
                ),
                **environment,
            },
            **options,
        )
        self.workers.append(made)
        made.start()
        if ready:
            made.wait_ready()
        return made

    def died_at(self, point: str) -> bool:
        return (self.directory / f"{point}.died").exists()

    # -- publishing

    @property
    def app(self) -> Celery:
        if self._app is None:
            app = Celery(f"stage-{uuid.uuid4().hex[:6]}", set_as_current=False)
            app.conf.update(
                celery_settings(broker=self.url, results=self.books.database_url(1), queue=QUEUE, **SETTINGS)
            )
            app.conf.update(streams_enabled=True, **self.settings)
            celery_streams.install(app)
            self._app = app
        return self._app

    def send(self, action: str, *, task: str = "quiet", **options: Any) -> str:
        """Publish one task; options of ``apply_async`` are those that it knows, all others go to the action."""
        known = (
            "countdown",
            "eta",
            "priority",
            "retry",
            "task_id",
            "queue",
            "expires",
            "retry_policy",
            "time_limit",
            "soft_time_limit",
        )
        publish = {name: options.pop(name) for name in known if name in options}
        publish.setdefault("retry", False)
        publish.setdefault("task_id", uuid.uuid4().hex)
        # The result is not kept: its backend may be away when it is forgotten.
        self.app.send_task(f"tests.faults.app.{task}", (action,), options, ignore_result=task == "quiet", **publish)
        return str(publish["task_id"])

    # -- looking

    @property
    def client(self) -> RedisClient:
        if self._client is None:
            self._client = self.other_client()
        return self._client

    @property
    def node(self) -> RedisClient:
        """A client of the server that is harmed, for what names no key."""
        if self._node is None:
            self._node = RedisClient(self.server.url)
            self._closing.callback(self._node.close)
        return self._node

    def other_client(self) -> RedisClient:
        """Return one more client, for a thread."""
        made = RedisClient(self.server.url) if self.nodes is None else self.nodes.client()
        self._closing.callback(made.close)
        return made

    @property
    def broker(self) -> StreamBroker:
        return StreamBroker(self.client)

    def status(self) -> inspect.QueueStatus:
        return inspect.queue_status(self.broker, QUEUE)

    def empty(self) -> bool:
        """Return whether nothing waits, runs or is delayed; not while a node of a cluster does not serve again yet."""
        try:
            status = self.status()
        except BrokerUnavailable:
            if self.nodes is None:
                raise
            return False
        return not (status.waiting or status.pending or status.delayed)

    def letters(self) -> list[DeadLetter]:
        return list(dead_letters(self.broker, QUEUE))

    def runs(self, task_id: str | None = None) -> list[Run]:
        return self.ledger.runs(task_id)

    def ended(self, *task_ids: str) -> bool:
        """Return whether each of these tasks was run to its end."""
        done = {run.id for run in self.runs() if run.end is not None}
        return done >= set(task_ids)

    def started(self, task_id: str, times: int = 1) -> bool:
        return len(self.runs(task_id)) >= times

    def wait(self, condition: Callable[..., Any], *, timeout: float = 10.0, message: str = "") -> Any:
        """Wait for a condition; when it does not come, the workers' logs are part of the failure."""
        try:
            return eventually(condition, timeout=timeout, message=message)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.logs()}") from exc

    def drained(self, *task_ids: str, timeout: float = 15.0) -> None:
        """Wait until these tasks ran to their end and nothing is left."""
        self.wait(lambda: self.ended(*task_ids), timeout=timeout, message="the tasks ran")
        self.wait(self.empty, timeout=timeout, message="nothing is left")

    def logs(self) -> str:
        return "\n".join(f"--- {worker.name}\n{worker.log[-4000:]}" for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        if self._app is not None:
            celery_streams.streams_of(self._app).reload()
            self._app.backend.client.close()
            self._app.close()
        self._closing.close()


@pytest.fixture(scope="session")
def books() -> Iterator[EmbeddedRedis]:
    """The ledger's server."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def make_stage(books: EmbeddedRedis, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Stage]]:
    """Make stages; options are those of the Redis that is harmed, with ``--on-cluster`` of each of three masters."""
    before = get_current_app()
    with contextlib.ExitStack() as stack:

        def make(*, settings: dict[str, Any] | None = None, **server: Any) -> Stage:
            nodes = None
            if request.config.getoption("--on-cluster"):
                nodes = stack.enter_context(cluster(full_coverage=False, **server))
                target = nodes.servers[nodes.owner(keys.queue_keys(keys.DEFAULT_PREFIX, QUEUE).delayed)]
            else:
                target = stack.enter_context(EmbeddedRedis(**server))
            url = target.url if nodes is None else nodes.url
            ledger = Ledger(books.url)
            ledger.clear()
            stack.callback(ledger.close)
            stage = Stage(target, books, ledger, tmp_path, settings or {}, url=url, nodes=nodes)
            stack.callback(stage.close)
            return stage

        yield make
    _set_current_app(before)


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """A stage with a Redis that keeps nothing."""
    return make_stage()


@pytest.fixture
def now() -> float:
    return time.time()

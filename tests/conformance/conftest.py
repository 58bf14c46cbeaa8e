"""The same project on both sides: a stock ``celery worker`` on lists and ``celery-streams worker`` on streams.

The workers run for the whole session on a Redis of their own, because other tests flush theirs.

``side``
    ``lists``, ``streams``, and ``streams-watched``: a streams worker that sends events and has a receiver for
    task_received. A plain message takes a short way through a streams worker only while nobody watches; both ways
    must behave the same.
``watched``
    ``lists`` and ``streams-watched``: for tests of events and of task_received.
``plain``
    ``lists`` and ``streams``: for what has nothing to do with the way of a message, and takes long.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery._state import _set_current_app, get_current_app

import celery_streams
from celery_streams.dead_letters import DeadLetter, dead_letters
from celery_streams.embedded import EmbeddedRedis
from tests.proj.ledger import Ledger
from tests.proj.settings import SETTINGS as SETTINGS_VARIABLE
from tests.proj.settings import celery_settings
from tests.support.eventually import eventually
from tests.support.processes import Worker, project_environment

#: Redis databases: the brokers are apart, so that remote control of one side never reaches another.
DATABASES = {"lists": 0, "streams": 2, "streams-watched": 4}
RESULTS, LEDGER = 1, 3

#: Settings beyond the sample project's, for workers and publishers.
SETTINGS: dict[str, Any] = {"result_expires": 600, "worker_proc_alive_timeout": 10.0, "worker_lost_wait": 0.3}


@dataclass
class Side:
    """One side: the app that publishes, the worker that runs, and the ledger that knows."""

    name: str
    app: Celery
    queue: str
    ledger: Ledger
    worker: Worker
    environment: dict[str, str]

    @property
    def on_streams(self) -> bool:
        return self.name != "lists"

    @property
    def program(self) -> str:
        return "streams" if self.on_streams else "lists"

    @property
    def routed_queue(self) -> str:
        """The queue of ``act_routed``."""
        return f"{self.queue}-routed"

    @property
    def bound_queue(self) -> str:
        """The queue that is bound to the exchange QUEUE-exchange with the routing key bound.key."""
        return f"{self.queue}-bound"

    def task(self, name: str) -> Any:
        """Return a task of the sample project by its short name."""
        return self.app.tasks[f"tests.proj.actions.{name}"]

    @property
    def act(self) -> Any:
        return self.task("act")

    def value(self, result: Any, timeout: float = 15.0) -> Any:
        """Return the result's value, or raise what the task raised."""
        return result.get(timeout=timeout, interval=0.02)

    def error(self, result: Any, timeout: float = 15.0) -> BaseException:
        """Return what the task raised."""
        found = result.get(timeout=timeout, interval=0.02, propagate=False)
        assert isinstance(found, BaseException), f"the task did not fail, it returned {found!r}"
        return found

    def state(self, result: Any, *states: str) -> str:
        """Wait until the result is in one of ``states`` and return it."""
        return eventually(lambda: result.state if result.state in states else "", message=f"state in {states}")

    def ran(self, task_id: str, times: int = 1) -> list[dict[str, Any]]:
        """Wait until a task was started so many times and return its executions."""

        def runs() -> list[dict[str, Any]]:
            found = self.ledger.runs(task_id)
            return found if len(found) >= times else []

        return eventually(runs, message=f"task {task_id} started {times} times")

    def settled(self) -> None:
        """Wait until a task that was published after everything else is done; what came before it has begun."""
        assert self.value(self.act.delay("ok", "settled")) == "settled"

    @property
    def inspect(self) -> Any:
        """Celery's inspect, of this side's worker."""
        return self.app.control.inspect([self.worker.hostname], timeout=5, limit=1)

    def control(self, command: str, *args: Any, **options: Any) -> Any:
        """Call a command of Celery's remote control on this side's worker, and return what it answered."""
        reply = getattr(self.app.control, command)(
            *args, destination=[self.worker.hostname], reply=True, timeout=5, limit=1, **options
        )
        assert reply, f"no answer to {command}"
        return reply[0][self.worker.hostname]

    def dead_letters(self, task_id: str) -> list[DeadLetter]:
        """Return the dead letters of one task id (streams only)."""
        broker = celery_streams.streams_of(self.app).broker
        return [letter for letter in dead_letters(broker, self.queue) if letter.task_id == task_id]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Side]]:
    """Give the sides, each made when it is first asked for; the workers of all start together."""
    directory: Path = tmp_path_factory.mktemp("conformance")
    before = get_current_app()
    sides: dict[str, Side] = {}
    with EmbeddedRedis() as server:
        try:
            for name in DATABASES:
                sides[name] = _side(name, server, directory)
                sides[name].worker.start()

            def give(name: str) -> Side:
                sides[name].worker.wait_ready()
                return sides[name]

            yield give
        finally:
            for side in sides.values():
                if side.worker.running:
                    side.worker.process.terminate()
            for side in sides.values():
                side.worker.stop()
                _forget_results(side.app)
                side.app.close()
                if side.on_streams:
                    celery_streams.streams_of(side.app).reload()
            for side in sides.values():
                side.ledger.close()
            _set_current_app(before)


def _forget_results(app: Celery) -> None:
    """Close the backend's connections, so that results which are still referred to have nothing to cancel."""
    consumer = app.backend.result_consumer
    consumer.stop()
    consumer.subscribed_to.clear()
    app.backend.client.close()


def _side(name: str, server: EmbeddedRedis, directory: Path) -> Side:
    on_streams = name != "lists"
    queue = f"conformance-{name}"
    settings = {
        **SETTINGS,
        "task_routes": {"tests.proj.actions.act_routed": {"queue": f"{queue}-routed"}},
        "task_queues": {
            f"{queue}-bound": {"exchange": f"{queue}-exchange", "exchange_type": "direct", "routing_key": "bound.key"}
        },
    }
    urls = {"broker": server.database_url(DATABASES[name]), "results": server.database_url(RESULTS)}
    environment = project_environment(
        **urls,
        ledger=server.database_url(LEDGER),
        queue=queue,
        install=on_streams,
        enabled=True if on_streams else None,
        watched=name != "streams",
        **settings,
    )
    worker = Worker(
        "streams" if on_streams else "lists",
        name=name,
        queues=f"{queue},{queue}-routed,{queue}-bound",
        directory=directory,
        environment=environment,
        options=("-E",) if name == "streams-watched" else (),
    )
    app = Celery(f"publisher-{name}", set_as_current=False)
    app.conf.update(celery_settings(**urls, queue=queue, **settings))
    app.conf.include = ["tests.proj.actions", "tests.proj.tasks"]
    app.loader.import_default_modules()
    if on_streams:
        app.conf.streams_enabled = True
        celery_streams.install(app)
    app.finalize()
    return Side(name, app, queue, Ledger(server.database_url(LEDGER)), worker, environment)


def _current(side: Side) -> Iterator[Side]:
    before = get_current_app()
    side.app.set_current()
    yield side
    _set_current_app(before)


@pytest.fixture(params=["lists", "streams", "streams-watched"])
def side(request: pytest.FixtureRequest, world: Callable[[str], Side]) -> Iterator[Side]:
    """Each side in turn, its app being the current one."""
    yield from _current(world(request.param))


@pytest.fixture(params=["lists", "streams-watched"])
def watched(request: pytest.FixtureRequest, world: Callable[[str], Side]) -> Iterator[Side]:
    """Each side in turn, with a worker that sends events and has a receiver for task_received."""
    yield from _current(world(request.param))


@pytest.fixture(params=["lists", "streams"])
def plain(request: pytest.FixtureRequest, world: Callable[[str], Side]) -> Iterator[Side]:
    """Each side in turn, with a worker that was started without events."""
    yield from _current(world(request.param))


@pytest.fixture(params=["streams", "streams-watched"])
def streams(request: pytest.FixtureRequest, world: Callable[[str], Side]) -> Iterator[Side]:
    """The streams side only, for what differs deliberately."""
    yield from _current(world(request.param))


@pytest.fixture
def another_worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start one more worker of a side, with one child and a queue of its own: ``another_worker(side, "name")``.

    Keywords are settings; ``options`` are words of its command line.
    """
    started: list[Worker] = []

    def start(
        side: Side,
        name: str,
        *,
        options: tuple[str, ...] = (),
        pool: str = "prefork",
        wait: bool = True,
        **changed: Any,
    ) -> Worker:
        known = json.loads(side.environment[SETTINGS_VARIABLE])
        environment = {**side.environment, SETTINGS_VARIABLE: json.dumps({**known, **changed})}
        worker = Worker(
            side.program,
            name=name,
            queues=f"{side.queue}-{name}",
            directory=tmp_path,
            environment=environment,
            concurrency=1,
            pool=pool,
            options=options,
        )
        started.append(worker)
        worker.start()
        if wait:
            worker.wait_ready()
        return worker

    yield start
    for worker in started:
        worker.stop()


@pytest.fixture
def both(world: Callable[[str], Side]) -> tuple[Side, Side]:
    """The two sides at once, for comparisons."""
    return world("lists"), world("streams")


@pytest.fixture
def new_id() -> str:
    """A task id that nobody has used."""
    return uuid.uuid4().hex

"""Fixtures for all tests: a real Redis for each test process, flushed before each test, and Celery apps on streams."""

from __future__ import annotations

import compileall
import gc
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Generator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Celery, _state
from celery._state import _set_current_app, _set_task_join_will_block, get_current_app
from celery.worker import state as worker_state
from hypothesis import HealthCheck, settings
from kombu import pools

import celery_streams
from celery_streams.broker import StreamBroker
from celery_streams.cluster import connect
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from tests.support import template
from tests.support.cluster import Cluster, cluster
from tests.support.eventually import eventually
from tests.support.on_cluster import HOLDS, LEFT_OUT
from tests.support.processes import ROOT
from tests.support.threads import own_threads

for _name in [name for name in os.environ if name.startswith("CELERY_")]:
    del os.environ[_name]

# How long an example takes says how busy the machine is.
settings.register_profile("suite", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start background commands that way, and what they start inherits it: Ctrl-C would reach nobody.
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: What the processes that tests start import from here.
_STARTED = ("celery_streams", "django_integration", "tests/proj", "tests/support", "tests/django_project", "examples")


def pytest_configure(config: pytest.Config) -> None:
    """Keep byte code where Python keeps none (PYTHONDONTWRITEBYTECODE, as containers have it), once for all processes.

    A worker would else compile the whole package when it starts, which is almost half of its start, a thousand times.
    """
    template.from_nothing |= config.getoption("--from-nothing")
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        for folder in _STARTED:
            compileall.compile_dir(ROOT / folder, quiet=2)


@pytest.fixture(autouse=True)
def _as_in_a_new_process() -> None:
    """Undo what tests of workers in this process leave in Celery's state and in the loggers: they disable ours."""
    worker_state.reset_state()
    _set_task_join_will_block(False)
    logging.disable(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    for name, one in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] in ("celery_streams", "django_integration") and isinstance(one, logging.Logger):
            one.disabled, one.propagate = False, True
            one.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_test() -> Iterator[None]:
    """Fail a test that leaves a thread of ours: it would go on asking the Redis of the tests after it."""
    before = own_threads()
    yield
    eventually(lambda: not own_threads() - before, message="the threads that the test began have ended")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without the garbage collector, which looks again and again at thousands of tests that stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--from-nothing",
        action="store_true",
        help="start each worker as its users do, and fork none from a process that has imported it already",
    )
    parser.addoption(
        "--on-cluster",
        action="store_true",
        help="acceptance tests and faults: broker and streams (acceptance: results, too) on a Redis Cluster",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--on-cluster"):
        return
    chosen = []
    for item in items:
        if item.path.parent.name == "integration":
            if item.path.stem not in HOLDS:
                continue
            if why := LEFT_OUT.get(f"{item.path.stem}::{getattr(item, 'originalname', item.name)}"):
                item.add_marker(pytest.mark.skip(reason=f"one server: {why}"))
        marker = item.get_closest_marker("one_server")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"one server: {marker.args[0]}"))
        chosen.append(item)
    items[:] = chosen


@pytest.fixture(scope="session")
def three_masters() -> Iterator[Cluster]:
    """A Redis Cluster for this test process, whose nodes nobody harms."""
    with cluster() as made:
        yield made


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """A server for this test process."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """URL of database 0 of an empty server."""
    if redis_server.pid is None:
        redis_server.start()
    client = RedisClient(redis_server.url)
    client.call("FLUSHALL")
    client.close()
    _forget_connections(redis_server)
    return redis_server.url


def _forget_connections(server: EmbeddedRedis) -> None:
    """Drop what kombu keeps open to ``server``: a test before may have had the server cut it.

    The pools themselves stay usable, since an app that outlives a test (a Django project's) holds on to its own.
    """
    port = urlsplit(server.url).port
    for group in (pools.producers, pools.connections):
        for pool in [pool for parameters, pool in group.items() if port in parameters]:
            pool.force_close_all(close_pool=False)
            pool.setup()


@pytest.fixture
def streams_url(redis_url: str, request: pytest.FixtureRequest) -> str:
    """URL of where streams are: the same, with ``--on-cluster`` an empty Redis Cluster."""
    if not request.config.getoption("--on-cluster"):
        return redis_url
    nodes: Cluster = request.getfixturevalue("three_masters")
    nodes.flush()
    return nodes.url


@pytest.fixture
def client(streams_url: str) -> Iterator[RedisClient]:
    """A client of the empty database."""
    made = connect(streams_url)
    yield made
    made.close()


@pytest.fixture
def broker(client: RedisClient) -> StreamBroker:
    """A broker on the empty database."""
    return StreamBroker(client)


@pytest.fixture
def app(redis_url: str, streams_url: str) -> Iterator[Callable[..., Celery]]:
    """Make fresh Celery apps: ``app(task_serializer="pickle")``.

    Each has the test's Redis as broker (``/0``) and result backend (``/1``), is installed on streams unless
    ``installed=False``, and does not become the current app.
    """
    made: list[Celery] = []

    def make(*, installed: bool = True, cls: type[Celery] = Celery, **settings: Any) -> Celery:
        values = {
            "broker_url": streams_url if installed else redis_url,
            "result_backend": redis_url.rpartition("/")[0] + "/1",
            "streams_enabled": True,
            "broker_connection_retry_on_startup": False,
            **settings,
        }
        if not installed:
            values = {name: value for name, value in values.items() if not name.startswith("streams_")}
        fresh = cls(f"tests-{uuid.uuid4().hex[:8]}", set_as_current=False)
        fresh.conf.update(values)
        if installed:
            celery_streams.install(fresh)
        made.append(fresh)
        return fresh

    before, finalizers = get_current_app(), set(_state._on_app_finalizers)
    yield make
    for one in made:
        if celery_streams.is_installed(one):
            celery_streams.streams_of(one).reload()
        one.close()
    _set_current_app(before)
    # Celery gives a task that was declared with @app.task to every app that is finalized later.
    _state._on_app_finalizers = finalizers

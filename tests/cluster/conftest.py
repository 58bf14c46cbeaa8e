"""A Redis Cluster of three masters for each test process, flushed before each test, and projects that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.cluster import ClusterClient
from celery_streams.embedded import EmbeddedRedis
from tests.acceptance.conftest import Project
from tests.support.cluster import Cluster


@pytest.fixture
def nodes(three_masters: Cluster) -> Cluster:
    """Three masters, empty."""
    three_masters.flush()
    return three_masters


@pytest.fixture
def shards(nodes: Cluster) -> Iterator[ClusterClient]:
    """A client of the empty cluster."""
    made = nodes.client()
    yield made
    made.close()


@pytest.fixture
def on_shards(shards: ClusterClient) -> StreamBroker:
    """A broker on the empty cluster."""
    return StreamBroker(shards)


@pytest.fixture
def make_project(redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Project]]:
    """Make the sample project: its streams on a cluster, all else on a single server."""
    made: list[Project] = []

    def make(found: Cluster, **settings: Any) -> Project:
        made.append(Project(redis_server, tmp_path, streams_url=found.url, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def project(make_project: Callable[..., Project], nodes: Cluster) -> Project:
    """The sample project on three masters."""
    return make_project(nodes)

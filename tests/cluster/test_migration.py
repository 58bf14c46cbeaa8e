"""What is queued moves between Celery's lists on one server and streams on a Redis Cluster, wherever it is cut off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from celery import Celery

from celery_streams.broker import StreamBroker
from celery_streams.cluster import ClusterClient
from celery_streams.connection import RedisClient
from celery_streams.migration import Migration
from celery_streams.partitions import partitions
from tests.integration.test_migration import Cut, delayed, on_lists, on_streams, seed_lists
from tests.support.cluster import Cluster
from tests.support.redis_state import message, redis_state

pytestmark = pytest.mark.cluster

#: In this order they run: by priority.
NOW = ["t0", "t1", "t2", "t3", "t4", "t5", "t7", "t6"]
LATER = ["t8", "t9"]


class CutCluster(ClusterClient):
    """A client of a cluster that breaks at the Nth round trip of all that share its count, as ``Cut`` does."""

    def __init__(self, url: str, left: list[int], *, after: bool) -> None:
        super().__init__(url)
        self._cut = Cut.__new__(Cut)
        self._cut.left, self._cut.after = left, after

    def call(self, *command: Any) -> Any:
        return self._cut._count(lambda: super(CutCluster, self).call(*command))

    def pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        found: list[Any] = self._cut._count(lambda: super(CutCluster, self).pipeline(commands))
        return found


@pytest.fixture
def lists(redis_url: str) -> Iterator[RedisClient]:
    """A client of the single server, where the lists are."""
    made = RedisClient(redis_url)
    yield made
    made.close()


@pytest.fixture
def stock(app: Callable[..., Celery]) -> Celery:
    """A project that has never heard of streams."""
    return app(installed=False)


def migration(broker: StreamBroker, lists: RedisClient) -> Migration:
    return Migration(broker, lists, options={}, visibility_timeout=15.0)


def left_behind(*clients: RedisClient) -> list[str]:
    """Return the keys of migrations that hold something; tags end by themselves."""
    return [key for one in clients for key in redis_state(one) if "migrating" in key and not key.endswith(":tags")]


def test_what_is_queued_goes_to_the_cluster_and_back(
    stock: Celery, on_shards: StreamBroker, lists: RedisClient
) -> None:
    seed_lists(stock)

    there = migration(on_shards, lists).to_streams("q")

    assert (there.moved, there.delayed) == (8, 2)
    assert (on_streams(on_shards), delayed(on_shards), on_lists(lists)) == (NOW, LATER, [])

    back = migration(on_shards, lists).to_lists("q")

    assert (back.moved, back.delayed) == (8, 2)
    assert (on_streams(on_shards), delayed(on_shards)) == ([], [])
    assert sorted(on_lists(lists)) == sorted([*NOW, *LATER])
    assert [one for one in on_lists(lists) if one in NOW] == NOW
    assert left_behind(on_shards.client, lists) == []


def test_queue_in_partitions_comes_back_whole(on_shards: StreamBroker, lists: RedisClient) -> None:
    names = partitions("q", 4)
    for number, name in enumerate(names):
        on_shards.publish(name, message(number))
        on_shards.delay(name, message(10 + number), due_ms=9_000_000_000_000, member=f"m{number}")

    moves = migration(on_shards, lists).to_lists("q")

    assert (moves.moved, moves.delayed) == (4, 4)
    assert sorted(on_lists(lists)) == ["0", "1", "10", "11", "12", "13", "2", "3"]
    assert [on_streams(on_shards, name) + delayed(on_shards, name) for name in names] == [[]] * 4
    assert left_behind(on_shards.client, lists) == []


@pytest.mark.parametrize("after", [False, True], ids=["before it is sent", "its reply is lost"])
@pytest.mark.parametrize("to", ["to_streams", "to_lists"])
def test_migration_that_is_cut_anywhere_and_run_again_loses_and_doubles_nothing(
    stock: Celery, on_shards: StreamBroker, nodes: Cluster, lists: RedisClient, redis_url: str, to: str, after: bool
) -> None:
    trip, was_cut = 0, True
    while was_cut:
        trip += 1
        for client in (lists, *nodes.clients):
            client.call("FLUSHALL")
        seed_lists(stock)
        if to == "to_lists":
            migration(on_shards, lists).to_streams("q")
        left = [trip]
        shards, cut_lists = CutCluster(nodes.url, left, after=after), Cut(redis_url, left, after=after)
        with contextlib.suppress(ConnectionResetError):
            getattr(migration(StreamBroker(shards), cut_lists), to)("q")
        was_cut = left[0] <= 0
        shards.close()
        cut_lists.close()

        getattr(migration(on_shards, lists), to)("q")

        ran = on_lists(lists) if to == "to_lists" else [*on_streams(on_shards), *delayed(on_shards)]
        assert sorted(ran) == sorted([*NOW, *LATER]), f"cut at round trip {trip}"
        assert left_behind(on_shards.client, lists) == []
    assert trip > 8, "it was cut at each of them"

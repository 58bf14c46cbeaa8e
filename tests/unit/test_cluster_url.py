"""The URL of a Redis Cluster: what it means, and what is refused; nothing is connected to."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from celery import Celery

import celery_streams
from celery_streams.cluster import ClusterClient, connect
from celery_streams.connection import RedisClient
from celery_streams.exceptions import ConfigurationError, SlotElsewhere
from celery_streams.redis_url import ConnectionOptions


def made(url: str, **options: Any) -> ClusterClient:
    client = connect(url, ConnectionOptions(**options))
    assert isinstance(client, ClusterClient)
    return client


def test_several_start_nodes_share_user_and_options() -> None:
    client = made("rediss+cluster://me:pw@one:7000?ssl_cert_reqs=none;two;[::1]:7002;redis+cluster://three:7003/0")

    assert client._cluster.starts == [("one", 7000), ("two", 6379), ("::1", 7002), ("three", 7003)]
    for address in client._cluster.starts:
        node = client._cluster.at(address)
        connection = node._pool.make_connection()
        assert (connection.host, connection.port, connection.username, connection.password) == (*address, "me", "pw")
        assert type(connection).__name__ == "SSLConnection"
        assert connection.db == 0
    assert "pw" not in client.shown


def test_other_urls_lead_to_a_single_server() -> None:
    assert type(connect("redis://one:6379/3")) is RedisClient


def test_streams_lie_where_the_broker_is_unless_another_url_is_set() -> None:
    app = Celery("cluster", broker="redis+cluster://one:7000;two:7001", set_as_current=False)
    celery_streams.install(app)

    client = celery_streams.streams_of(app).new_broker().client

    assert isinstance(client, ClusterClient)
    assert client._cluster.starts == [("one", 7000), ("two", 7001)]
    app.conf.streams_url = "redis://elsewhere"
    celery_streams.streams_of(app).reload()
    assert type(celery_streams.streams_of(app).new_broker().client) is RedisClient


def test_cluster_holds_none_of_celerys_lists() -> None:
    app = Celery("cluster", broker="redis+cluster://me:secret@one:7000", set_as_current=False)
    celery_streams.install(app)

    with pytest.raises(ConfigurationError, match="holds no lists") as caught:
        celery_streams.streams_of(app).new_list_client()

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+cluster://one/3", "no database but 0"),
        ("redis+cluster://one?db=2", "no database but 0"),
        ("redis+cluster://one:x", "not a Redis URL"),
        ("redis+cluster://one;two:x", "not a Redis URL"),
        ("redis+cluster://one?no_such_option=1", "bad connection options"),
    ],
)
def test_url_that_no_cluster_has_is_refused_in_one_line(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        made(url)

    assert "\n" not in str(caught.value)


def test_another_database_of_a_cluster_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no database but 0"):
        made("redis+cluster://one", other_database=3)


@pytest.mark.parametrize(
    ("said", "address", "only_once"),
    [
        (redis.ResponseError("MOVED 3387 one:7001"), ("one", 7001), False),
        (redis.ResponseError("ASK 3387 one:7001"), ("one", 7001), True),
        (redis.ResponseError("MOVED 3387 :7001"), ("here", 7001), False),
        (redis.exceptions.MovedError("3387 one:7001"), ("one", 7001), False),
        (redis.exceptions.AskError("3387 one:7001"), ("one", 7001), True),
    ],
)
def test_moved_slot_is_understood_with_and_without_a_class_of_the_driver_for_it(
    said: redis.ResponseError, address: tuple[str, int], only_once: bool
) -> None:
    node = made("redis+cluster://here:7000")._cluster.at(("here", 7000))

    found = node._translate(said, "GET")

    assert isinstance(found, SlotElsewhere)
    assert (found.slot, found.address, found.only_once) == (3387, address, only_once)


@pytest.mark.parametrize(
    "said",
    [
        redis.ResponseError("CROSSSLOT Keys in request don't hash to the same slot"),
        redis.exceptions.ClusterCrossSlotError("Keys in request don't hash to the same slot"),
    ],
)
def test_keys_that_lie_apart_are_understood_with_and_without_a_class_for_it(said: redis.ResponseError) -> None:
    node = made("redis+cluster://here:7000")._cluster.at(("here", 7000))

    assert "must not begin with '}'" in str(node._translate(said, "EVALSHA"))

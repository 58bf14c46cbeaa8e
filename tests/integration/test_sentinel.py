"""Behind Redis Sentinel: the master is asked for, also after a failover."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.entries import Delivery
from celery_streams.exceptions import BrokerError, BrokerUnavailable
from celery_streams.reads import receive_blocking_read, send_blocking_read
from celery_streams.redis_url import ConnectionOptions
from tests.support.eventually import eventually
from tests.support.redis_state import message, number_of
from tests.support.sentinel import NAME, Watched, watched


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Watched]:
    with watched(tmp_path) as made:
        yield made


def test_broker_finds_the_master_through_the_sentinel_and_the_next_one_after_a_failover(servers: Watched) -> None:
    client = RedisClient(servers.url, ConnectionOptions(transport={"master_name": NAME}))
    broker = StreamBroker(client)
    connection = client.open()
    broker.ensure_groups(["q"])
    broker.publish("q", message(1))
    send_blocking_read(connection, broker.streams(["q"]), "w", block_ms=1_000)
    first = receive_blocking_read(connection, broker.streams(["q"]), timeout=2.0)
    assert [number_of(one) for one in first] == [1]
    assert RedisClient(servers.master.url).call("WAIT", 1, 5_000) == 1
    before = servers.master_port()

    servers.master.kill()

    def published() -> bool:
        try:
            broker.publish("q", message(2))
        except BrokerUnavailable:
            return False
        return True

    eventually(published, timeout=20, interval=0.1, message="the publish reaches the new master")
    again = broker.read(broker.streams(["q"]), "w", count=5)
    assert [number_of(one) for one in again] == [2]
    assert (before, servers.master_port()) == (servers.master.port, servers.replica.port)
    connection.close()
    client.close()


def failover_begins(servers: Watched) -> bool:
    """Order a failover; the Sentinel refuses until it has asked the replica how it is."""
    try:
        return bool(servers.sentinel.call("SENTINEL", "FAILOVER", NAME) == b"OK")
    except BrokerError as exc:
        if "NOGOODSLAVE" not in str(exc):
            raise
        return False


#: Seconds after which a Sentinel has told the old master of a planned failover.
_TOLD_AFTER = 12.0


def test_planned_failover_loses_no_publish(servers: Watched) -> None:
    client = RedisClient(servers.url, ConnectionOptions(transport={"master_name": NAME}))
    broker = StreamBroker(client)
    broker.ensure_groups(["q"])
    broker.publish("q", message(0))
    stored, refused, number = [0], 0, 0

    eventually(lambda: failover_begins(servers), timeout=20, interval=0.2)
    deadline = time.monotonic() + _TOLD_AFTER
    while time.monotonic() < deadline:
        number += 1
        try:
            broker.publish("q", message(number))
        except BrokerUnavailable:
            refused += 1
        else:
            stored.append(number)

    eventually(lambda: servers.master_port() == servers.replica.port)
    with contextlib.closing(RedisClient(servers.replica.url)) as survivor:
        found = {one.message.body for one in everything(StreamBroker(survivor)) if one.message is not None}
    assert [one for one in stored if message(one).body not in found] == []
    assert len(stored) > 1_000
    assert refused < 100
    client.close()


def test_publisher_that_starts_during_a_planned_failover_loses_no_publish(servers: Watched) -> None:
    # Given a failover that was announced before anybody listened
    StreamBroker(RedisClient(servers.master.url)).ensure_groups(["q"])
    copy = RedisClient(servers.replica.url)
    eventually(lambda: copy.call("EXISTS", "celery-streams:{q}"), timeout=20)
    copy.close()
    eventually(lambda: failover_begins(servers), timeout=20, interval=0.2)

    # When a process publishes its first messages, until the master has changed and on
    client = RedisClient(servers.url, ConnectionOptions(transport={"master_name": NAME}))
    broker, stored, number = StreamBroker(client), [], 0
    after = 200
    while after:
        number += 1
        with contextlib.suppress(BrokerUnavailable):
            broker.publish("q", message(number))
            stored.append(number)
        after -= servers.master_port() == servers.replica.port

    # Then the new one has them all
    with contextlib.closing(RedisClient(servers.replica.url)) as survivor:
        found = {one.message.body for one in everything(StreamBroker(survivor)) if one.message is not None}
    assert [one for one in stored if message(one).body not in found] == []
    assert len(stored) > 100
    client.close()


def everything(broker: StreamBroker) -> Iterator[Delivery]:
    while part := broker.read(broker.streams(["q"]), "w", count=1_000):
        yield from part


def test_reader_follows_a_planned_failover(servers: Watched) -> None:
    client = RedisClient(servers.url, ConnectionOptions(transport={"master_name": NAME}))
    broker = StreamBroker(client)
    broker.ensure_groups(["q"])
    # What the replica has not heard of is lost by any failover.
    copy = RedisClient(servers.replica.url)
    eventually(lambda: copy.call("EXISTS", broker.queue_keys("q").streams[0]), timeout=20)
    copy.close()
    connection = client.open()
    eventually(lambda: failover_begins(servers), timeout=20, interval=0.2)
    eventually(lambda: servers.master_port() == servers.replica.port, timeout=20)
    eventually(lambda: client.call("CONFIG", "GET", "port")[1] == str(servers.replica.port).encode(), timeout=3)

    broker.publish("q", message(1))
    send_blocking_read(connection, broker.streams(["q"]), "w", block_ms=1_000)

    found = receive_blocking_read(connection, broker.streams(["q"]), timeout=2.0)
    assert [number_of(one) for one in found] == [1]
    connection.close()
    client.close()


def test_master_that_became_a_replica_is_left_for_the_new_one(servers: Watched) -> None:
    client = RedisClient(servers.url, ConnectionOptions(transport={"master_name": NAME}))
    assert client.call("SET", "key", 1) == b"OK"

    eventually(lambda: failover_begins(servers), timeout=20, interval=0.2)

    def stored() -> bool:
        try:
            return client.call("SET", "key", 2) == b"OK" and servers.master_port() == servers.replica.port
        except BrokerUnavailable:
            return False

    eventually(stored, timeout=20, interval=0.1)
    assert RedisClient(servers.replica.url).call("GET", "key") == b"2"
    client.close()

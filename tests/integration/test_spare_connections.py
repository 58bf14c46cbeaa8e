"""Connections that only a rush of threads needed."""

from __future__ import annotations

import threading

from freezegun import freeze_time

from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from tests.support.eventually import eventually


def connections(broker: StreamBroker, *, after: int = 0, doing: str = "") -> list[int]:
    """Return the numbers of the connections that were made later, and whose last command is ``doing``."""
    said = broker.client.call("CLIENT", "LIST").decode()
    found = [int(line[3:].partition(" ")[0]) for line in said.splitlines() if f" cmd={doing}" in line]
    return [number for number in found if number > after]


def test_connections_of_a_rush_are_closed_at_the_first_use_after_half_a_minute(
    broker: StreamBroker, redis_url: str
) -> None:
    last = max(connections(broker))
    client = RedisClient(redis_url)

    threads = [threading.Thread(target=client.call, args=("BLPOP", "work", 4)) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: connections(broker, after=last, doing="blpop")[2:])
    broker.client.call("RPUSH", "work", "1", "2", "3")
    for thread in threads:
        thread.join()
    client.call("PING")
    assert len(connections(broker, after=last)) == 3

    with freeze_time():  # whose monotonic clock is ahead by far
        client.call("PING")

    assert eventually(lambda: len(connections(broker, after=last)) == 1)
    client.close()


def test_connection_that_nobody_used_for_minutes_is_not_used_again(redis_url: str) -> None:
    client = RedisClient(redis_url)
    first = client.call("CLIENT", "ID")
    assert client.call("CLIENT", "ID") == first

    with freeze_time():  # whose monotonic clock is ahead by far
        assert client.call("CLIENT", "ID") != first
    client.close()

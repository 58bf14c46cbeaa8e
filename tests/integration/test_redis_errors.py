"""Errors of Redis as workers count them: each kind as a real server makes it, and what is no error."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from celery_streams import redis_errors
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerError
from celery_streams.redis_errors import ERROR_KINDS, count_errors
from tests.support.eventually import eventually


@pytest.fixture
def counted() -> Iterator[Counter[str]]:
    found: Counter[str] = Counter()
    before = redis_errors._on_error
    count_errors(lambda kind: found.update([kind]))
    yield found
    redis_errors._on_error = before


def refused(client: RedisClient, *command: object) -> None:
    with pytest.raises(BrokerError):
        client.call(*command)


def test_server_that_is_away_is_an_error_of_the_connection(counted: Counter[str]) -> None:
    refused(RedisClient("redis://127.0.0.1:1/0"), "PING")

    assert counted == {"connection": 1}


def test_replica_is_readonly(client: RedisClient, counted: Counter[str]) -> None:
    client.call("REPLICAOF", "127.0.0.1", "1")
    try:
        refused(client, "SET", "key", "value")
        with contextlib.suppress(BrokerError):
            client.pipeline([("SET", "key", "value")])
    finally:
        client.call("REPLICAOF", "NO", "ONE")

    assert counted == {"readonly": 2}


def test_full_server_is_full(client: RedisClient, counted: Counter[str]) -> None:
    client.call("CONFIG", "SET", "maxmemory", "1")
    try:
        refused(client, "SET", "key", "value")
    finally:
        client.call("CONFIG", "SET", "maxmemory", "0")

    assert counted == {"full": 1}


def test_server_that_runs_a_script_for_too_long_is_busy(client: RedisClient, counted: Counter[str]) -> None:
    client.call("CONFIG", "SET", "lua-time-limit", "5")
    other = RedisClient(client.url)

    def spin() -> None:
        with contextlib.suppress(BrokerError):
            other.call("EVAL", "while true do end", 0)

    thread = threading.Thread(target=spin)
    thread.start()
    try:

        def is_busy() -> bool:
            with contextlib.suppress(BrokerError):
                client.call("PING")
            return counted["busy"] > 0

        eventually(is_busy)
    finally:
        client.call("SCRIPT", "KILL")
        thread.join()
        client.call("CONFIG", "SET", "lua-time-limit", "5000")

    assert counted.keys() <= {"busy", "other"}  # the script that was killed is another


def test_missing_permission_and_wrong_password_are_denied(
    client: RedisClient, redis_url: str, counted: Counter[str]
) -> None:
    client.call("ACL", "SETUSER", "poor", "reset", "on", ">pw", "~*", "+@all", "-set")
    try:
        refused(RedisClient(redis_url.replace("://", "://poor:pw@")), "SET", "key", "value")
        refused(RedisClient(redis_url.replace("://", "://poor:wrong@")), "PING")
    finally:
        client.call("ACL", "DELUSER", "poor")

    assert counted == {"denied": 2}


def test_key_of_another_type_is_another_error_and_what_is_missing_is_none(
    broker: StreamBroker, counted: Counter[str]
) -> None:
    broker.ensure_groups(["q"])
    broker.ensure_groups(["q"])
    broker.client.call_all([("XINFO", "STREAM", "no such key")], missing_is_none=True)
    broker.client.call("SET", "text", "x")

    refused(broker.client, "XLEN", "text")

    assert counted == {"other": 1}


def test_kinds_are_those_that_are_documented() -> None:
    assert ERROR_KINDS == ("connection", "readonly", "full", "busy", "denied", "other")


def test_server_that_was_killed_is_counted_by_whoever_waits_for_it(counted: Counter[str]) -> None:
    with EmbeddedRedis() as server:
        client = RedisClient(server.database_url(0))
        client.call("PING")
    refused(client, "PING")

    assert counted["connection"] == counted.total() > 0

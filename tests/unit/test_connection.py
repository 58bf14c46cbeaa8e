"""URLs: every form that Celery's users have, and one clear line for each that cannot work."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from celery_streams.connection import RedisClient
from celery_streams.exceptions import BrokerUnavailable, ConfigurationError
from celery_streams.redis_url import ConnectionOptions, safe_url


def connection_of(url: str, **options: Any) -> Any:
    return RedisClient(url, ConnectionOptions(**options))._pool.make_connection()


@pytest.mark.parametrize(
    ("url", "host", "port", "db"),
    [
        ("redis://", "localhost", 6379, 0),
        ("redis://cache", "cache", 6379, 0),
        ("redis://cache:7000/3", "cache", 7000, 3),
        ("redis://cache?db=4", "cache", 6379, 4),
        ("valkey://cache:7000/3", "cache", 7000, 3),
        ("redis://[::1]:7000/1", "::1", 7000, 1),
    ],
)
def test_tcp_url_gives_host_port_and_database(url: str, host: str, port: int, db: int) -> None:
    made = connection_of(url)

    assert (made.host, made.port, made.db) == (host, port, db)


@pytest.mark.parametrize("url", ["rediss://cache:7000/3", "valkeys://cache:7000/3"])
def test_rediss_url_is_encrypted(url: str) -> None:
    made = connection_of(url)

    assert "SSL" in type(made).__name__
    assert (made.host, made.port, made.db) == ("cache", 7000, 3)


def test_broker_use_ssl_encrypts_a_plain_url() -> None:
    made = connection_of("redis://cache", ssl={"ssl_cert_reqs": "none"})

    assert "SSL" in type(made).__name__


@pytest.mark.parametrize(
    "url",
    ["unix:///run/redis.sock?db=2", "redis+socket:///run/redis.sock?virtual_host=2", "socket:///run/redis.sock?db=2"],
)
def test_socket_url_gives_path_and_database(url: str) -> None:
    made = connection_of(url)

    assert (made.path, made.db) == ("/run/redis.sock", 2)


def test_sentinel_url_asks_all_sentinels_for_the_named_master() -> None:
    client = RedisClient(
        "sentinel://:secret@one:26379/2;sentinel://two:26380", ConnectionOptions(transport={"master_name": "main"})
    )

    manager = client._pool
    assert manager.service_name == "main"
    sentinels = [
        (s.connection_pool.connection_kwargs["host"], s.connection_pool.connection_kwargs["port"])
        for s in manager.sentinel_manager.sentinels
    ]
    assert sentinels == [("one", 26379), ("two", 26380)]
    assert manager.connection_kwargs["db"] == 2
    assert manager.connection_kwargs["password"] == "secret"


def test_sentinel_master_may_stand_in_the_url() -> None:
    assert RedisClient("sentinel://one:26379/0?master_name=main")._pool.service_name == "main"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("amqp://guest@localhost//", "streams need a Redis or Valkey URL"),
        ("memory://", "streams need a Redis or Valkey URL"),
        ("sqs://", "streams need a Redis or Valkey URL"),
        ("localhost:6379", "streams need a Redis or Valkey URL"),
        ("", "streams need a Redis or Valkey URL"),
        ("redis://cache:port/0", "is not a Redis URL"),
        ("redis://cache:99999/0", "is not a Redis URL"),
        ("redis://cache/zero", "is not a Redis URL"),
        ("redis://[::1/0", "is not a Redis URL"),
        ("redis://cache?no_such_option=1", "bad connection options"),
        ("sentinel://one:26379", "master_name"),
        ("sentinel://one:port/0?master_name=main", "is not a"),
        ("redis+cluster://cache", "Cluster is not supported yet"),
        ("rediss+cluster://cache", "Cluster is not supported yet"),
    ],
)
def test_bad_url_is_one_clear_line(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        RedisClient(url)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:secret@cache:port/0",
        "redis://user:sec/secret@cache:6379/0",
        "redis://user:secret/ret@cache:6379/0",
        "redis://user:secret#ret@cache:6379/0",
        "sentinel://user:secret/ret@one:26379/0?master_name=main",
        "amqp://user:secret@rabbit//",
    ],
)
def test_bad_url_does_not_show_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisClient(url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://cache:7000/3", "redis://cache:7000/3"),
        ("redis://user:secret@cache:7000/3", "redis://user:**@cache:7000/3"),
        ("redis://:secret@cache", "redis://:**@cache"),
        ("redis://user:se@cret@cache", "redis://user:**@cache"),
        ("redis://user:se/cr?et@cache", "redis://user:**@cache"),
        ("redis://user@cache:7000", "redis://user@cache:7000"),
        ("sentinel://:a@one;sentinel://:b@two", "sentinel://:**@one;sentinel://:**@two"),
        ("unix://:secret@/run/redis.sock?db=1", "unix://:**@/run/redis.sock?db=1"),
        ("unix:///run/redis.sock?password=secret&db=1", "unix:///run/redis.sock?password=**&db=1"),
    ],
)
def test_shown_url_has_no_password(url: str, shown: str) -> None:
    assert safe_url(url) == shown


def test_server_away_is_our_error_with_the_host_and_without_the_password() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        with pytest.raises(BrokerUnavailable) as caught:
            RedisClient(f"redis://user:secret@127.0.0.1:{port}/0").call("PING")

    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_client_reconnects_without_end() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = RedisClient(f"redis://127.0.0.1:{taken.getsockname()[1]}/0")

        for _ in range(150):
            with pytest.raises(BrokerUnavailable, match="refused"):
                client.call("PING")


def test_sentinel_client_may_reconnect_without_end() -> None:
    pool = RedisClient("sentinel://one:26379/0?master_name=main")._pool

    assert pool.max_connections >= 2**31


def test_transport_options_reach_the_connection() -> None:
    made = connection_of(
        "redis://cache", transport={"socket_timeout": 7, "socket_connect_timeout": 2, "socket_keepalive": True}
    )

    assert (made.socket_timeout, made.socket_connect_timeout, made.socket_keepalive) == (7, 2, True)


def test_connection_without_options_has_finite_timeouts() -> None:
    made = connection_of("redis://cache", connect_timeout=1.5)

    assert made.socket_timeout == 5.0
    assert made.socket_connect_timeout == 1.5

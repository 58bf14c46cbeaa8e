"""URLs: every form that Celery's users have, and one clear line for each that cannot work."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
import redis

from celery_streams.connection import RedisClient
from celery_streams.exceptions import BrokerUnavailable, ConfigurationError
from celery_streams.redis_url import ConnectionOptions, place, safe_url


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
        ("redis+cluster://cache", "as broker_url, streams_url and result_backend can be"),
        ("rediss+cluster://cache", "as broker_url, streams_url and result_backend can be"),
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
    assert not str(caught.value).endswith("."), "log lines put one behind it"


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


# -- options as Celery and kombu document them


class Credentials(redis.CredentialProvider):
    def get_credentials(self) -> tuple[str, str]:
        return "user", "of the provider"


@pytest.mark.parametrize("scheme", ["rediss", "redis", "valkeys", "sentinel"])
@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("CERT_NONE", ssl.CERT_NONE),
        ("CERT_OPTIONAL", ssl.CERT_OPTIONAL),
        ("CERT_REQUIRED", ssl.CERT_REQUIRED),
        ("none", ssl.CERT_NONE),
        ("optional", ssl.CERT_OPTIONAL),
        ("required", ssl.CERT_REQUIRED),
    ],
)
def test_ssl_cert_reqs_may_be_celerys_word_or_redis_pys(scheme: str, word: str, value: int) -> None:
    made = connection_of(f"{scheme}://cache:7000/3?ssl_cert_reqs={word}", transport={"master_name": "main"})

    assert "SSL" in type(made).__name__
    assert made.cert_reqs == value
    assert made.db == 3
    assert made.check_hostname is (value != ssl.CERT_NONE)


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("rediss://cache", True),
        ("rediss://cache?ssl_ca_certs=/ca.pem", True),
        ("rediss://cache?ssl_check_hostname=false", False),
        ("rediss://cache?ssl_cert_reqs=CERT_NONE", False),
        ("sentinel://one?master_name=main&ssl_ca_certs=/ca.pem", True),
    ],
)
def test_certificate_is_that_of_the_host_with_every_redis_py(url: str, checked: bool) -> None:
    assert connection_of(url).check_hostname is checked


@pytest.mark.parametrize("word", ["CERT_NONE", "none", ssl.CERT_NONE, 0])
@pytest.mark.parametrize("url", ["rediss://cache", "redis://cache", "sentinel://one?master_name=main"])
def test_broker_use_ssl_may_hold_words_too(url: str, word: Any) -> None:
    assert connection_of(url, ssl={"ssl_cert_reqs": word}).cert_reqs == ssl.CERT_NONE


def test_tls_options_of_a_url_replace_broker_use_ssl_as_with_kombu() -> None:
    made = connection_of("rediss://cache?ssl_ca_certs=/ca.pem", ssl={"ssl_cert_reqs": "none", "ssl_ca_certs": "/x"})

    assert (made.cert_reqs, made.ca_certs) == (ssl.CERT_REQUIRED, "/ca.pem")


def test_all_tls_options_of_a_url_have_their_types() -> None:
    made = connection_of(
        "rediss://cache?ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_ca_certs=/ca.pem&ssl_ca_path=/etc/ssl"
        "&ssl_check_hostname=false&ssl_min_version=TLSv1_2&ssl_ciphers=HIGH&ssl_password=x&ssl_validate_ocsp=false"
    )

    assert (made.certfile, made.keyfile, made.ca_certs, made.ca_path) == ("/c.pem", "/k.pem", "/ca.pem", "/etc/ssl")
    assert made.check_hostname is False
    assert made.ssl_validate_ocsp is False
    assert (made.ssl_min_version, made.ssl_ciphers) == (ssl.TLSVersion.TLSv1_2, "HIGH")


def test_bare_rediss_url_is_verified() -> None:
    assert connection_of("rediss://cache").cert_reqs == ssl.CERT_REQUIRED


@pytest.mark.parametrize("url", ["redis://cache", "rediss://cache", "unix:///run/r.sock", "sentinel://one"])
@pytest.mark.parametrize(
    "query", ["heartbeat=0", "heartbeat=30", "login_method=PLAIN&insist=1", "connect_timeout=2", "max_connections=10"]
)
def test_option_that_kombu_takes_and_redis_has_no_use_for_is_taken(url: str, query: str) -> None:
    client = RedisClient(f"{url}?{query}", ConnectionOptions(transport={"master_name": "main"}))

    for _ in range(20):
        assert client._pool.make_connection()


@pytest.mark.parametrize("query", ["decode_responses=true", "protocol=3", "retry_on_error=x", "retry_on_timeout=true"])
def test_option_of_redis_py_that_would_change_replies_or_send_twice_has_no_effect(query: str) -> None:
    made = connection_of(f"redis://cache?{query}")

    assert made.protocol == 2
    assert made.encoder.decode_responses is False
    assert made.retry._retries == 0


@pytest.mark.parametrize("url", ["redis://u:p@cache", "sentinel://u:p@one", "unix://u:p@/run/r.sock"])
@pytest.mark.parametrize("in_url", [True, False])
def test_credential_provider_takes_the_place_of_the_user(url: str, in_url: bool) -> None:
    name = f"{__name__}.Credentials"
    transport = {"master_name": "main", **({} if in_url else {"credential_provider": Credentials()})}

    made = connection_of(f"{url}?credential_provider={name}" if in_url else url, transport=transport)

    assert isinstance(made.credential_provider, Credentials)
    assert (made.username, made.password) == (None, None) or not made.password


def test_socket_options_of_tcp_are_left_out_for_a_unix_socket() -> None:
    made = connection_of("unix:///run/redis.sock", transport={"socket_keepalive": True, "socket_timeout": 3})

    assert (made.path, made.socket_timeout) == ("/run/redis.sock", 3)


@pytest.mark.parametrize(
    ("url", "transport", "expected"),
    [
        ("redis://cache?socket_timeout=7&socket_connect_timeout=2", {"socket_timeout": 9}, (7.0, 2.0)),
        ("redis://cache?connect_timeout=3", {}, (5.0, 3.0)),
        ("redis://cache?socket_timeout=0", {}, (5.0, 4.0)),
        ("redis://cache", {"socket_timeout": "7", "socket_connect_timeout": "2.5"}, (7.0, 2.5)),
        ("sentinel://one?socket_timeout=7", {"master_name": "main"}, (7.0, 4.0)),
    ],
)
def test_timeouts_of_a_url_come_first_and_are_always_finite(
    url: str, transport: dict[str, Any], expected: tuple[float, float]
) -> None:
    made = connection_of(url, transport=transport)

    assert (made.socket_timeout, made.socket_connect_timeout) == expected


def test_sentinels_are_asked_with_finite_timeouts_and_their_own_options() -> None:
    client = RedisClient(
        "sentinel://one;sentinel://two/0?master_name=main",
        ConnectionOptions(
            transport={
                "sentinel_kwargs": {"password": "of sentinels", "ssl": True, "ssl_cert_reqs": "CERT_NONE"},
                "min_other_sentinels": 1,
            }
        ),
    )

    manager = client._pool.sentinel_manager
    assert manager.min_other_sentinels == 1
    for sentinel in manager.sentinels:
        made = sentinel.connection_pool.make_connection()
        assert (made.socket_timeout, made.socket_connect_timeout) == (5.0, 4.0)
        assert (made.password, made.cert_reqs) == ("of sentinels", ssl.CERT_NONE)


def test_celerys_older_settings_fill_what_a_url_leaves_open() -> None:
    older = {"username": "u", "password": "p", "port": 7000, "database": "4"}

    open_one = connection_of("redis://cache", **older)
    full_one = connection_of("redis://v:w@cache:7001/5", **older)

    assert (open_one.username, open_one.password, open_one.port, open_one.db) == ("u", "p", 7000, 4)
    assert (full_one.username, full_one.password, full_one.port, full_one.db) == ("v", "w", 7001, 5)


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://cache/0", 0),
        ("redis://cache//", 0),
        ("redis://cache?db=0", 0),
        ("redis://cache/", 4),
        ("unix:///run/redis.sock?virtual_host=0", 0),
        ("unix:///run/redis.sock", 4),
    ],
)
def test_database_zero_of_a_url_comes_before_celerys_older_setting(url: str, database: int) -> None:
    assert connection_of(url, database="4").db == database
    assert place(url, default_database="4")[2] == str(database)


@pytest.mark.parametrize(
    "url",
    [
        "rediss://cache?ssl_cert_reqs=maybe",
        "rediss://cache?ssl_min_version=TLSv9",
        "redis://cache?socket_timeout=soon",
        "sentinel://one?master_name=main&ssl_cert_reqs=maybe",
        "redis://cache?credential_provider=no.such.Thing",
        "sentinel://one?master_name=main&no_such_option=1",
    ],
)
def test_option_that_means_nothing_is_one_clear_line(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be|must be|bad connection options") as caught:
        RedisClient(url)

    assert "\n" not in str(caught.value)


def test_transport_options_reach_the_connection() -> None:
    made = connection_of(
        "redis://cache", transport={"socket_timeout": 7, "socket_connect_timeout": 2, "socket_keepalive": True}
    )

    assert (made.socket_timeout, made.socket_connect_timeout, made.socket_keepalive) == (7, 2, True)


def test_connection_without_options_has_finite_timeouts() -> None:
    made = connection_of("redis://cache", connect_timeout="1.5")

    assert made.socket_timeout == 5.0
    assert made.socket_connect_timeout == 1.5

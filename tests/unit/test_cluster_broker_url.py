"""``redis+cluster://`` as the URL of kombu's connections: what they take from it, show, and hand on; none connects."""

from __future__ import annotations

import pickle

import pytest
from celery import Celery
from kombu import Connection

import celery_streams
from celery_streams.bindings import broker_place
from celery_streams.cluster import ClusterClient
from celery_streams.cluster_results import ClusterBackend
from celery_streams.cluster_transport import Transport
from celery_streams.exceptions import ConfigurationError
from celery_streams.installation import connect_to_clusters


@pytest.fixture(autouse=True)
def _known() -> None:
    connect_to_clusters()


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster", "valkey+cluster", "REDIS+CLUSTER"])
def test_url_leads_to_our_transport_whatever_copy_of_the_connection_is_used(scheme: str) -> None:
    made = Connection(f"{scheme}://me:p%40ss@one:7000;two;[::1]:7002", transport_options={"socket_timeout": 2.0})

    for one in (made, made.clone(), pickle.loads(pickle.dumps(made))):
        assert type(one.transport) is Transport
        starts = one.transport.nodes._cluster.starts
        connection = one.transport.nodes._cluster.at(starts[0])._pool.make_connection()
        assert starts == [("one", 7000), ("two", 6379), ("::1", 7002)]
        assert (connection.username, connection.password, connection.socket_timeout) == ("me", "p@ss", 2.0)
        assert (type(connection).__name__ == "SSLConnection") == scheme.startswith("rediss")


@pytest.mark.parametrize(
    ("url", "shown", "full"),
    [
        ("redis+cluster://one:7000;two", "redis+cluster://one:7000;two", "redis+cluster://one:7000;two"),
        ("redis+cluster://me:p%40ss@one", "redis+cluster://me:**@one", "redis+cluster://me:p%40ss@one"),
        ("redis+cluster://:secret@one;two", "redis+cluster://:**@one;two", "redis+cluster://:secret@one;two"),
        ("redis+cluster://one?password=secret", "redis+cluster://:**@one", "redis+cluster://:secret@one"),
        (
            "redis+cluster://one?socket_timeout=2&username=me&password=secret;two",
            "redis+cluster://me:**@one?socket_timeout=2;two",
            "redis+cluster://me:secret@one?socket_timeout=2;two",
        ),
    ],
)
def test_password_is_shown_to_nobody_who_has_not_asked_for_it(url: str, shown: str, full: str) -> None:
    made = Connection(url)

    assert made.as_uri() == shown
    assert made.as_uri(include_password=True) == full
    # What `inspect stats` tells everybody: all but the password.
    info = made.info()
    info.pop("password")
    assert "secret" not in str(info)
    assert "ss@" not in str(info)
    assert made.transport.nodes._options.password == (None if shown == full else made.password)


def test_alternatives_of_the_setting_are_the_nodes_of_one_cluster() -> None:
    app = Celery("cluster", broker=["redis+cluster://one:7000", "two:7001"], set_as_current=False)  # type: ignore[arg-type]
    celery_streams.install(app)

    connection = app.connection_for_write()

    assert connection.transport.nodes._cluster.starts == [("one", 7000), ("two", 7001)]
    assert connection.cycle is None
    assert celery_streams.streams_of(app).is_own_broker(connection)
    client = celery_streams.streams_of(app).broker.client
    assert isinstance(client, ClusterClient)
    assert client._cluster.starts == [("one", 7000), ("two", 7001)]
    assert broker_place(connection) == ("one", 7000, "0")


def test_settings_fill_what_the_url_leaves_open() -> None:
    app = Celery("cluster", broker="redis+cluster://one", set_as_current=False)
    app.conf.update(
        broker_user="me", broker_password="secret", broker_port=7000, broker_use_ssl={"ssl_cert_reqs": "none"}
    )
    celery_streams.install(app)

    nodes = app.connection_for_write().transport.nodes

    connection = nodes._cluster.at(nodes._cluster.starts[0])._pool.make_connection()
    assert (connection.port, connection.username, connection.password) == (7000, "me", "secret")
    assert type(connection).__name__ == "SSLConnection"


@pytest.mark.parametrize(
    ("url", "said"),
    [("redis+cluster://one/3", "no database but 0"), ("redis+cluster://one:x", "not a Redis URL")],
)
def test_url_that_no_cluster_has_is_one_line_at_the_first_use(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        _ = Connection(url).transport

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "transport", "hostname", "alternatives"),
    [
        ("redis://me:pw@one:7000/3", "redis", "one", []),
        ("redis+socket:///run/redis.sock", "redis", "socket:///run/redis.sock", []),
        ("sentinel://one:1;sentinel://two:2", "sentinel", "one", ["sentinel://one:1", "sentinel://two:2"]),
        ("sqla+sqlite:///x.db", "sqla", "sqlite:///x.db", []),
        ("memory://", "memory", "localhost", []),
    ],
)
def test_other_urls_are_kombus_as_before(url: str, transport: str, hostname: str, alternatives: list[str]) -> None:
    made = Connection(url)

    assert (made.transport_cls, made.hostname or "localhost", made.alt) == (transport, hostname, alternatives)


def test_kombu_is_taught_once_and_keeps_its_signature() -> None:
    before = Connection.__init__

    connect_to_clusters()

    assert Connection.__init__ is before
    assert Connection("redis+cluster://one", "me", "pw", None, 7000).password == "pw"


def test_app_that_was_pickled_for_a_spawned_process_knows_clusters_once_it_is_installed_there() -> None:
    app = Celery("cluster", broker="redis+cluster://one:7000;two", set_as_current=False)
    app.conf.result_backend = "redis+cluster://one:7000;two"
    celery_streams.install(app)

    again = pickle.loads(pickle.dumps(app))
    celery_streams.install(again)

    for one in (app, again):
        assert type(one.backend) is ClusterBackend
        assert type(one.connection_for_write().transport) is Transport

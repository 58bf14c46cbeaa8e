"""Tokens for passwords, as managed servers have them: asked for at each connect; and no connection grows old."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

import celery_streams
from celery_streams.connection import RedisClient
from celery_streams.exceptions import BrokerUnavailable, ConfigurationError, LoginRefused
from celery_streams.redis_url import ConnectionOptions
from tests.proj.ledger import Ledger
from tests.support.credentials import FILE, PROVIDER, write_credentials
from tests.support.eventually import eventually
from tests.support.processes import ROOT, Worker, project_environment
from tests.support.publisher import publisher

USER = "streams"


class Tokens:
    """A user of the server whose token changes, and the file from which the provider takes it."""

    def __init__(self, client: RedisClient, url: str, path: Path) -> None:
        self._client = client
        self._path = path
        self._count = 0
        #: The URL of the server, with a part that makes it another one for each test.
        self.url = f"{url}?credential_provider={PROVIDER}&client_name={path.parent.name}"
        self.rotate()

    def rotate(self, *, told: bool = True) -> None:
        """Replace the token; unless ``told`` the provider does not know the new one yet."""
        self._count += 1
        self._client.call("ACL", "SETUSER", USER, "on", f">token-{self._count}", "~*", "&*", "+@all")
        if told:
            self.tell()
        # A token is good for a while after the next one was given out, or a login in between would be refused.
        self._client.call("ACL", "SETUSER", USER, "resetpass", f">token-{self._count}")

    def tell(self) -> None:
        write_credentials(self._path, USER, f"token-{self._count}")

    def blocked(self) -> list[int]:
        """Return the numbers of the user's connections on which a read blocks."""
        said = self._client.call("CLIENT", "LIST").decode().splitlines()
        return [int(line[3:].partition(" ")[0]) for line in said if f" user={USER} " in line and " flags=b " in line]

    def cut(self) -> None:
        """End all connections of the user, as a server does when their time is over."""
        self._client.call("CLIENT", "KILL", "USER", USER)


@pytest.fixture
def tokens(client: RedisClient, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tokens]:
    path = tmp_path / "credentials"
    monkeypatch.setenv(FILE, str(path))
    yield Tokens(client, redis_url, path)
    client.call("ACL", "DELUSER", USER)


def test_provider_is_asked_at_each_connect(tokens: Tokens) -> None:
    client = RedisClient(tokens.url)
    assert client.call("ACL", "WHOAMI") == USER.encode()

    tokens.rotate()
    tokens.cut()
    blocking = client.open()
    blocking.send("ACL", "WHOAMI")

    assert blocking.receive() == USER.encode()
    with pytest.raises(BrokerUnavailable):
        client.pipeline([("PING",)])  # on the connection that was cut a moment ago
    assert client.call("ACL", "WHOAMI") == USER.encode()
    blocking.close()
    client.close()


def test_token_that_ended_is_passing_once_the_server_has_let_in(tokens: Tokens) -> None:
    client = RedisClient(tokens.url)
    client.call("PING")
    tokens.rotate(told=False)
    tokens.cut()
    client.close()

    with pytest.raises(BrokerUnavailable, match="refused the login with a token"):
        client.call("PING")
    with pytest.raises(BrokerUnavailable, match="refused the login with a token"):
        client.open().send("PING")

    tokens.tell()
    assert client.call("PING") == b"PONG"
    client.close()


def test_publisher_tries_again_until_the_provider_has_the_next_token(
    tokens: Tokens, app: Callable[..., Celery]
) -> None:
    publisher = app(streams_url=tokens.url, task_publish_retry_policy={"interval_start": 0.05, "max_retries": 200})

    @publisher.task(name="t", shared=False)
    def task() -> None: ...

    task.delay()
    tokens.rotate(told=False)
    tokens.cut()
    celery_streams.streams_of(publisher).broker.client.close()
    later = threading.Timer(0.5, tokens.tell)
    later.start()

    task.delay()

    later.join()
    assert celery_streams.streams_of(publisher).broker.client.call("XLEN", "celery-streams:{celery}") == 2


def test_first_token_that_is_wrong_is_a_refusal(tokens: Tokens) -> None:
    tokens.rotate(told=False)

    with pytest.raises(LoginRefused):
        RedisClient(tokens.url).call("PING")


class Failing(redis.CredentialProvider):
    """Whose own service is away at first."""

    def __init__(self) -> None:
        self.fails = True

    def get_credentials(self) -> tuple[str, str]:
        if self.fails:
            raise ValueError("no token: the service is away")
        return USER, "token-1"


def test_provider_that_fails_is_passing_and_leaves_no_connection_without_a_login(
    tokens: Tokens, redis_url: str
) -> None:
    provider = Failing()
    client = RedisClient(redis_url, ConnectionOptions(transport={"credential_provider": provider}))
    blocking = client.open()

    with pytest.raises(BrokerUnavailable, match="provider failed: ValueError: no token"):
        client.call("PING")
    with pytest.raises(BrokerUnavailable, match="provider failed"):
        blocking.send("PING")

    provider.fails = False
    blocking.send("ACL", "WHOAMI")
    assert blocking.receive() == client.call("ACL", "WHOAMI") == USER.encode()
    blocking.close()
    client.close()


@pytest.mark.parametrize("name", ["tests.support.credentials.write_credentials", "tests.support.eventually.eventually"])
def test_provider_that_is_none_is_a_wrong_setting(redis_url: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match="bad connection options: credential_provider"):
        RedisClient(f"{redis_url}?credential_provider={name}")


# -- the greatest age


def test_connections_are_replaced_before_their_greatest_age(redis_url: str) -> None:
    client = RedisClient(redis_url, ConnectionOptions(max_age=1.0))
    blocking = client.open()

    def number(of: Any) -> int:
        of.send("CLIENT", "ID")
        return int(of.receive())

    first, first_blocking = client.call("CLIENT", "ID"), number(blocking)

    assert client.call("CLIENT", "ID") == first
    assert eventually(lambda: client.call("CLIENT", "ID") != first)
    assert eventually(lambda: number(blocking) != first_blocking)
    blocking.close()
    client.close()


def test_read_that_blocks_ends_before_its_connection_is_too_old(redis_url: str) -> None:
    client = RedisClient(redis_url, ConnectionOptions(max_age=100.0))
    blocking = client.open()
    blocking.connect()
    link = blocking.link

    assert client.block_at_most(30_000) == 30_000
    assert client.block_at_most(60_000) == 40_000
    blocking.connect(lasting=80.0)
    assert blocking.link is link
    blocking.connect(lasting=100.0)
    assert blocking.link is not link
    blocking.close()


def test_without_a_provider_or_setting_connections_live_for_ever(redis_url: str) -> None:
    assert RedisClient(redis_url).block_at_most(10**12) == 10**12
    assert RedisClient(f"{redis_url}?credential_provider={PROVIDER}").block_at_most(10**12) < 3_600_000


@pytest.fixture
def project(tokens: Tokens, redis_url: str, tmp_path: Path) -> Iterator[Callable[..., tuple[Worker, Any]]]:
    base = redis_url.rpartition("/")[0]
    ledger = Ledger(f"{base}/3")

    def start(pool: str, **settings: Any) -> tuple[Worker, Any]:
        settings = {"streams_url": tokens.url, "streams_visibility_timeout": 2, **settings}
        worker = Worker(
            "streams",
            name="w",
            queues="celery",
            directory=tmp_path,
            environment=project_environment(
                broker=redis_url, results=f"{base}/1", ledger=ledger.url, enabled=True, **settings
            ),
            concurrency=2 if pool != "solo" else None,
            pool=pool,
        )
        worker.start()
        stack.callback(worker.stop)
        worker.wait_ready()
        app = stack.enter_context(publisher(broker=redis_url, results=f"{base}/1", **settings))
        return worker, app.tasks["tests.proj.actions.act"]

    with contextlib.ExitStack() as stack:
        stack.callback(ledger.close)
        yield start


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_worker_whose_token_changes_goes_on_and_its_old_connections_end(
    tokens: Tokens, project: Callable[..., tuple[Worker, Any]], pool: str
) -> None:
    worker, act = project(pool, streams_max_connection_age=2)
    assert act.delay("ok", 1).get(timeout=20) == 1

    for number in (2, 3):
        old = max(eventually(tokens.blocked))
        tokens.rotate()
        delayed = act.apply_async(("ok", -number), countdown=1)
        # Each child and each thread that waits replaces its own between two reads, though nothing comes.
        eventually(lambda old=old: min(tokens.blocked(), default=0) > old, timeout=20)
        assert act.delay("ok", number).get(timeout=20) == number
        assert delayed.get(timeout=20) == -number

    assert "refused the login" not in worker.log
    assert "Connection to Redis lost" not in worker.log


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_worker_whose_connections_are_cut_before_the_next_token_is_known_comes_back(
    tokens: Tokens, project: Callable[..., tuple[Worker, Any]], pool: str
) -> None:
    worker, act = project(pool)
    assert act.delay("ok", 1).get(timeout=20) == 1

    tokens.rotate(told=False)
    tokens.cut()
    eventually(lambda: "refused the login with a token" in worker.log, timeout=20)
    tokens.tell()

    assert act.delay("ok", 2).get(timeout=30) == 2
    assert worker.running
    assert re.search(r"Redis is back", worker.log)


def test_worker_whose_first_token_is_wrong_ends_with_one_line(tokens: Tokens, redis_url: str) -> None:
    tokens.rotate(told=False)

    done = subprocess.run(
        [sys.executable, "-m", "celery_streams", "-A", "tests.proj", "worker", "-P", "solo"],
        cwd=ROOT,
        env=project_environment(
            broker=redis_url, results=redis_url, ledger=redis_url, enabled=True, streams_url=tokens.url
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 69, done.stdout + done.stderr
    (said,) = (text for text in done.stderr.splitlines() if text.startswith("Error: "))
    assert "refused the login" in said
    assert "Traceback" not in done.stderr

"""A Redis that speaks TLS, with a certificate of a small authority of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kombu import Connection

from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis, find_server
from celery_streams.exceptions import BrokerError, BrokerUnavailable
from celery_streams.redis_url import ConnectionOptions
from tests.support.certificates import certificates, missing
from tests.support.eventually import eventually
from tests.support.processes import ROOT, project_environment


@dataclass
class Secured:
    url: str
    port: int
    #: What signed the server's certificate, and a client's.
    authority: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if reason := missing():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("tls")
    made = certificates(directory)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    args = ("--tls-port", str(port), *made.server_options, "--tls-auth-clients", "optional")
    with EmbeddedRedis(args=args):
        yield Secured(f"rediss://127.0.0.1:{port}/0", port, made.authority, *made.client)


def answers(url: str, **options: object) -> bool:
    with contextlib.closing(RedisClient(url, ConnectionOptions(**options))) as client:  # type: ignore[arg-type]
        return bool(client.call("PING") == b"PONG")


@pytest.mark.parametrize("word", ["CERT_NONE", "none", "CERT_REQUIRED", "required", "CERT_OPTIONAL", "optional"])
@pytest.mark.parametrize("scheme", ["rediss", "redis"])
def test_url_with_celerys_words_reaches_the_server_as_kombu_does(secured: Secured, scheme: str, word: str) -> None:
    authority = "" if "none" in word.lower() else f"&ssl_ca_certs={secured.authority}"
    url = f"{scheme}://127.0.0.1:{secured.port}/0?ssl_cert_reqs={word}{authority}"

    with Connection(url) as stock:
        stock.connect()
    assert answers(url)


def test_client_certificate_of_a_url_is_sent(secured: Secured) -> None:
    assert answers(
        f"{secured.url}?ssl_ca_certs={secured.authority}&ssl_certfile={secured.certificate}&ssl_keyfile={secured.key}"
    )


@pytest.mark.parametrize("url", ["rediss", "redis"])
@pytest.mark.parametrize("word", ["CERT_NONE", 0, "none"])
def test_broker_use_ssl_reaches_the_server(secured: Secured, url: str, word: object) -> None:
    assert answers(f"{url}://127.0.0.1:{secured.port}/0", ssl={"ssl_cert_reqs": word})


@pytest.mark.parametrize("query", ["", "?ssl_cert_reqs=CERT_REQUIRED", "?ssl_cert_reqs=CERT_OPTIONAL", "?heartbeat=0"])
def test_certificate_that_nobody_known_signed_is_refused_with_the_way_out(secured: Secured, query: str) -> None:
    with pytest.raises(BrokerUnavailable, match=r"ssl_ca_certs=FILE.*ssl_cert_reqs=CERT_NONE"):
        answers(f"{secured.url}{query}")


def test_name_that_is_not_the_certificates_is_refused_unless_told_otherwise(secured: Secured) -> None:
    url = f"rediss://localhost:{secured.port}/0?ssl_ca_certs={secured.authority}"
    with pytest.raises(BrokerUnavailable, match="not valid for"):
        answers(url)

    assert answers(f"{url}&ssl_check_hostname=false")


@pytest.mark.parametrize("place", ["url", "setting"])
def test_master_behind_a_sentinel_is_reached_with_tls(secured: Secured, tmp_path: Path, place: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {secured.port} 1\n"
        f"tls-replication yes\ntls-ca-cert-file {secured.authority}\n"
        f"tls-cert-file {secured.certificate}\ntls-key-file {secured.key}\n"
    )
    process = subprocess.Popen([str(find_server()), str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    query = "&ssl_cert_reqs=CERT_NONE" if place == "url" else ""
    tls = {"ssl_cert_reqs": "CERT_NONE"} if place == "setting" else False

    def reached() -> bool:
        try:
            return answers(f"sentinel://127.0.0.1:{port}/0?master_name=main{query}", ssl=tls)
        except BrokerError:
            return False

    try:
        eventually(reached, timeout=20, message="the master answers")
    finally:
        process.kill()
        process.wait()


def test_command_and_task_work_over_tls(secured: Secured, redis_url: str) -> None:
    url = f"{secured.url}?ssl_cert_reqs=CERT_NONE&heartbeat=0"
    environment = project_environment(broker=url, results=redis_url, ledger=redis_url, enabled=True)
    words = [sys.executable, "-m", "celery_streams", "-A", "tests.proj"]

    called = subprocess.run(
        [*words, "call", "tests.proj.tasks.add", "--args", "[1, 2]"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    status = subprocess.run(
        [*words, "status"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    assert called.returncode == 0, called.stderr
    assert "celery" in status.stdout

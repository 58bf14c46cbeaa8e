"""A Redis Cluster that asks for client certificates, and a user with the rules of the guide and no more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import celery_streams
from celery_streams.cluster import ClusterClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerUnavailable
from tests.acceptance.conftest import Project
from tests.support.certificates import Certificates, certificates, missing
from tests.support.cluster import Cluster, cluster
from tests.support.eventually import eventually
from tests.support.processes import ROOT

pytestmark = pytest.mark.cluster

COMMANDS: dict[str, tuple[str, ...]] = {
    "status": ("status",),
    "list": ("dead", "list", "-Q", "{queue}"),
    "replay": ("dead", "replay", "-Q", "{queue}"),
    "replay to another slot": ("dead", "replay", "-Q", "{queue}", "--to", "{other}"),
    "pause": ("pause", "{queue}"),
    "resume": ("resume", "{queue}"),
    "doctor": ("doctor",),
}


def rules(pattern: str) -> list[str]:
    found = re.search(pattern, (ROOT / "MIGRATION.md").read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split()


def rules_of_the_guide() -> list[str]:
    """Return the rules for streams, those that a cluster takes besides, and those of Celery's broker there."""
    return [
        *rules(r"^ACL SETUSER streams on >PASSWORD (.+)$"),
        *rules(r"needs two more rules besides .*: `(.+?)`"),
        *rules(r"the user needs these rules for Celery's broker on a cluster:\n`(.+?)`"),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if reason := missing():
        pytest.skip(reason)
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secured(made: Certificates) -> Iterator[Cluster]:
    with cluster(full_coverage=False, tls=(*made.server_options, "--tls-auth-clients", "yes")) as found:
        for client in found.clients:
            client.call("ACL", "SETUSER", "streams", "reset", "on", ">pw", *rules_of_the_guide())
        yield found


@pytest.fixture
def url(secured: Cluster, made: Certificates) -> str:
    """The URL of the user with its certificate, of the empty cluster."""
    secured.flush()
    certificate, key = made.client
    query = f"ssl_ca_certs={made.authority}&ssl_certfile={certificate}&ssl_keyfile={key}"
    return secured.secure_url(query, user="streams:pw")


@pytest.fixture
def project(url: str, redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path) -> Iterator[Project]:
    """A project whose streams and broker are on the cluster."""
    found = Project(redis_server, tmp_path, streams_queues="*", streams_track="*", streams_visibility_timeout=4.0)
    found.urls["broker"] = url
    yield found
    found.close()


def test_client_without_a_certificate_is_refused(secured: Cluster, made: Certificates) -> None:
    client = ClusterClient(secured.secure_url(f"ssl_ca_certs={made.authority}"))
    with pytest.raises(BrokerUnavailable):
        client.greet()
    client.close()


@pytest.mark.timeout(300)  # two workers and seven commands, on a machine that may be busy
def test_everything_works_with_certificates_and_the_rules_of_the_guide(
    project: Project, secured: Cluster, run_command: Callable[..., str]
) -> None:
    # Given a worker that reads queues of all nodes, and tasks of all kinds
    app = project.app()
    act = app.tasks["tests.proj.actions.act"]
    queues = secured.queues_apart(3)
    worker = project.worker(queues=",".join(queues))
    now = [act.apply_async(("ok", n), queue=queues[n % 3]) for n in range(30)]
    later = [act.apply_async(("ok", n), queue=queues[n % 3], countdown=0.5) for n in range(3)]
    again = [act.apply_async(("retry", n), {"countdown": 0}, queue=queues[n % 3]) for n in range(3)]
    killed = act.apply_async(("kill", 7), queue=queues[1])
    fails = [act.apply_async(("error", "on purpose"), queue=queues[0]) for _ in range(2)]

    # Then they run, their states are told, and the worker answers
    good = (*now, *later, *again, killed)
    assert [one.get(timeout=30) for one in good] == [*range(30), *range(3), *range(3), 7]
    eventually(lambda: {celery_streams.state(app, one.id).state for one in good} == {"succeeded"})
    eventually(lambda: {celery_streams.state(app, one.id).state for one in fails} == {"dead"})
    assert len(eventually(lambda: app.control.ping(timeout=2), timeout=20)) == 1

    # And a task of a worker that is killed runs on another one
    held = act.apply_async(("sleep_first", "done"), {"seconds": 300}, queue=queues[2])
    project.starts(held.id)
    worker.kill()
    second = project.worker(name="second", queues=",".join(queues))
    assert held.get(timeout=60) == "done"

    # And so do the commands
    said = {
        name: run_command(*(word.format(queue=queues[0], other=queues[1]) for word in words))
        for name, words in COMMANDS.items()
    }
    assert queues[0] in said["status"]
    assert fails[0].id in said["list"]
    for text in (worker.log, second.log, *said.values()):
        assert "not permit" not in text, text
        assert "NOPERM" not in text


@pytest.fixture
def run_command(project: Project) -> Callable[..., str]:
    """Run ``celery-streams`` with these words; returns what it printed."""

    def run(*words: str) -> str:
        done = project.command("-A", "tests.proj", *words)
        assert done.wait(60) in ((0, 1, 2) if words[0] in ("doctor", "status") else (0,)), done.log
        return done.log

    return run

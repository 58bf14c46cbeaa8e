"""The ACL line of MIGRATION, as it stands; and workers whose user lacks a permission when they start."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.probes import permitted_rules
from tests.support.eventually import eventually
from tests.support.processes import ROOT, project_environment
from tests.support.publisher import worker_and_publisher

#: The program, for the project of the tests.
WORDS = (sys.executable, "-m", "celery_streams", "-A", "tests.proj")

LINE = re.compile(r"^ACL SETUSER streams on >PASSWORD (.+)$", re.MULTILINE)


def line() -> list[str]:
    found = LINE.search((ROOT / "MIGRATION.md").read_text())
    assert found is not None
    return found[1].split()


@pytest.fixture
def user(client: RedisClient, redis_url: str) -> Iterator[Callable[..., str]]:
    """Make a user with these rules; returns the URL to log in with."""

    def make(*rules: str) -> str:
        client.call("ACL", "SETUSER", "streams", "reset", "on", ">pw", *rules)
        return redis_url.replace("://", "://streams:pw@")

    yield make
    client.call("ACL", "DELUSER", "streams")


def test_line_of_the_guide_permits_what_is_sent_and_no_more(broker: StreamBroker) -> None:
    assert line() == permitted_rules(broker)


def test_everything_works_with_the_line_of_the_guide(user: Callable[..., str], redis_url: str, tmp_path: Path) -> None:
    url = user(*line())
    options = ("-P", "prefork", "-c", "2")
    with worker_and_publisher(
        redis_url, tmp_path, *options, worker_url=url, settings={"streams_url": url}, words=WORDS
    ) as pair:
        results = [pair.act.delay("ok", 1), pair.act.apply_async(("ok", 2), countdown=0.5)]
        failed = pair.act.delay("error")
        assert [result.get(timeout=30) for result in results] == [1, 2]
        with pytest.raises(Exception):  # noqa: B017
            failed.get(timeout=20)
        environment = pair.environment
        for command in (["status", "--json"], ["dead", "list", "celery"], ["doctor", "--json"]):
            done = subprocess.run(
                [*WORDS, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
            )
            assert "permit" not in done.stderr, done.stderr
            if command[0] == "doctor":
                found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
                assert found["permissions"]["level"] == "ok"
                assert not [one for one in found.values() if "does not permit" in one["what"]]
        assert "does not permit" not in pair.worker.log


@pytest.mark.parametrize("denied", ["xreadgroup", "xadd", "evalsha", "zadd", "hset", "xpending"])
def test_worker_without_a_permission_ends_with_one_line(user: Callable[..., str], redis_url: str, denied: str) -> None:
    url = user("~*", "&*", "+@all", f"-{denied}")
    environment = project_environment(
        broker=redis_url, results=redis_url, ledger=redis_url, enabled=True, streams_url=url
    )

    done = subprocess.run(
        [sys.executable, "-m", "celery_streams", "-A", "tests.proj", "worker", "-P", "solo", "-Q", "a,b"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 69, done.stdout + done.stderr
    (said,) = (text for text in done.stderr.splitlines() if text.startswith("Error: "))
    assert denied.upper() in said
    assert "Traceback" not in done.stderr


def test_worker_without_access_to_one_of_two_queues_reads_the_other(
    user: Callable[..., str], redis_url: str, tmp_path: Path
) -> None:
    prefix = "celery-streams:"
    url = user(f"~{prefix}{{open}}*", *(f"~{prefix}{name}" for name in ("queues", "workers", "revoked*")), "+@all")
    options = ("-Q", "closed,open", "-P", "solo", "-l", "INFO")
    with worker_and_publisher(redis_url, tmp_path, *options, worker_url=url, queue="open") as pair:
        now = pair.act.apply_async(("ok", 1), queue="open")
        later = pair.act.apply_async(("ok", 2), queue="open", countdown=0.5)
        closed = pair.act.apply_async(("ok", 3), queue="closed")

        assert [now.get(timeout=30), later.get(timeout=20)] == [1, 2]
        assert closed.state == "PENDING"
        eventually(lambda: pair.worker.log.count("Queue closed cannot be read") == 1)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_queue_that_is_forbidden_while_the_worker_runs_comes_back_and_holds_up_no_other(
    client: RedisClient, user: Callable[..., str], redis_url: str, tmp_path: Path, pool: str
) -> None:
    prefix = "celery-streams:"
    own = [f"~{prefix}{{open}}*", *(f"~{prefix}{name}" for name in ("queues", "workers", "revoked*")), "+@all"]
    url = user(f"~{prefix}{{closed}}*", *own)
    options = ("-Q", "closed,open", "-c", "2", "-P", pool, "-l", "INFO")
    with worker_and_publisher(redis_url, tmp_path, *options, worker_url=url, queue="open") as pair:
        before = [pair.act.apply_async(("ok", name), queue=name) for name in ("open", "closed")]
        assert [result.get(timeout=30) for result in before] == ["open", "closed"]

        client.call("ACL", "SETUSER", "streams", "resetkeys", *own)
        eventually(lambda: pair.worker.log.count("Queue closed cannot be read") == 1, timeout=15)
        # Not before: a read that waited already when the permission was taken away is answered all the same.
        lost = pair.act.apply_async(("ok", 3), queue="closed")
        delayed = pair.act.apply_async(("ok", 1), queue="open", countdown=0.5)
        assert [pair.act.apply_async(("ok", n), queue="open").get(timeout=20) for n in range(5)] == list(range(5))
        assert delayed.get(timeout=20) == 1
        assert lost.state == "PENDING"

        client.call("ACL", "SETUSER", "streams", f"~{prefix}{{closed}}*")
        assert lost.get(timeout=20) == 3
        assert pair.worker.log.count("Queue closed cannot be read") == 1

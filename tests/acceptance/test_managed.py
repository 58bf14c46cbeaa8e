"""Redis as providers have it: commands that are not there, keys that are evicted, networks with IPv6 alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading

import pytest

import celery_streams
from celery_streams.cluster import connect
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from tests.acceptance.conftest import Project
from tests.support.eventually import eventually
from tests.support.processes import ROOT
from tests.support.redis_state import make_idle

#: What Memorystore and others refuse.
REFUSED = ("CONFIG", "COMMAND", "CLIENT", "ACL", "DEBUG", "MONITOR", "MEMORY", "OBJECT")


def project_on(tmp_path, *args):
    """Start a server with these options; yields the project on it."""
    with EmbeddedRedis(args=args) as server:
        project = Project(server, tmp_path)
        try:
            yield project
        finally:
            project.close()


@pytest.fixture
def managed(tmp_path):
    """A project on a server that refuses what managed ones refuse."""
    yield from project_on(tmp_path, *(word for name in REFUSED for word in ("--rename-command", name, "")))


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "asyncio"])
def test_worker_lacks_nothing_without_the_commands_that_managed_servers_refuse(managed, pool):
    app = managed.app()
    act = app.tasks["tests.proj.actions.act"]
    worker = managed.worker(pool=pool, concurrency=None if pool == "solo" else 2)

    results = [act.delay("ok", number) for number in range(5)]
    results.append(act.apply_async(("ok", 5), countdown=0.5))
    assert [one.get(timeout=20) for one in results] == list(range(6))
    celery_streams.pause(app, "celery")
    eventually(lambda: "Queue celery is paused" in worker.log)
    left = []

    def waits():
        left.append(act.delay("ok", 6))
        return managed.status().waiting

    eventually(waits)  # the first one may still meet a read that was there before
    celery_streams.resume(app, "celery")
    assert [one.get(timeout=20) for one in left] == [6] * len(left)
    app.control.add_consumer("other", reply=True, timeout=5)
    assert act.apply_async(("ok", 7), queue="other").get(timeout=20) == 7
    failed = act.delay("error")
    eventually(lambda: [one.message for one in managed.dead_letters()])

    assert failed.state == "FAILURE"
    assert "Traceback" not in worker.log.partition("Task tests.proj.actions.act[" + failed.id)[0]
    assert "nknown command" not in worker.log
    worker.signal(15)
    assert worker.wait() == 0


def test_doctor_gives_no_advice_about_settings_that_a_provider_keeps(managed):
    command = managed.command("-A", "tests.proj", "doctor", "--json", "--no-workers")
    command.wait(timeout=60)
    said = json.loads(command.log[command.log.index("{") :])
    found = {one["check"]: one for one in said["findings"]}

    assert {one["level"] for one in found.values()} <= {"ok", "info"}
    assert found["persistence"]["what"].startswith("Not known: ")
    assert "CLIENT UNBLOCK" in found["permissions"]["what"]
    for one in found.values():
        assert "CONFIG SET" not in one["todo"]
        assert "ACL SETUSER" not in one["todo"]


@pytest.mark.parametrize(
    ("refused", "database", "said"),
    [("EVAL", 0, "permits EVAL"), ("SELECT", 3, "use database 0, and streams_key_prefix")],
)
def test_worker_on_a_server_that_cannot_do_what_is_needed_ends_with_one_line(tmp_path, refused, database, said):
    with EmbeddedRedis(args=("--rename-command", refused, "")) as server, EmbeddedRedis() as other:
        project = Project(other, tmp_path)
        environment = project.environment(enabled=True, streams_url=server.database_url(database))
        words = [sys.executable, "-m", "celery_streams", "-A", "tests.proj", "worker", "-P", "solo"]

        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)

        project.close()
    assert done.returncode == 78, done.stdout + done.stderr
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("Error: "))
    assert said in line
    assert "Traceback" not in done.stderr


def test_database_beyond_those_of_the_server_is_a_wrong_setting(tmp_path):
    with EmbeddedRedis(args=("--databases", "1")) as server:
        with pytest.raises(celery_streams.ConfigurationError, match="use database 0"):
            RedisClient(server.database_url(2)).greet()
        client = RedisClient(server.url)
        client.greet()
        client.close()


# -- eviction


class Evicting(threading.Thread):
    """Deletes every key that has an expiry, again and again, as volatile-lru does when memory is short."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.deleted: set[bytes] = set()
        self._client = connect(url)
        self._done = threading.Event()

    def run(self):
        while not self._done.is_set():
            for node in self._client.nodes:
                names = node.call("KEYS", "celery-streams:*")
                left = node.pipeline([("PTTL", key) for key in names]) if names else []
                doomed = [key for key, ms in zip(names, left, strict=True) if ms > 0]
                if doomed:
                    node.pipeline([("DEL", key) for key in doomed])
                self.deleted.update(doomed)

    def stop(self):
        self._done.set()
        self.join(10)
        self._client.close()


def test_nothing_is_lost_or_run_twice_while_every_key_with_an_expiry_is_evicted(project, app, act):
    # Given messages that a dead worker holds
    broker = celery_streams.streams_of(app).broker
    broker.ensure_groups(["celery"])
    sent = [act.delay("ok", number) for number in range(20)]
    (front, *_) = broker.streams(["celery"])
    for held in broker.read([front], "dead@host/1.ab", count=10):
        make_idle(broker, held.stream, "dead@host/1.ab", held.entry_id, idle_ms=60_000)
    evicting = Evicting(celery_streams.streams_of(app).url)
    evicting.start()

    # When two workers run everything that the package has keys with an expiry for
    try:
        for name in ("first", "second"):
            project.worker(name=name, streams_visibility_timeout=2, streams_track=True)
        sent += [act.apply_async(("ok", number), countdown=number % 3) for number in range(60)]
        with celery_streams.bulk(app):
            sent += [act.delay("ok", number) for number in range(100)]
        sent += [act.apply_async(("ok", number), priority=number % 10) for number in range(60)]
        eventually(lambda: len(project.counted()) == len(sent), timeout=60)
        eventually(lambda: project.status().pending == 0)
    finally:
        evicting.stop()

    # Then each ran once
    assert project.counted() == {one.id: 1 for one in sent}
    assert (project.status().waiting, project.status().delayed, project.status().dead) == (0, 0, 0)
    assert any(key.endswith(b":turns") for key in evicting.deleted)


# -- IPv6


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_everything_works_over_ipv6_with_the_host_in_brackets(tmp_path):
    with EmbeddedRedis(
        args=("--bind", "127.0.0.1", "::1", "--user", "chat", "on", ">s:e@t", "~*", "&*", "+@all")
    ) as server:
        project = Project(server, tmp_path)
        url = f"redis://chat:s%3Ae%40t@[::1]:{server.port}"
        project.urls = {"broker": f"{url}/0", "results": f"{url}/1"}
        app = project.app()
        act = app.tasks["tests.proj.actions.act"]
        try:
            worker = project.worker(options=("-l", "INFO"))
            results = [act.delay("ok", 1), act.apply_async(("ok", 2), countdown=0.3)]

            assert [one.get(timeout=20) for one in results] == [1, 2]
            assert "chat:**@[::1]" in worker.log
            users = RedisClient(server.url).call("CLIENT", "LIST")
            assert b"addr=[::1]:" in users
        finally:
            project.close()


def test_brokers_of_a_bracketed_host_are_one_place():
    from celery_streams.redis_url import place, safe_url

    assert place("redis://u:p@[FD12::1]/2") == place("redis://[fd12::1]:6379/2") == ("fd12::1", 6379, "2")
    assert safe_url("redis://:se@cret@[fd12::1]:6379/0") == "redis://:**@[fd12::1]:6379/0"

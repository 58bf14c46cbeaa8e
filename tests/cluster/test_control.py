"""A project with nothing but a Redis Cluster: remote control, events, gossip and mingle of real workers."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celery_streams.cluster_map import slot_of
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerError
from tests.acceptance.conftest import Project
from tests.support.celery_commands import run_celery
from tests.support.cluster import Cluster, cluster
from tests.support.control import asked
from tests.support.eventually import eventually
from tests.support.processes import Program, Worker

pytestmark = pytest.mark.filterwarnings("ignore::celery.app.control.DuplicateNodenameWarning")

ACT = "tests.proj.actions.act"

#: Where broadcasts of remote control are told.
CONTROL = "/{celery.pidbox}"


@pytest.fixture
def cluster_only(redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path) -> Any:
    """Make the sample project with broker, streams and results on a cluster; only its ledger is elsewhere."""
    made: list[Project] = []

    def make(nodes: Cluster, **settings: Any) -> Project:
        one = Project(redis_server, tmp_path, **settings)
        one.urls.update(broker=nodes.url, results=nodes.url)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


@pytest.fixture
def project(cluster_only: Callable[..., Project], nodes: Cluster) -> Project:
    """The sample project on three masters that nobody harms."""
    return cluster_only(nodes)


def pools(*, always: str) -> list[Any]:
    every = ("prefork", "threads", "solo", "gevent", "eventlet")
    return [pool if pool == always else pytest.param(pool, marks=pytest.mark.cluster) for pool in every]


@pytest.mark.parametrize("pool", pools(always="prefork"))
def test_worker_is_inspected_and_controlled(project: Project, nodes: Cluster, pool: str) -> None:
    act = project.app().tasks[ACT]
    one = project.worker(concurrency=2, pool=pool)
    control = act.app.control

    assert asked(act.app, "ping", one.hostname) == {one.hostname: {"ok": "pong"}}
    assert act.delay("ok", 5).get(timeout=10) == 5
    stats = asked(act.app, "stats", one.hostname)[one.hostname]
    assert stats["pid"] == one.pid
    assert stats["broker"]["transport"] == "redis+cluster"
    assert control.rate_limit(ACT, "100/s", reply=True, timeout=5, limit=1) == [
        {one.hostname: {"ok": "new rate limit set successfully"}}
    ]
    if pool == "prefork":
        running = act.apply_async(("sleep", "x"), {"seconds": 60})
        project.starts(running.id)
        assert [task["id"] for task in asked(act.app, "active", one.hostname)[one.hostname]] == [running.id]
        control.revoke(running.id, terminate=True, signal="KILL")
        eventually(lambda: running.state == "REVOKED")
        control.pool_grow(1, reply=True, timeout=5, limit=1)
        eventually(lambda: len(asked(act.app, "stats", one.hostname)[one.hostname]["pool"]["processes"]) == 3)
    delayed = act.apply_async(("ok",), countdown=0.5)
    control.revoke(delayed.id, reply=True, timeout=5, limit=1)
    eventually(lambda: delayed.state == "REVOKED")

    control.shutdown()

    assert one.wait() == 0
    assert "Got shutdown from remote" in one.log
    assert "Traceback" not in one.log
    assert "ERROR" not in one.log
    # Nothing of the control plane is left but what expires.
    assert [key for key in nodes.keys("*pidbox*")] == []  # noqa: C416


@pytest.mark.cluster
def test_commands_of_celerys_command_line_reach_a_worker(project: Project, nodes: Cluster, tmp_path: Path) -> None:
    project.app()
    one = project.worker(concurrency=1)
    to = ("-d", one.hostname, "-t", "5", "--json")
    environment = project.environment(enabled=True)

    ping, status, stats, grown = run_celery(
        environment, ("inspect", "ping", *to), ("status", *to), ("inspect", "stats", *to), ("control", "pool_grow", *to)
    )
    # No project: only the plugin of Celery's command line knows the URL.
    bare = Program(
        [sys.executable, "-m", "celery", "-b", nodes.url, "inspect", "ping", "-t", "5", "-d", one.hostname],
        log=tmp_path / "bare.log",
        environment=environment,
    )
    bare.start()

    assert {ran.code for ran in (ping, status, stats, grown)} == {0}
    assert ping.answer(one.hostname) == {"ok": "pong"}
    assert stats.answer(one.hostname)["pool"]["max-concurrency"] == 1
    assert bare.wait(20) == 0, bare.log
    assert "pong" in bare.log


@pytest.mark.cluster
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_workers_know_of_each_other_by_mingle_and_gossip(project: Project, pool: str) -> None:
    act = project.app().tasks[ACT]
    one = project.worker(name="one", concurrency=1, pool=pool, options=("-l", "DEBUG"))
    revoked = uuid.uuid4().hex
    asked(act.app, "ping", one.hostname)
    assert act.app.control.revoke(revoked, reply=True, timeout=10, limit=1)

    two = project.worker(name="two", queues="other", concurrency=1, pool=pool, options=("-l", "DEBUG"))

    assert "mingle: all alone" in one.log
    assert "mingle: sync with 1 nodes" in two.log
    assert revoked in asked(act.app, "revoked", two.hostname)[two.hostname]
    for log, other in ((one, two), (two, one)):
        eventually(lambda log=log, other=other: f"{other.hostname} joined the party" in log.log, timeout=20)
    assert asked(act.app, "ping", answers=2).keys() == {one.hostname, two.hostname}
    two.signal(signal.SIGTERM)
    assert two.wait() == 0
    eventually(lambda: f"{two.hostname} left" in one.log)


@pytest.mark.cluster
def test_celery_events_dumps_the_life_of_a_task_in_order(project: Project, tmp_path: Path) -> None:
    act = project.app().tasks[ACT]
    one = project.worker(options=("-E",))
    dump = Program(
        [sys.executable, "-m", "celery", "-A", "tests.proj", "events", "--dump"],
        log=tmp_path / "events.log",
        environment=project.environment(enabled=True),
    )
    dump.start()
    try:
        eventually(lambda: f"{one.hostname} [" in dump.log, timeout=20, message="a heartbeat is dumped")
        for result in [act.delay("ok", number) for number in range(20)]:

            def told(task_id: str = result.id) -> list[str]:
                lines = [line for line in dump.log.splitlines() if f"({task_id})" in line]
                found = [line.partition("] task ")[2].partition(":")[0] for line in lines]
                return found if "succeeded" in found else []

            assert eventually(told) == ["received", "started", "succeeded"]
    finally:
        dump.kill()


class Heard:
    """The events that a receiver gets, as Flower has it: a thread that connects again when the broker fails it."""

    def __init__(self, project: Project) -> None:
        self.events: list[dict[str, Any]] = []
        self._dump = Program(
            [sys.executable, "-m", "celery", "-A", "tests.proj", "events", "--dump"],
            log=project._directory / f"heard-{uuid.uuid4().hex}.log",
            environment=project.environment(enabled=True),
        )
        self._dump.start()

    def beats(self, hostname: str) -> int:
        """Return how many heartbeats of a worker were heard."""
        return self._dump.log.count(f"{hostname} [") + self._dump.log.count(f"{hostname}: heartbeat")

    def stop(self) -> None:
        self._dump.kill()


def answers(project: Project, one: Worker) -> bool:
    """Return whether a worker answers a question at once."""
    app = project._apps[-1]
    try:
        return one.hostname in (app.control.inspect([one.hostname], timeout=2, limit=1).ping() or {})
    except (BrokerError, OSError):
        return False


def runs(act: Any) -> bool:
    """Return whether a task runs now."""
    try:
        return bool(act.delay("ok", 1).get(timeout=10) == 1)
    except BrokerError:
        return False


@pytest.mark.cluster
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_node_that_a_worker_listens_at_is_killed_and_its_replica_takes_over(
    cluster_only: Callable[..., Project], pool: str
) -> None:
    with cluster(replicas=True, full_coverage=False) as nodes:
        project = cluster_only(nodes)
        act = project.app().tasks[ACT]
        one = project.worker(concurrency=1, pool=pool, options=("-E",))
        assert eventually(lambda: answers(project, one))
        heard = Heard(project)
        eventually(lambda: heard.beats(one.hostname), timeout=20)

        for _ in range(2):
            # Each time the node that it listens at now; the second one may be a replica's successor, or any other.
            at = nodes.listened_at(CONTROL)[0]
            if at >= 3:
                break
            nodes.servers[at].kill()
            eventually(lambda: answers(project, one), timeout=60, message="the worker answers again")
            before = heard.beats(one.hostname)
            eventually(lambda before=before: heard.beats(one.hostname) > before, timeout=60, message="it beats again")
            assert at not in nodes.listened_at(CONTROL)
            nodes.servers[at].start()
            eventually(lambda: runs(act), timeout=60, message="a task runs")

        heard.stop()
        act.app.control.shutdown()
        assert one.wait(30) == 0


@pytest.mark.cluster
def test_node_that_a_worker_listens_at_goes_silent(cluster_only: Callable[..., Project]) -> None:
    with cluster(replicas=True, full_coverage=False) as nodes:
        project = cluster_only(nodes, broker_transport_options={"health_check_interval": 2})
        project.app()
        one = project.worker(concurrency=1)
        assert eventually(lambda: answers(project, one))
        (at,) = nodes.listened_at(CONTROL)
        pid = nodes.servers[at].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            eventually(lambda: answers(project, one), timeout=90, message="the worker answers again")
            print(f"answers after {time.monotonic() - began:.1f} s")
        finally:
            os.kill(pid, signal.SIGCONT)
        one.signal(signal.SIGTERM)
        assert one.wait(30) == 0


@pytest.mark.cluster
def test_slot_of_a_list_of_answers_moves_while_they_are_waited_for(project: Project, nodes: Cluster) -> None:
    app = project.app()
    one = project.worker(concurrency=1)
    assert eventually(lambda: answers(project, one))
    with app.connection_for_write() as connection:
        mailbox = app.control.mailbox(connection)
        key = mailbox.reply_queue.name
        slot, source = slot_of(key), nodes.owner(key)
        target = (source + 1) % 3

        def ask() -> Any:
            return mailbox.multi_call("ping", timeout=10, limit=1)

        answer = [{one.hostname: {"ok": "pong"}}]
        assert ask() == answer
        nodes.begin_move(slot, source, target)
        try:
            assert [ask() for _ in range(5)] == [answer] * 5
        finally:
            nodes.end_move(slot, source, target)
        try:
            assert [ask() for _ in range(5)] == [answer] * 5
        finally:
            nodes.begin_move(slot, target, source)
            nodes.end_move(slot, target, source)


@pytest.mark.cluster
def test_stock_worker_and_a_task_for_a_list_are_refused_with_a_line(project: Project, nodes: Cluster) -> None:
    app = project.app(streams_queues=["on_streams"])

    stock = project.worker("lists", install=True, enabled=False, wait=False)
    with pytest.raises(ValueError, match="Queue 'celery' is not on streams"):
        app.tasks[ACT].delay("ok")

    assert stock.wait(30) != 0
    assert "Queue 'celery' is not on streams, and the broker redis+cluster://" in stock.log
    assert nodes.keys("celery") == []

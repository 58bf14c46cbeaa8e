"""Real workers whose streams are on a Redis Cluster: several queues, each on another node; kombu on a single server."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from celery_streams import inspect, keys
from celery_streams.app import streams_of
from celery_streams.cluster_map import slot_of
from celery_streams.monitoring.doctor import diagnose
from tests.acceptance.conftest import Project
from tests.support.cluster import Cluster
from tests.support.eventually import eventually

#: Seconds; short, so that a killed worker's tasks are claimed soon.
VISIBILITY_TIMEOUT = 4.0


def left(project: Project, queues: list[str]) -> dict[str, int]:
    """Return what is left in the queues, all together."""
    found = [inspect.queue_status(project.broker, queue) for queue in queues]
    return {
        "waiting": sum(one.waiting for one in found),
        "pending": sum(one.pending for one in found),
        "delayed": sum(one.delayed for one in found),
        "dead": sum(one.dead for one in found),
    }


NOTHING = {"waiting": 0, "pending": 0, "delayed": 0, "dead": 0}


def drained(project: Project, queues: list[str], *, timeout: float = 30.0, **more: int) -> None:
    expected = {**NOTHING, **more}
    eventually(lambda: left(project, queues) == expected or _differs(left(project, queues)), timeout=timeout)


def _differs(found: dict[str, int]) -> bool:
    raise AssertionError(str(found))


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        pytest.param("threads", marks=pytest.mark.cluster),
        pytest.param("solo", marks=pytest.mark.cluster),
        pytest.param("gevent", marks=pytest.mark.cluster),
        pytest.param("asyncio", marks=pytest.mark.cluster),
    ],
)
def test_worker_drains_queues_on_all_nodes(project: Project, nodes: Cluster, pool: str) -> None:
    project.urls["results"] = nodes.url
    queues = nodes.queues_apart(3)
    app = project.app()
    act = app.tasks["tests.proj.actions.act"]
    waiting = [act.apply_async(("ok", n), queue=queues[n % 3]) for n in range(60)]
    later = [act.apply_async(("ok", n), queue=queues[n % 3], countdown=0.5) for n in range(6)]

    running = project.worker(queues=",".join(queues), pool=pool)
    at_once = [act.apply_async(("ok", n), queue=queues[n % 3]) for n in range(30)]
    elsewhere = act.apply_async(("retry", 7), {"queue": queues[1], "countdown": 0}, queue=queues[0])
    fails = act.apply_async(("error", "on purpose"), queue=queues[2])

    results = [one.get(timeout=30) for one in (*waiting, *later, *at_once, elsewhere)]
    assert results == [*range(60), *range(6), *range(30), 7]
    drained(project, queues, dead=1)
    assert [letter.task_id for letter in project.dead_letters(queues[2])] == [fails.id]
    counted = project.counted()
    assert counted.pop(elsewhere.id) == 2
    assert set(counted.values()) == {1}
    # That of the task that fails, and no other.
    assert running.log.count("Traceback (most recent call last)") == 1, running.log
    running.stop()


def test_killed_child_takes_nothing_with_it(project: Project, nodes: Cluster) -> None:
    queues = nodes.queues_apart(3)
    app = project.app()
    act = app.tasks["tests.proj.actions.act"]
    project.worker(queues=",".join(queues), concurrency=2)
    long = act.apply_async(("sleep_first", "done"), {"seconds": 60}, queue=queues[0])
    (first,) = project.starts(long.id)
    others = [act.apply_async(("sleep", n), {"seconds": 0.005}, queue=queues[n % 3]) for n in range(60)]

    os.kill(first["pid"], signal.SIGKILL)

    assert [one.get(timeout=15) for one in others] == list(range(60))
    assert long.get(timeout=10) == "done"
    assert project.counted() == Counter({long.id: 2, **{one.id: 1 for one in others}})
    drained(project, queues)


@pytest.mark.cluster
def test_tasks_of_a_killed_worker_run_on_another(make_project: Callable[..., Project], nodes: Cluster) -> None:
    project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT)
    queues = nodes.queues_apart(3)
    app = project.app()
    act = app.tasks["tests.proj.actions.act"]
    names = ",".join(queues)
    killed = project.worker(name="killed", queues=names, concurrency=3)
    held = [act.apply_async(("sleep_first", n), {"seconds": 60}, queue=queues[n]) for n in range(3)]
    for one in held:
        project.starts(one.id)
    project.worker(name="other", queues=names, concurrency=3)

    killed.kill()

    assert [one.get(timeout=5 * VISIBILITY_TIMEOUT) for one in held] == [0, 1, 2]
    assert project.counted() == Counter({one.id: 2 for one in held})
    drained(project, queues)


@pytest.mark.cluster
def test_what_operators_ask_works(project: Project, nodes: Cluster) -> None:
    project.urls["results"] = nodes.url
    queues = nodes.queues_apart(3)
    app = project.app()
    act = app.tasks["tests.proj.actions.act"]
    for queue in queues:
        act.apply_async(("error", "x"), queue=queue)
    project.worker(queues=",".join(queues))
    drained(project, queues, dead=3)
    act.apply_async(("ok",), queue=queues[0], countdown=3_600)

    found = diagnose(streams_of(app), queues, accept=("persistence",))
    by_check = {finding.check: finding for finding in found.findings}
    assert found.level != "critical", found
    assert "each of 3 nodes" in by_check["version"].what
    assert "cluster-require-full-coverage yes" in by_check["cluster"].what
    assert "another database" not in by_check["database"].todo

    for words, said in (
        (("status", *queues, "--json"), queues[0]),
        (("doctor", "--json"), "cluster-require-full-coverage"),
        (("dead", "list", "-Q", queues[0]), "act"),
        (("dead", "replay", "-Q", queues[0], "--all", "--to", queues[1]), ""),
        (("pause", queues[0]), ""),
        (("resume", queues[0]), ""),
        (("purge", "-f", "-Q", queues[0]), ""),
    ):
        command = project.command("-A", "tests.proj", *words)
        assert command.wait(30) in (0, 1, 2), (words, command.log)
        assert "Traceback" not in command.log, (words, command.log)
        assert said in command.log, (words, command.log)


@pytest.mark.cluster
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_slot_moved_under_load_loses_and_doubles_nothing(
    make_project: Callable[..., Project], nodes: Cluster, pool: str
) -> None:
    project = make_project(nodes, streams_visibility_timeout=VISIBILITY_TIMEOUT)
    queues = nodes.queues_apart(3)
    app = project.app()
    act = app.tasks["tests.proj.actions.act"]
    project.worker(queues=",".join(queues), pool=pool)
    slot = slot_of(keys.queue_keys("celery-streams", queues[0]).streams[0])
    source = nodes.owner(keys.queue_keys("celery-streams", queues[0]).streams[0])
    published = []

    def publish(count: int) -> None:
        published.extend(act.apply_async(("sleep", 0), {"seconds": 0.002}, queue=queues[n % 3]) for n in range(count))

    try:
        publish(100)
        for target in ((source + 1) % 3, (source + 2) % 3, source):
            now = nodes.owner(keys.queue_keys("celery-streams", queues[0]).streams[0])
            nodes.begin_move(slot, now, target)
            publish(60)  # while it is open
            nodes.move_keys(slot, now, target)
            publish(60)  # while its keys are at the other end
            nodes.end_move(slot, now, target)
            publish(60)
        drained(project, queues)
        assert project.counted() == Counter({one.id: 1 for one in published})
    finally:
        now = nodes.owner(keys.queue_keys("celery-streams", queues[0]).streams[0])
        if now != source:
            nodes.begin_move(slot, now, source)
            nodes.end_move(slot, now, source)

"""The way to streams and back, with a stock worker and a streams worker on one unchanged tasks.py."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter

import pytest
from celery import chord

from tests.proj.publish import publish
from tests.support.eventually import eventually
from tests.support.processes import ROOT

pytestmark = pytest.mark.one_server("a stock worker reads lists, of which a cluster has none")


def run_publisher(project, count, *, enabled):
    """Publish from a process of its own, with the switch in its environment."""
    subprocess.run(
        [sys.executable, "-m", "tests.proj.publish", str(count)],
        env=project.environment(enabled=enabled),
        cwd=ROOT,
        check=True,
        timeout=60,
    )


def published(project):
    """Return how often each published task will be started."""
    ids = [task_id.decode() for task_id in project.ledger.client.lrange("ledger:published", 0, -1)]
    return Counter({task_id: project.ledger.read("published", task_id)[0]["starts"] for task_id in ids})


def all_ran(project):
    """Wait until nothing is missing, then compare what was published with what was executed."""
    expected = published(project)
    eventually(lambda: not expected - project.counted(), timeout=30, message="every task ran")
    eventually(lambda: project.status().length == 0 and project.status().delayed == 0)
    assert project.counted() == expected
    return expected


def hosts(project):
    return Counter(run["hostname"] for run in project.ledger.runs())


@pytest.mark.slow
def test_switching_off_and_on_again_by_environment_loses_and_repeats_nothing(project, app):
    project.worker("lists", name="stock", wait=False)
    project.worker("streams", name="streams")

    for enabled in (True, False, True):
        run_publisher(project, 60, enabled=enabled)

    expected = all_ran(project)
    assert len(expected) == 180
    # Of 60 tasks 15 retry once. The stock worker had exactly those of the time when the switch was off.
    assert hosts(project) == {"streams@test": 150, "stock@test": 75}


def test_switching_live_while_publishing_loses_and_repeats_nothing(project):
    switch = threading.Event()
    app = project.app(enabled=switch.is_set)
    project.worker("lists", name="stock", wait=False)
    project.worker("streams", name="streams")

    def note(kind, task_id, **fields):
        project.ledger.write(kind, task_id, **fields)
        project.ledger.client.rpush("ledger:published", task_id)

    for number in range(300):
        if number % 50 == 0:
            switch.clear() if switch.is_set() else switch.set()
        publish(app, number, note)

    assert len(all_ran(project)) == 300
    assert set(hosts(project)) == {"streams@test", "stock@test"}


def test_streams_worker_drains_what_is_left_after_the_switch_is_off(project):
    switch = threading.Event()
    switch.set()
    app = project.app(enabled=switch.is_set)
    send = app.tasks["tests.proj.tasks.send_message"]
    before = [send.delay(n) for n in range(20)] + [send.apply_async((n,), countdown=0.3) for n in range(20)]
    switch.clear()
    after = [send.delay(n) for n in range(20)]

    project.worker("lists", name="stock", enabled=False, wait=False)
    project.worker("streams", name="streams", enabled=False)

    for result in before + after:
        project.starts(result.id)
    assert project.counted() == Counter(result.id for result in before + after)
    assert hosts(project) == {"streams@test": 40, "stock@test": 20}
    assert eventually(lambda: project.status().length == 0)


def test_retry_of_a_draining_worker_goes_where_new_messages_go(project, app):
    fetch = app.tasks["tests.proj.tasks.fetch_group_info"]
    results = [fetch.delay(n, fail_first=1) for n in range(10)]

    project.worker("lists", name="stock", wait=False)
    project.worker("streams", name="streams", enabled=False)

    for result in results:
        assert result.get(timeout=15)["group"] in range(10)
    runs = [[run["hostname"] for run in project.ledger.runs(result.id)] for result in results]
    assert runs == [["streams@test", "stock@test"]] * 10


def test_queues_that_were_not_chosen_stay_with_the_stock_worker(project):
    app = project.app(streams_queues=["send_message"])
    project.worker("lists", name="stock", queues="fetch_profile_pic", wait=False)
    project.worker("streams", name="streams", queues="send_message", streams_queues=["send_message"])

    sent = [app.tasks["tests.proj.tasks.send_message"].apply_async((n,), queue="send_message") for n in range(10)]
    fetched = [
        app.tasks["tests.proj.tasks.fetch_profile_pic"].apply_async((n,), queue="fetch_profile_pic") for n in range(10)
    ]

    for result in sent + fetched:
        result.get(timeout=15)
    assert hosts(project) == {"streams@test": 10, "stock@test": 10}


@pytest.mark.parametrize("enabled", [True, False])
def test_stock_worker_that_is_started_on_a_stream_queue_says_that_nothing_new_comes(project, worker, enabled):
    # The list of a queue that moves by and by goes on getting its share.
    queues = {"send_message": 1.0, "mark_as_read": 1, "moving": 0.05, "staying": 0}
    settings = {"install": True, "enabled": enabled, "streams_queues": queues}

    stock = worker("lists", queues="send_message,moving,staying,fetch_profile_pic,mark_as_read", **settings)

    lines = [line for line in stock.log.splitlines() if "is on Redis Streams" in line]
    assert [line.partition("WARNING/MainProcess] ")[2] for line in lines] == enabled * [
        f"Queue send_message, mark_as_read is on Redis Streams (pid {stock.pid}): this worker reads Celery's list, "
        "which gets no new messages. Start its worker with: celery-streams -A tests.proj worker "
        "-Q send_message,mark_as_read"
    ]


def test_workflow_may_cross_from_streams_to_lists(project):
    app = project.app(streams_queues=["streams"])
    settings = {"streams_queues": ["streams"]}
    project.worker("lists", name="stock", queues="lists", install=True, enabled=True, wait=False, **settings)
    project.worker("streams", name="streams", queues="streams", **settings)
    add, total = app.tasks["tests.proj.actions.add"], app.tasks["tests.proj.actions.total"]

    header = [add.s(n, n).set(queue="streams" if n % 2 else "lists") for n in range(10)]
    result = (chord(header, total.s().set(queue="lists")) | add.s(1).set(queue="streams")).apply_async()

    assert result.get(timeout=15) == 91

"""Celery's own command line against a streams worker, and revocation of what does not run yet."""

from __future__ import annotations

import json
import signal
import sys
import uuid
from base64 import b64decode

import pytest
from redis import Redis

from tests.support.celery_commands import run_celery
from tests.support.control import asked
from tests.support.eventually import eventually
from tests.support.processes import Program

pytestmark = pytest.mark.filterwarnings("ignore::celery.app.control.DuplicateNodenameWarning")

#: Every inspect command that Celery lists without arguments, but objgraph, which wants a package that draws.
INSPECT = (
    *("active", "active_queues", "clock", "conf", "memdump", "memsample", "ping", "registered", "report", "reserved"),
    *("revoked", "scheduled", "stats"),
)


def test_every_inspect_command_of_celerys_command_line_is_answered(project, act, worker):
    one = worker(concurrency=1)
    running = act.apply_async(("sleep_first", "x"), {"seconds": 30})
    project.starts(running.id)
    delayed = act.apply_async(("ok",), countdown=60)
    revoked = uuid.uuid4().hex
    environment = project.environment(enabled=True)
    to = ("-d", one.hostname, "-t", "5", "--json")

    (told, query, status, *rest) = run_celery(
        environment,
        ("control", "revoke", revoked, *to),
        ("inspect", "query_task", running.id, *to),
        ("status", *to),
        *(("inspect", command, *to) for command in INSPECT),
    )

    answers = {name: ran.answer(one.hostname) for name, ran in zip(INSPECT, rest, strict=True)}
    assert {ran.code for ran in (told, query, status, *rest)} == {0}
    assert "revoked" in told.output
    assert query.answer(one.hostname)[running.id][0] == "active"
    assert status.answer(one.hostname) == {"ok": "pong"}
    assert [task["id"] for task in answers["active"]] == [running.id]
    assert [queue["name"] for queue in answers["active_queues"]] == ["celery"]
    assert answers["clock"]["clock"] > 0
    assert answers["conf"]["task_default_queue"] == "celery"
    assert answers["ping"] == {"ok": "pong"}
    assert "tests.proj.actions.act" in answers["registered"]
    assert "software -> celery:" in answers["report"]["ok"]
    assert answers["reserved"] == []
    assert answers["revoked"] == [revoked]
    assert [entry["request"]["id"] for entry in answers["scheduled"]] == [delayed.id]
    assert answers["stats"]["pid"] == one.pid
    assert answers["stats"]["pool"]["max-concurrency"] == 1


def test_every_control_command_of_celerys_command_line_is_obeyed(project, act, worker):
    one = worker(concurrency=1)
    running = act.apply_async(("sleep", "x"), {"seconds": 30})
    project.starts(running.id)
    name = "tests.proj.actions.act"
    to = ("-d", one.hostname, "-t", "5", "--json")

    ended, *rest = run_celery(
        project.environment(enabled=True),
        ("control", "terminate", "KILL", running.id, *to),
        ("control", "rate_limit", name, "100/s", *to),
        ("control", "time_limit", name, "20", "10", *to),
        ("control", "add_consumer", "added", *to),
        ("control", "add_consumer", "left", *to),
        ("control", "cancel_consumer", "left", *to),
        ("control", "pool_grow", "2", *to),
        ("control", "pool_shrink", "1", *to),
        ("control", "enable_events", *to),
        ("control", "disable_events", *to),
        ("inspect", "active_queues", *to),
        ("inspect", "registered", *to),
    )

    answers = [ran.answer(one.hostname) for ran in rest]
    assert {ran.code for ran in (ended, *rest)} == {0}
    assert answers[:-2] == [
        {"ok": "new rate limit set successfully"},
        {"ok": "time limits set successfully"},
        {"ok": "add consumer added"},
        {"ok": "add consumer left"},
        {"ok": "no longer consuming from left"},
        {"ok": "pool will grow"},
        {"ok": "pool will shrink"},
        {"ok": "task events enabled"},
        {"ok": "task events disabled"},
    ]
    assert {queue["name"] for queue in answers[-2]} == {"celery", "added"}
    assert f"{name} [rate_limit=100/s]" in answers[-1]
    eventually(lambda: running.state == "REVOKED")
    assert act.apply_async(("ok", "there"), queue="added").get(timeout=10) == "there"
    eventually(lambda: len(asked(act.app, "stats", one.hostname)[one.hostname]["pool"]["processes"]) == 2)

    (said,) = run_celery(project.environment(enabled=True), ("control", "shutdown", "-d", one.hostname, "-t", "0.2"))

    assert one.wait() == 0
    assert "Got shutdown from remote" in one.log
    assert "Traceback" not in said.output


def test_command_that_is_sent_to_a_worker_as_soon_as_it_is_ready_is_heard(project, act, worker):
    one = worker(concurrency=1, imports=["tests.proj.greeting"])

    assert act.apply_async(("ok", "there"), queue="greeted").get(timeout=10) == "there"
    assert one.running


def test_autoscale_of_celerys_command_line_changes_the_bounds(project, app, worker):
    one = worker(options=("--autoscale", "2,1"))
    to = ("-d", one.hostname, "-t", "5", "--json")

    scaled, stats, grown = run_celery(
        project.environment(enabled=True),
        ("control", "autoscale", "4", "3", *to),
        ("inspect", "stats", *to),
        ("control", "pool_grow", "1", *to),
    )

    assert scaled.answer(one.hostname) == {"ok": "autoscale now max=4 min=3"}
    autoscaler = stats.answer(one.hostname)["autoscaler"]
    assert (autoscaler["max"], autoscaler["min"]) == (4, 3)
    assert "error" in grown.answer(one.hostname)
    eventually(lambda: len(asked(app, "stats", one.hostname)[one.hostname]["pool"]["processes"]) == 3)


def test_pool_restart_replaces_the_children_and_loses_nothing(project, act, worker):
    one = worker(concurrency=1, worker_pool_restarts=True)
    before = project.starts(act.delay("ok").id)[0]["pid"]

    (restarted,) = run_celery(
        project.environment(enabled=True), ("control", "pool_restart", "-d", one.hostname, "-t", "5", "--json")
    )
    results = [act.delay("ok", number) for number in range(20)]

    assert restarted.answer(one.hostname) == {"ok": "reload started"}
    assert [result.get(timeout=10) for result in results] == list(range(20))
    assert project.starts(results[-1].id)[0]["pid"] != before
    assert set(project.counted().values()) == {1}


def kinds(dump, task_id):
    """Return the kinds of the events of one task, once it has succeeded."""
    lines = [line for line in dump.splitlines() if f"({task_id})" in line]
    found = [line.partition("] task ")[2].partition(":")[0] for line in lines]
    return found if "succeeded" in found else []


def test_celery_events_dumps_the_life_of_a_task(project, act, worker, tmp_path):
    one = worker(options=("-E",))
    dump = Program(
        [sys.executable, "-m", "celery", "-A", "tests.proj", "events", "--dump"],
        log=tmp_path / "events.log",
        environment=project.environment(enabled=True),
    )
    dump.start()
    try:
        eventually(lambda: f"{one.hostname} [" in dump.log, timeout=20, message="a heartbeat is dumped")

        result = act.delay("ok", 5)

        told = eventually(lambda: kinds(dump.log, result.id), message="the success is dumped")
        assert told == ["received", "started", "succeeded"]
        dump.signal(signal.SIGINT)
        dump.wait()
    finally:
        dump.kill()


def test_revocation_reaches_messages_that_wait_and_that_are_delayed(project, act, worker):
    one = worker(concurrency=1)
    running = act.apply_async(("sleep", "done"), {"seconds": 1})
    project.starts(running.id)
    waiting = act.delay("ok")
    delayed = act.apply_async(("ok",), countdown=1.5)
    last = act.apply_async(("ok", "last"), countdown=1.6)

    for result in (waiting, delayed):
        act.app.control.revoke(result.id, destination=[one.hostname], reply=True, timeout=5, limit=1)

    assert last.get(timeout=10) == "last"
    assert running.get(timeout=10) == "done"
    assert [waiting.state, delayed.state] == ["REVOKED", "REVOKED"]
    assert set(project.counted()) == {running.id, last.id}
    assert project.dead_letters() == []


def test_revocation_reaches_a_worker_that_starts_later(project, act, worker):
    early = worker(name="early", queues="elsewhere", concurrency=1)
    revoked = act.delay("ok", "revoked")
    kept = act.delay("ok", "kept")

    act.app.control.revoke(revoked.id, reply=True, timeout=5, limit=1)
    early.stop()
    worker(name="later", concurrency=1)

    assert kept.get(timeout=10) == "kept"
    eventually(lambda: revoked.state == "REVOKED")
    assert set(project.counted()) == {kept.id}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_revocation_of_a_stamp_reaches_a_worker_that_starts_later(project, act, worker, pool):
    early = worker(name="early", queues="elsewhere", concurrency=1)
    stamped = act.s("ok", "revoked")
    stamped.stamp(tenant="closed")
    revoked = stamped.apply_async()
    other = act.s("ok", "kept")
    other.stamp(tenant="open")
    kept = other.apply_async()

    act.app.control.revoke_by_stamped_headers({"tenant": ["closed"]}, reply=True, timeout=5, limit=1)
    early.stop()
    worker(name="later", concurrency=1, pool=pool)

    assert kept.get(timeout=10) == "kept"
    eventually(lambda: revoked.state == "REVOKED")
    assert set(project.counted()) == {kept.id}


def test_revocation_that_is_meant_for_one_worker_is_not_obeyed_by_another(project, act, worker):
    addressed = worker(name="addressed", queues="elsewhere", concurrency=1)
    other = worker(name="other", concurrency=1)
    task_id = uuid.uuid4().hex

    (reply,) = act.app.control.revoke(task_id, destination=[addressed.hostname], reply=True, timeout=5, limit=1)
    act.app.control.ping([other.hostname], timeout=5, limit=1)
    result = act.apply_async(("ok", "ran"), task_id=task_id)

    assert list(reply) == [addressed.hostname]
    # Its result says REVOKED: the worker that was addressed has stored that.
    project.starts(result.id)


@pytest.mark.one_server("each node of a cluster knows of its own listeners only, so the worker asks all the same")
def test_worker_that_nobody_can_hear_asks_nobody_when_it_starts(act, worker, redis_url):
    with Redis.from_url(redis_url) as client, client.pubsub() as heard:
        # A listener that the worker does not take for another one: kombu's subscribe to patterns.
        heard.subscribe("/0.celery.pidbox")
        assert heard.get_message(timeout=5)["type"] == "subscribe"

        alone = worker(concurrency=1)
        act.app.control.ping([alone.hostname], timeout=5, limit=1)

        assert "mingle: all alone" in alone.log
        envelope = json.loads(heard.get_message(timeout=5)["data"])
        assert json.loads(b64decode(envelope["body"]))["method"] == "ping"


@pytest.mark.parametrize(
    "first",
    [
        "streams",
        pytest.param("lists", marks=pytest.mark.one_server("a stock worker reads lists, of which a cluster has none")),
    ],
)
def test_workers_with_mingle_and_gossip_know_of_each_other(act, worker, first):
    one = worker(first, name="one", concurrency=1, options=("-l", "DEBUG"))
    revoked = uuid.uuid4().hex
    act.app.control.revoke(revoked, reply=True, timeout=5, limit=1)

    two = worker("streams", name="two", queues="other", concurrency=1, options=("-l", "DEBUG"))

    assert "mingle: all alone" in one.log
    assert "mingle: sync with 1 nodes" in two.log
    assert "mingle: sync complete" in two.log
    # A worker that has just found the other one answers later than the broadcast waits.
    assert revoked in asked(act.app, "revoked", two.hostname)[two.hostname]
    for log, other in ((one, two), (two, one)):
        eventually(lambda log=log, other=other: f"{other.hostname} joined the party" in log.log, timeout=20)
    assert act.apply_async(("ok", 1), queue="other").get(timeout=10) == 1
    two.signal(signal.SIGTERM)
    assert two.wait() == 0
    eventually(lambda: f"{two.hostname} left" in one.log)
    one.signal(signal.SIGTERM)
    assert one.wait() == 0

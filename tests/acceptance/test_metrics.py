"""Metrics of a worker: what it counts, in every pool, and what stays counted whatever becomes of its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from celery_streams import __version__
from celery_streams.tallies import marks, tallies
from tests.support.control import asked
from tests.support.eventually import eventually
from tests.support.metrics import metrics_url, scrape

ACT = "tests.proj.actions.act"
PORT = ("--metrics-port", "0")
POOLS = ["prefork", "threads", "solo", "asyncio", "gevent", "eventlet"]


def outcomes(seen, task=ACT):
    return seen.by("outcome", "celery_streams_tasks_total", queue="celery", task=task)


@pytest.mark.parametrize("pool", POOLS)
def test_deliveries_are_counted_by_their_outcome_in_every_pool(project, act, worker, pool):
    one = worker(pool=pool, concurrency=1 if pool == "solo" else 2, options=PORT)
    wanted = {"succeeded": 23, "failed": 2, "retried": 2, "rejected": 1, "ignored": 1}

    for number in range(20):
        act.delay("ok", number)
    act.delay("sleep", seconds=0.3)
    act.delay("retry", until=2, countdown=0.1)
    act.delay("reject_requeue")
    for action in ("error", "error", "reject", "ignore"):
        act.delay(action)
    act.app.send_task("tests.proj.nobody_knows_this", task_id="1")
    act.app.tasks["tests.proj.actions.act_throws"].delay("expected_error")

    def counted():
        seen = scrape(one)
        assert outcomes(seen) == wanted | {"requeued": 1}
        assert outcomes(seen, "other").keys() == {"unknown"}
        assert outcomes(seen, "tests.proj.actions.act_throws") == {"expected": 1}
        return seen

    seen = eventually(counted, timeout=20)
    ran = sum(wanted.values()) + 1
    runtime = "celery_streams_task_runtime_seconds"
    assert seen.value(f"{runtime}_count", queue="celery", task=ACT) == ran
    assert 0.3 < seen.value(f"{runtime}_sum", queue="celery", task=ACT) < 30
    assert seen.value(f"{runtime}_bucket", queue="celery", task=ACT, le="0.25") < ran
    # Waits are those of first deliveries: one less than ran, for what was put back, and one of the other task.
    assert seen.value("celery_streams_task_wait_seconds_count", queue="celery") == ran
    assert seen.by("reason", "celery_streams_dead_letters_total", task=ACT) == {"failed": 2, "rejected": 1}
    assert "nobody_knows" not in seen.text
    assert seen.total("celery_streams_children") == (1 if pool == "solo" else 2)
    one.stop()
    assert one.process.returncode == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(metrics_url(one), timeout=5)


def test_counts_outlive_children_that_are_replaced_and_killed(project, act, worker):
    one = worker(concurrency=2, options=(*PORT, "--max-tasks-per-child", "7"))
    before: dict[Any, float] = {}

    def never_less():
        seen = scrape(one)
        for (name, labels), value in seen.samples.items():
            if name.endswith(("_total", "_count", "_sum", "_bucket")):
                assert value >= before.get((name, labels), 0), (name, labels)
                before[name, labels] = value
        return seen

    for number in range(60):
        act.delay("ok", number)
    killed = [act.delay("kill") for _ in range(3)]
    for result in killed:
        eventually(lambda result=result: never_less() and result.ready(), timeout=30)

    def all_counted():
        seen = never_less()
        assert outcomes(seen) == {"succeeded": 63, "lost": 3}
        return seen

    seen = eventually(all_counted)
    exits = seen.by("reason", "celery_streams_child_exits_total")
    assert exits.pop("crash") == 3
    assert exits.keys() == {"max_tasks"}
    assert seen.total("celery_streams_recovered_total", source="child") >= 3
    # Also of the bodies that ended with their process.
    assert seen.total("celery_streams_task_runtime_seconds_count") == 66
    assert seen.total("celery_streams_task_wait_seconds_count") == 63


def test_counts_outlive_a_child_that_is_killed_before_it_told_anybody(project, act, worker):
    one = worker(concurrency=1, options=PORT)
    (pid,) = asked(act.app, "stats", one.hostname)[one.hostname]["pool"]["processes"]
    os.kill(one.pid, signal.SIGSTOP)  # the parent hears of nothing that its child says

    results = [act.delay("ok", number) for number in range(50)]
    for result in results:
        result.get(timeout=15)
    stuck = act.delay("sleep", seconds=60)
    project.starts(stuck.id)
    os.kill(pid, signal.SIGKILL)
    os.kill(one.pid, signal.SIGCONT)

    assert eventually(lambda: outcomes(scrape(one)) == {"succeeded": 50, "lost": 1})
    assert eventually(lambda: scrape(one).total("celery_streams_running") == 1)
    assert scrape(one).total("celery_streams_longest_running_seconds") > 0


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_tasks_that_are_ended_from_outside_are_counted_with_the_time_they_took(project, act, worker, pool):
    one = worker(pool=pool, concurrency=1, options=PORT)

    act.apply_async(("sleep",), {"seconds": 60}, time_limit=0.5)
    assert eventually(lambda: outcomes(scrape(one)) == {"timed_out": 1}, timeout=20)
    revoked = act.delay("sleep", seconds=60)
    project.starts(revoked.id)
    act.app.control.revoke(revoked.id, terminate=True)
    assert eventually(lambda: outcomes(scrape(one)) == {"timed_out": 1, "revoked": 1}, timeout=20)

    seen = scrape(one)
    assert seen.total("celery_streams_task_runtime_seconds_count") == 2
    assert 0.4 < seen.total("celery_streams_task_runtime_seconds_sum") < 60
    if pool == "prefork":
        assert seen.by("reason", "celery_streams_child_exits_total") == {"hard_limit": 1, "revoked": 1}
    assert seen.by("reason", "celery_streams_dead_letters_total") == {"time-limit": 1}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_tasks_publish_is_counted_by_the_side_it_goes_to(project, worker, pool):
    app = project.app(streams_queues=["celery", "celery-routed"])
    one = worker(pool=pool, options=PORT, streams_queues=["celery", "celery-routed"], imports=["tests.proj.publishing"])
    task = app.tasks["tests.proj.actions.act"]

    app.send_task("tests.proj.publishing.publish", ["celery", 3], queue="celery")
    app.send_task("tests.proj.publishing.publish", ["celery", 2, {"countdown": 600}], queue="celery")
    app.send_task("tests.proj.publishing.publish_together", ["celery", 40], queue="celery")
    on_lists = not app.conf.broker_url.startswith("redis+cluster")
    if on_lists:
        app.send_task("tests.proj.publishing.publish", ["elsewhere", 5], queue="celery")
    task.delay("retry", until=2, countdown=0.1).get(timeout=15)

    def counted():
        seen = scrape(one)
        published = "celery_streams_published_total"
        assert seen.value(published, queue="celery", side="stream") == 3 + 2 + 40
        assert seen.value(published, queue="celery", side="list") == 0
        if on_lists:
            assert seen.value(published, queue="elsewhere", side="list") == 5
        return True

    assert eventually(counted)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("how", [{"streams_count_tasks": True}, {"options": PORT}], ids=["setting", "port"])
def test_what_a_worker_counted_is_in_the_history_when_it_has_ended(project, act, worker, pool, how):
    one = worker(pool=pool, concurrency=2, **how)
    results = [act.delay("ok", number) for number in range(20)] + [act.delay("error")]

    for result in results:
        result.get(timeout=15, propagate=False)
    one.stop()

    found = tallies(project.broker, ["celery"], seconds=86_400)["celery"]
    assert sum(step.done for step in found) == 20
    assert sum(step.failed for step in found) == 1
    assert sum(sum(step.runs.values()) for step in found) == 21
    assert sum(sum(step.waits.values()) for step in found) == 21
    assert [mark.version for mark in marks(project.broker, ["celery"])["celery"]] == [__version__]


def test_worker_that_is_not_told_to_counts_nothing(project, act, worker):
    one = worker(concurrency=1)
    act.delay("ok").get(timeout=15)

    one.stop()

    assert tallies(project.broker, ["celery"]) == {"celery": []}


def test_metrics_are_served_while_redis_is_silent(project, act, worker, redis_server):
    one = worker(concurrency=1, options=PORT)
    act.delay("ok").get(timeout=15)
    assert eventually(lambda: outcomes(scrape(one)) == {"succeeded": 1})

    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        seen = [scrape(one) for _ in range(3)]
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)

    assert all(outcomes(one) == {"succeeded": 1} for one in seen)


def test_errors_of_redis_are_counted_and_its_version_is_known(project, act, worker):
    one = worker(concurrency=1, options=PORT)
    act.delay("ok").get(timeout=15)
    errors = "celery_streams_redis_errors_total"
    before = scrape(one).by("kind", errors)

    project.broker.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def counted():
        found = scrape(one).by("kind", errors)
        # The child's blocking read, and the one that waits for what is delayed.
        return found.get("connection", 0) >= before.get("connection", 0) + 2

    assert eventually(counted)
    act.delay("ok").get(timeout=15)
    assert (
        eventually(lambda: [labels for labels, _ in scrape(one).having("celery_streams_build_info")])[0]["redis_server"]
        in project.broker.client.call("INFO", "server").decode()
    )


def test_ten_scrapers_at_once_are_answered_and_one_that_says_nothing_keeps_nobody_waiting(project, act, worker):
    one = worker(concurrency=1, options=PORT)
    host, _, port = metrics_url(one).removeprefix("http://").removesuffix("/metrics").rpartition(":")

    with socket.create_connection((host, int(port))), ThreadPoolExecutor(10) as scrapers:
        texts = [seen.text for seen in scrapers.map(lambda _: scrape(one), range(30))]
        one.stop()

    assert all("celery_streams_children 1.0" in text for text in texts)
    assert one.process.returncode == 0


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="needs Linux")
def test_children_do_not_keep_the_port_of_their_worker(project, act, worker):
    one = worker(concurrency=2, options=PORT)
    port = int(metrics_url(one).removesuffix("/metrics").rpartition(":")[2])
    act.delay("kill").get(timeout=15)  # and one that was forked when the port was being served

    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table]
    (inode,) = {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
    with open(f"/proc/{one.pid}/task/{one.pid}/children") as found:
        children = found.read().split()

    def holds(pid):
        return f"socket:[{inode}]" in {os.readlink(one.path) for one in os.scandir(f"/proc/{pid}/fd")}

    assert holds(one.pid)
    assert len(children) == 2
    assert not any(holds(pid) for pid in children)


def test_each_of_several_workers_has_a_port_of_its_own(project, act):
    for port in range(20_000, 30_000, 2):
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 1)),
        ):
            break
    both = project.command(
        *("-A", "tests.proj", "worker", "-P", "threads", "-c", "2", "--processes", "2", "-Q", "celery"),
        *("--metrics-port", str(port)),
        CELERY_WORKER_METRICS_PORT="1",
    )

    def answers(port):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as reply:
                return b"celery_streams_children 2.0" in reply.read()
        except OSError:
            return False

    assert eventually(lambda: answers(port) and answers(port + 1), timeout=30)
    both.stop()
    assert both.process.returncode == 0


@pytest.mark.parametrize("port", ["", "http", "70000", "-1", "1:2:3", "::1:9808"])
def test_metrics_port_that_is_none_is_refused_in_one_line(project, port):
    done = project.command("-A", "tests.proj", "worker", f"--metrics-port={port}")

    assert done.wait() == 2
    assert "Traceback" not in done.log
    assert "Invalid value for '--metrics-port'" in done.log


def test_metrics_port_that_is_taken_or_not_of_this_host_is_one_line_and_no_worker(project):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for said, why in (
            (str(port), f"--metrics-port 127.0.0.1:{port}: cannot listen there: Address already in use"),
            ("192.0.2.1:9808", "--metrics-port 192.0.2.1:9808: cannot listen there: Cannot assign requested address"),
            ("no-such-host.invalid:9808", "--metrics-port no-such-host.invalid:9808: cannot listen there: "),
        ):
            done = project.command("-A", "tests.proj", "worker", f"--metrics-port={said}")

            assert done.wait() == 78
            (line,) = [line for line in done.log.splitlines() if line.strip()]
            assert why in line


def test_metrics_without_prometheus_client_say_what_to_install(project, tmp_path):
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not there')")
    done = project.command(
        "-A", "tests.proj", "worker", "--metrics-port=0", directory=tmp_path, PYTHONPATH=str(tmp_path)
    )

    assert done.wait() == 78
    assert "pip install 'celery-streams[prometheus]'" in done.log

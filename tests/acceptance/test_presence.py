"""Who lives, told from Redis alone: with workers that are killed, stopped, split and idle."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from celery_streams import __version__, presence, streams_of
from celery_streams.monitoring.doctor import diagnose
from celery_streams.monitoring.status import collect
from tests.support.eventually import eventually
from tests.support.processes import ROOT
from tests.support.redis_state import redis_now_ms

POOLS = ["prefork", "threads", "solo", "gevent", "asyncio"]


@pytest.mark.parametrize("pool", POOLS)
def test_killed_worker_is_said_within_the_visibility_timeout_with_no_worker_left(project, app, worker, pool):
    one = worker(pool=pool, queues="celery,mails", streams_visibility_timeout=3)
    streams = streams_of(app)
    eventually(lambda: all(report.state.workers for report in collect(streams, ["celery", "mails"]).queues))
    assert collect(streams, ["celery", "mails"]).level == "ok"

    one.signal(signal.SIGKILL)
    eventually(lambda: collect(streams).level == "warning", timeout=5.0)

    found = collect(streams)
    assert {report.state.queue: report.state.consumers for report in found.queues} == {"celery": 0, "mails": 0}
    assert {alert.name for alert in found.alerts} == {"dead_worker"}
    odd = [one for one in diagnose(streams, ask_workers=False).findings if one.check == "consumers"]
    assert {(one.level, one.queue) for one in odd} == {("warning", "celery"), ("warning", "mails")}
    app.send_task("tests.proj.actions.act", queue="mails")
    assert collect(streams).level == "critical"
    assert "critical" in [one.level for one in diagnose(streams, ["mails"], ask_workers=False).findings]


def test_children_that_crash_again_and_again_are_said_for_the_queues_of_their_worker(project, act, worker):
    worker(concurrency=1, queues="celery,mails", streams_visibility_timeout=3)
    worker(name="other", queues="letters")
    killed = [act.delay("kill") for _ in range(3)]
    for result in killed:
        result.get(timeout=30)
    streams = streams_of(act.app)

    def said():
        found = collect(streams, ["celery", "mails", "letters"]).alerts
        return [alert for alert in found if alert.name == "restart_loop"]

    alerts = eventually(said)
    assert {(alert.level, alert.queue, alert.value) for alert in alerts} == {
        ("warning", "celery", 3),
        ("warning", "mails", 3),
    }


@pytest.mark.parametrize("pool", POOLS)
def test_worker_that_is_stopped_says_farewell(project, app, worker, pool):
    one = worker(pool=pool)
    eventually(lambda: presence.workers(project.broker))

    one.stop()

    assert presence.workers(project.broker) == []
    assert collect(streams_of(app)).level == "ok"


def test_idle_worker_goes_on_living_and_reading(project, app, worker):
    worker(queues="celery:1,mails:2", concurrency=3, streams_visibility_timeout=1)

    def settled():
        said = presence.workers(project.broker)
        return len(said) == 1 and said[0].is_alive and not said[0].unread_queues() and len(said[0].consumers) == 3

    eventually(settled)
    living = []
    until = redis_now_ms(project.broker.client) + 3_000

    def three_timeouts_later():
        living.extend(one.is_alive for one in presence.workers(project.broker))
        return redis_now_ms(project.broker.client) > until

    eventually(three_timeouts_later)
    [found] = presence.workers(project.broker)
    assert living.count(False) == 0
    assert [len(found.consumers_of("celery")), len(found.consumers_of("mails"))] == [1, 2]
    assert [report.state.consumers for report in collect(streams_of(app)).queues] == [1, 2]


@pytest.mark.one_server("a stock worker reads lists, of which a cluster has none")
def test_list_that_a_stock_worker_of_another_queue_leaves_alone_is_critical(project, app, worker):
    """The corner of a bad rollback: streams are off, and the stock workers that are up consume something else."""
    off = project.app(enabled=False)
    worker("lists", name="stock", queues="other", concurrency=1)
    worker("streams", name="streams", queues="celery,mails", concurrency=1)
    streams = streams_of(off)
    for queue in ("celery", "other"):
        off.tasks["tests.proj.actions.act"].apply_async(["ok"], queue=queue)
    eventually(lambda: project.ledger.runs())

    found = collect(streams, ["celery", "mails"])

    assert [(alert.queue, alert.name, alert.level) for alert in found.alerts] == [
        ("celery", "no_stock_worker", "critical")
    ]
    odd = [one for one in diagnose(streams, ["celery"]).findings if one.check == "both worlds"]
    assert [one.level for one in odd] == ["critical"]


@pytest.mark.one_server("a stock worker reads lists, of which a cluster has none")
def test_list_that_a_stock_worker_is_working_at_is_no_alert(project, app, worker):
    off = project.app(enabled=False)
    act = off.tasks["tests.proj.actions.act"]
    worker("lists", name="stock", queues="celery", concurrency=1)
    worker("streams", name="streams", queues="mails", concurrency=1)
    for _ in range(20):
        act.apply_async(["sleep", 1.0])
    eventually(lambda: project.ledger.runs())

    [report] = collect(streams_of(off), ["celery"]).queues

    assert report.side.length > 0
    assert report.side.stock_workers == ("stock@" + report.side.stock_workers[0].partition("@")[2],)
    assert report.alerts == ()


def test_probe_follows_the_worker(project, app, worker):
    one = worker(name="probed", streams_visibility_timeout=2)
    node = "probed@test"

    def probe(*words):
        done = subprocess.run(
            [sys.executable, "-m", "celery_streams", "-A", "tests.proj", "health", "-n", node, *words],
            env=project.environment(enabled=True),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    def is_so(code, words):
        def look():
            found = probe()
            assert (found[0], words in found[1]) == (code, True), found
            return True

        return look

    eventually(is_so(0, "reads celery; last heartbeat"))
    one.signal(signal.SIGSTOP)
    eventually(is_so(1, "is dead"), timeout=20)
    one.signal(signal.SIGCONT)
    eventually(is_so(0, "reads celery"), timeout=20)
    one.stop()
    assert probe()[0] == 1


def test_banner_says_which_celery_streams_it_is_and_where_settings_come_from(project, app, worker):
    one = worker(streams_queues=["celery", "jobs"], stream_url="x")

    assert f".> version:     celery-streams {__version__} (" in one.log
    assert ".> switch:      on (environment variable CELERY_STREAMS_ENABLED)" in one.log
    assert ".> queues:      celery, jobs (" in one.log
    # Said once the worker is ready.
    eventually(lambda: "stream_url is not a setting and has no effect; did you mean 'streams_url'?" in one.log)

"""Nobody waits behind a long task; rate limits and priorities while there is more to do than can be done."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter

import pytest
from celery.bin.worker import worker as celery_worker

from tests.support.eventually import eventually
from tests.support.versions import needs_celery


@pytest.mark.parametrize(("pool", "children"), [("prefork", 2), ("threads", 8)])
def test_nobody_waits_behind_a_long_task(project, act, worker, pool, children):
    short = act.app.tasks["tests.proj.actions.act_paced"]
    project.ledger.pace(0.001)
    before = [short.delay() for _ in range(100)]
    stuck = act.delay("sleep", "stuck", seconds=60)
    after = [short.delay() for _ in range(700)]

    worker(pool=pool, concurrency=children)

    project.starts(stuck.id)
    eventually(lambda: project.ledger.client.llen("ledger:runs") == 801, timeout=50)
    assert eventually(lambda: (project.status().length, project.status().pending) == (1, 1))
    assert project.ledger.read("end", stuck.id) == [], "nobody waited for its end, which nobody waits for here either"
    assert project.counted() == Counter(result.id for result in (*before, stuck, *after))


#: Command line and settings that each say: one message at a time. Celery 5.5 has no --disable-prefetch.
ONE_AT_A_TIME = [
    pytest.param(("--prefetch-multiplier", "1"), {}, id="option"),
    pytest.param((), {"worker_prefetch_multiplier": 1}, id="setting"),
    pytest.param(("--prefetch-multiplier", "1"), {"worker_prefetch_multiplier": 8}, id="option-beats-setting"),
    pytest.param((), {"worker_disable_prefetch": True}, id="disabled-by-setting"),
]
if any("--disable-prefetch" in param.opts for param in celery_worker.params):
    ONE_AT_A_TIME.append(pytest.param(("--disable-prefetch",), {}, id="disabled-by-option"))


@pytest.mark.parametrize(("options", "settings"), ONE_AT_A_TIME)
def test_child_that_fetches_one_at_a_time_never_holds_a_second_message(project, worker, options, settings):
    count_held = project.app(include=["tests.proj.counting"]).tasks["tests.proj.counting.count_held"]
    results = [count_held.delay() for _ in range(100)]

    running = worker(concurrency=1, options=("-I", "tests.proj.counting", *options), **settings)

    assert {result.get(timeout=20) for result in results} == {1}
    assert "no effect:   worker_prefetch_multiplier" not in running.log


@pytest.mark.parametrize(
    ("options", "settings"), [(("--prefetch-multiplier", "8"), {}), ((), {"worker_prefetch_multiplier": 8})]
)
def test_child_fetches_several_small_messages_at_once_whatever_the_multiplier(project, worker, options, settings):
    nothing = project.app(include=["tests.proj.counting"]).tasks["tests.proj.counting.nothing"]
    for _ in range(1_000):
        nothing.delay()
    client = project.broker.client
    client.call("CONFIG", "RESETSTAT")

    running = worker(concurrency=1, options=("-I", "tests.proj.counting", *options), **settings)
    eventually(lambda: not project.status().length, timeout=30)

    # Those that find nothing, and those that wait, among them.
    [reads] = re.findall(rb"cmdstat_xreadgroup:calls=(\d+)", client.call("INFO", "commandstats"))
    assert int(reads) < 1_000
    assert ".> no effect:   worker_prefetch_multiplier (children fetch only what they start soon" in running.log


def starts_of(project, results):
    wanted = {result.id for result in results}
    eventually(lambda: wanted <= set(project.counted()), timeout=20)
    return sorted((run for run in project.ledger.runs() if run["id"] in wanted), key=lambda run: run["at"])


def test_limited_tasks_hold_no_slot_and_start_at_their_rate(project, act, worker):
    limited = act.app.tasks["tests.proj.actions.act_limited"]  # 10/s
    worker(concurrency=2)
    began = time.time()
    first = [limited.delay("ok", n) for n in range(16)]
    others = [act.delay("ok", n) for n in range(30)]

    assert [result.get(timeout=10) for result in others] == list(range(30))
    runs = starts_of(project, first)

    last_other = max(run["at"] for run in project.ledger.runs() if run["id"] in {result.id for result in others})
    assert last_other < runs[-1]["at"]
    assert runs[-1]["at"] - began > 1.4
    assert [result.get(timeout=10) for result in first] == list(range(16))
    assert project.counted() == Counter(result.id for result in (*first, *others))


@pytest.mark.parametrize("scope", ["global", "worker"])
def test_rate_limit_counts_for_each_worker_or_for_all(project, act, worker, scope):
    limited = act.app.tasks["tests.proj.actions.act_limited"]  # 10/s
    settings = {"streams_rate_limit_scope": scope}
    worker(name="one", concurrency=1, wait=False, **settings)
    worker(name="two", concurrency=1, **settings)
    eventually(lambda: project.status().consumers >= 2)

    began = time.time()
    runs = starts_of(project, [limited.delay("ok", n) for n in range(16)])

    hosts = {host: [run["at"] for run in runs if run["hostname"] == host] for host in ("one@test", "two@test")}
    assert all(hosts.values())
    if scope == "global":
        assert runs[-1]["at"] - began > 1.4
    else:
        assert all(at[-1] - began > 0.1 * (len(at) - 2) for at in hosts.values())
        assert min(abs(one - two) for one in hosts["one@test"] for two in hosts["two@test"]) < 0.08


@pytest.mark.parametrize(
    ("pool", "options"),
    [
        ("prefork", ()),
        pytest.param(
            "prefork",
            ("--pool-start-method", "spawn"),
            id="spawn",
            marks=needs_celery((5, 7), "before, there is no --pool-start-method"),
        ),
        ("threads", ()),
        ("solo", ()),
    ],
)
def test_rate_limit_that_is_changed_by_remote_control_holds_for_children_and_their_successors(
    project, act, worker, pool, options
):
    limited = act.app.tasks["tests.proj.actions.act_limited"]  # 10/s
    running = worker(pool=pool, concurrency=1, options=options)
    limited.delay("ok").get(timeout=10)

    def spread(rate_limit, count):
        answer = act.app.control.rate_limit(
            limited.name, rate_limit, destination=[running.hostname], reply=True, timeout=5, limit=1
        )
        assert answer == [{running.hostname: {"ok": "new rate limit set successfully"}}]
        return seconds_until_last(count)

    def seconds_until_last(count):
        # From the publish on, not from the first start: a busy machine may run the first task late, and none early.
        began = time.time()
        return starts_of(project, [limited.delay("ok", n) for n in range(count)])[-1]["at"] - began

    # The bounds leave room for one start too early: a child hears of the change a moment after the parent has answered.
    assert spread("2/s", 5) > 1.3
    assert spread("100/s", 60) < 10.0  # 29.5 s by the old one; a busy machine does not start a hundred a second
    assert spread("3/s", 6) > 1.1
    if pool == "prefork":
        first = project.ledger.runs()[-1]["pid"]
        os.kill(first, signal.SIGKILL)
        assert seconds_until_last(6) > 1.1
        assert project.ledger.runs()[-1]["pid"] != first


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_highest_priority_starts_first_also_after_a_wait(project, act, worker, pool):
    worker(pool=pool, concurrency=1)
    assert act.delay("ok", 1).get(timeout=10) == 1
    eventually(lambda: project.status().length == 0)

    blocker = act.apply_async(("sleep",), {"seconds": 1.0}, priority=9)
    project.starts(blocker.id)
    results = {act.apply_async(("ok",), priority=priority).id: priority for priority in (9, 6, 3, 0, 9, 5, 3, 0)}
    eventually(lambda: set(results) <= set(project.counted()))

    order = [results[run["id"]] for run in project.ledger.runs() if run["id"] in results]
    assert order in ([0, 0, 3, 5, 3, 6, 9, 9], [0, 0, 5, 3, 3, 6, 9, 9], [0, 0, 3, 3, 5, 6, 9, 9])  # 5 is of step 3

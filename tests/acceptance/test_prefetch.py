"""Nobody waits behind a long task; rate limits and priorities while there is more to do than can be done."""

from __future__ import annotations

from collections import Counter

import pytest
from celery.bin.worker import worker as celery_worker

from tests.eventually import eventually


@pytest.mark.parametrize(("pool", "children"), [("prefork", 8), ("threads", 8)])
def test_nobody_waits_behind_a_long_task(project, act, worker, pool, children):
    before = [act.delay("ok", n) for n in range(50)]
    stuck = act.delay("sleep", "stuck", seconds=5)
    after = [act.delay("ok", n) for n in range(300)]

    worker(pool=pool, concurrency=children)

    (long,) = project.starts(stuck.id)
    eventually(lambda: len(project.ledger.runs()) == 351, timeout=20)
    runs = {run["id"]: run for run in project.ledger.runs()}
    late = [result.id for result in after if runs[result.id]["at"] > long["at"] + 4.5]
    assert late == []
    assert stuck.get(timeout=15) == "stuck"
    assert project.counted() == Counter(result.id for result in (*before, stuck, *after))
    assert eventually(lambda: project.status().length == 0)


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
    count_held = project.app(include=["tests.proj.counting"]).tasks["tests.proj.counting.count_held"]
    results = [count_held.delay() for _ in range(100)]

    running = worker(concurrency=1, options=("-I", "tests.proj.counting", *options), **settings)

    assert max(result.get(timeout=20) for result in results) > 1
    assert ".> no effect:   worker_prefetch_multiplier (children fetch what they start soon" in running.log


def starts_of(project, results):
    wanted = {result.id for result in results}
    eventually(lambda: wanted <= set(project.counted()), timeout=20)
    return sorted((run for run in project.ledger.runs() if run["id"] in wanted), key=lambda run: run["at"])


def test_limited_tasks_hold_no_slot_and_start_at_their_rate(project, act, worker):
    limited = act.app.tasks["tests.proj.actions.act_limited"]  # 10/s
    worker(concurrency=2)
    first = [limited.delay("ok", n) for n in range(16)]
    others = [act.delay("ok", n) for n in range(30)]

    assert [result.get(timeout=10) for result in others] == list(range(30))
    runs = starts_of(project, first)

    last_other = max(run["at"] for run in project.ledger.runs() if run["id"] in {result.id for result in others})
    assert last_other < runs[-1]["at"]
    assert runs[-1]["at"] - runs[0]["at"] > 1.3
    assert [result.get(timeout=10) for result in first] == list(range(16))
    assert project.counted() == Counter(result.id for result in (*first, *others))


@pytest.mark.parametrize("scope", ["global", "worker"])
def test_rate_limit_counts_for_each_worker_or_for_all(project, act, worker, scope):
    limited = act.app.tasks["tests.proj.actions.act_limited"]  # 10/s
    settings = {"streams_rate_limit_scope": scope}
    worker(name="one", concurrency=1, wait=False, **settings)
    worker(name="two", concurrency=1, **settings)
    eventually(lambda: project.status().consumers >= 2)

    runs = starts_of(project, [limited.delay("ok", n) for n in range(16)])

    hosts = {host: [run["at"] for run in runs if run["hostname"] == host] for host in ("one@test", "two@test")}
    assert all(hosts.values())
    if scope == "global":
        assert runs[-1]["at"] - runs[0]["at"] > 1.3
    else:
        assert all(at[-1] - at[0] > 0.09 * (len(at) - 2) for at in hosts.values())
        assert min(abs(one - two) for one in hosts["one@test"] for two in hosts["two@test"]) < 0.08


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

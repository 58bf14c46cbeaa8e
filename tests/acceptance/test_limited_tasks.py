"""Limits of tasks, with real workers: never more at once than allowed, in turn, also when processes are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from tests.support.eventually import eventually

ACT = "tests.proj.actions.act"


def spans(project, results, *, killed=()):
    """Return when each task ran, as pairs of start and end; one that was killed ended when its successor started."""
    found = []
    for result in results:
        starts, ends = project.ledger.runs(result.id), project.ledger.read("end", result.id)
        for number, run in enumerate(starts):
            own = [end["at"] for end in ends if end["pid"] == run["pid"] and end["at"] >= run["at"]]
            found.append(
                (run["at"], own[0] if own else min([at for at in killed if at >= run["at"]], default=run["at"]))
            )
            assert number == len(starts) - 1 or not own
    return sorted(found)


def most_at_once(found):
    """Return how many ran at the same time at most."""
    moments = sorted(
        [(start, 1) for start, _ in found] + [(end, -1) for _, end in found], key=lambda one: (one[0], one[1])
    )
    now = most = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def gaps(found, *, most):
    """Return for how long a place was free each time before the next one had it, the shortest first."""
    starts, ends = sorted(start for start, _ in found), sorted(end for _, end in found)
    return sorted(start - end for start, end in zip(starts[most:], ends, strict=False))


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "gevent"])
def test_no_more_run_at_once_than_allowed_over_all_workers_and_other_tasks_go_on(project, act, worker, pool):
    limits = {"streams_limits": {ACT: {"concurrency": 2}}}
    other = act.app.tasks["tests.proj.actions.act_late"]
    results = [act.apply_async(("sleep", number), {"seconds": 0.1}) for number in range(16)]
    beside = other.delay("ok", "beside")

    for name in ("one", "two"):
        worker(name=name, pool=pool, concurrency=3, wait=False, **limits)

    assert beside.get(timeout=30) == "beside"
    assert [result.get(timeout=30) for result in results] == list(range(16))
    found = spans(project, results)
    assert most_at_once(found) == 2
    # The next one follows when one ends, and not at somebody's next look; a machine that stalls spoils one or two.
    assert gaps(found, most=2)[7] < 1.0
    eventually(lambda: (project.status().held, project.status().length) == (0, 0))


def test_keys_are_served_in_turn_one_at_a_time_each(project, act, worker):
    limits = {"streams_limits": {ACT: {"concurrency": 2, "concurrency_key": "value", "concurrency_per_key": 1}}}
    many = [act.apply_async(("sleep", "many"), {"seconds": 0.05}) for _ in range(12)]
    few = [act.apply_async(("sleep", "few"), {"seconds": 0.05}) for _ in range(3)]

    worker(concurrency=4, **limits)

    assert [result.get(timeout=20) for result in few] == ["few"] * 3
    assert [result.get(timeout=20) for result in many] == ["many"] * 12
    assert most_at_once(spans(project, many)) == most_at_once(spans(project, few)) == 1
    assert spans(project, few)[-1][1] < spans(project, many)[-4][0]


def test_places_of_a_worker_that_was_killed_are_free_again_and_the_limit_holds(project, act, worker):
    limits = {"streams_limits": {ACT: {"concurrency": 2}}, "streams_visibility_timeout": 2}
    first = worker(name="first", concurrency=2, **limits)
    results = [act.apply_async(("sleep", number), {"seconds": 0.5}) for number in range(8)]
    eventually(lambda: len(project.ledger.runs()) >= 2)

    children = {run["pid"] for run in project.ledger.runs()}
    first.kill()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    killed = time.time()
    worker(name="second", concurrency=4, **limits)

    assert [result.get(timeout=30) for result in results] == list(range(8))
    assert most_at_once(spans(project, results, killed=[killed])) <= 2
    eventually(lambda: not [key for key in project.broker.client.call("KEYS", "*") if b":held" in key])


EARLY = {"streams_acks_late": False, "streams_limits": {ACT: {"concurrency": 2}}}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_limit_holds_for_tasks_that_are_acknowledged_before_they_run(project, act, worker, pool):
    # Each runs for longer than two looks at the places.
    results = [act.apply_async(("sleep", number), {"seconds": 1.2}) for number in range(6)]

    for name in ("one", "two", "three"):
        worker(name=name, pool=pool, concurrency=1, wait=False, streams_visibility_timeout=2, **EARLY)

    assert [result.get(timeout=30) for result in results] == list(range(6))
    found = spans(project, results)
    assert most_at_once(found) == 2
    assert gaps(found, most=2)[1] < 1.0  # the next one starts when one ends
    eventually(lambda: not [key for key in project.broker.client.call("KEYS", "*") if b":held" in key])


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_place_of_an_early_task_whose_process_was_killed_is_free_again(project, act, worker, victim):
    first = worker(name="first", concurrency=3, streams_visibility_timeout=2, **EARLY)
    lost = [act.apply_async(("sleep", number), {"seconds": 60}) for number in range(2)]
    children = {project.starts(result.id)[0]["pid"] for result in lost}
    results = [act.apply_async(("sleep", number), {"seconds": 0.1}) for number in range(4)]
    eventually(lambda: project.status().held == 4)

    if victim == "worker":
        first.kill()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if victim == "worker":
        worker(name="second", concurrency=2, streams_visibility_timeout=2, **EARLY)

    assert [result.get(timeout=30) for result in results] == list(range(4))
    assert project.counted() == {result.id: 1 for result in (*lost, *results)}
    eventually(lambda: not [key for key in project.broker.client.call("KEYS", "*") if b":held" in key])


def test_limits_that_are_set_at_run_time_are_followed_and_shown(project, act, worker):
    worker(concurrency=4, streams_visibility_timeout=2)
    command = ("-A", "tests.proj", "limits")
    assert project.command(*command, "set", ACT, "concurrency=1").wait() == 0
    shown = project.command(*command)
    assert shown.wait() == 0
    assert ACT in shown.log
    assert "redis" in shown.log

    def one_at_a_time():
        results = [act.apply_async(("sleep", number), {"seconds": 0.1}) for number in range(6)]
        assert [result.get(timeout=20) for result in results] == list(range(6))
        return most_at_once(spans(project, results)) == 1

    eventually(one_at_a_time, timeout=30)  # a worker reads them within seconds, and says so nowhere

    assert project.command(*command, "reset", ACT).wait() == 0
    assert project.command(*command, "reset", ACT).wait() == 2
    refused = project.command(*command, "set", ACT, "concurrency=0")
    assert refused.wait() == 2
    assert "from 1 to" in refused.log


def test_backlog_of_a_rate_holds_up_no_other_task_and_keeps_its_order(project, act, worker):
    slow = act.app.tasks["tests.proj.actions.act_limited"]  # 10/s
    flood = [slow.delay("ok", number) for number in range(300)]
    beside = act.delay("ok", "beside")

    began = time.time()
    worker(concurrency=1)

    project.starts(beside.id)
    eventually(lambda: len([run for run in project.ledger.runs() if run["task"] == slow.name]) >= 15)
    runs = [run for run in project.ledger.runs() if run["task"] == slow.name]
    (at,) = [run["at"] for run in project.ledger.runs(beside.id)]
    assert at - runs[0]["at"] < len(flood) * 0.1 / 2, "it does not wait until they may start"
    assert [run["id"] for run in runs] == [result.id for result in flood[: len(runs)]]
    assert runs[-1]["at"] - began >= (len(runs) - 1) * 0.1 * 0.9

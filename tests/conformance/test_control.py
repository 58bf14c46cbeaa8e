"""Remote control: ``celery inspect``, ``celery control`` and ``celery status`` of a running worker."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.processes import ROOT


def inspected(side, command, *args):
    """Return what this side's worker answers to an inspect command."""
    reply = getattr(side.inspect, command)(*args)
    assert reply, f"no answer to {command}"
    assert list(reply) == [side.worker.hostname]
    return reply[side.worker.hostname]


def test_ping_is_answered(side):
    assert inspected(side, "ping") == {"ok": "pong"}


def test_control_ping_names_the_worker(side):
    reply = side.app.control.ping(destination=[side.worker.hostname], timeout=5, limit=1)

    assert reply == [{side.worker.hostname: {"ok": "pong"}}]


def test_active_shows_what_runs(side, tmp_path):
    gate = tmp_path / "gate"
    sent = {"gate": str(gate), "then": "ok"}
    result = side.act.apply_async(("after_gate", "x"), sent)
    (run,) = side.ran(result.id)

    (active,) = eventually(lambda: [one for one in inspected(side, "active") if one["id"] == result.id])

    assert active["name"] == active["type"] == "tests.proj.actions.act"
    assert active["args"] == ["after_gate", "x"]
    assert active["kwargs"] == sent
    assert active["hostname"] == side.worker.hostname
    assert active["worker_pid"] == run["pid"]
    assert active["delivery_info"]["routing_key"] == side.queue
    assert abs(active["time_start"] - run["at"]) < 3
    gate.touch()
    assert side.value(result) == "x"
    eventually(lambda: [one for one in inspected(side, "active") if one["id"] == result.id] == [])


def test_query_task_tells_where_a_task_is(side):
    result = side.act.apply_async(("sleep",), {"seconds": 1})
    side.ran(result.id)

    found = eventually(lambda: inspected(side, "query_task", result.id))

    state, info = found[result.id]
    assert state == "active"
    assert info["id"] == result.id
    side.value(result)


def test_scheduled_shows_what_is_delayed(side):
    eta = datetime.now(timezone.utc) + timedelta(seconds=1)
    result = side.act.apply_async(("ok", "scheduled"), eta=eta)

    def scheduled():
        return [one for one in inspected(side, "scheduled") if one["request"]["id"] == result.id]

    (entry,) = eventually(scheduled)

    assert datetime.fromisoformat(entry["eta"]) == eta
    assert entry["priority"] == 6
    assert entry["request"]["name"] == "tests.proj.actions.act"
    assert side.value(result) == "scheduled"


def test_revoked_lists_the_revoked_ids(side, new_id):
    side.control("revoke", new_id)

    assert new_id in inspected(side, "revoked")


def test_registered_lists_the_tasks(side):
    registered = inspected(side, "registered")

    assert "tests.proj.actions.add" in registered
    assert "tests.proj.tasks.send_message" in registered
    assert [name for name in registered if name.startswith("tests.proj.actions.act_limited")] == [
        "tests.proj.actions.act_limited [rate_limit=10/s]"
    ]


def test_active_queues_lists_the_queues(side):
    queues = inspected(side, "active_queues")

    assert {(queue["name"], queue["routing_key"]) for queue in queues} == {
        (side.queue, side.queue),
        (side.routed_queue, side.routed_queue),
        (side.bound_queue, "bound.key"),
    }
    assert {queue["exchange"]["type"] for queue in queues} == {"direct"}


def test_stats_describe_the_worker(side):
    name = "tests.proj.actions.act_counted"
    for _ in range(3):
        side.value(side.app.tasks[name].delay("ok"))

    def counted():
        stats = inspected(side, "stats")
        return stats if stats["total"].get(name, 0) >= 3 else None

    stats = eventually(counted)
    assert stats["pid"] == side.worker.pid
    assert stats["pool"]["max-concurrency"] == 2
    assert len(stats["pool"]["processes"]) == 2
    assert stats["pool"]["timeouts"] == [0, 0]
    assert stats["pool"]["max-tasks-per-child"] == "N/A"
    assert stats["prefetch_count"] >= 0
    assert stats["broker"]["transport"] == "redis"
    assert stats["total"][name] == 3
    assert stats["uptime"] >= 0
    assert "maxrss" in stats["rusage"]


def test_conf_tells_the_settings(side):
    conf = inspected(side, "conf")

    assert conf["task_default_queue"] == side.queue
    assert {"tests.proj.tasks", "tests.proj.actions"} <= set(conf["include"])


def test_report_is_celerys(side):
    assert "software -> celery:" in inspected(side, "report")["ok"]


def test_clock_is_answered(side):
    assert inspected(side, "clock")["clock"] >= 0


def test_reserved_is_answered_with_a_list(side):
    assert isinstance(inspected(side, "reserved"), list)


def test_consumer_of_a_queue_is_added_and_cancelled(side, new_id):
    queue = f"added-{new_id}"

    added = side.control("add_consumer", queue)
    ran = side.value(side.act.apply_async(("ok", "added"), queue=queue))
    listed = {one["name"] for one in inspected(side, "active_queues")}
    cancelled = side.control("cancel_consumer", queue)

    assert added == {"ok": f"add consumer {queue}"}
    assert ran == "added"
    assert queue in listed
    assert cancelled == {"ok": f"no longer consuming from {queue}"}
    eventually(lambda: queue not in {one["name"] for one in inspected(side, "active_queues")})
    later = side.act.apply_async(("ok", 1), queue=queue)
    side.settled()
    assert side.ledger.runs(later.id) == []


def test_higher_priority_runs_first(side, new_id):
    queue = f"priorities-{new_id}"
    results = {
        priority: side.act.apply_async(("sleep", priority), {"seconds": 0.15}, queue=queue, priority=priority)
        for priority in (9, 3, 6, 0)
    }

    side.control("add_consumer", queue)
    for result in results.values():
        side.value(result)
    side.control("cancel_consumer", queue)

    # Two children: two run at once, so the first two and the last two may swap.
    order = sorted(results, key=lambda priority: side.ledger.runs(results[priority].id)[0]["at"])
    assert (set(order[:2]), set(order[2:])) == ({0, 3}, {6, 9})


def test_pool_grows_and_shrinks(plain):
    def size():
        return len(inspected(plain, "stats")["pool"]["processes"])

    grown = plain.control("pool_grow", 1)
    eventually(lambda: size() == 3)
    shrunk = plain.control("pool_shrink", 1)
    eventually(lambda: size() == 2)

    assert grown == {"ok": "pool will grow"}
    assert shrunk == {"ok": "pool will shrink"}
    plain.settled()


def test_rate_limit_of_a_task_is_set(side):
    name = "tests.proj.actions.act_limited"

    answer = side.control("rate_limit", name, "50/s")
    registered = inspected(side, "registered")
    side.control("rate_limit", name, "10/s")

    assert answer == {"ok": "new rate limit set successfully"}
    assert f"{name} [rate_limit=50/s]" in registered


def test_rate_limit_of_an_unknown_task_is_refused(side):
    assert side.control("rate_limit", "no.such.task", "1/s") == {"error": "unknown task"}


def test_time_limit_of_a_task_is_accepted(side):
    name = "tests.proj.actions.act_tracked"

    answer = side.control("time_limit", name, hard=10, soft=5)
    side.control("time_limit", name, hard=None, soft=None)

    assert answer == {"ok": "time limits set successfully"}


def test_revoke_and_terminate_answer_with_the_ids(side, new_id):
    assert side.control("revoke", new_id) == {"ok": f"tasks {{{new_id!r}}} flagged as revoked"}
    assert side.control("terminate", new_id) == {"ok": "terminate: tasks unknown"}


def celery(side, *arguments):
    """Run the stock ``celery`` command against this side's broker."""
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.proj", *arguments],
        env=side.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("command", [("inspect", "ping"), ("status",)])
def test_celerys_own_command_line_sees_the_worker(plain, command):
    done = celery(plain, *command, "--json", "-t", "5", "-d", plain.worker.hostname)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0]) == {plain.worker.hostname: {"ok": "pong"}}


def test_celery_call_publishes_to_the_worker(plain):
    done = celery(plain, "call", "tests.proj.actions.act", "--args", '["ok", "from the shell"]')

    assert done.returncode == 0, done.stderr
    assert plain.value(plain.app.AsyncResult(done.stdout.strip())) == "from the shell"


#: What test_pairs does not count.
ENDINGS: dict[str, Any] = {
    "hard limit": (("sleep",), {"kwargs": {"seconds": 30}, "time_limit": 1}, 1),
    "odd error": (("raise", "odd"), {"kwargs": {"kind": "own"}}, 1),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_start_is_in_the_totals_however_the_task_ends(side, ending):
    args, options, starts = ENDINGS[ending]
    name = "tests.proj.actions.act_totals"

    def total():
        return side.inspect.stats()[side.worker.hostname]["total"].get(name, 0)

    before = total()
    result = side.task("act_totals").apply_async(args, **options)
    side.ran(result.id, times=starts)

    assert eventually(lambda: total() == before + starts)


def test_task_that_runs_is_in_the_totals_before_it_ends(side):
    name = "tests.proj.actions.act_totals"
    before = side.inspect.stats()[side.worker.hostname]["total"].get(name, 0)

    result = side.task("act_totals").delay("sleep", "long", seconds=2)
    side.ran(result.id)

    assert side.inspect.stats()[side.worker.hostname]["total"].get(name, 0) == before + 1
    assert side.value(result) == "long"


def test_own_command_sees_what_runs_and_nothing_that_has_ended(side, tmp_path):
    def what_runs():
        return side.inspect._request("what_runs")[side.worker.hostname]

    gate = tmp_path / "gate"
    result = side.act.delay("after_gate", "done", gate=str(gate), then="ok")
    side.ran(result.id)

    busy = eventually(lambda: (found := what_runs())["active"] == [result.id] and found)
    assert (busy["count"], busy["reserved"], busy["known"]) == (1, 1, [result.id])
    gate.touch()
    side.value(result)
    assert eventually(lambda: (found := what_runs())["count"] == 0 and found["reserved"] == 0 and not found["known"])

"""Warm and cold shutdown of a worker with work in hand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter

import pytest

from celery_streams import keys
from tests.support.eventually import eventually
from tests.support.redis_state import redis_state


def test_warm_shutdown_finishes_what_runs_and_takes_nothing_new(project, act, worker):
    leaving = worker(concurrency=1)
    long = act.delay("sleep", "finished", seconds=1.5)
    project.starts(long.id)

    leaving.signal(signal.SIGTERM)
    waiting = [act.delay("ok", n) for n in range(10)]
    code = leaving.wait()

    assert code == 0
    assert long.get(timeout=5) == "finished"
    assert project.counted() == Counter({long.id: 1})
    assert project.status().waiting == len(waiting)
    assert project.status().pending == 0
    assert project.status().consumers == 0


def not_started(project):
    """Return the ids of the tasks that some child has fetched and not started."""
    state = redis_state(project.broker.client)["celery-streams:{celery}"]
    fetched = state.entries.keys() & state.pending.get(keys.GROUP, {}).keys()
    return {json.loads(state.entries[entry_id]["headers"])["id"] for entry_id in fetched} - set(project.counted())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=["warm", "cold"])
def test_entries_that_were_not_started_run_elsewhere_within_two_seconds(project, act, worker, number):
    paced = act.app.tasks["tests.proj.actions.act_paced"]
    tiny = act.app.tasks["tests.proj.actions.add"]
    staying = worker(name="staying", queues="elsewhere", concurrency=2)
    leaving = worker(name="leaving", concurrency=1)
    # One that takes 40 ms is too short for the others to go back for it.
    project.ledger.pace(0.04)
    results = [paced.delay()]
    child = project.starts(results[0].id)[0]["pid"]

    def stopped_with_many_in_hand():
        # After tiny tasks it fetches several at once, on a slow machine, too: those behind the tiny ones take longer.
        for _ in range(100):
            tiny.apply_async((1, 1), ignore_result=True)
        results.extend(fresh := [paced.delay() for _ in range(20)])
        ids = {result.id for result in fresh}
        eventually(lambda: ids & set(project.counted()), timeout=30)
        # Stopped until the worker has its signal, and slow then: it must not run them before it is told.
        os.kill(child, signal.SIGSTOP)
        found = ids & not_started(project)
        if len(found) > 1:  # the first may have been started, and not have said so
            project.ledger.pace(0.3)
            return found
        os.kill(child, signal.SIGCONT)
        return None

    fetched = eventually(stopped_with_many_in_hand, timeout=60)

    leaving.signal(number)
    eventually(lambda: "shutdown (MainProcess)" in leaving.log)
    with contextlib.suppress(ProcessLookupError):  # a cold shutdown has killed it
        os.kill(child, signal.SIGCONT)
    at = time.time()
    eventually(lambda: not fetched & not_started(project))
    project.ledger.pace(0.0)
    act.app.control.add_consumer("celery", destination=[staying.hostname])
    code = leaving.wait()

    eventually(lambda: project.status().length == 0)
    assert code == 0
    assert set(project.counted()) == {result.id for result in results}
    handed_on = [run for run in map(project.ledger.runs, fetched) if run[0]["hostname"] == staying.hostname]
    assert handed_on
    assert {(len(run), run[0]["redelivered"]) for run in handed_on} == {(1, False)}, "no delivery was burnt"
    assert max(run["at"] for (run,) in handed_on) - at < 8.0, "nobody waited for a claim"
    again = sum(times - 1 for times in project.counted().values())
    assert again <= (number == signal.SIGQUIT), "only what was running ran again"


def test_cold_shutdown_hands_the_running_task_to_another_worker(project, act, worker):
    leaving = worker(name="leaving", concurrency=1)
    result = act.delay("sleep_first", "done", seconds=60)
    (first,) = project.starts(result.id)
    staying = worker(name="staying", concurrency=1)

    leaving.signal(signal.SIGQUIT)
    leaving.wait()

    assert result.get(timeout=5) == "done"
    _, second = project.ledger.runs(result.id)
    assert (first["hostname"], second["hostname"]) == (leaving.hostname, staying.hostname)
    assert second["redelivered"] is True
    assert project.dead_letters() == []


def test_second_sigint_is_a_cold_shutdown(project, act, worker):
    leaving = worker(concurrency=1)
    result = act.delay("sleep_first", "done", seconds=60)
    project.starts(result.id)

    leaving.signal(signal.SIGINT)
    eventually(lambda: "Warm shutdown" in leaving.log)
    leaving.signal(signal.SIGINT)
    leaving.wait()

    assert eventually(lambda: project.status().waiting == 1)
    worker(name="next", concurrency=1)
    assert result.get(timeout=10) == "done"


def test_idle_worker_ends_at_once_and_leaves_no_consumer(project, act, worker):
    leaving = worker(concurrency=2)
    act.delay("ok").get(timeout=10)

    leaving.signal(signal.SIGTERM)

    assert leaving.wait(5) == 0
    assert project.status().consumers == 0
    assert project.status().length == 0


def test_signals_of_a_worker_that_ends(project, act, worker):
    leaving = worker(concurrency=2)
    act.delay("ok").get(timeout=10)

    leaving.signal(signal.SIGTERM)
    leaving.wait()

    lines = project.ledger.read("process", "worker")
    parents = [line["signal"] for line in lines if line["pid"] == leaving.pid]
    children = [line["signal"] for line in lines if line["pid"] != leaving.pid]
    assert parents == [
        *("import_modules", "celeryd_init", "worker_init", "celeryd_after_setup"),
        *("worker_before_create_process", "worker_before_create_process", "worker_ready"),
        *("worker_shutting_down", "worker_shutdown"),
    ]
    assert children == ["worker_process_init"] * 2 + ["worker_process_shutdown"] * 2


def test_shutdown_by_remote_control_is_a_warm_one(project, act, worker):
    leaving = worker(concurrency=1)
    long = act.delay("sleep", "finished", seconds=1)
    project.starts(long.id)

    act.app.control.shutdown(destination=[leaving.hostname])

    assert leaving.wait() == 0
    assert long.get(timeout=5) == "finished"


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        (("SIGTERM", "SIGTERM"), 0),
        (("SIGINT",), 1),
    ],
)
def test_running_task_finishes_in_a_warm_shutdown_whichever_signal_asks_for_it(project, act, worker, signals, code):
    leaving = worker(concurrency=1)
    result = act.delay("sleep", "finished", seconds=1)
    project.starts(result.id)

    for number, name in enumerate(signals, start=1):
        leaving.signal(getattr(signal, name))
        eventually(lambda number=number: leaving.log.count("Warm shutdown") == number)

    assert leaving.wait() == code
    assert result.get(timeout=5) == "finished"
    assert project.counted() == Counter([result.id])


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_terminating_the_whole_process_group_as_systemd_does_lets_running_tasks_finish(project, act, worker, pool):
    leaving = worker(concurrency=2, pool=pool)
    results = [act.delay("sleep", n, seconds=1) for n in range(2)]
    for result in results:
        project.starts(result.id)

    os.killpg(leaving.pid, signal.SIGTERM)

    assert leaving.wait() == 0
    assert [result.get(timeout=5) for result in results] == [0, 1]
    assert project.counted() == Counter(result.id for result in results)


@pytest.mark.parametrize("seconds", [1.0, 0.0], ids=["in a task", "at the end of a task"])
def test_cold_shutdown_that_interrupts_a_solo_worker_lets_its_task_end_and_settles_it(project, act, worker, seconds):
    leaving = worker(pool="solo", concurrency=None)
    results = [act.delay("sleep", n, seconds=seconds) for n in range(5)]
    project.starts(results[0].id)

    leaving.signal(signal.SIGQUIT)

    assert leaving.wait(10) == 0
    assert "NotImplementedError" not in leaving.log
    assert project.dead_letters() == []
    assert project.status().pending == 0
    done = project.counted()
    assert set(done.values()) == {1}
    assert {result.state for result in results if result.id in done} == {"SUCCESS"}
    assert project.status().waiting == len(results) - len(done)


def test_sigterm_is_a_cold_shutdown_when_it_is_remapped(project, act, worker, monkeypatch):
    monkeypatch.setenv("REMAP_SIGTERM", "SIGQUIT")
    leaving = worker(name="leaving", concurrency=1)
    monkeypatch.delenv("REMAP_SIGTERM")
    result = act.delay("sleep_first", "done", seconds=60)
    project.starts(result.id)

    leaving.signal(signal.SIGTERM)

    assert leaving.wait() == 0  # Celery's code of a cold shutdown, which handed its tasks on
    assert project.status().waiting == 1
    worker(name="next", concurrency=1)
    assert result.get(timeout=10) == "done"
    assert [run["redelivered"] for run in project.ledger.runs(result.id)] == [False, True]


def test_soft_shutdown_lets_short_tasks_finish_and_hands_long_ones_on(project, act, worker):
    leaving = worker(name="leaving", concurrency=2, worker_soft_shutdown_timeout=1.5)
    short = act.delay("sleep", "finished", seconds=0.7)
    long = act.delay("sleep_first", "done", seconds=60)
    project.starts(short.id)
    project.starts(long.id)

    leaving.signal(signal.SIGQUIT)
    code = leaving.wait()

    assert code == 0
    assert "Initiating Soft Shutdown" in leaving.log
    assert short.get(timeout=5) == "finished"
    worker(name="next", concurrency=1)
    assert long.get(timeout=10) == "done"
    assert project.counted() == Counter({short.id: 1, long.id: 2})


def test_hangup_starts_the_worker_again_and_usr1_shows_what_its_threads_do(project, act, worker):
    running = worker(concurrency=1)
    result = act.delay("sleep", "finished", seconds=1)
    project.starts(result.id)

    running.signal(signal.SIGUSR1)
    eventually(lambda: "celery-streams-services" in running.log)
    running.signal(signal.SIGHUP)
    eventually(lambda: running.log.count(f"{running.hostname} ready.") == 2, timeout=20)

    assert result.get(timeout=5) == "finished"
    assert act.delay("ok", 1).get(timeout=10) == 1
    assert project.counted()[result.id] == 1
    eventually(lambda: project.status().consumers == 1)  # it runs tasks before its first beat
    running.signal(signal.SIGTERM)
    assert running.wait() == 0


def until_prompt(debugger):
    said = b""
    while not said.endswith(b"(Pdb) "):
        said += debugger.recv(4096) or pytest.fail(f"the debugger went after {said!r}")
    return said.decode()


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("lists", marks=pytest.mark.one_server("a stock worker reads lists, of which a cluster has none")),
        "streams",
    ],
)
def test_usr2_opens_celerys_debugger_in_the_child_that_gets_it(project, worker, program):
    act = project.app(enabled=program == "streams").tasks["tests.proj.actions.act"]
    running = worker(program, concurrency=1)
    running.stop()
    running.environment["CELERY_RDBSIG"] = "1"
    running.log_path.unlink()
    running.start()
    running.wait_ready()
    result = act.delay("spin", seconds=1.0)
    (run,) = project.starts(result.id)

    os.kill(run["pid"], signal.SIGUSR2)
    found = eventually(lambda: re.search(r"telnet 127\.0\.0\.1 (\d+)", running.log))
    with socket.create_connection(("127.0.0.1", int(found[1])), timeout=10) as debugger:
        until_prompt(debugger)
        debugger.sendall(b"where\n")
        stack = until_prompt(debugger)
        debugger.sendall(b"continue\n")

    assert "tests/proj/actions.py" in stack
    assert result.get(timeout=10) is None
    assert project.counted() == Counter([result.id])
    running.signal(signal.SIGTERM)
    assert running.wait() == 0


def can_unshare():
    command = shutil.which("unshare")
    return command is not None and subprocess.run([command, "--pid", "--fork", "--mount-proc", "true"]).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="no process namespaces here")
def test_worker_that_is_process_1_ends_when_it_is_told_to_and_leaves_no_zombies(project, act, worker):
    inside = worker(concurrency=1)
    inside.stop()
    inside.command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *inside.command]
    inside.log_path.unlink()
    inside.start()
    inside.wait_ready()
    result = act.delay("kill", "done")
    assert result.get(timeout=10) == "done"
    long = act.delay("sleep", "finished", seconds=1)
    (run,) = project.starts(long.id)

    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True).stdout
    worker_pid = next(int(line.split()[0]) for line in listed.splitlines() if int(line.split()[1]) == inside.pid)
    zombies = [line for line in listed.splitlines() if re.match(rf"\s*\d+\s+{worker_pid}\s+Z", line)]
    os.kill(worker_pid, signal.SIGTERM)

    assert run["pid"] < 100
    assert zombies == []
    assert inside.wait() == 0
    assert long.get(timeout=5) == "finished"

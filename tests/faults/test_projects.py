"""F28, F29, F31, F34: canvas, the switch, forks, threads and greenlets, and replays, while processes are killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import chain, chord, group

from tests.faults.conftest import QUEUE, Stage
from tests.faults.workers import signal_process
from tests.support.processes import ROOT
from tests.support.versions import needs_celery

# -- F28 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def canvas(make_stage: Callable[..., Stage]) -> Stage:
    """A stage whose Redis keeps what it was told, and whose app knows the tasks by name.

    Celery lets a process that dispatches the body of a chord claim it for 5 * broker_connection_timeout + 0.6 seconds
    and at least for 6 (celery.backends.redis, with the default retry policy).
    """
    return make_stage(appendonly=True, settings={"broker_connection_timeout": 1.0})


def _signature(stage: Stage, name: str, *args: Any, **kwargs: Any) -> Any:
    return stage.app.signature(f"tests.faults.app.{name}", args, kwargs)


def test_f28_chains_groups_and_chords_end_right_while_children_and_redis_are_killed(canvas: Stage) -> None:
    stage = canvas
    worker = stage.worker(level="WARNING", ready=False)
    stage.wait(lambda: len(worker.children()) == 2)
    chance = random.Random(28)
    chords, chains = [], []
    for number in range(6):
        header = group(_signature(stage, "double", n, seconds=0.05) for n in range(5))
        chords.append(chord(header, app=stage.app)(_signature(stage, "total")))
        links = chain(_signature(stage, "double", number), _signature(stage, "double"), _signature(stage, "double"))
        chains.append((links.apply_async(), number * 8))

    kills = waiting = 0
    for turn in range(4):
        time.sleep(chance.uniform(0.1, 0.3))  # the instant is what varies
        children = worker.children()
        if children:
            signal_process(chance.choice(children), signal.SIGKILL)
            kills += 1
        if turn == 2:
            waiting = len(worker.children())
            stage.server.restart()

    stage.wait(stage.empty, timeout=25, message="nothing is stuck")
    stage.wait(lambda: {note["id"] for note in stage.ledger.notes()} >= {body.id for body in chords}, timeout=15)
    totals = [note["total"] for body in chords for note in stage.ledger.notes(body.id)]
    assert set(totals) == {20}
    # Once more for a process that was killed while it ran a body and had not acknowledged it, or had sent one and
    # Celery had not noted that; and for each child that waited for the answer to a publish when Redis was killed.
    assert len(totals) - len(chords) <= kills + waiting, (
        "the body of each chord runs once, but for what was killed at it"
    )
    for result, value in chains:
        assert result.get(timeout=10, disable_sync_subtasks=False) == value
    assert stage.letters() == []


def test_f28_a_chord_whose_part_was_stored_and_not_counted_when_its_child_died_is_not_stuck(stage: Stage) -> None:
    stage.worker(concurrency=1, point="counted")
    header = group(_signature(stage, "double", n) for n in range(3))

    body = chord(header, app=stage.app)(_signature(stage, "total"))

    stage.wait(lambda: stage.ledger.notes(body.id), message="the body ran")
    stage.wait(stage.empty)
    assert stage.died_at("counted")
    assert [note["total"] for note in stage.ledger.notes(body.id)] == [6]
    assert len(stage.runs()) == 4, "what succeeded did not run again"


@needs_celery((5, 7), "before, nobody claims the dispatch of a chord's body")
@pytest.mark.parametrize("ignores", [False, True], ids=["with results", "without results"])
def test_f28_a_chord_whose_body_was_claimed_and_not_published_when_its_child_died_is_not_stuck(
    canvas: Stage, *, ignores: bool
) -> None:
    stage = canvas
    stage.worker(concurrency=1, point="claimed")
    header = group(_signature(stage, "double", n).set(ignore_result=ignores) for n in range(3))

    body = chord(header, app=stage.app)(_signature(stage, "total"))

    stage.wait(lambda: stage.ledger.notes(body.id), timeout=15, message="the body ran")
    stage.wait(stage.empty)
    assert stage.died_at("claimed")
    assert [note["total"] for note in stage.ledger.notes(body.id)] == [6]
    assert len(stage.runs()) == (5 if ignores else 4), "what is known to have succeeded did not run again"


# -- F29 ---------------------------------------------------------------------------------------------------------------

_SWITCHING = """
import sys, time
from tests.faults.app import app, ledger, quiet

app.set_current()
count = 0
while True:
    task_id = f"{sys.argv[1]}-{count}"
    quiet.apply_async(("ok",), task_id=task_id, retry=False)
    ledger().append("submitted", id=task_id, action="ok", at=time.time())
    count += 1
    time.sleep(0.004)  # the load
"""


@pytest.mark.one_server("half of it is on lists, of which a cluster has none")
def test_f29_switching_to_streams_and_back_under_load_with_kills_loses_nothing_and_runs_nothing_twice(
    stage: Stage,
) -> None:
    flag = stage.directory / "flag"
    flag.write_text("0")
    (stage.directory / "switching.py").write_text(
        f"def enabled():\n    return open({os.fspath(flag)!r}).read() == '1'\n"
    )
    path = {"PYTHONPATH": f"{stage.directory}:{ROOT}", "CELERY_STREAMS_ENABLED": "switching.enabled"}
    common: dict[str, Any] = {"environment": path, "concurrency": 1, "ready": False}
    streams = stage.worker("streams", **common)
    lists = stage.worker("lists", side="lists", settings={"task_acks_late": True}, **common)
    stage.wait(lambda: streams.children() and lists.children())
    producers: list[subprocess.Popen[bytes]] = []

    def produce() -> None:
        number = len(producers)
        producers.append(
            subprocess.Popen([sys.executable, "-c", _SWITCHING, f"p{number}"], env=streams.environment, cwd=ROOT)
        )

    def more() -> None:
        enough = stage.ledger.count("submitted") + 20
        stage.wait(lambda: stage.ledger.count("submitted") > enough)

    try:
        produce()
        for number, value in enumerate("101010"):
            more()
            flag.write_text(value)
            more()
            if number % 2 == 0:
                producers[-1].kill()
                produce()
            else:
                signal_process(streams.children()[0], signal.SIGKILL)
                stage.wait(streams.children)
    finally:
        for process in producers:
            process.kill()
            process.wait()

    submitted = {one.id for one in stage.ledger.submissions()}
    stage.drained(*submitted, timeout=20)
    with redis.Redis.from_url(stage.url) as client:
        stage.wait(lambda: client.llen(QUEUE) == 0)
    runs = stage.runs()
    again = [run for run in runs if run.redelivered]
    assert len(runs) - len({run.id for run in runs}) == len(again) <= 3, "only a kill runs anything again"
    assert {run.worker for run in runs} == {streams.hostname, lists.hostname}


# -- F31 ---------------------------------------------------------------------------------------------------------------


def _publish_in_fork(stage: Stage, prefix: str, count: int) -> None:
    for number in range(count):
        stage.send("ok", task_id=f"{prefix}-{number}")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_f31_processes_forked_after_a_publish_share_no_connection_with_their_parent(stage: Stage) -> None:
    warm = stage.send("ok")
    fork = multiprocessing.get_context("fork")
    forks = [fork.Process(target=_publish_in_fork, args=(stage, f"fork{n}", 40)) for n in range(4)]
    for one in forks:
        one.start()
    mine = [stage.send("ok", task_id=f"parent-{number}") for number in range(40)]
    for one in forks:
        one.join(20)

    assert [one.exitcode for one in forks] == [0, 0, 0, 0]
    stage.worker(level="WARNING", ready=False)
    wanted = {warm, *mine, *(f"fork{n}-{number}" for n in range(4) for number in range(40))}
    stage.drained(*wanted)
    assert sorted(run.id for run in stage.runs()) == sorted(wanted)


def test_f31_threads_publish_at_once_and_nothing_is_mixed_up(stage: Stage) -> None:
    errors: list[BaseException] = []

    def publish(prefix: str) -> None:
        try:
            _publish_in_fork(stage, prefix, 50)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=publish, args=(f"thread{n}",)) for n in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)

    assert errors == []
    stage.worker(level="WARNING", ready=False)
    wanted = {f"thread{n}-{number}" for n in range(8) for number in range(50)}
    stage.drained(*wanted)
    assert sorted(run.id for run in stage.runs()) == sorted(wanted)


_GREENLETS = """
from gevent import monkey

monkey.patch_all()

import sys, time
import gevent
from tests.faults.app import app, ledger

# The current app is one of the thread, and so of the greenlet.
quiet = app.tasks["tests.faults.app.quiet"]
ticks = 0


def tick():
    global ticks
    while True:
        ticks += 1
        gevent.sleep(0.001)  # a tick


def publish(prefix):
    for number in range(int(sys.argv[2])):
        # Of very different lengths: what two greenlets wrote into one another would not be read as messages.
        text = f"{prefix}-{number} " * (number % 7 * 2_000 + 1)
        quiet.apply_async(("note",), {"text": text}, task_id=f"{prefix}-{number}", retry=False)
        gevent.sleep(0)  # the other greenlets have their turn


publish("warm")
beat = gevent.spawn(tick)
greenlets = [gevent.spawn(publish, f"greenlet{n}") for n in range(int(sys.argv[1]))]
gevent.joinall(greenlets, timeout=30, raise_error=True)
beat.kill()
assert all(one.successful() for one in greenlets), "each ended"
ledger().note("publisher", ticks=ticks)
"""


def test_f31_greenlets_publish_at_once_and_nothing_is_mixed_up(stage: Stage) -> None:
    greenlets, each = 50, 14
    worker = stage.worker(level="WARNING", ready=False)

    # A process of its own: what gevent patches stays patched.
    command = [sys.executable, "-c", _GREENLETS, str(greenlets), str(each)]
    done = subprocess.run(command, env=worker.environment, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    prefixes = ["warm", *(f"greenlet{n}" for n in range(greenlets))]
    texts = {f"{one}-{n}": f"{one}-{n} " * (n % 7 * 2_000 + 1) for one in prefixes for n in range(each)}
    stage.drained(*texts, timeout=30)
    assert sorted(run.id for run in stage.runs()) == sorted(texts), "each arrived once"
    told = {note["id"]: note for note in stage.ledger.notes()}
    assert told.pop("publisher")["ticks"] > 1, "a publish lets other greenlets run"
    assert {task_id: note["text"] for task_id, note in told.items()} == texts
    assert stage.letters() == []


def test_f31_tasks_publish_from_inside_their_children(stage: Stage) -> None:
    stage.worker()
    parents = [stage.send("publish", count=20) for _ in range(5)]

    stage.drained(*parents)
    wanted = {one.id for one in stage.ledger.submissions()}
    stage.drained(*wanted)
    assert len(wanted) == 100
    assert len(stage.runs()) == 105


# -- F34 ---------------------------------------------------------------------------------------------------------------

_REPLAY = """
import os, signal, sys
from celery_streams.broker import StreamBroker
from celery_streams.cluster import connect
from celery_streams.dead_letters import dead_letters, replay

broker = StreamBroker(connect(sys.argv[1]))
for count, letter in enumerate(list(dead_letters(broker, sys.argv[2]))):
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    replay(broker, letter)
"""


def _dead(stage: Stage, count: int) -> list[str]:
    """Make ``count`` dead letters of a task that nobody knows."""
    stage.settings["streams_unknown_task_ttl"] = 0
    worker = stage.worker("burier", concurrency=1)
    sent = [stage.app.send_task("tests.faults.later.task", retry=False).id for _ in range(count)]
    stage.wait(lambda: stage.status().dead == count)
    worker.stop()
    return sent


_LATER = """
from tests.faults.app import app, record


@app.task(bind=True, name="tests.faults.later.task")
def later(self):
    record(self, "start")
    record(self, "end")
"""


def test_f34_a_replay_that_is_killed_half_way_and_run_again_replays_each_once(stage: Stage) -> None:
    sent = _dead(stage, 30)
    (stage.directory / "later_module.py").write_text(_LATER)

    killed = subprocess.run([sys.executable, "-c", _REPLAY, stage.url, QUEUE, "12"], cwd=ROOT, check=False)
    half = stage.status()
    again = subprocess.run([sys.executable, "-c", _REPLAY, stage.url, QUEUE, "-1"], cwd=ROOT, check=False)

    assert (killed.returncode, again.returncode) == (-signal.SIGKILL, 0)
    assert (half.waiting, half.dead) == (12, 18)
    environment = {"PYTHONPATH": f"{stage.directory}:{ROOT}"}
    stage.worker("knows", include=["later_module"], environment=environment)
    stage.drained(*sent)
    assert sorted(run.id for run in stage.runs()) == sorted(sent)
    assert stage.letters() == []


@pytest.mark.faults
def test_f34_the_command_killed_at_a_random_moment_and_run_again_replays_each_once(stage: Stage) -> None:
    sent = _dead(stage, 400)
    (stage.directory / "later_module.py").write_text(_LATER)
    environment = {**stage.workers[0].environment}
    command = [sys.executable, "-m", "celery_streams", "-A", "tests.faults.app", "dead", "replay", "-Q", QUEUE]
    with (stage.directory / "replay.log").open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            stage.wait(lambda: stage.status().waiting > 0 or process.poll() is not None, timeout=20)
        finally:
            process.kill()
            process.wait()
        half = stage.status()
        done = subprocess.run(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)

    assert half.waiting + half.dead == 400
    assert half.waiting > 0
    assert done.returncode == 0, Path(stage.directory / "replay.log").read_text()
    stage.worker("knows", include=["later_module"], environment={"PYTHONPATH": f"{stage.directory}:{ROOT}"})
    stage.drained(*sent)
    assert sorted(run.id for run in stage.runs()) == sorted(sent)

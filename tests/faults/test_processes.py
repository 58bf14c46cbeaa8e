"""F1, F2, F8, F9, F22, F24: what happens to the processes of a worker, and what tasks notice of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

import celery_streams
from celery_streams import inspect
from celery_streams.monitoring.doctor import diagnose
from tests.faults.conftest import QUEUE, VISIBILITY_TIMEOUT, Stage
from tests.faults.workers import FaultWorker, signal_process

#: Seconds that a busy machine may add to a bound.
SLACK = 1.5


def _running(stage: Stage, *task_ids: str) -> None:
    stage.wait(lambda: all(stage.started(task_id) for task_id in task_ids), message="the tasks run")


# -- F1 ---------------------------------------------------------------------------------------------------------------


def test_f1_what_a_dead_worker_held_runs_elsewhere_within_the_visibility_timeout(stage: Stage) -> None:
    first = stage.worker("first")
    held = [stage.send("nap_first", seconds=60) for _ in range(2)]
    _running(stage, *held)
    second = stage.worker("second")
    own = stage.send("nap", seconds=3.0)
    _running(stage, own)

    at = time.time()
    first.kill()

    stage.drained(*held, own)
    again = [run for task_id in held for run in stage.runs(task_id)[1:]]
    assert [(run.worker, run.redelivered) for run in again] == [(second.hostname, True)] * 2
    # The claimer looks so early that the timeout itself is the bound, not the timeout and a look.
    assert max(run.start for run in again) - at < VISIBILITY_TIMEOUT + SLACK
    assert len(stage.runs(own)) == 1


def test_f1_children_do_not_outlive_their_parent_and_what_they_ran_runs_elsewhere(stage: Stage) -> None:
    first = stage.worker("first", concurrency=3)
    sent = [stage.send("nap", seconds=0.5) for _ in range(3)]
    _running(stage, *sent)

    first.kill_parent()

    stage.wait(lambda: first.orphans_gone, timeout=2.0, message="the children end")
    stage.worker("second")
    stage.drained(*sent)


# -- F2 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    ["segfault", pytest.param("kill", marks=pytest.mark.faults), pytest.param("exit", marks=pytest.mark.faults)],
)
def test_f2_a_task_whose_child_dies_runs_again_at_once_and_the_other_child_goes_on(
    make_stage: Callable[..., Stage], how: str
) -> None:
    stage = make_stage(settings={"streams_visibility_timeout": 30.0})
    worker = stage.worker()
    stage.wait(lambda: len(worker.children()) == 2)
    long = stage.send("nap", seconds=1.5)
    _running(stage, long)

    sent = stage.send("crash", how=how)

    stage.wait(lambda: stage.started(sent, 2), message="it runs again")
    _, second = stage.runs(sent)
    [last] = stage.ledger.notes(sent)
    assert second.start - last["at"] < 10.0, "it waited for no claim"
    assert second.redelivered
    stage.drained(sent, long)
    assert len(stage.runs(long)) == 1
    stage.wait(lambda: len(worker.children()) == 2, message="the child is replaced")


def test_f2_a_child_that_hangs_up_before_it_dies_is_replaced_and_leaves_nothing_behind(stage: Stage) -> None:
    worker = stage.worker(concurrency=1)
    [child] = stage.wait(worker.children)

    sent = stage.send("hang_up")

    stage.drained(sent)
    assert len(stage.runs(sent)) == 2
    assert worker.children() != [child]
    assert "Traceback" not in worker.log


def test_f2_children_killed_one_after_the_other_are_all_replaced(stage: Stage) -> None:
    worker = stage.worker()
    for _ in range(4):
        children = stage.wait(lambda: worker.children() if len(worker.children()) == 2 else [])
        signal_process(children[0], signal.SIGKILL)
        stage.wait(lambda gone=children[0]: gone not in worker.children())

    sent = [stage.send("ok") for _ in range(50)]

    stage.drained(*sent)
    assert len(stage.runs()) == 50
    names = [info.name for info in inspect.consumers(stage.broker, QUEUE)]
    assert len(names) <= 3, f"dead children's consumers are deleted: {names}"


# -- F8 ---------------------------------------------------------------------------------------------------------------


def _stop(worker: FaultWorker) -> None:
    worker.signal_all(signal.SIGSTOP)


def _go_on(worker: FaultWorker) -> None:
    worker.signal_all(signal.SIGCONT)


def test_f8_a_task_that_stood_still_too_long_can_know_that_it_was_claimed_and_settles_nothing(stage: Stage) -> None:
    first = stage.worker("first", concurrency=1)
    sent = stage.send("own", seconds=0.5)
    _running(stage, sent)

    _stop(first)
    stage.worker("second", concurrency=1)
    stage.wait(lambda: stage.started(sent, 2), timeout=15)
    _go_on(first)

    stage.wait(lambda: len(stage.ledger.notes(sent)) == 2, message="both said whether it is theirs")
    owned = {note["pid"]: note["owned"] for note in stage.ledger.notes(sent)}
    mine, other = (run.pid for run in stage.runs(sent))
    assert (owned[mine], owned[other]) == (False, True)
    stage.wait(stage.empty)
    assert len(stage.runs(sent)) == 2
    stage.wait(lambda: "no longer held" in first.log)


def test_f8_a_retry_decided_after_the_entry_was_claimed_is_not_stored(stage: Stage) -> None:
    first = stage.worker("first", concurrency=1)
    sent = stage.send("flaky", until=1, seconds=0.4)
    _running(stage, sent)

    _stop(first)
    stage.worker("second", concurrency=1)
    stage.wait(lambda: stage.started(sent, 2), timeout=15)
    _go_on(first)

    stage.wait(lambda: "no longer held" in first.log, message="the first one notices")
    stage.wait(stage.empty)
    assert sorted(run.retries for run in stage.runs(sent)) == [0, 0, 1]


def test_f8_an_entry_that_reached_a_sleeping_process_and_was_claimed_is_not_started_by_it(stage: Stage) -> None:
    first = stage.worker("first", concurrency=1)
    warm = stage.send("ok")
    stage.drained(warm)

    _stop(first)
    sent = [stage.send("ok") for _ in range(5)]
    stage.worker("second", concurrency=1)
    stage.drained(*sent)
    _go_on(first)
    after = stage.send("ok")

    stage.drained(after)
    _terminate(first)
    assert sorted(run.id for run in stage.runs()) == sorted([warm, *sent, after])


# -- F9 ---------------------------------------------------------------------------------------------------------------


def _terminate(worker: FaultWorker) -> None:
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_f9_a_warm_shutdown_finishes_what_runs_and_leaves_the_rest_to_others(
    stage: Stage, number: signal.Signals
) -> None:
    first = stage.worker("first", concurrency=1)
    running = stage.send("nap", seconds=0.8)
    _running(stage, running)
    rest = [stage.send("ok") for _ in range(30)]

    first.signal(number)
    second = stage.worker("second", concurrency=1)

    stage.drained(running, *rest)
    # As Celery has it: 1 after SIGINT.
    assert first.wait(10) == (0 if number is signal.SIGTERM else 1)
    assert len(stage.runs()) == 31, "nothing ran twice"
    assert not any(run.redelivered for run in stage.runs()), "no delivery was burnt"
    assert {run.worker for run in stage.runs() if run.id in rest} == {second.hostname}
    assert inspect.consumers(stage.broker, QUEUE)[0].name.startswith(second.hostname)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param((signal.SIGQUIT,), id="SIGQUIT"),
        pytest.param((signal.SIGTERM, signal.SIGQUIT), id="SIGTERM-SIGQUIT", marks=pytest.mark.faults),
        pytest.param((signal.SIGINT, signal.SIGINT), id="SIGINT-SIGINT", marks=pytest.mark.faults),
    ],
)
def test_f9_a_cold_shutdown_ends_at_once_and_what_ran_runs_elsewhere_at_once(
    make_stage: Callable[..., Stage], numbers: tuple[signal.Signals, ...]
) -> None:
    stage = make_stage(settings={"streams_visibility_timeout": 30.0})
    first = stage.worker("first", concurrency=2)
    sent = [stage.send("nap_first", seconds=60) for _ in range(2)]
    _running(stage, *sent)
    second = stage.worker("second", concurrency=2)

    *before, last = numbers
    for number in before:
        first.signal(number)
        stage.wait(lambda: "arm shutdown" in first.log)
    at = time.time()
    first.signal(last)

    first.wait(8)
    stage.drained(*sent)
    again = [run for task_id in sent for run in stage.runs(task_id)[1:]]
    assert [(run.worker, run.redelivered) for run in again] == [(second.hostname, True)] * 2
    assert max(run.start for run in again) - at < 10.0, "it waited for no claim"


def test_f9_a_second_sigterm_does_not_cut_a_running_task_short(stage: Stage) -> None:
    worker = stage.worker(concurrency=1)
    sent = stage.send("nap", seconds=1.2)
    _running(stage, sent)

    worker.signal(signal.SIGTERM)
    stage.wait(lambda: "arm shutdown" in worker.log)
    worker.signal(signal.SIGTERM)
    worker.wait(10)

    stage.wait(stage.empty, timeout=2.0)
    assert [run.end is not None for run in stage.runs(sent)] == [True]


# -- F22 --------------------------------------------------------------------------------------------------------------


def test_f22_two_workers_with_the_same_name_are_noticed_and_acknowledge_only_their_own_entries(stage: Stage) -> None:
    stage.worker("twin", concurrency=1)
    twin = FaultWorker(
        name="twin",
        queues=QUEUE,
        directory=stage.directory / "..",
        environment=stage.workers[0].environment,
        concurrency=1,
    )
    stage.workers.append(twin)
    twin.start()
    twin.wait_ready()

    sent = [stage.send("nap", seconds=0.1) for _ in range(60)]
    stage.wait(lambda: len({run.pid for run in stage.runs()}) == 2, message="both are busy")
    noticed = diagnose(celery_streams.streams_of(stage.app), [QUEUE], ask_workers=False)

    stage.drained(*sent)
    assert [finding.what for finding in noticed.findings if finding.check == "node names"] == [
        f"2 live workers have the node name {twin.hostname}"
    ]
    runs = stage.runs()
    assert len(runs) == 60
    assert len({run.pid for run in runs}) == 2, "both ran some"
    assert not any("no longer held" in worker.log for worker in stage.workers)


# -- F24 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [
        "hold_gil",
        pytest.param("nap", marks=pytest.mark.faults),
        pytest.param("spin", marks=pytest.mark.faults),
    ],
)
def test_f24_a_task_longer_than_the_visibility_timeout_runs_once_and_nobody_waits_behind_it(
    stage: Stage, action: str
) -> None:
    stage.worker("first", concurrency=2)
    stage.worker("second", concurrency=1)
    long = stage.send(action, seconds=VISIBILITY_TIMEOUT * 2)
    _running(stage, long)

    short = [stage.send("ok") for _ in range(200)]

    stage.wait(lambda: stage.ended(*short), timeout=VISIBILITY_TIMEOUT)
    assert not stage.ended(long)
    stage.drained(long)
    assert len(stage.runs(long)) == 1
    assert len(stage.runs()) == 201


@pytest.mark.faults
def test_f24_forty_children_that_block_sigterm_at_one_hard_limit_hold_up_no_heartbeat(stage: Stage) -> None:
    stage.worker("first", concurrency=41)
    long = stage.send("nap", seconds=VISIBILITY_TIMEOUT * 8)
    deaf = [stage.send("deaf", seconds=60, time_limit=VISIBILITY_TIMEOUT * 3) for _ in range(40)]
    stage.wait(lambda: all(stage.started(one) for one in (long, *deaf)), timeout=30, message="all run")
    stage.worker("second", concurrency=2)

    stage.wait(lambda: len(stage.letters()) == 40, timeout=40, message="all are over their limit")

    stage.drained(long, timeout=40)
    assert len(stage.runs()) == 41, "none ran twice"

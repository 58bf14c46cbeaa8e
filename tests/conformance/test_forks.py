"""Processes that a task forks are the task's own affair, on both sides."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.eventually import eventually
from tests.support.processes import alive


def test_process_that_a_task_terminates_ends(side):
    assert side.value(side.act.delay("terminate_process")) in (-signal.SIGTERM, signal.SIGTERM, 0)


def test_process_that_a_task_terminates_at_once_ends(streams):
    """In stock it sleeps on: the signal is lost while the process begins."""
    assert streams.value(streams.act.delay("terminate_process", after=0)) == -signal.SIGTERM


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_process_that_a_task_forks_ends_at_a_signal(streams, signum):
    assert streams.value(streams.act.delay("fork_terminated", signum=int(signum))) == signum


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_process_that_a_task_forks_ends_at_a_signal_that_comes_at_once(streams, signum):
    results = [streams.act.delay("fork_terminated", signum=int(signum), after=0) for _ in range(10)]

    assert [streams.value(one) for one in results] == [signum] * 10


@pytest.mark.parametrize(
    ("how", "code"), [("exit", 3), ("error", 1), ("odd", 1), ("retry", 1), ("reject", 1), ("return", 0)]
)
@pytest.mark.parametrize("task", ["act", "act_early", "act_autoretry"])
def test_process_that_leaves_the_task_ends_there_and_settles_nothing(streams, task, how, code):
    result = streams.task(task).delay("fork_leaves", how=how)

    assert streams.value(result) == code
    streams.settled()
    assert len(streams.ledger.runs(result.id)) == 1
    assert streams.dead_letters(result.id) == []


def test_death_of_a_child_is_noticed_while_a_process_that_its_task_forked_lives_on(streams):
    result = streams.act.delay("fork_outlives", "done")

    assert streams.value(result) == "done"

    (forked,) = streams.ledger.read("forked", result.id)
    assert alive(forked["child"])
    os.kill(forked["child"], signal.SIGKILL)
    first, second = streams.ledger.runs(result.id)
    assert second["at"] - first["at"] < 5
    assert eventually(lambda: not alive(forked["child"]))

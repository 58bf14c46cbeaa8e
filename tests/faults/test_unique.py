"""Unique tasks under faults: whoever publishes, from processes that die, a message of a key is there once at most.

Judged by ``uniqueness``; the builds at the end prove that it can fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.conftest import Stage
from tests.faults.uniqueness import Offer, judge_uniqueness
from tests.faults.verdict import Check, Run

faults = pytest.mark.faults

#: Seconds that the end of a task may take to reach Redis on a busy machine; a lock that is stale is so for longer.
MOMENT = 2.0


def offering(stage: Stage, *, count: int = 40, pause: float = 0.1, **what: Any) -> list[str]:
    """Have two tasks publish the same unique tasks again and again, and return their ids."""
    return [stage.send("offer", keys=["a", "b", "c"], count=count, pause=pause, **what) for _ in range(2)]


def verdict(stage: Stage) -> dict[str, Check]:
    checks = judge_uniqueness(stage.ledger.offers(), stage.runs(), moment=MOMENT)
    return {check.letter: check for check in checks}


def settled(stage: Stage, *offers: str, timeout: float = 60.0) -> dict[str, Check]:
    stage.wait(lambda: stage.ended(*offers) and stage.empty(), timeout=timeout, message="everything ran")
    return verdict(stage)


@pytest.mark.parametrize("does", ["nap", pytest.param("flaky", marks=faults)])
def test_one_message_of_a_key_is_there_though_processes_die_and_scripts_are_flushed(
    make_stage: Callable[..., Stage], does: str
) -> None:
    stage = make_stage()
    workers = [stage.worker(name, concurrency=3) for name in ("w1", "w2")]
    more: dict[str, Any] = {"seconds": 0.3, **({"until": 2, "countdown": 0.2} if does == "flaky" else {})}
    sent = offering(stage, does=does, **more)
    stage.wait(lambda: len(stage.ledger.offers()) > 5)

    for worker in workers:
        worker.kill()
        stage.node.call("SCRIPT", "FLUSH")
        time.sleep(0.5)  # the others publish meanwhile
        worker.start()
        worker.wait_ready()

    checks = settled(stage, *sent)
    assert all(check.ok for check in checks.values()), checks
    assert len({run.id for run in stage.runs()}) > 5


@faults
def test_one_message_of_a_key_is_there_when_redis_dies_and_comes_back(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(appendonly=True, args=("--appendfsync", "always"))
    for name in ("w1", "w2"):
        stage.worker(name, concurrency=3)
    sent = offering(stage, does="nap", seconds=0.3)
    stage.wait(lambda: len(stage.ledger.offers()) > 5)

    stage.server.kill()
    time.sleep(0.5)  # publishes are tried again meanwhile
    stage.server.start()

    checks = settled(stage, *sent)
    assert all(check.ok for check in checks.values()), checks


# -- builds that must fail ---------------------------------------------------------------------------------------------


@faults
def test_build_that_honours_no_lock_fails_because_a_second_message_is_stored(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage()
    stage.worker(concurrency=4, broken="no-locks")

    checks = settled(stage, *offering(stage, count=15, does="nap", seconds=0.5))

    assert (checks["U"].ok, checks["S"].ok) == (False, True), checks


@faults
def test_build_that_believes_locks_of_messages_that_are_gone_fails_because_nothing_is_stored_any_more(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage()
    stage.worker(concurrency=4, broken="stale-locks")

    checks = settled(stage, *offering(stage, count=40, does="nap", seconds=0.1))

    assert (checks["U"].ok, checks["S"].ok) == (True, False), checks


# -- the judge ---------------------------------------------------------------------------------------------------------


def ran(task_id: str, start: float, end: float | None) -> Run:
    return Run(task_id, 0, False, "w", 1, start, end)


@pytest.mark.parametrize(
    ("offers", "runs", "failed"),
    [
        ([Offer("k", "a", "a", 1, 1)], [ran("a", 2, 3)], set()),
        ([Offer("k", "a", "a", 1, 1), Offer("k", "b", "b", 2, 3.1)], [ran("a", 2, 3), ran("b", 4, 5)], set()),
        ([Offer("k", "a", "a", 1, 1), Offer("k", "b", "b", 2, 2.9)], [ran("a", 2, 3), ran("b", 4, 5)], {"U"}),
        ([Offer("k", "a", "a", 1, 1), Offer("k", "b", "b", 2, 2.9)], [ran("a", 2, None)], {"U"}),
        ([Offer("k", "a", "a", 1, 1), Offer("j", "b", "b", 2, 2.9)], [ran("a", 2, 3), ran("b", 3, 4)], set()),
        ([Offer("k", "a", "a", 1, 1), Offer("k", "b", "a", 4, 4)], [ran("a", 2, 3)], set()),
        ([Offer("k", "a", "a", 1, 1), Offer("k", "b", "a", 6, 6)], [ran("a", 2, 3)], {"S"}),
        ([Offer("k", "a", "a", 1, 1), Offer("k", "b", "a", 6, 6)], [ran("a", 2, 3), ran("a", 5, 7)], set()),
    ],
)
def test_judge_fails_where_a_message_is_there_twice_or_one_is_told_of_that_is_gone(
    offers: list[Offer], runs: list[Run], failed: set[str]
) -> None:
    found = judge_uniqueness(offers, runs, moment=MOMENT)

    assert {check.letter for check in found if not check.ok} == failed

"""The judge itself: each invariant fails when it should, on hand-made ledgers; and what it is told of Redis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.embedded import EmbeddedRedis
from tests.faults import load
from tests.faults.verdict import Bounds, FaultRecord, FinalState, Run, Submission, Verdict, judge
from tests.support.redis_state import delivered, message, redis_now_ms

KILL = FaultRecord("F2 kill -9 child", at=10.0, until=10.0, pids=frozenset((1,)))


def _submission(task_id: str = "a", **more: Any) -> Submission:
    return Submission(task_id, more.pop("action", "ok"), at=1.0, **more)


def _run(task_id: str = "a", start: float = 2.0, end: float | None = 2.5, **more: Any) -> Run:
    values: dict[str, Any] = {"retries": 0, "redelivered": False, "worker": "w", "pid": 1, **more}
    return Run(task_id, values["retries"], values["redelivered"], values["worker"], values["pid"], start, end)


def _judge(
    submissions: list[Submission], runs: list[Run], *faults: FaultRecord, state: FinalState | None = None, **more: Any
) -> Verdict:
    return judge(submissions, runs, faults, state or FinalState(), bounds=Bounds(visibility_timeout=3.0), **more)


def _failed(verdict: Verdict) -> set[str]:
    return {check.letter for check in verdict.checks if not check.ok}


def test_a_task_that_was_submitted_and_ran_once_passes() -> None:
    verdict = _judge([_submission()], [_run()])

    assert verdict.ok
    assert [check.letter for check in verdict.checks] == ["L", "D", "E", "P", "Q", "M", "R", "H"]


@pytest.mark.parametrize("runs", [[], [_run(end=None)]], ids=["never started", "never ended"])
def test_a_task_that_did_not_end_is_lost(runs: list[Run]) -> None:
    assert _failed(_judge([_submission()], runs)) == {"L"}


def test_a_retry_that_never_ran_is_lost() -> None:
    assert _failed(_judge([_submission(retries=1)], [_run()])) == {"L"}


def test_a_task_that_ran_and_was_never_noted_as_submitted_is_no_loss() -> None:
    assert _judge([], [_run()]).ok


def test_a_second_execution_without_a_fault_fails() -> None:
    runs = [_run(), _run(start=3.0, end=3.5, redelivered=True, pid=2)]

    assert _failed(_judge([_submission()], runs)) == {"D"}


def test_a_task_that_was_killed_in_the_middle_and_ran_again_passes() -> None:
    runs = [_run(start=9.0, end=None), _run(start=10.4, end=11.0, redelivered=True, pid=2)]

    verdict = _judge([_submission()], runs, KILL)

    assert verdict.ok
    assert (verdict.figures["reruns"], verdict.figures["duplicates"]) == (1, 0)
    assert verdict.figures["recovery"]["max"] == pytest.approx(0.4)


def test_a_second_execution_after_the_kill_of_another_process_fails() -> None:
    runs = [_run(start=9.0, end=None, pid=5), _run(start=10.4, end=11.0, redelivered=True, pid=2)]

    assert _failed(_judge([_submission()], runs, KILL)) == {"D"}


def test_a_second_execution_of_what_ended_long_before_the_kill_fails() -> None:
    runs = [_run(start=2.0, end=3.0), _run(start=10.4, end=11.0, redelivered=True, pid=2)]

    assert _failed(_judge([_submission()], runs, KILL, replace(KILL, at=20.0, until=20.0))) == {"D"}


def test_a_second_execution_that_is_not_marked_redelivered_fails() -> None:
    runs = [_run(start=9.0, end=None), _run(start=10.4, end=11.0, pid=2)]

    assert _failed(_judge([_submission()], runs, KILL)) == {"D"}


def test_as_many_duplicates_as_hard_kills_fail() -> None:
    runs = [_run(start=9.0, end=9.9), _run(start=10.4, end=11.0, redelivered=True, pid=2)]

    one_kill = _judge([_submission()], runs, KILL)
    two_kills = _judge([_submission()], runs, KILL, replace(KILL, pids=frozenset((9,))))

    assert _failed(one_kill) == {"D"}
    assert two_kills.ok


def test_a_start_before_the_eta_fails() -> None:
    assert _failed(_judge([_submission(eta=2.2)], [_run(start=2.0)])) == {"E"}


@pytest.mark.parametrize("left", [{"waiting": 1}, {"pending": 1}, {"delayed": 1}])
def test_what_is_left_over_fails(left: dict[str, Any]) -> None:
    assert _failed(_judge([_submission()], [_run()], state=FinalState(**left))) == {"P"}


def test_an_expected_dead_letter_passes_and_its_absence_fails() -> None:
    sent = [_submission(dead="failed")]

    there = _judge(sent, [_run()], state=FinalState(dead=1, letters=(("a", "failed"),)))
    gone = _judge(sent, [_run()])

    assert there.ok
    assert _failed(gone) == {"L", "Q", "M"}


def test_an_unexpected_dead_letter_fails() -> None:
    verdict = _judge([_submission()], [_run()], state=FinalState(dead=1, letters=(("a", "crashed"),)))

    assert _failed(verdict) == {"Q", "M"}


def _killed_again_and_again(times: int, *, retries: int = 0) -> tuple[list[Run], list[FaultRecord]]:
    """Return runs that a kill of their process ended, each of them, one after the other."""
    starts = [10.0 + 4 * number for number in range(times)]
    runs = [
        _run(start=at, end=None, pid=number, retries=retries, redelivered=number > 0)
        for number, at in enumerate(starts)
    ]
    return runs, [replace(KILL, at=at + 3, until=at + 3, pids=frozenset((pid,))) for pid, at in enumerate(starts)]


@pytest.mark.parametrize("dead", [None, "failed"], ids=["meant to end", "meant to fail"])
def test_a_task_that_faults_killed_as_often_as_the_limit_allows_may_be_a_dead_letter(dead: str | None) -> None:
    crashed = FinalState(dead=1, letters=(("a", "crashed"),))
    five, kills = _killed_again_and_again(5)
    four, fewer_kills = _killed_again_and_again(4)

    assert _judge([_submission(dead=dead)], five, *kills, state=crashed).ok
    verdict = _judge([_submission(dead=dead)], four, *fewer_kills, state=crashed)

    assert "Q" in _failed(verdict)
    assert "a crashed, started 4 times" in verdict.check("Q").text
    assert "Q" not in _failed(_judge([_submission(dead=dead)], four, *fewer_kills, state=crashed, delivery_limit=4))


def test_only_starts_of_the_same_message_are_counted_against_the_limit() -> None:
    crashed = FinalState(dead=1, letters=(("a", "crashed"),))
    first, kills = _killed_again_and_again(2)
    retried, more_kills = _killed_again_and_again(3, retries=1)

    verdict = _judge([_submission(retries=1)], [*first, *retried], *kills, *more_kills, state=crashed)

    assert {"Q", "M"} <= _failed(verdict)
    assert "a crashed, started 3 times" in verdict.check("Q").text


def test_a_task_that_was_killed_often_is_dead_for_no_other_reason() -> None:
    runs, kills = _killed_again_and_again(5)

    verdict = _judge([_submission()], runs, *kills, state=FinalState(dead=1, letters=(("a", "failed"),)))

    assert {"Q", "M"} <= _failed(verdict)


def test_a_dead_letter_that_is_there_twice_fails() -> None:
    letters = (("a", "failed"), ("a", "failed"))
    verdict = _judge([_submission(dead="failed")], [_run()], state=FinalState(dead=2, letters=letters))

    assert _failed(verdict) == {"Q", "M"}


def test_a_figure_that_differs_from_the_ledger_fails() -> None:
    verdict = _judge([_submission(dead="failed")], [], state=FinalState(dead=7, letters=(("a", "failed"),)))

    assert _failed(verdict) == {"M"}


RIGHT = {"waiting": 0, "pending": 0, "delayed": 0, "dead": 1}


@pytest.mark.parametrize("source", ["status", "Prometheus"])
@pytest.mark.parametrize("figure", ["waiting", "pending", "delayed", "dead"])
@pytest.mark.parametrize("wrong", [7, None], ids=["wrong", "missing"])
def test_an_exported_figure_that_differs_from_redis_fails(source: str, figure: str, wrong: int | None) -> None:
    told = {name: value for name, value in {**RIGHT, figure: wrong}.items() if value is not None}
    right = FinalState(dead=1, letters=(("a", "failed"),), shown={"status": RIGHT, "Prometheus": RIGHT})
    off = replace(right, shown={**right.shown, source: told})

    assert _judge([_submission(dead="failed")], [], state=right).ok
    verdict = _judge([_submission(dead="failed")], [], state=off)

    assert _failed(verdict) == {"M"}
    assert f"{source} says" in verdict.check("M").text


def test_what_redis_holds_is_counted_apart_from_what_is_exported_of_it(
    broker: StreamBroker, redis_server: EmbeddedRedis
) -> None:
    held = delivered(broker, "q", "w", *map(message, range(6)))
    death = b'{"reason":"failed","task_id":"0"}'
    broker.reject("w", held[0].entry, death=death, max_length=None, ttl=None)
    broker.publish("q", message(7, step=3))
    for number in range(3):
        broker.delay("q", message(number), due_ms=redis_now_ms(broker.client) + 60_000, member=str(number))

    state = load.final_state("streams", redis_server, "q")

    assert (state.waiting, state.pending, state.delayed, state.dead) == (1, 5, 3, 1)
    assert state.letters == (("0", "failed"),)
    assert set(state.shown) == {"status", "totals of the status", "Prometheus"}
    assert all(told == {"waiting": 1, "pending": 5, "delayed": 3, "dead": 1} for told in state.shown.values())


def test_a_recovery_beyond_its_bound_fails() -> None:
    runs = [_run(start=9.0, end=None), _run(start=16.0, end=17.0, redelivered=True, pid=2)]

    assert _failed(_judge([_submission()], runs, KILL)) == {"R"}
    assert _judge([_submission()], runs, replace(KILL, kind="F1 kill -9 worker")).ok


def test_a_recovery_may_take_as_long_as_a_message_that_was_published_meanwhile_waited() -> None:
    runs = [_run(start=9.0, end=None), _run(start=16.0, end=17.0, redelivered=True, pid=2)]
    behind = Submission("b", "ok", at=10.5)
    waited = _run("b", start=16.5, end=17.0)

    assert _judge([_submission(), behind], [*runs, waited], KILL).ok
    assert _failed(_judge([_submission(), replace(behind, priority=9)], [*runs, waited], KILL)) == {"R"}


def test_a_redis_that_is_back_and_not_used_for_long_fails() -> None:
    back = FaultRecord("F10 kill -9 Redis", at=3.0, until=4.0)

    assert _judge([], [_run(), _run("b", start=5.0)], back).ok
    assert _failed(_judge([], [_run(), _run("b", start=9.5)], back)) == {"R"}


def test_a_process_that_hangs_fails() -> None:
    assert _failed(_judge([_submission()], [_run()], hangs=["w1 did not end"])) == {"H"}

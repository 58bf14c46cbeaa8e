"""F3 to F7: a process dies exactly between two steps of a message's way."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from celery_streams import inspect
from celery_streams.message import Message
from tests.faults.conftest import QUEUE, VISIBILITY_TIMEOUT, Stage
from tests.support.redis_state import make_idle

#: Seconds within which what a dead child held must run again, with what a busy machine adds.
CHILD = 1.0 + 1.5


def test_f3_a_child_that_dies_with_what_it_just_read_loses_nothing_and_runs_nothing_twice(stage: Stage) -> None:
    stage.worker(point="read", concurrency=1)

    sent = [stage.send("ok") for _ in range(20)]

    stage.drained(*sent)
    assert stage.died_at("read")
    assert sorted(run.id for run in stage.runs()) == sorted(sent)


def test_f3_a_child_that_dies_before_the_first_task_of_its_batch_loses_nothing_and_runs_nothing_twice(
    stage: Stage,
) -> None:
    sent = [stage.send("ok") for _ in range(20)]

    stage.worker(point="begin", concurrency=1)

    stage.drained(*sent)
    assert stage.died_at("begin")
    assert sorted(run.id for run in stage.runs()) == sorted(sent)
    assert not any(run.redelivered for run in stage.runs()), "no delivery was burnt"


@pytest.mark.parametrize("point", ["body", "ack"])
def test_f4_a_task_whose_child_dies_before_the_ack_runs_again_once_and_is_marked_redelivered(
    stage: Stage, point: str
) -> None:
    stage.worker(point=point, concurrency=1)

    sent = stage.send("ok")

    stage.wait(lambda: stage.started(sent, 2), timeout=CHILD + 5)
    stage.wait(stage.empty)
    first, second = stage.runs(sent)
    assert (first.redelivered, second.redelivered) == (False, True)
    assert second.start - first.start < CHILD


def test_f4_a_task_whose_child_dies_after_the_ack_runs_once(stage: Stage) -> None:
    stage.worker(point="acked", concurrency=1)

    sent = stage.send("ok")
    stage.wait(lambda: stage.died_at("acked"))
    after = stage.send("ok")

    stage.drained(after)
    assert len(stage.runs(sent)) == 1


@pytest.mark.parametrize("countdown", [pytest.param(0.0, marks=pytest.mark.faults), 0.3])
@pytest.mark.parametrize("point", ["retry", "retried"])
def test_f5_a_retry_is_stored_once_however_the_child_dies(stage: Stage, point: str, countdown: float) -> None:
    stage.worker(point=point, concurrency=1)

    sent = stage.send("flaky", until=1, countdown=countdown)

    stage.wait(lambda: any(run.retries == 1 and run.end for run in stage.runs(sent)), message="the retry ran")
    stage.wait(stage.empty)
    assert stage.died_at(point)
    retries = [run.retries for run in stage.runs(sent)]
    assert retries == ([0, 0, 1] if point == "retry" else [0, 1])


@pytest.mark.parametrize("point", ["promote", "promoted"])
def test_f6_delayed_messages_outlive_the_worker_that_promotes_them_and_none_runs_early_or_twice(
    stage: Stage, point: str
) -> None:
    at = time.time() + 1.0
    sent = [stage.send("ok", countdown=1.0) for _ in range(30)]
    stage.worker("first", point=point, ready=False)
    stage.wait(lambda: stage.died_at(point))
    stage.workers[0].wait()

    stage.worker("second")

    stage.drained(*sent)
    runs = stage.runs()
    # The children of the first worker had begun to run them and died with their parent; that is not promotion's doing.
    fresh = [run.id for run in runs if not run.redelivered]
    assert len(fresh) == len(set(fresh))
    assert {run.id for run in runs} == set(sent)
    assert all(run.start >= at - 0.05 for run in runs)


def _held_by_the_dead(stage: Stage, *, history: bytes = b"") -> str:
    """Publish a task and let a consumer that is long gone hold it."""
    sent = stage.send("ok")
    stage.broker.ensure_groups([QUEUE])
    streams = stage.broker.streams([QUEUE])
    if history:
        [(entry_id, flat)] = stage.client.call("XRANGE", streams[0].key, "-", "+")
        stage.client.call("XDEL", streams[0].key, entry_id)
        plain = Message.from_fields(flat)
        stage.broker.publish(QUEUE, Message(plain.headers, plain.properties, plain.body, history))
    [found] = stage.broker.read(streams, "dead@host/1.00000000", count=1)
    make_idle(stage.broker, found.stream, "dead@host/1.00000000", found.entry_id, idle_ms=3_600_000)
    return sent


def test_f7_a_claim_outlives_the_claimer_and_counts_one_crash(stage: Stage) -> None:
    sent = _held_by_the_dead(stage)
    first = stage.worker("first", point="recovered", queues=QUEUE, options=("--exclude-queues", "none"))
    stage.wait(lambda: stage.died_at("recovered"))
    first.wait()
    first.kill()

    stage.worker("second")

    stage.drained(sent)
    assert [run.redelivered for run in stage.runs(sent)] == [True]


def test_f7_a_message_over_the_limit_is_dead_lettered_although_the_claimer_dies_with_it(stage: Stage) -> None:
    sent = _held_by_the_dead(stage, history=b'{"crashes":4,"redelivered":1}')
    first = stage.worker("first", point="exhausted")
    stage.wait(lambda: stage.died_at("exhausted"))
    first.wait()
    first.kill()

    stage.worker("second")

    stage.wait(stage.letters, timeout=VISIBILITY_TIMEOUT * 3 + 5, message="a dead letter")
    [letter] = stage.letters()
    assert (letter.task_id, letter.reason) == (sent, "crashed")
    assert stage.runs(sent) == []
    stage.wait(stage.empty)


def test_the_points_are_only_there_where_a_test_asks_for_them(
    make_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage()
    stage.worker(concurrency=1)

    sent = stage.send("flaky", until=1)

    stage.drained(sent)
    assert [run.retries for run in stage.runs(sent)] == [0, 1]
    assert inspect.consumers(stage.broker, QUEUE), "the worker reads"

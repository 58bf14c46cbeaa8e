"""What the body of a task does with its message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject

from celery_streams.attempts import parse
from tests.support.bench import ME, NOTHING, QUEUE, ActionError, Bench, Expected, but
from tests.support.versions import CELERY


def test_task_that_succeeds_is_acknowledged_and_its_result_stored(both: Bench) -> None:
    @both.task()
    def add(x: int, y: int) -> int:
        return x + y

    result = add.delay(2, y=3)

    both.run()

    assert both.left() == NOTHING
    assert result.get(timeout=1) == 5


def test_acknowledgement_follows_the_body_and_never_comes_before(both: Bench) -> None:
    seen: list[dict[str, Any]] = []

    @both.task()
    def look() -> None:
        seen.append(both.left())

    look.delay()

    both.run()

    assert seen == [but(pending=1)]


def test_task_that_fails_is_a_dead_letter_with_everything_about_it(both: Bench) -> None:
    @both.task()
    def fail(number: int) -> None:
        raise ActionError(number)

    result = fail.delay(7)

    delivery = both.run()

    assert both.left() == but(dead=["failed"])
    (death,) = both.deaths()
    assert (death["task"], death["task_id"], death["queue"], death["worker"]) == ("fail", result.id, QUEUE, "w@h")
    assert "ActionError(7)" in death["exception"]
    assert "raise ActionError" in death["traceback"]
    assert death["entry_id"] == delivery.entry_id.decode()
    assert isinstance(result.result, Exception)


def test_failure_is_only_acknowledged_where_dead_letters_are_off(make: Callable[..., Bench]) -> None:
    bench = make(streams_dead_letter_failures=False)

    @bench.task()
    def fail() -> None:
        raise ActionError

    fail.delay()

    bench.run()

    assert bench.left() == NOTHING


class _ByCode(type):
    def __instancecheck__(cls, exc: object) -> bool:
        return "404" in str(exc)


class _NotFound(Exception, metaclass=_ByCode):
    """Each exception that says 404, as libraries with one class of errors have it."""


@pytest.mark.parametrize("throws", [(_NotFound,), ((Expected,), _NotFound), _NotFound])
def test_expected_is_what_celery_takes_for_expected(both: Bench, throws: Any) -> None:
    @both.task(throws=throws)
    def fail() -> None:
        raise ValueError("404")

    result = fail.delay()

    both.run()

    assert both.left() == NOTHING
    assert result.state == "FAILURE"


@pytest.mark.parametrize("throws", [[KeyError], "KeyError", (KeyError, None, "KeyError"), 5])
def test_task_whose_throws_mean_nothing_fails_once(both: Bench, throws: Any) -> None:
    @both.task(throws=throws)
    def fail() -> None:
        raise ValueError

    result = fail.delay()

    both.run()

    assert both.left() == but(dead=["failed"])
    assert result.state == "FAILURE"


def test_failure_that_the_task_expects_is_acknowledged(both: Bench) -> None:
    @both.task(throws=(Expected,))
    def fail() -> None:
        raise Expected

    result = fail.delay()

    both.run()

    assert both.left() == NOTHING
    assert result.state == "FAILURE"


def test_task_that_ignores_itself_is_acknowledged(both: Bench) -> None:
    @both.task()
    def ignore() -> None:
        raise Ignore

    result = ignore.delay()

    both.run()

    assert (both.left(), result.state) == (NOTHING, "PENDING")


def test_rejected_task_is_a_dead_letter_and_as_failed_as_in_celery(both: Bench) -> None:
    @both.task()
    def reject() -> None:
        raise Reject("no", requeue=False)

    result = reject.delay()

    both.run()

    assert both.left() == but(dead=["rejected"])
    # Before 5.7, Celery leaves such a task without a state for ever.
    assert result.state == ("FAILURE" if CELERY >= (5, 7) else "PENDING")


def test_task_that_asks_to_be_requeued_waits_again_and_is_marked(both: Bench) -> None:
    @both.task()
    def reject() -> None:
        raise Reject("later", requeue=True)

    reject.delay()

    delivery = both.run()

    assert both.left() == but(waiting=1)
    history = both.history()
    assert [(one.number, one.outcome, one.worker) for one in parse(history.pop("attempts"))] == [(1, "put back", ME)]
    assert history == {"first": delivery.entry_id.decode(), "redelivered": 1, "worker": "w@h"}


def test_exit_of_the_body_passes_and_leaves_the_message_pending(both: Bench) -> None:
    @both.task()
    def leave() -> None:
        raise SystemExit(3)

    leave.delay()

    with pytest.raises(SystemExit):
        both.run()

    assert both.left() == but(pending=1)

"""Attempts: a message tells how each of its starts ended, wherever it waits, and at last as a dead letter."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Task
from celery.exceptions import Reject

from celery_streams import RateLimited, recovery, streams_of
from celery_streams.attempts import Attempt, and_this, parse
from celery_streams.dead_letters import dead_letters
from celery_streams.delayed_messages import delayed_message, delayed_messages, run_now
from celery_streams.message import Message
from celery_streams.running_messages import held_message
from celery_streams.worker.counting import CountingExecutor
from celery_streams.worker.counts import CountsTable, QueueRow
from celery_streams.worker.outcome import crash_pauses_ms
from tests.executor.test_limits import lane_of_all, release_all
from tests.support.bench import ME, QUEUE, STREAM, Bench
from tests.support.eventually import eventually
from tests.support.redis_state import make_idle, redis_state


def story(bench: Bench, plot: list[str]) -> Any:
    """Register a task that does one thing after the other, each at its next start."""

    @bench.task(bind=True, max_retries=None)
    def told(self: Task, *args: Any) -> None:
        step = plot.pop(0)
        if step == "retry":
            try:
                raise ConnectionError("the secret of customer 17")
            except ConnectionError as exc:
                raise self.retry(exc=exc, countdown=60) from exc
        if step == "retry now":
            self.retry(countdown=0)
        if step == "429":
            raise RateLimited(0.01)
        if step == "put back":
            raise Reject("later", requeue=True)
        if step == "fail":
            raise ValueError("of customer 17")

    return told


def lose(bench: Bench) -> None:
    """Let the consumer read the message and disappear for an hour."""
    delivery = bench.read()
    make_idle(bench.broker, delivery.stream, ME, delivery.entry_id, idle_ms=3_600_000)
    bench.broker.client.call("DEL", bench.broker.queue_keys(QUEUE).claims)
    recovery.recover(bench.broker, QUEUE, "claimer", idle_ms=1_000, turn_ms=1, pauses_ms=crash_pauses_ms(9))


def due(bench: Bench) -> None:
    run_now(bench.broker, QUEUE, [one.member for one in delayed_messages(bench.broker, QUEUE)])


def outcomes(attempts: tuple[Attempt, ...]) -> list[tuple[int, str, str]]:
    return [(one.number, one.outcome, one.detail) for one in attempts]


def test_dead_letter_tells_every_start_of_its_message(both: Bench) -> None:
    told = story(both, ["retry", "put back", "retry now", "fail"])
    result = told.delay()
    before = time.time()

    both.run()
    (waiting,) = delayed_messages(both.broker, QUEUE)
    assert outcomes(waiting.attempts) == [(1, "retried", "ConnectionError")]
    assert delayed_message(both.broker, QUEUE, waiting.member) == waiting
    due(both)
    both.run()
    lose(both)
    both.run()
    assert held_message(both.broker, QUEUE, result.id) is None
    both.read()
    held = held_message(both.broker, QUEUE, result.id)
    assert held is not None
    assert (held.consumer, len(held.attempts)) == (ME, 4)
    both.settler.put_back([held.delivery.entry])
    both.run()

    (letter,) = dead_letters(both.broker, QUEUE)
    assert outcomes(letter.attempts) == [
        (1, "retried", "ConnectionError"),
        (2, "put back", ""),
        (3, "lost", ""),
        (4, "retried", ""),
        (5, "failed", "ValueError"),
    ]
    assert {one.worker for one in letter.attempts} == {ME}
    for one in letter.attempts:
        assert one.ended is not None
        if one.outcome == "lost":
            assert one.began is None
            assert one.ended < before - 3_500, "its worker was silent for an hour"
        else:
            assert one.ended - (one.began or 0.0) == pytest.approx(0.25, abs=0.01)
            assert before - 1 < one.ended < time.time() + 1
    assert b"customer 17" not in b"".join(value for name, value in letter.fields if name == b"history")


def test_message_that_never_failed_has_no_attempts_and_no_history(both: Bench) -> None:
    told = story(both, ["succeed", "fail"])
    told.delay()
    told.delay()

    assert [entry.get("history") for entry in redis_state(both.broker.client)[STREAM].entries.values()] == [None] * 2
    both.run()
    both.run()

    (letter,) = dead_letters(both.broker, QUEUE)
    assert outcomes(letter.attempts) == [(1, "failed", "ValueError")]
    assert b"history" not in dict(letter.fields)


def test_retry_of_a_message_that_was_acknowledged_before_it_ran_knows_its_attempts(both: Bench) -> None:
    @both.task(bind=True, acks_late=False)
    def early(self: Task) -> None:
        self.retry(countdown=60)

    early.delay()
    both.run()

    (waiting,) = delayed_messages(both.broker, QUEUE)
    assert outcomes(waiting.attempts) == [(1, "retried", "")]


class Falsy(KeyError):
    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("told", "handled", "said"),
    [
        (ConnectionError("customer 17"), None, "ConnectionError"),
        (Falsy("customer 17"), None, "Falsy"),
        (ConnectionError("customer 17"), ValueError("17"), "ConnectionError"),
        (None, ValueError("17"), "ValueError"),
        ("in words alone", ValueError("17"), "ValueError"),
        ("in words alone", None, ""),
        (None, None, ""),
    ],
)
@pytest.mark.parametrize("derived", [False, True])
def test_attempt_says_what_the_retry_was_told_else_what_was_handled(
    both: Bench, told: Any, handled: Any, said: str, derived: bool
) -> None:
    class Derived(both.app.Task):  # type: ignore[name-defined,misc]
        def retry(self, *args: Any, **options: Any) -> Any:
            return super().retry(*args, **options)

    @both.task(bind=True, base=Derived if derived else None)
    def failing(self: Task) -> None:
        if handled is None:
            self.retry(exc=told, countdown=60)
        try:
            raise handled
        except ValueError:
            self.retry(exc=told, countdown=60)

    failing.delay()
    both.run()

    (waiting,) = delayed_messages(both.broker, QUEUE)
    assert outcomes(waiting.attempts) == [(1, "retried", said)]


TEXTS = {
    "none": None,
    "nothing": "",
    "some": and_this(and_this(None, Attempt("failed", "a@b/1", "", 1.0, 2.0)), Attempt("x", "a@b/2", "E", None, 3.0)),
    "as many as are kept": "\n".join(f"{number}\t\t1\tretried\ta@b/1.aa\tE" for number in range(1, 16)),
    "too many": "\n".join(f"{number}\t\t1\tretried\ta@b/1.aa\tE" for number in range(1, 60)),
    "too long": "\n".join(f"{number}\t\t1\tretried\t{'é' * 110}\tE" for number in range(1, 15)),
    "one that is too long": f"3\t\t1\tretried\t{'w' * 3_000}\tE",
    "empty lines": "\n\n1\t\t1\tretried\ta@b/1.aa\tE\n\n",
    "a number beyond all measure": "99999999999999999999\t\t1\tx\ty\tz",
    "the last number": "999999999\t\t1\tx\ty\tz",
    "nonsense": "no attempt at all",
}


@pytest.mark.parametrize("known", TEXTS.values(), ids=TEXTS)
def test_worker_that_disappeared_is_noted_within_the_bounds_of_all_others(bench: Bench, known: str | None) -> None:
    plain = Message(b'{"task":"t","id":"1"}', b"{}", b"[[],{},{}]")
    history = {"crashes": 1} if known is None else {"crashes": 1, "attempts": known}
    bench.broker.publish(QUEUE, plain.changed(history=json.dumps(history).encode()))

    lose(bench)

    (entry,) = redis_state(bench.broker.client)[STREAM].entries.values()
    text = json.loads(entry["history"])["attempts"]
    last = parse(text)[-1]
    assert (last.outcome, last.worker) == ("lost", ME)
    assert text == and_this(known, Attempt("lost", ME, "", None, last.ended), least=2)


def test_retry_that_was_put_back_unstarted_knows_when_it_came_and_what_was_before(bench: Bench) -> None:
    told = story(bench, ["retry now"])
    told.delay()
    bench.run()

    delivery = bench.read()
    bench.settler.put_back([delivery.entry])

    history = bench.history()
    assert history["first"] == delivery.entry_id.decode()
    assert outcomes(parse(history["attempts"])) == [(1, "retried", "")]


def test_retry_stands_in_line_as_a_new_message_does_and_not_ahead_of_those_that_wait(bench: Bench) -> None:
    @bench.task(streams_concurrency=1)
    def narrow(number: int) -> None:
        bench.ran.append(number)

    for number in range(4):
        narrow.delay(number)
    bench.executor.prepare()
    first, second, third, fourth = bench.broker.read(bench.broker.streams([QUEUE]), ME, count=4)
    assert third.message is not None
    retry = third.message.changed(history=json.dumps({"attempts": "1\t\t\tretried\tw@h/1.aa\t"}).encode())
    assert bench.settler.admit(first, *lane_of_all(bench, narrow), ahead=False)

    for one in (second, third._replace(message=retry), fourth):
        bench.executor.execute(one)
    bench.executor.execute(first)
    while found := bench.broker.read(bench.broker.streams([QUEUE]), ME, count=1):
        bench.executor.execute(found[0])

    assert bench.ran == [0, 1, 2, 3]


@pytest.mark.parametrize("put_back", [False, True])
def test_wait_of_a_retry_counts_from_when_it_was_stored(make: Callable[..., Bench], put_back: bool) -> None:
    table = CountsTable()
    table.watch(0)
    counts = table.of_child(0)
    bench = make()
    bench.executor = CountingExecutor(
        bench.app, "w@h", streams_of(bench.app), bench.settler, bench.notes, counts=counts
    )
    told = story(bench, ["retry now", "succeed"])
    told.delay()
    bench.run()
    if put_back:
        bench.settler.put_back([bench.read().entry])

    bench.run()
    table.close()

    (row,) = (row for row in counts.rows() if isinstance(row, QueueRow) and row.queue == QUEUE)
    assert sum(row.waits) == 2


@pytest.mark.parametrize("before", ["fresh", "put back", "retried"])
def test_message_that_is_told_429_again_and_again_waited_for_its_first_start_once(
    make: Callable[..., Bench], before: str
) -> None:
    table = CountsTable()
    table.watch(0)
    counts = table.of_child(0)
    bench = make()
    bench.executor = CountingExecutor(
        bench.app, "w@h", streams_of(bench.app), bench.settler, bench.notes, counts=counts
    )
    plot = [*(["retry now"] if before == "retried" else []), "429", "429", "429", "succeed"]
    told = story(bench, plot)
    told.delay()
    if before == "retried":
        bench.run()
    elif before == "put back":
        bench.settler.put_back([bench.read().entry])

    for _ in range(3):
        bench.run()
        eventually(lambda: release_all(bench) == 1)
    bench.run()
    table.close()

    (row,) = (row for row in counts.rows() if isinstance(row, QueueRow) and row.queue == QUEUE)
    assert plot == []
    assert sum(row.waits) == (2 if before == "retried" else 1)

"""Unique tasks: a message that is there is not stored again, and no ending of a message leaves its lock behind."""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import Task, chord, group
from celery.bin.base import CLIContext
from celery.exceptions import Ignore, Reject
from celery.worker import state as worker_state
from click import Command
from click.testing import CliRunner

import celery_streams
from celery_streams import DuplicateTask, bulk, keys, scripts, streams_of
from celery_streams import inspect as streams_inspect
from celery_streams.bin.limits import limits
from celery_streams.bin.status import status
from celery_streams.dead_letters import dead_letters, replay
from celery_streams.delayed_messages import delayed_messages, run_now
from celery_streams.exceptions import CannotRun, ConfigurationError, LimitKeyError
from celery_streams.lanes import let_go, release
from celery_streams.limits import lane_of
from celery_streams.locks import sweep
from celery_streams.revocations import revoke, revoke_stamps
from celery_streams.worker.outcome import Action, Outcome, Reason
from celery_streams.worker.task_options import limits_in_force
from tests.support.bench import ME, NOTHING, QUEUE, STREAM, Bench, but
from tests.support.redis_state import read_all, redis_state

LOCKS = f"{STREAM}:unique"


def unique_task(bench: Bench, **options: Any) -> Any:
    @bench.task(**{"streams_unique": True, **options})
    def sync(instance: int, other: str = "") -> str:
        bench.ran.append((instance, other))
        return f"{instance}"

    return sync


def locks(bench: Bench) -> int:
    return int(bench.broker.client.call("HLEN", LOCKS))


def run_all(bench: Bench, queue: str = QUEUE) -> None:
    bench.executor.prepare()
    while found := bench.broker.read(bench.broker.streams([queue]), ME, count=1):
        bench.executor.execute(found[0])
        bench.settler.flush()


def test_second_publish_gives_the_result_of_the_message_that_is_there_until_it_is_done(bench: Bench) -> None:
    sync = unique_task(bench)

    first, second, other = sync.delay(1), sync.delay(instance=1), sync.delay(2)

    assert (second.id, other.id != first.id, bench.left()) == (first.id, True, but(waiting=2))
    run_all(bench)
    assert (bench.ran, locks(bench), bench.left()) == ([(1, ""), (2, "")], 0, NOTHING)
    assert sync.delay(1).id != first.id


def test_key_may_be_an_argument_or_a_callable_and_a_method_is_called_with_three(bench: Bench) -> None:
    by_name = unique_task(bench, streams_unique_key="instance")
    first = by_name.delay(1, "a")
    assert by_name.delay(1, other="b").id == first.id

    @bench.task(streams_unique=True, streams_unique_key=lambda task, args, kwargs: f"{task.name} {args[0] % 10}")
    def by_call(number: int) -> None: ...

    assert by_call.delay(3).id == by_call.delay(13).id != by_call.delay(4).id


@pytest.mark.parametrize("raises", [False, True])
def test_duplicate_raises_where_the_task_wants_it_so(bench: Bench, raises: bool) -> None:
    sync = unique_task(bench, streams_unique_on_duplicate="raise" if raises else "return")
    first = sync.delay(1)

    if not raises:
        assert sync.delay(1).id == first.id
        return
    with pytest.raises(DuplicateTask, match=f"is a duplicate of {first.id}") as caught:
        sync.delay(1)
    assert caught.value.task_id == first.id


def test_setting_makes_a_task_unique_and_its_own_option_wins(make: Callable[..., Bench]) -> None:
    said = {"unique": True, "unique_key": "instance", "unique_on_duplicate": "raise"}
    bench = make(streams_limits={"sync": said})
    sync = unique_task(bench, streams_unique=None, streams_unique_on_duplicate="return")

    assert sync.delay(1, "a").id == sync.delay(1, "b").id


def test_delayed_message_holds_the_lock_and_an_earlier_one_does_not_move_it(bench: Bench) -> None:
    sync = unique_task(bench)
    first = sync.apply_async((1,), countdown=3600)
    ((due, _),) = bench.delayed()

    assert sync.apply_async((1,), countdown=1).id == sync.delay(1).id == first.id
    assert [at for at, _ in bench.delayed()] == [due]
    assert bench.left() == but(delayed=1)


def test_links_of_a_duplicate_are_added_to_nothing_and_the_log_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    sync = unique_task(bench)
    sync.delay(1)

    with caplog.at_level(logging.WARNING):
        sync.apply_async((1,), link=sync.si(2), link_error=sync.si(3))

    assert "its link and link_error will not be called." in caplog.text


@pytest.mark.parametrize("kind", ["group", "chord"])
def test_group_or_chord_with_a_duplicate_is_refused_with_nothing_stored(bench: Bench, kind: str) -> None:
    sync = unique_task(bench, ignore_result=False)
    first = sync.delay(1)
    header = [sync.s(7), sync.s(1), sync.s(8)]

    with pytest.raises(DuplicateTask, match="its group or chord would wait for a result that never comes") as caught:
        group(header).apply_async() if kind == "group" else chord(header)(sync.si(9))

    assert f"is a duplicate of {first.id}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert bench.left() == but(waiting=1)


def test_group_with_the_same_task_twice_is_refused(bench: Bench) -> None:
    sync = unique_task(bench)

    with pytest.raises(DuplicateTask):
        group(sync.s(1), sync.s(1)).apply_async()

    assert bench.left() == NOTHING


def test_bulk_learns_at_the_send_and_the_result_answers_for_the_first(bench: Bench) -> None:
    sync = unique_task(bench)
    first = sync.delay(1)

    with bulk(bench.app) as block:
        second, third, fourth = sync.delay(1), sync.delay(2), sync.delay(2)
        assert second.id != first.id
        assert block.holds(second.id)

    assert (second.id, fourth.id, bench.left()) == (first.id, third.id, but(waiting=2))


def test_id_that_was_written_down_before_a_bulk_ended_answers_for_the_first(bench: Bench) -> None:
    sync = unique_task(bench)
    sync.delay(1)
    with bulk(bench.app):
        task_id = sync.delay(1).id
    written_down = bench.app.AsyncResult(task_id)
    assert written_down.state == "PENDING"
    run_all(bench)

    assert (written_down.state, written_down.result) == ("SUCCESS", "1")
    assert bench.app.AsyncResult(task_id).get(timeout=5) == "1"
    assert bench.broker.client.call("PTTL", keys.alias(bench.broker.prefix, task_id)) > 0
    assert bench.app.AsyncResult("of nobody").state == "PENDING"


def test_bulk_says_which_were_duplicates_where_the_task_wants_it_so(bench: Bench) -> None:
    sync = unique_task(bench, streams_unique_on_duplicate="raise")
    sync.delay(1)

    with pytest.raises(celery_streams.BulkError) as caught, bulk(bench.app):
        second, third = sync.delay(1), sync.delay(2)

    assert [(one, type(error)) for one, error in caught.value.failed.items()] == [(second.id, DuplicateTask)]
    assert caught.value.stored == (third.id,)


# -- the lock follows its message --------------------------------------------------------------------------------------


def retrying(bench: Bench, queue: str | None = None, **options: Any) -> Any:
    @bench.task(bind=True, streams_unique=True, streams_unique_key="number", **options)
    def again(self: Task, number: int) -> None:
        bench.ran.append(self.request.retries)
        if self.request.retries == 0:
            raise self.retry(countdown=3600 if queue is None else 0, args=(number,), queue=queue)

    return again


def test_retry_is_the_same_holder(bench: Bench) -> None:
    again = retrying(bench)
    first = again.delay(1)
    bench.run()

    assert (bench.left(), again.delay(1).id) == (but(delayed=1), first.id)
    assert bench.left() == but(delayed=1)


def test_retry_to_another_queue_is_the_same_holder_in_both(bench: Bench) -> None:
    again = retrying(bench, "elsewhere")
    bench.broker.ensure_groups(["elsewhere"])
    first = again.delay(1)
    bench.run()

    assert again.delay(1).id == again.apply_async((1,), queue="elsewhere").id == first.id

    (delivery,) = bench.broker.read(bench.broker.streams(["elsewhere"]), ME, count=1)
    bench.run(delivery=delivery)
    assert (bench.ran, bench.left()) == ([0, 1], NOTHING)
    assert again.delay(1).id != first.id
    sweep(bench.broker, "elsewhere")
    assert int(bench.broker.client.call("HLEN", "celery-streams:{elsewhere}:unique")) == 0


@pytest.mark.parametrize("taken", [False, True], ids=["when it is done", "when it came"])
def test_lock_of_what_was_retried_to_another_queue_is_not_that_of_another_message_there(
    bench: Bench, taken: bool
) -> None:
    again = retrying(bench, "elsewhere")
    bench.broker.ensure_groups(["elsewhere"])
    first = again.delay(1)
    others = [again.apply_async((1,), queue="elsewhere")] if taken else []
    bench.run()
    if not taken:
        run_all(bench, "elsewhere")
        others.append(again.apply_async((1,), queue="elsewhere"))

    second = again.delay(1)

    assert len({first.id, second.id, *(one.id for one in others)}) == 3
    assert bench.left() == but(waiting=1)
    assert again.delay(1).id == second.id
    assert again.apply_async((1,), queue="elsewhere").id == others[0].id


def test_retry_with_other_arguments_keeps_the_lock_of_the_message(bench: Bench) -> None:
    @bench.task(bind=True, streams_unique=True)
    def again(self: Task, number: int) -> None:
        if self.request.retries == 0:
            raise self.retry(countdown=3600, args=(number + 1,))

    first = again.delay(1)
    bench.run()

    assert again.delay(1).id == first.id != again.delay(2).id


@contextlib.contextmanager
def still_held(sync: Any, first: Any, number: int = 1) -> Iterator[None]:
    yield
    assert sync.delay(number).id == first.id


def test_lock_follows_what_is_put_back_requeued_and_promoted(bench: Bench) -> None:
    sync = unique_task(bench)
    first = sync.delay(1)

    with still_held(sync, first):
        bench.settler.put_back([bench.read().entry])
    with still_held(sync, first):
        bench.broker.put_back_all(bench.broker.streams([QUEUE]), ME)
    with still_held(sync, first):
        bench.settler.settle(bench.read(), Outcome(Action.REQUEUE))
    with still_held(sync, first):
        bench.settler.settle(bench.read(), Outcome(Action.REQUEUE, behind=True))
    with still_held(sync, first):
        bench.settler.settle(bench.read(), Outcome(Action.REQUEUE, delay=0.001))
    with still_held(sync, first):
        while not bench.broker.promote([QUEUE]).moved:
            pass
    run_all(bench)
    assert (bench.left(), locks(bench)) == (NOTHING, 0)


def test_lock_follows_what_is_held_and_released(bench: Bench) -> None:
    sync = unique_task(bench, rate_limit="1/h")
    sync.delay(0)
    first = sync.delay(1)

    with still_held(sync, first):
        run_all(bench)
        assert streams_inspect.queue_status(bench.broker, QUEUE).held == 1
    with still_held(sync, first):
        bench.broker.client.call("DEL", bench.broker.queue_keys(QUEUE).shelf[4])  # its tokens: the hour is over
        assert release(bench.broker, [QUEUE], {}, everything=True).count == 1
    run_all(bench)
    second = sync.delay(2)
    with still_held(sync, first=second, number=2):
        run_all(bench)
        assert let_go(bench.broker, QUEUE) == 1
    assert bench.ran == [(0, ""), (1, "")]


@pytest.mark.parametrize("seed", range(4))
def test_locks_follow_what_makes_room_in_a_lane_for_what_was_put_back(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    sync = unique_task(bench, streams_concurrency=1)
    running = sync.delay(0)
    bench.executor.prepare()
    first = bench.read()
    limits = limits_in_force(sync, streams_of(bench.app))
    bench.settler.admit(first, lane_of("sync", limits, (None, None), node=""), "sync", limits, ahead=False)
    sent = {number: sync.delay(number).id for number in range(1, 12)}
    found = read_all(bench.broker, [QUEUE], ME)
    back = chance.sample(found, 5)
    for one in found:
        if one not in back:
            bench.executor.execute(one)
    bench.settler.put_back([one.entry for one in back])
    run_all(bench)

    assert {number: sync.delay(number).id for number in sent} == sent
    assert sync.delay(0).id == running.id
    bench.executor.execute(first)
    run_all(bench)
    assert (bench.ran, bench.left(), locks(bench)) == ([(number, "") for number in range(12)], NOTHING, 0)


def test_lock_of_a_dead_letter_is_free_and_replaying_takes_it_again(bench: Bench) -> None:
    sync = unique_task(bench)
    first = sync.delay(1)
    bench.settler.settle(bench.read(), Outcome(Action.DEAD, reason=Reason.FAILED))
    assert locks(bench) == 0
    (letter,) = dead_letters(bench.broker, QUEUE)

    replay(bench.broker, letter)

    assert sync.delay(1).id == first.id


def test_letter_stays_where_a_newer_message_holds_the_lock(bench: Bench) -> None:
    sync = unique_task(bench)
    sync.delay(1)
    bench.settler.settle(bench.read(), Outcome(Action.DEAD, reason=Reason.FAILED))
    second = sync.delay(1)
    (letter,) = dead_letters(bench.broker, QUEUE)

    with pytest.raises(CannotRun, match=f"its task is unique, and message {second.id} holds its lock"):
        replay(bench.broker, letter)

    assert bench.left() == but(waiting=1, dead=["failed"])


@pytest.mark.parametrize("by", ["id", "stamp"])
@pytest.mark.parametrize("until", ["end", "start"])
@pytest.mark.parametrize("where", ["delayed", "held", "waiting"])
@pytest.mark.parametrize("queue", [QUEUE, "elsewhere"])
def test_letter_is_replayed_where_what_holds_its_lock_was_revoked_and_waits(
    bench: Bench, queue: str, where: str, until: str, by: str
) -> None:
    sync = unique_task(bench, streams_unique_until=until, rate_limit="1/h" if where == "held" else None)
    bench.broker.ensure_groups([queue])
    first = sync.delay(1)
    bench.settler.settle(bench.read(), Outcome(Action.DEAD, reason=Reason.FAILED))
    if where == "held":
        sync.apply_async((0,), queue=queue)
    newer = stamped(sync, 1, queue=queue, countdown=3600 if where == "delayed" else None)
    if where == "held":
        run_all(bench, queue)
    revoke_by(bench, by, newer.id)
    (letter,) = dead_letters(bench.broker, QUEUE)

    if where == "waiting" and until == "end":  # it may be running: a worker discards it within moments
        with pytest.raises(CannotRun, match=newer.id):
            replay(bench.broker, letter, queue=queue)
        return
    assert replay(bench.broker, letter, queue=queue)

    assert bench.left()["dead"] == []
    assert sync.apply_async((1,), queue=queue).id == first.id


@pytest.mark.parametrize("by", ["id", "stamp"])
@pytest.mark.parametrize(
    ("until", "queue", "late"),
    [
        *(("start", queue, late) for queue in (QUEUE, "elsewhere") for late in (True, False)),
        ("end", "elsewhere", True),
        ("end", QUEUE, False),
        ("end", "elsewhere", False),
    ],
)
def test_retry_has_the_lock_where_what_holds_it_was_revoked_and_waits(
    bench: Bench, until: str, queue: str, late: bool, by: str
) -> None:
    bench.broker.ensure_groups([queue])

    @bench.task(bind=True, streams_unique=True, streams_unique_until=until, streams_acks_late=late)
    def again(self: Task) -> None:
        newer = stamped(again, queue=queue, countdown=3600)
        assert newer.id != self.request.id
        revoke_by(bench, by, newer.id)
        raise self.retry(countdown=3600, queue=queue)

    first = again.delay()
    bench.run()

    assert again.apply_async(queue=queue).id == first.id


@pytest.mark.parametrize("ending", ["done", "failed", "ignored", "rejected", "expired", "revoked", "unknown"])
def test_lock_goes_with_the_message_in_every_ending(bench: Bench, ending: str) -> None:
    @bench.task(streams_unique=True)
    def act(number: int) -> None:
        if ending == "failed":
            raise ValueError("for good")
        if ending in ("ignored", "rejected"):
            raise Ignore if ending == "ignored" else Reject("no", requeue=False)

    past = bench.app.now() - timedelta(seconds=60)
    first = act.apply_async((1,), expires=past if ending == "expired" else None)
    assert locks(bench) == 1
    if ending == "revoked":
        worker_state.revoked.add(first.id)
    if ending == "unknown":
        bench.settler.settle(bench.read(), Outcome(Action.DEAD, reason=Reason.UNKNOWN))
    else:
        bench.run()

    left = bench.left()
    assert (left["waiting"], left["pending"], locks(bench)) == (0, 0, 0)
    assert act.delay(1).id != first.id


@pytest.mark.parametrize("ending", ["xdel", "flush", "unlink delayed", "purge"])
def test_lock_is_believed_only_while_its_message_is_there(bench: Bench, ending: str) -> None:
    sync = unique_task(bench)
    first = sync.apply_async((1,), countdown=3600 if ending == "unlink delayed" else None)
    call = bench.broker.client.call
    if ending == "xdel":
        (((entry_id, _),),) = [call("XRANGE", STREAM, "-", "+")]
        call("XDEL", STREAM, entry_id)
    elif ending == "flush":
        call("UNLINK", STREAM)
    elif ending == "purge":
        assert streams_inspect.purge(bench.broker, QUEUE) == 1
        assert locks(bench) == 0
    else:
        call("UNLINK", f"{STREAM}:delayed", f"{STREAM}:delayed:messages")

    assert sync.delay(1).id != first.id


def test_lock_of_a_held_message_that_was_purged_is_not_that_of_the_next_one_in_its_field(bench: Bench) -> None:
    sync = unique_task(bench, rate_limit="1/h")
    for number in (0, 1):
        sync.delay(number)
    run_all(bench)
    assert streams_inspect.purge(bench.broker, QUEUE) == 1
    other = sync.delay(2)
    run_all(bench)

    assert streams_inspect.queue_status(bench.broker, QUEUE).held == 1
    assert sync.delay(1).id != other.id == sync.delay(2).id
    assert bench.left()["waiting"] == 1


def test_worker_of_a_version_without_locks_leaves_the_lock_behind_and_it_is_free(bench: Bench) -> None:
    sync = unique_task(bench)
    first = sync.delay(1)
    entry = bench.read().entry
    older = "\n".join(line for line in scripts.PUT_BACK.text.splitlines() if not line.startswith("    follow(named"))
    assert older != scripts.PUT_BACK.text.rstrip("\n")
    names = bench.broker.queue_keys(QUEUE)
    words = [keys.GROUP, ME, len(names.steps), 10_000, 0, entry.id]
    bench.broker.client.call("EVAL", older, len(names.shelf_and_streams), *names.shelf_and_streams, *words)

    second = sync.delay(1)

    assert first.id != second.id == sync.delay(1).id
    run_all(bench)
    assert (bench.ran, bench.left(), locks(bench)) == ([(1, ""), (1, "")], NOTHING, 0)


def test_sweep_frees_the_locks_of_what_ended_unseen_and_no_other(bench: Bench) -> None:
    sync = unique_task(bench)
    for number in range(300):
        sync.apply_async((number,), countdown=3600)
    kept = sync.delay(1000)
    bench.broker.client.call("UNLINK", f"{STREAM}:delayed", f"{STREAM}:delayed:messages")

    cursor, freed = sweep(bench.broker, QUEUE)
    while cursor:
        cursor, more = sweep(bench.broker, QUEUE, cursor)
        freed += more

    assert (freed, locks(bench), sync.delay(1000).id) == (300, 1, kept.id)


def test_seconds_end_the_lock_while_the_message_waits(bench: Bench) -> None:
    sync = unique_task(bench, streams_unique=0.001)
    first = sync.delay(1)

    while (second := sync.delay(1)).id == first.id:
        pass

    assert bench.left()["waiting"] >= 2
    assert second.id != first.id


def revoke_by(bench: Bench, by: str, task_id: str) -> None:
    """Revoke a task as a worker that is told to does, by its id or by its stamp."""
    if by == "id":
        revoke(bench.broker, [task_id], seconds=600)
        worker_state.revoked.add(task_id)
    else:
        revoke_stamps(bench.broker, [("customer", "acme")], seconds=600)
        worker_state.revoked_stamps["customer"] = ["acme"]


@pytest.fixture(autouse=True)
def no_revoked_stamps() -> Iterator[None]:
    yield
    worker_state.revoked_stamps.clear()


def stamped(task: Any, *args: Any, **options: Any) -> Any:
    signature = task.signature(args, **options)
    signature.stamp(customer="acme", region="north")
    return signature.apply_async()


@pytest.mark.parametrize("by", ["id", "stamp"])
@pytest.mark.parametrize("where", ["delayed", "held", "retried"])
@pytest.mark.parametrize("way", ["one", "bulk", "raises"])
def test_message_that_waits_for_its_time_binds_nobody_once_it_was_revoked(
    bench: Bench, where: str, way: str, by: str
) -> None:
    options = {"streams_unique_on_duplicate": "raise"} if way == "raises" else {}
    if where == "retried":
        task = retrying(bench, **options)
    else:
        task = unique_task(bench, **options, **({"rate_limit": "1/h"} if where == "held" else {}))
    if where == "held":
        task.delay(0)
    first = stamped(task, 1, countdown=3600 if where == "delayed" else None)
    run_all(bench)
    revoke_by(bench, by, first.id)

    with bulk(bench.app) if way == "bulk" else contextlib.nullcontext():
        second = task.delay(1)

    assert (second.id != first.id, bench.left()["waiting"]) == (True, 1)
    # And the new one holds the lock, whatever becomes of the other.
    if way != "raises":
        assert task.delay(1).id == second.id
        let_go(bench.broker, QUEUE)
        for one in delayed_messages(bench.broker, QUEUE):
            run_now(bench.broker, QUEUE, [one.member])
        bench.run()
        assert locks(bench) == 1


def test_task_that_runs_holds_its_lock_though_it_was_revoked(bench: Bench) -> None:
    seen = []

    @bench.task(streams_unique=True)
    def sync(number: int) -> None:
        revoke(bench.broker, [first.id], seconds=600)
        seen.append(sync.delay(number).id)
        with bulk(bench.app):
            again = sync.delay(number)
        seen.append(again.id)

    first = sync.delay(1)
    bench.run()

    assert seen == [first.id, first.id]
    assert bench.left() == NOTHING


@pytest.mark.parametrize("by", ["id", "stamp"])
@pytest.mark.parametrize("kind", ["group", "chord"])
@pytest.mark.parametrize("where", ["delayed", "held"])
def test_group_goes_out_though_some_of_its_messages_were_revoked_before_and_wait_still(
    bench: Bench, where: str, kind: str, by: str
) -> None:
    @bench.task()
    def plain() -> None:
        bench.ran.append("plain")

    @bench.task()
    def total(results: list[Any]) -> None: ...

    task = unique_task(bench, **({"rate_limit": "1/h"} if where == "held" else {}))
    if where == "held":
        task.delay(0)
    revoked = [stamped(task, number, countdown=3600 if where == "delayed" else None) for number in (1, 2)]
    run_all(bench)
    for one in revoked:
        revoke_by(bench, by, one.id)
    before = bench.left()["waiting"]

    parts = [plain.si(), *(task.si(number) for number in range(1, 5))]
    sent = group(parts).apply_async() if kind == "group" else chord(parts)(total.s()).parent

    assert bench.left()["waiting"] == before + 5
    assert not {one.id for one in sent.results} & {one.id for one in revoked}
    assert task.delay(2).id == sent.results[2].id


@pytest.mark.parametrize("kind", ["group", "chord"])
def test_group_with_a_duplicate_of_what_may_run_is_refused_whatever_else_was_revoked(bench: Bench, kind: str) -> None:
    @bench.task()
    def total(results: list[Any]) -> None: ...

    task = unique_task(bench)
    task.delay(1)  # waits on its stream: a worker may be at it
    revoked = [task.delay(1), task.apply_async((2,), countdown=3600)]
    for one in revoked:
        revoke_by(bench, "id", one.id)
    before = bench.left()

    with pytest.raises(DuplicateTask):
        parts = [task.si(number) for number in (1, 2, 3)]
        group(parts).apply_async() if kind == "group" else chord(parts)(total.s())

    assert bench.left() == before


def test_message_with_other_stamps_than_those_that_were_revoked_binds_as_before(bench: Bench) -> None:
    task = unique_task(bench)
    first = stamped(task, 1, countdown=3600)
    revoke_stamps(bench.broker, [("region", "south"), ("customer", "other")], seconds=600)

    assert task.delay(1).id == first.id


@pytest.mark.parametrize("by", ["id", "stamp"])
@pytest.mark.parametrize("bulked", [False, True])
def test_newest_message_never_takes_the_id_of_one_that_was_revoked(bench: Bench, bulked: bool, by: str) -> None:
    sync = unique_task(bench, streams_unique_until="start", streams_unique_key="instance", streams_unique_replace=True)
    first = stamped(sync, 1, "old")
    revoke_by(bench, by, first.id)

    with bulk(bench.app) if bulked else contextlib.nullcontext():
        second = sync.delay(1, "new")
    run_all(bench)

    assert second.id != first.id
    assert (bench.ran, bench.left(), locks(bench)) == ([(1, "new")], NOTHING, 0)


# -- until it starts ---------------------------------------------------------------------------------------------------


def test_lock_until_the_start_is_free_when_the_task_runs(bench: Bench) -> None:
    seen = []

    @bench.task(streams_unique=True, streams_unique_until="start")
    def sync(number: int) -> None:
        if not seen:
            seen.append(sync.delay(number).id)
            seen.append(sync.delay(number).id)

    first = sync.delay(1)
    assert sync.delay(1).id == first.id
    bench.run()

    assert first.id != seen[0] == seen[1]
    assert bench.left() == but(waiting=1)


@pytest.mark.parametrize("where", ["stream", "read", "delayed", "held"])
def test_newest_arguments_replace_those_of_the_message_that_waits_and_keep_its_id(bench: Bench, where: str) -> None:
    options = {"streams_unique_until": "start", "streams_unique_key": "instance", "streams_unique_replace": True}
    sync = unique_task(bench, **options, **({"rate_limit": "1/h"} if where == "held" else {}))
    if where == "held":
        sync.delay(0)
    first = sync.apply_async((1, "old"), countdown=3600 if where == "delayed" else None)
    delivery = bench.read() if where == "read" else None
    if where == "held":
        run_all(bench)

    second = sync.apply_async((1, "newer"), countdown=None)
    third = sync.delay(1, "newest")

    assert first.id == second.id == third.id
    if delivery is not None:
        bench.run(delivery=delivery)  # it was read before: what is gone does not run
        assert bench.ran == []
    if where == "held":
        assert streams_inspect.queue_status(bench.broker, QUEUE).held == 1
        let_go(bench.broker, QUEUE)
        sync.rate_limit = None
    if where == "delayed":
        assert [due > 0 for due, _ in bench.delayed()] == [True]
        bench.broker.client.call(
            "ZADD", f"{STREAM}:delayed", 1, bench.broker.client.call("ZRANGE", f"{STREAM}:delayed", 0, 0)[0]
        )
        bench.broker.promote([QUEUE])
    run_all(bench)
    assert bench.ran[-1] == (1, "newest")
    assert (1, "old") not in bench.ran
    assert (bench.left(), locks(bench)) == (NOTHING, 0)


def test_message_that_was_replaced_after_it_was_read_leaves_its_place_to_the_newest(bench: Bench) -> None:
    sync = unique_task(
        bench,
        streams_unique_until="start",
        streams_unique_key="instance",
        streams_unique_replace=True,
        streams_concurrency=1,
    )
    sync.delay(1, "old")
    delivery = bench.read()
    sync.delay(1, "new")

    bench.run(delivery=delivery)
    assert bench.ran == []
    run_all(bench)

    assert bench.ran == [(1, "new")]
    assert not [key for key in redis_state(bench.broker.client) if ":held" in key]


@pytest.mark.parametrize("priority", [0, 6])
@pytest.mark.parametrize("fronted", [False, True])
def test_message_that_is_replaced_after_it_was_released_has_its_place(
    bench: Bench, fronted: bool, priority: int
) -> None:
    sync = unique_task(
        bench,
        streams_unique_until="start",
        streams_unique_key="instance",
        streams_unique_replace=True,
        streams_concurrency=1,
    )
    sync.apply_async((0,), priority=priority)
    running = bench.read()
    bench.executor.prepare()
    limits = limits_in_force(sync, streams_of(bench.app))
    lane = lane_of("sync", limits, (None, None), node="")
    bench.settler.admit(running, lane, "sync", limits, ahead=False)
    sync.apply_async((1, "old"), priority=priority)
    sync.apply_async((2,), priority=priority)
    for _ in range(2):
        bench.executor.execute(bench.read())
    if fronted:
        sync.apply_async((3,), priority=priority)
    bench.executor.execute(running)

    sync.apply_async((1, "new"), priority=priority)

    places = redis_state(bench.broker.client)[f"{STREAM}:held:places"]
    assert len(places) == 1
    run_all(bench)
    assert bench.ran[:3] == [(0, ""), (1, "new"), (2, "")]
    assert not [key for key in redis_state(bench.broker.client) if ":held" in key]


def test_replaced_message_goes_before_what_waits_so_that_it_runs_however_often_it_is_replaced(bench: Bench) -> None:
    sync = unique_task(bench, streams_unique_until="start", streams_unique_key="instance", streams_unique_replace=True)
    sync.delay(1, "old")
    for number in (2, 3):
        sync.delay(number)

    for _ in range(3):
        sync.delay(1, "new")
    run_all(bench)

    assert bench.ran == [(1, "new"), (2, ""), (3, "")]


def test_retry_that_waits_takes_the_lock_again_where_no_newer_message_has_it(bench: Bench) -> None:
    again = retrying(bench, streams_unique_until="start")
    first = again.delay(1)
    bench.run()

    assert (again.delay(1).id, bench.left()) == (first.id, but(delayed=1))


# -- others ------------------------------------------------------------------------------------------------------------


def commands(bench: Bench) -> dict[str, int]:
    """Return how often the server carried out each command so far, those of scripts among them."""
    said = bench.broker.client.call("INFO", "commandstats").decode().splitlines()
    found = dict(line.split(":", 1) for line in said if line.startswith("cmdstat_"))
    return {name: int(rest.split(",")[0].partition("=")[2]) for name, rest in found.items() if name != "cmdstat_info"}


def test_task_without_options_sends_the_same_beside_unique_ones(make: Callable[..., Bench]) -> None:
    counted, messages = [], []
    for unique in (False, True):
        bench = make()

        @bench.task(ignore_result=True)
        def plain(number: int) -> None: ...

        if unique:
            unique_task(bench).delay(1)
            bench.run()
        for _ in range(2):  # the first goes Celery's way, and makes a plan
            plain.delay(1)
            bench.run()
        before = commands(bench)
        plain.apply_async((1,), task_id="the same")
        after_publish = commands(bench)
        messages.append(bench.read())
        bench.run(delivery=messages[-1])
        after_run = commands(bench)
        counted.append(
            [
                {name: count - old.get(name, 0) for name, count in new.items() if count != old.get(name, 0)}
                for old, new in ((before, after_publish), (after_publish, after_run))
            ]
        )

    assert counted[0] == counted[1]
    assert counted[0][0] == {"cmdstat_xadd": 1}
    first, second = (one.message for one in messages)
    assert first is not None
    assert second is not None
    assert first.headers == second.headers
    assert b"streams_unique" not in first.headers


@pytest.mark.parametrize("early", [False, True])
def test_message_that_is_acknowledged_early_is_gone_with_its_lock_and_its_retry_takes_it_again(
    make: Callable[..., Bench], early: bool
) -> None:
    bench = make(streams_acks_late=not early)
    again = retrying(bench)
    first = again.delay(1)
    bench.run()

    assert (again.delay(1).id, bench.left()) == (first.id, but(delayed=1))


def test_wrong_option_is_said_in_one_line_when_the_app_is_finalized(
    app: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    made = app()

    @made.task(name="sync", streams_unique=True, streams_unique_key="instanc")
    def sync(instance: int) -> None: ...

    with caplog.at_level(logging.ERROR):
        made.finalize()

    (line,) = [one.getMessage() for one in caplog.records if one.name == "celery_streams.installation"]
    assert line == (
        "Task sync has no argument 'instanc' to be unique by; did you mean 'instance'. "
        "Publishing this task fails until it is fixed."
    )


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"streams_unique": 0}, "must be True, or a number of seconds above 0, got 0"),
        ({"streams_unique": -1}, "above 0"),
        ({"streams_unique": "yes"}, "above 0"),
        ({"streams_unique_key": "instanc"}, "has no argument 'instanc' to be unique by; did you mean 'instance'?"),
        ({"streams_unique_key": 3}, "must be an argument's name, or a callable, got 3"),
        ({"streams_unique_until": "begin"}, "unique_until must be 'end' or 'start', got 'begin'"),
        ({"streams_unique_on_duplicate": "warn"}, "unique_on_duplicate must be 'return' or 'raise'"),
        ({"streams_unique_replace": True}, 'unique_replace needs unique_until="start"'),
        ({"streams_unique": None, "streams_unique_key": "instance"}, "unique_key has no effect without unique"),
    ],
)
def test_option_that_means_nothing_is_refused_with_nothing_stored(
    bench: Bench, options: dict[str, Any], said: str
) -> None:
    sync = unique_task(bench, **options)

    with pytest.raises(ConfigurationError) as caught:
        sync.delay(1)

    assert said in str(caught.value)
    assert bench.left() == NOTHING


def raising(task: Task, args: Any, kwargs: Any) -> str:
    raise RuntimeError("no key")


@pytest.mark.parametrize(
    ("options", "args", "said"),
    [
        ({"streams_unique_key": raising}, (1,), "the function for its key"),
        ({"streams_unique_key": lambda task, args, kwargs: None}, (1,), "returned None"),
        ({"streams_unique_key": "other"}, (1, "x" * 1025), "its key has more than 1024 bytes"),
    ],
)
def test_key_that_cannot_be_told_fails_the_publish_with_nothing_stored(
    bench: Bench, options: dict[str, Any], args: Any, said: str
) -> None:
    sync = unique_task(bench, **options)

    with pytest.raises(LimitKeyError, match=said):
        sync.delay(*args)

    assert bench.left() == NOTHING
    assert LOCKS not in redis_state(bench.broker.client)


def test_publish_whose_arguments_do_not_fit_fails_in_a_line_that_says_so(bench: Bench) -> None:
    sync = unique_task(bench, typing=False)

    with pytest.raises(LimitKeyError, match="cannot be called with these arguments: too many positional arguments"):
        sync.delay(1, 2, 3)

    assert bench.left() == NOTHING


# -- what people see ---------------------------------------------------------------------------------------------------


def test_locks_are_counted_by_status_limits_and_in_json(bench: Bench) -> None:
    sync = unique_task(bench)

    def printed(command: Command, *words: str) -> str:
        return (
            CliRunner().invoke(command, list(words), obj=CLIContext(app=bench.app, no_color=True, workdir=None)).output
        )

    assert "unique" not in printed(status) + printed(limits)
    for number in range(2):
        sync.delay(number)

    assert "unique  celery: 2 locks of unique tasks" in printed(status)
    assert "Queue celery has 2 locks of unique tasks." in printed(limits)
    assert json.loads(printed(limits, "--json"))["locks"] == {QUEUE: 2}
    told = json.loads(printed(status, "--json"))
    assert (told["queues"][0]["locks"], told["totals"]["locks"]) == (2, 2)

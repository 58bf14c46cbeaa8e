"""The states of tracked tasks, at each step of what becomes of one message."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.worker import state as worker_state

import celery_streams
from celery_streams import TaskState, bulk, keys
from celery_streams.connection import RedisClient
from celery_streams.dead_letters import dead_letters, purge_dead, replay
from celery_streams.delayed_messages import cancel, delayed_messages, run_now
from celery_streams.inspect import purge
from celery_streams.lanes import release
from celery_streams.limits import RateLimited
from celery_streams.pauses import pause_queue, resume_queue
from celery_streams.recovery import recover
from celery_streams.revocations import revoke
from celery_streams.states import look
from tests.support.bench import ME, QUEUE, ActionError, Bench, Expected

MAKE = Callable[..., Bench]


def state_of(bench: Bench, result: Any) -> TaskState:
    return celery_streams.state(bench.app, result.id)


def clock(bench: Bench) -> float:
    return bench.broker.clock_ms() / 1000


def test_task_that_is_not_tracked_is_unknown_and_leaves_no_key(both: Bench) -> None:
    @both.task()
    def plain() -> None:
        """Do nothing."""

    result = plain.delay()
    both.run()

    assert state_of(both, result) == TaskState("unknown")
    assert not both.broker.client.call("KEYS", "*:state:*")


def test_state_without_an_app_is_that_of_the_current_app(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def plain() -> None:
        """Do nothing."""

    result = plain.delay()

    assert celery_streams.state(result.id) == state_of(bench, result)
    assert celery_streams.state(result.id).state == "queued"


def test_task_is_queued_then_running_then_succeeded(both: Bench) -> None:
    seen: list[TaskState] = []

    @both.task(streams_track=True, bind=True)
    def observed(self: Any) -> None:
        seen.append(state_of(both, self.request))

    before = clock(both)
    result = observed.delay()
    queued = state_of(both, result)
    both.run()

    assert (queued.state, queued.attempt, queued.of, queued.reason) == ("queued", 1, 4, "")
    assert [one.state for one in seen] == ["running"]
    done = state_of(both, result)
    assert done.state == "succeeded"
    assert queued.since is not None
    assert seen[0].since is not None
    assert done.since is not None
    assert before - 0.01 <= queued.since <= seen[0].since <= done.since <= clock(both)


def test_what_was_read_and_not_started_is_queued(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def plain() -> None:
        """Do nothing."""

    results = [plain.delay() for _ in range(2)]
    bench.executor.prepare()
    first, _ = bench.broker.read(bench.broker.streams([QUEUE]), ME, count=2)

    bench.run(delivery=first)

    assert [state_of(bench, one).state for one in results] == ["succeeded", "queued"]


def test_retrying_says_which_attempt_comes_and_when(both: Bench) -> None:
    @both.task(streams_track=True, bind=True, max_retries=2)
    def again(self: Any) -> None:
        self.retry(countdown=0 if self.request.retries else 30, exc=ActionError("no"))

    result = again.delay()
    both.run()

    found = state_of(both, result)
    assert (found.state, found.attempt, found.of) == ("retrying", 2, 3)
    assert found.until is not None
    assert 25 < found.until - clock(both) <= 30

    run_now(both.broker, QUEUE, [one.member for one in delayed_messages(both.broker, QUEUE)])
    both.app.now = lambda: datetime.now(timezone.utc)  # type: ignore[method-assign]
    assert state_of(both, result).state == "retrying"


def test_retry_at_once_is_retrying_until_it_runs_and_dead_in_the_end(both: Bench) -> None:
    seen: list[TaskState] = []

    @both.task(streams_track=True, bind=True, max_retries=1)
    def again(self: Any) -> None:
        seen.append(state_of(both, self.request))
        self.retry(countdown=0, exc=ActionError("no"))

    result = again.delay()
    both.run()
    waits = state_of(both, result)
    both.run()

    assert (waits.state, waits.attempt, waits.of, waits.until) == ("retrying", 2, 2, None)
    assert [(one.state, one.attempt) for one in seen] == [("running", 1), ("running", 2)]
    assert (state_of(both, result).state, state_of(both, result).reason) == ("dead", "failed")


def test_failure_with_a_dead_letter_is_dead_and_without_one_failed(both: Bench) -> None:
    @both.task(streams_track=True)
    def fails() -> None:
        raise ActionError("no")

    result = fails.delay()
    both.run()
    dead = state_of(both, result)
    (letter,) = dead_letters(both.broker, QUEUE)
    purge_dead(both.broker, QUEUE, [letter.entry_id])

    assert (dead.state, dead.reason) == ("dead", "failed")
    assert (state_of(both, result).state, state_of(both, result).reason) == ("failed", "failed")


@pytest.mark.parametrize(
    ("raised", "options", "expected"),
    [
        (ActionError("no"), {"streams_dead_letter_failures": False}, ("failed", "failed")),
        (Expected("no"), {"throws": (Expected,)}, ("failed", "failed")),
        (Reject("no"), {}, ("dead", "rejected")),
        (Reject("no", requeue=True), {}, ("queued", "")),
        (Ignore(), {}, ("succeeded", "ignored")),
    ],
    ids=["no letter", "expected", "reject", "requeue", "ignore"],
)
def test_state_after_what_a_body_raises(
    both: Bench, raised: Exception, options: dict[str, Any], expected: tuple[str, str]
) -> None:
    @both.task(streams_track=True, **options)
    def raises() -> None:
        raise raised

    result = raises.delay()
    both.run()

    found = state_of(both, result)
    assert (found.state, found.reason) == expected


@pytest.mark.parametrize("body", ["ok", "error", "retry"])
def test_task_that_is_acknowledged_before_it_runs(make_both: MAKE, body: str) -> None:
    bench = make_both(streams_acks_late=False)
    seen: list[str] = []

    @bench.task(streams_track=True, bind=True)
    def early(self: Any) -> None:
        seen.append(state_of(bench, self.request).state)
        if body == "error":
            raise ActionError("no")
        if body == "retry":
            self.retry(countdown=60)

    result = early.delay()
    bench.run()

    assert seen == ["running"]
    assert state_of(bench, result).state == {"ok": "succeeded", "error": "dead", "retry": "retrying"}[body]


def test_revoked_while_it_waits_and_when_it_is_read(both: Bench) -> None:
    @both.task(streams_track=True)
    def never() -> None:
        raise AssertionError

    result = never.delay()
    revoke(both.broker, [result.id], seconds=60)
    waits = state_of(both, result)
    worker_state.revoked.add(result.id)
    both.run()

    assert (waits.state, state_of(both, result).state) == ("revoked", "revoked")


def test_message_that_expired_is_expired(both: Bench) -> None:
    @both.task(streams_track=True)
    def never() -> None:
        raise AssertionError

    result = never.apply_async(expires=datetime.now(timezone.utc) - timedelta(seconds=5))
    assert state_of(both, result).state == "queued"
    both.run()

    assert state_of(both, result).state == "expired"


def test_delayed_until_its_time_and_queued_from_then_on(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def later() -> None:
        """Do nothing."""

    result = later.apply_async(countdown=60)
    waits = state_of(bench, result)
    run_now(bench.broker, QUEUE, [one.member for one in delayed_messages(bench.broker, QUEUE)])

    assert waits.state == "delayed"
    assert waits.until is not None
    assert 55 < waits.until - clock(bench) <= 60
    assert (state_of(bench, result).state, state_of(bench, result).until) == ("queued", None)


def test_delayed_message_that_came_before_its_eta_is_delayed_again(both: Bench) -> None:
    @both.task(streams_track=True)
    def later() -> None:
        raise AssertionError

    result = later.apply_async(countdown=60)
    (one,) = delayed_messages(both.broker, QUEUE)
    both.broker.client.call("ZADD", both.broker.queue_keys(QUEUE).delayed, both.broker.clock_ms(), one.member)
    both.broker.promote([QUEUE])
    both.run()

    found = state_of(both, result)
    assert found.state == "delayed"
    assert found.until is not None
    assert 50 < found.until - clock(both) <= 61


def test_cancelled_message_is_revoked(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def later() -> None:
        """Do nothing."""

    result = later.apply_async(countdown=60)
    cancel(bench.broker, QUEUE, [one.member for one in delayed_messages(bench.broker, QUEUE)])

    assert (state_of(bench, result).state, state_of(bench, result).reason) == ("revoked", "cancelled")


def test_what_a_limit_holds_is_held_and_queued_once_it_was_released(both: Bench) -> None:
    @both.task(streams_track=True, streams_concurrency=1)
    def limited() -> None:
        """Do nothing."""

    results = [limited.delay() for _ in range(2)]
    both.executor.prepare()
    first, second = both.broker.read(both.broker.streams([QUEUE]), ME, count=2)
    limits = both.executor.around.options["limited"].limits
    from celery_streams.limits import lane_of

    lane = lane_of("limited", limits, (None, None), node="")
    both.settler.admit(first, lane, "limited", limits, ahead=False)
    both.executor.execute(second)
    started, held = (state_of(both, one) for one in results)

    assert (started.state, held.state, held.reason) == ("running", "held", "concurrency limit")
    both.executor.execute(first)
    both.settler.flush()
    assert [state_of(both, one).state for one in results] == ["succeeded", "queued"]
    both.run()
    assert [state_of(both, one).state for one in results] == ["succeeded", "succeeded"]


def test_what_a_rate_holds_is_held_for_it(both: Bench) -> None:
    @both.task(streams_track=True, rate_limit="1/h")
    def limited() -> None:
        """Do nothing."""

    results = [limited.delay() for _ in range(2)]
    both.run()
    both.run()

    found = [state_of(both, one) for one in results]
    assert [(one.state, one.reason) for one in found] == [("succeeded", ""), ("held", "rate limit")]
    release(both.broker, [QUEUE], {"limited": {"interval": 0}}, everything=True)
    assert state_of(both, results[1]).state == "queued"


def test_task_that_raises_rate_limited_is_held(both: Bench) -> None:
    @both.task(streams_track=True)
    def busy() -> None:
        raise RateLimited(30)

    result = busy.delay()
    both.run()

    assert (state_of(both, result).state, state_of(both, result).reason) == ("held", "rate limit")


def test_message_in_a_paused_queue_is_held(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def plain() -> None:
        """Do nothing."""

    result, later = plain.delay(), plain.apply_async(countdown=60)
    pause_queue(bench.broker, QUEUE, reason="the provider is down")
    paused = state_of(bench, result)
    resume_queue(bench.broker, QUEUE)

    assert (paused.state, paused.reason) == ("held", "queue paused: the provider is down")
    assert [state_of(bench, one).state for one in (result, later)] == ["queued", "delayed"]


def test_unknown_task_of_this_worker_is_queued_still(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def later() -> None:
        """Do nothing."""

    result = later.delay()
    bench.executor.prepare()
    del bench.executor.around.options["later"]
    bench.executor.execute(bench.read())

    assert state_of(bench, result).state == "queued"


def test_running_task_of_a_lost_worker_is_queued_once_it_was_recovered(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def stops() -> None:
        """Do nothing."""

    result = stops.delay()
    bench.executor.prepare()
    read = bench.read()
    bench.settler.note_start(read)
    running = state_of(bench, result)
    recover(bench.broker, QUEUE, "other", idle_ms=0, turn_ms=1, pauses_ms=[0, 1000])

    assert (running.state, state_of(bench, result).state) == ("running", "queued")
    assert state_of(bench, result).reason == "crashed"
    bench.run()
    assert state_of(bench, result).state == "succeeded"


def test_worker_that_lost_its_entry_changes_no_state(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def twice() -> None:
        """Do nothing."""

    result = twice.delay()
    bench.executor.prepare()
    read = bench.read()
    bench.broker.client.call("XCLAIM", read.stream.key, keys.GROUP, "other", 0, read.entry_id)
    bench.settler.another()
    bench.executor.execute(read)
    bench.settler.flush()

    assert state_of(bench, result).state != "succeeded"


def test_acknowledgement_by_the_parent_says_that_the_task_succeeded(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def plain() -> None:
        """Do nothing."""

    result = plain.delay()
    bench.executor.prepare()
    read = bench.read()
    bench.executor.execute(read)  # collected, and not sent

    bench.settler.another().acknowledge([read.entry])

    assert state_of(bench, result).state == "succeeded"


def test_replayed_letter_is_queued_again(both: Bench) -> None:
    fine: list[int] = []

    @both.task(streams_track=True)
    def mended() -> None:
        if not fine:
            raise ActionError("no")

    result = mended.delay()
    both.run()
    letter = next(iter(dead_letters(both.broker, QUEUE)))
    replay(both.broker, letter)
    queued = state_of(both, result)
    fine.append(1)
    both.run()

    assert (queued.state, state_of(both, result).state) == ("queued", "succeeded")


def test_purged_message_is_unknown(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def plain() -> None:
        """Do nothing."""

    result = plain.delay()
    purge(bench.broker, QUEUE)

    assert state_of(bench, result).state == "unknown"


def test_bulk_publishes_note_each_of_their_tasks(bench: Bench) -> None:
    @bench.task(streams_track=True)
    def plain() -> None:
        """Do nothing."""

    with bulk(bench.app):
        results = [plain.delay(), plain.apply_async(countdown=60)]
        assert [state_of(bench, one).state for one in results] == ["unknown", "unknown"]

    assert [state_of(bench, one).state for one in results] == ["queued", "delayed"]
    bench.run()
    assert state_of(bench, results[0]).state == "succeeded"


def test_unique_task_keeps_its_state_when_it_is_published_again_or_replaced(bench: Bench) -> None:
    @bench.task(streams_track=True, streams_unique=True)
    def once() -> None:
        """Do nothing."""

    @bench.task(streams_track=True, streams_unique=True, streams_unique_until="start", streams_unique_replace=True)
    def newest() -> None:
        """Do nothing."""

    first, same = once.delay(), once.delay()
    assert (first.id, state_of(bench, first).state) == (same.id, "queued")
    bench.run()
    assert state_of(bench, first).state == "succeeded"

    for options, expected in (({}, "queued"), ({"countdown": 3600}, "delayed")):
        old, new = newest.apply_async(**options), newest.apply_async(**options)
        assert (old.id, state_of(bench, old).state) == (new.id, expected)
        if not options:
            bench.run()
            assert state_of(bench, new).state == "succeeded"


def test_full_queue_notes_nothing(make: MAKE) -> None:
    bench = make(streams_max_length=1)

    @bench.task(streams_track=True)
    def plain() -> None:
        """Do nothing."""

    first = plain.delay()
    for publish in (plain.apply_async, lambda **said: plain.apply_async(countdown=60, **said)):
        with pytest.raises(celery_streams.QueueFull):
            publish(task_id="too-much")
    with pytest.raises(celery_streams.QueueFull), bulk(bench.app):
        plain.apply_async(task_id="too-much")

    assert state_of(bench, first).state == "queued"
    assert celery_streams.state(bench.app, "too-much").state == "unknown"


@pytest.mark.parametrize(
    ("setting", "tracked"),
    [(True, True), (False, False), (["pl*"], True), (("plain",), True), ("other,plain", True), (["other"], False)],
)
def test_setting_says_which_tasks_are_tracked(make: MAKE, setting: Any, tracked: bool) -> None:
    bench = make(streams_track=setting)

    @bench.task()
    def plain() -> None:
        """Do nothing."""

    @bench.task(streams_track=False)
    def plain_too() -> None:
        """Do nothing."""

    assert (state_of(bench, plain.delay()).state == "queued") is tracked
    assert state_of(bench, plain_too.delay()).state == "unknown"


@pytest.mark.parametrize("expires", [100, "100", timedelta(seconds=100), Decimal(100)])
def test_state_is_kept_as_long_as_results_are(make: MAKE, expires: Any) -> None:
    bench = make(result_expires=expires)

    @bench.task(streams_track=True)
    def plain() -> None:
        """Do nothing."""

    result = plain.delay()
    key = keys.state(bench.broker.prefix, result.id)
    waiting = bench.broker.client.call("PTTL", key)
    bench.run()

    assert 6 * 86_400_000 < waiting <= 7 * 86_400_000
    assert 90_000 < bench.broker.client.call("PTTL", key) <= 100_000


def test_headers_of_the_message_are_kept_with_the_state(make: MAKE) -> None:
    for compact in (True, False):
        bench = make(streams_compact_messages=compact)

        @bench.task(streams_track=True)
        def plain() -> None:
            """Do nothing."""

        result = plain.apply_async(headers={"owner": 7})
        bench.run()

        found = look(bench.app, result.id)
        assert (found.headers["owner"], found.headers["id"]) == (7, result.id)
        assert found.headers["task"] == "plain"
        assert found.headers["parent_id"] is None


def test_key_of_somebody_else_is_no_state(bench: Bench) -> None:
    bench.broker.client.call("SET", keys.state(bench.broker.prefix, "x"), b"\xff nonsense")

    assert celery_streams.state(bench.app, "x") == TaskState("unknown")


@pytest.mark.parametrize("said", ['"yes"', "[1]", '["a",1]', "null", "[-5,-1]", "[1e99,null]", '[1,"x"]'])
def test_mark_that_anybody_wrote_does_no_harm(bench: Bench, said: str) -> None:
    import json

    @bench.task()
    def plain() -> None:
        """Do nothing."""

    task_id = bench.publish_task("plain", streams_track=json.loads(said))
    bench.run()

    assert bench.left()["waiting"] == 0
    assert celery_streams.state(bench.app, task_id).state in ("unknown", "succeeded")


def test_no_command_more_for_tasks_that_are_not_tracked(
    app: Callable[..., Celery], redis_url: str, client: RedisClient
) -> None:
    counts = {}
    for tracked in (False, True):
        made = app(streams_track=tracked)
        made.task(name="plain", shared=False, ignore_result=True)(nothing)
        made.tasks["plain"].delay()
        before = client.call("INFO", "commandstats")
        made.tasks["plain"].delay()
        counts[tracked] = (before, client.call("INFO", "commandstats"))
    spent = {tracked: _spent(*both) for tracked, both in counts.items()}

    assert spent[False] == {"xadd": 1}
    assert spent[True] == {"evalsha": 1, "xadd": 1, "set": 1, "time": 1}


def nothing() -> None:
    """Do nothing."""


def _spent(before: bytes, after: bytes) -> dict[str, int]:
    def calls(said: bytes) -> dict[str, int]:
        found = {}
        for line in said.decode().splitlines():
            if line.startswith("cmdstat_"):
                name, _, rest = line.removeprefix("cmdstat_").partition(":")
                found[name] = int(rest.split(",")[0].partition("=")[2])
        return found

    first, then = calls(before), calls(after)
    grown = {name: count - first.get(name, 0) for name, count in then.items()}
    return {name: count for name, count in grown.items() if count and name != "info"}

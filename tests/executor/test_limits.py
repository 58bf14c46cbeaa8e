"""Limits of tasks: what may not start now is moved aside once, in order, and comes back when there is room."""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Task
from celery.bin.base import CLIContext
from celery.worker.request import Request
from click.testing import CliRunner

import celery_streams
from celery_streams import inspect as streams_inspect
from celery_streams import keys, streams_of
from celery_streams.bin.limits import limits
from celery_streams.bin.migrate import migrate
from celery_streams.exceptions import ConfigurationError, LimitKeyError
from celery_streams.lanes import Lane, admit, held_lanes, held_reasons, let_go, reconcile, release
from celery_streams.limits import RateLimited, lane_of, without_task
from celery_streams.recovery import recover
from celery_streams.worker.held_messages import HeldMessages
from celery_streams.worker.outcome import Action, Outcome
from celery_streams.worker.task_options import limits_in_force
from tests.support.bench import ME, NOTHING, QUEUE, STREAM, Bench, but
from tests.support.eventually import eventually
from tests.support.redis_state import commands_processed, make_idle, read_all, redis_state

#: What is in Redis when nothing is held, waits or runs: the stream itself, and who reads it.
IDLE = {STREAM, f"{STREAM}:3", f"{STREAM}:6", f"{STREAM}:9", keys.queues(keys.DEFAULT_PREFIX)}


def limited(bench: Bench, **options: Any) -> Any:
    """Register the task ``slow``, which notes the arguments that it is called with."""

    @bench.task(**options)
    def slow(number: int, customer: str = "") -> None:
        bench.ran.append(f"{customer}{number}" if customer else number)

    return slow


def run_all(bench: Bench) -> None:
    """Run what can be read now."""
    bench.executor.prepare()
    while found := bench.broker.read(bench.broker.streams([QUEUE]), "me", count=1):
        bench.executor.execute(found[0])
        bench.settler.flush()


def release_all(bench: Bench) -> int:
    return release(bench.broker, [QUEUE], {}).count


def held(bench: Bench) -> int:
    return streams_inspect.queue_status(bench.broker, QUEUE).held


def let_pass(bench: Bench, *, seconds: float) -> None:
    """Have all that waits for a time be as after so many seconds; how long the test takes itself means nothing then."""
    _, _, ready, _, rates, *_ = bench.broker.queue_keys(QUEUE).shelf
    for key in (ready, rates):
        for name in bench.broker.client.call("ZRANGE", key, 0, -1):
            bench.broker.client.call("ZINCRBY", key, -1000 * seconds, name)


@pytest.mark.parametrize(("scope", "name"), [("worker", "slow@w@h"), ("global", "slow")])
def test_task_beyond_its_rate_is_held_in_order_and_released_when_its_token_is_there(
    make: Callable[..., Bench], scope: str, name: str
) -> None:
    bench = make(streams_rate_limit_scope=scope)
    slow = limited(bench, rate_limit="1/h")
    for number in range(4):
        slow.delay(number)

    run_all(bench)

    assert (bench.ran, bench.left(), held(bench)) == ([0], NOTHING, 3)
    assert [(lane.name, lane.held) for lane in held_lanes(bench.broker, QUEUE)] == [(name, 3)]
    assert release_all(bench) == 0
    for number in (1, 2, 3):
        let_pass(bench, seconds=3_500)
        assert release_all(bench) == 0
        let_pass(bench, seconds=100)
        assert release_all(bench) == 1
        run_all(bench)
        assert bench.ran == list(range(number + 1))
    assert (bench.left(), held(bench)) == (NOTHING, 0)


@pytest.mark.parametrize("token", [False, True])
def test_what_was_put_back_before_it_ever_waited_goes_behind_those_that_wait(bench: Bench, token: bool) -> None:
    slow = limited(bench, rate_limit="1/h")
    for number in range(2):
        slow.delay(number)
    run_all(bench)
    for number in range(2, 6):
        slow.delay(number)
    bench.settler.put_back([bench.read().entry for _ in range(3)])

    if token:
        let_pass(bench, seconds=3_600)
    run_all(bench)

    assert (bench.ran, held(bench)) == ([0], 5)
    for number in range(1, 6):
        let_pass(bench, seconds=3_600)
        assert release_all(bench) == 1
        run_all(bench)
        assert bench.ran == list(range(number + 1))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("options", [{"streams_concurrency": 1}, {"rate_limit": "1/h"}], ids=["concurrency", "rate"])
@pytest.mark.parametrize("priorities", [(0,), (0, 3, 9)], ids=["one priority", "priorities"])
def test_what_is_put_back_again_and_again_runs_in_the_order_in_which_it_was_published(
    make: Callable[..., Bench], options: dict[str, Any], priorities: tuple[int, ...], seed: int
) -> None:
    bench = make(streams_rate_limit_scope="global")
    chance = random.Random(seed)
    slow = limited(bench, **options)
    slow.apply_async((0,), priority=0)
    bench.executor.prepare()
    first = bench.read()
    if "rate_limit" in options:
        bench.executor.execute(first)
    else:
        assert bench.settler.admit(first, *lane_of_all(bench, slow), ahead=False).admitted
    ranks = []
    for number in range(1, 25):
        priority = chance.choice(priorities)
        slow.apply_async((number,), priority=priority)
        ranks.append((priority, number))

    for _ in range(3):
        found = read_all(bench.broker, [QUEUE], ME)
        chance.shuffle(found)
        found.sort(key=lambda one: one.stream.step)  # what asks at the same time is of one priority
        back = [one.entry for one in found if chance.random() < 0.5]
        for one in found:
            if one.entry not in back:
                bench.executor.execute(one)
        bench.settler.put_back(sorted(back, key=lambda entry: (entry.stream.step, entry.id)))
    run_all(bench)
    if "rate_limit" not in options:
        bench.executor.execute(first)
    run_all(bench)
    while held(bench):
        let_pass(bench, seconds=3_600)
        release_all(bench)
        run_all(bench)

    assert bench.ran == [0, *(number for _, number in sorted(ranks))]
    assert bench.left() == NOTHING


def test_place_among_many_large_messages_costs_no_more(bench: Bench) -> None:
    slow = limited(bench, streams_concurrency=1)
    for number in range(60):
        slow.delay(number, "x" * 50_000)
    bench.executor.prepare()
    first, *others = read_all(bench.broker, [QUEUE], ME)
    assert bench.settler.admit(first, *lane_of_all(bench, slow), ahead=False).admitted
    far, near = others.pop(29), others.pop(3)
    for one in others:
        bench.settler.admit(one, *lane_of_all(bench, slow), ahead=False)
    bench.settler.put_back([near.entry, far.entry])
    before = commands_processed(bench.broker)
    run_all(bench)

    assert commands_processed(bench.broker) - before < 200
    bench.executor.execute(first)
    run_all(bench)
    assert [int(one.strip("x")) for one in bench.ran] == list(range(60))


def test_place_goes_along_when_what_was_released_is_put_back_and_its_token_too(bench: Bench) -> None:
    slow = limited(bench, streams_concurrency=1, rate_limit="1/h")
    for number in range(3):
        slow.delay(number)
    run_all(bench)
    let_pass(bench, seconds=3_600)
    release_all(bench)

    for _ in range(3):
        bench.settler.put_back([bench.read().entry])
    run_all(bench)

    assert (bench.ran, held(bench)) == ([0, 1], 1)


@pytest.mark.parametrize("ttl", [0, 600], ids=["dead", "put off"])
def test_place_of_a_released_message_is_free_when_its_task_is_not_known_where_it_is_read(
    make: Callable[..., Bench], ttl: int
) -> None:
    bench = make(streams_unknown_task_ttl=ttl)
    slow = limited(bench, streams_concurrency=1)
    for number in range(3):
        slow.delay(number)
    bench.executor.prepare()
    first, *others = read_all(bench.broker, [QUEUE], ME)
    assert bench.settler.admit(first, *lane_of_all(bench, slow), ahead=False).admitted
    for one in others:
        bench.executor.execute(one)
    bench.executor.execute(first)
    assert held(bench) == 1
    bench.app.tasks.unregister("slow")
    bench.executor.prepare()

    bench.executor.execute(bench.read())

    assert held(bench) == 0
    places = redis_state(bench.broker.client)[f"{STREAM}:held:places"]
    assert len(places) == 1


def test_all_that_has_room_is_released_when_a_penalty_is_over(bench: Bench) -> None:
    slow = limited(bench, streams_concurrency=2)
    for number in range(5):
        slow.delay(number)
    bench.executor.prepare()
    lane, *_ = lane_of_all(bench, slow)
    bench.settler.settle(bench.read(), Outcome(Action.HOLD, delay=3_600), lane=lane)
    run_all(bench)
    assert (bench.ran, held(bench)) == ([], 5)

    let_pass(bench, seconds=3_601)

    assert release_all(bench) == 2
    run_all(bench)
    assert (bench.ran, held(bench)) == ([0, 1, 2, 3, 4], 0)


def test_lane_of_a_time_without_keys_is_released_under_a_limit_for_each_key(bench: Bench) -> None:
    slow = limited(bench, rate_limit="1/h")
    for number in range(3):
        slow.delay(number)
    run_all(bench)

    found = release(bench.broker, [QUEUE], {"slow": {"interval": 0.0, "key_limit": 1}}, everything=True)

    assert found.count == 2
    run_all(bench)
    assert bench.ran == [0, 1, 2]


@pytest.mark.parametrize("way", ["recovered", "deleted"])
def test_limit_that_was_lowered_holds_for_whoever_does_not_know_it(bench: Bench, way: str) -> None:
    slow = limited(bench, streams_concurrency=3)
    for number in range(6):
        slow.delay(number)
    bench.executor.prepare()
    running = read_all(bench.broker, [QUEUE], ME)
    for one in running:
        bench.settler.admit(one, *lane_of_all(bench, slow), ahead=False)
    assert held(bench) == 3
    release(bench.broker, [QUEUE], {"slow": {"interval": 0.0, "limit": 1}}, everything=True)
    make_idle(bench.broker, running[0].stream, ME, running[0].entry_id, idle_ms=60_000)

    if way == "deleted":
        bench.broker.client.call("XDEL", running[0].stream.key, running[0].entry_id)
    recover(bench.broker, QUEUE, "claimer", idle_ms=30_000, turn_ms=1, pauses_ms=[0] * 5)

    assert held(bench) == 3


RATE_AND_KEY: dict[str, Any] = {
    "rate_limit": "1/h",
    "streams_concurrency_key": "customer",
    "streams_concurrency_per_key": 1,
}


def one_token(bench: Bench) -> None:
    """Have an hour pass, and what has its token then run."""
    let_pass(bench, seconds=3_600)
    assert release_all(bench) == 1
    run_all(bench)


def test_keys_take_turns_for_the_tokens_of_the_rate_that_they_share(make: Callable[..., Bench]) -> None:
    bench = make(streams_rate_limit_scope="global")
    slow = limited(bench, **RATE_AND_KEY)
    for customer in "abc":
        for number in range(3):
            slow.delay(number, customer)
    run_all(bench)
    assert held_reasons(bench.broker, QUEUE) == {"rate": 8, "concurrency": 0, "mixed": 0}

    while held(bench):
        one_token(bench)

    assert bench.ran == ["a0", "a1", "b0", "c0", "a2", "b1", "c1", "b2", "c2"]
    assert [key for key in redis_state(bench.broker.client) if ":held" in key] == [f"{STREAM}:held:rates"]


def test_token_costs_no_more_where_many_keys_wait_for_it(make: Callable[..., Bench]) -> None:
    bench = make(streams_rate_limit_scope="global")
    slow = limited(bench, **RATE_AND_KEY)

    def cost(customers: int) -> int:
        for customer in range(customers):
            slow.delay(customer, "x")
            slow.delay(customer, f"{customers}-{customer}")
        run_all(bench)
        one_token(bench)
        let_pass(bench, seconds=3_600)
        before = commands_processed(bench.broker)
        assert release_all(bench) == 1
        return commands_processed(bench.broker) - before

    few = cost(3)

    assert cost(200) <= few + 5


def test_new_key_does_not_take_the_token_for_which_others_wait(make: Callable[..., Bench]) -> None:
    bench = make(streams_rate_limit_scope="global")
    slow = limited(bench, **RATE_AND_KEY)
    for customer in "ab":
        slow.delay(0, customer)
    run_all(bench)

    let_pass(bench, seconds=3_600)
    slow.delay(0, "c")
    run_all(bench)  # before anybody has looked

    assert (bench.ran, held(bench)) == (["a0"], 2)
    assert release_all(bench) == 1
    run_all(bench)
    one_token(bench)
    assert bench.ran == ["a0", "b0", "c0"]


def test_rate_that_is_lifted_lets_all_go_that_waited_for_it_in_turn(make: Callable[..., Bench]) -> None:
    bench = make(streams_rate_limit_scope="global")
    slow = limited(bench, **RATE_AND_KEY)
    for number in range(3):
        for customer in "ab":
            slow.delay(number, customer)
    run_all(bench)

    streams_of(bench.app).limits_in_redis = {"slow": {"rate": None}}
    release(bench.broker, [QUEUE], {"slow": {"interval": 0.0, "key_limit": 1}}, everything=True)
    run_all(bench)

    assert bench.ran == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert (held(bench), bench.left()) == (0, NOTHING)


@pytest.mark.parametrize(
    "options",
    [
        {"rate_limit": "1/h"},
        {"rate_limit": "1/h", "streams_concurrency": 1},
        {"streams_concurrency": 1},
        {"streams_concurrency_key": "customer", "streams_concurrency_per_key": 1},
        RATE_AND_KEY,
        {"rate_limit": "1/h", "streams_rate_limit_key": "customer"},
    ],
    ids=["rate", "rate and number", "number", "number of a key", "rate and number of a key", "rate of a key"],
)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_goes_in_the_order_of_priorities_and_each_in_that_of_publishing(
    make: Callable[..., Bench], options: dict[str, Any], seed: int
) -> None:
    bench = make(streams_rate_limit_scope="global")
    chance = random.Random(seed)
    slow = limited(bench, **options)
    slow.delay(0, "x")
    bench.executor.prepare()
    first = bench.read()
    assert bench.settler.admit(first, *lane_of_all(bench, slow, "x"), ahead=False).admitted
    ranks = []
    for number in range(1, 20):
        priority = chance.choice([0, 3, 6, 9])
        slow.apply_async((number, "x"), priority=priority)
        ranks.append((priority, number))
        if chance.random() < 0.5:
            for one in read_all(bench.broker, [QUEUE], ME):
                bench.executor.execute(one)
    for one in read_all(bench.broker, [QUEUE], ME):
        bench.executor.execute(one)
    assert held(bench) == 19

    bench.executor.execute(first)
    run_all(bench)
    while held(bench):
        one_token(bench)

    assert [int(str(one).removeprefix("x")) for one in bench.ran] == [0, *(number for _, number in sorted(ranks))]
    assert (list(held_lanes(bench.broker, QUEUE)), bench.left()) == ([], NOTHING)


def test_lines_of_all_priorities_are_shown_as_one(bench: Bench) -> None:
    slow = limited(bench, rate_limit="1/h", streams_rate_limit_key="customer")
    for priority in (0, 3, 9, 9):
        slow.apply_async((priority, "a\x013"), priority=priority)
    run_all(bench)

    assert [(lane.name, lane.held) for lane in held_lanes(bench.broker, QUEUE)] == [("slow a\\13", 3)]
    assert held_reasons(bench.broker, QUEUE) == {"rate": 3, "concurrency": 0, "mixed": 0}


@pytest.mark.parametrize("way", ["token", "penalty", "absurd penalty"])
def test_tokens_and_penalties_go_by_themselves(bench: Bench, way: str) -> None:
    seconds = {"token": 0.0, "penalty": 7_200.0, "absurd penalty": 1e300}[way]

    @bench.task(rate_limit="1/h", streams_rate_limit_key="number")
    def calls(number: int) -> None:
        bench.ran.append(number)
        if seconds:
            raise RateLimited(seconds)

    calls.delay(1)
    run_all(bench)

    left_ms = int(bench.broker.client.call("PTTL", f"{STREAM}:held:rates"))
    assert bench.ran == [1]
    if way == "absurd penalty":
        assert left_ms > 3_600_000 or left_ms == -1
    else:
        assert left_ms // 1000 in range(int(seconds or 3_600) - 60, int(seconds or 3_600) + 12)
    # Another key's token, an hour later, is not forgotten with this one.
    calls.delay(2)
    run_all(bench)
    assert int(bench.broker.client.call("PTTL", f"{STREAM}:held:rates")) >= left_ms - 60_000


def test_reasons_why_messages_are_held_are_told_apart(bench: Bench) -> None:
    @bench.task(streams_concurrency=1)
    def narrow(number: int) -> None:
        bench.ran.append(number)

    slow = limited(bench, rate_limit="1/h", streams_rate_limit_key="customer")
    for number in range(4):
        slow.delay(number, "a")
        slow.delay(number, "b")
    run_all(bench)
    assert held_reasons(bench.broker, QUEUE) == {"rate": 6, "concurrency": 0, "mixed": 0}
    for number in range(3):
        narrow.delay(number)
    for one in (bench.broker.read(bench.broker.streams([QUEUE]), "me", count=1) for _ in range(3)):
        lane = Lane("narrow", '{"task":"narrow","rate":"narrow","interval":0,"limit":1}', lasting=True)
        admit(bench.broker, "me", one[0].entry, lane)

    assert held_reasons(bench.broker, QUEUE) == {"rate": 6, "concurrency": 2, "mixed": 0}
    assert held_reasons(bench.broker, "nobody's") == {"rate": 0, "concurrency": 0, "mixed": 0}


def test_held_message_costs_nothing_until_its_time_and_is_moved_once(bench: Bench) -> None:
    slow = limited(bench, rate_limit="1/h")
    for number in range(50):
        slow.delay(number)
    run_all(bench)
    before = redis_state(bench.broker.client)

    for _ in range(5):
        run_all(bench)
        found = release(bench.broker, [QUEUE], {})

    assert (found.count, found.next_ms is not None and found.next_ms > 3_500_000) == (0, True)
    assert redis_state(bench.broker.client) == before
    assert before[STREAM].entries == {}


@pytest.mark.parametrize("path", ["late", "early"])
def test_task_without_limits_costs_the_same_beside_limited_ones_that_run_and_are_held(
    make: Callable[..., Bench], path: str
) -> None:
    counted = []
    for beside in (False, True):
        bench = make(streams_acks_late=path == "late")

        @bench.task(ignore_result=True)
        def plain(number: int) -> None: ...

        if beside:
            slow = limited(bench, rate_limit="1/h", streams_concurrency_key="customer", streams_concurrency_per_key=1)
            for number in range(20):
                slow.delay(number, "ab"[number % 2])
            run_all(bench)
            assert held(bench) == 19
        for _ in range(2):  # the first goes Celery's way, and makes a plan
            plain.delay(1)
            bench.run()
        before = commands_processed(bench.broker)
        plain.delay(1)
        published = commands_processed(bench.broker)
        bench.run()
        counted.append((published - before, commands_processed(bench.broker) - published))

    assert counted[0] == counted[1]
    assert counted[0][0] == 2  # with the question itself


def test_each_key_has_a_rate_of_its_own(bench: Bench) -> None:
    slow = limited(bench, rate_limit="1/h", streams_rate_limit_key="customer")
    for number in range(3):
        slow.delay(number, "a")
        slow.delay(number, customer="b")
    slow.delay(7)

    run_all(bench)

    assert bench.ran == ["a0", "b0", 7]
    assert {lane.name: lane.held for lane in held_lanes(bench.broker, QUEUE)} == {"slow a": 2, "slow b": 2}


def test_no_more_than_so_many_run_at_once_and_the_next_follows_when_one_is_settled(bench: Bench) -> None:
    slow = limited(bench, streams_concurrency=2)
    for number in range(5):
        slow.delay(number)
    bench.executor.prepare()
    running = bench.broker.read(bench.broker.streams([QUEUE]), "me", count=5)
    lane = lane_of_all(bench, slow)

    found = [bench.settler.admit(one, *lane, ahead=False) for one in running]

    assert [one is not None and one.admitted for one in found] == [True, True, False, False, False]
    assert held(bench) == 3
    bench.executor.execute(running[0])
    assert held(bench) == 2  # the first is settled, and the third is released in the same step
    run_all(bench)
    bench.executor.execute(running[1])
    run_all(bench)
    assert bench.ran == [0, 2, 3, 4, 1] or bench.ran == [0, 2, 1, 3, 4] or sorted(bench.ran) == [0, 1, 2, 3, 4]
    assert (bench.left(), held(bench)) == (NOTHING, 0)


def lane_of_all(bench: Bench, task: Any, key: str | None = None) -> tuple[Any, ...]:
    limits = limits_in_force(task, streams_of(bench.app))
    return lane_of(task.name, limits, (key, key), node=""), task.name, limits


def test_keys_are_served_in_turn_and_a_full_key_holds_up_no_other(bench: Bench) -> None:
    order: list[str] = []

    @bench.task(streams_concurrency=1, streams_concurrency_key="customer", streams_concurrency_per_key=1)
    def slow(number: int, customer: str) -> None:
        order.append(f"{customer}{number}")

    for number in range(3):
        slow.delay(number, "a")
    for number in range(2):
        slow.delay(number, "b")
    slow.delay(0, "c")
    bench.executor.prepare()
    # Given one that runs while the others are read
    first, *others = bench.broker.read(bench.broker.streams([QUEUE]), "me", count=6)
    from celery_streams.worker.admission import held_back

    assert held_back(decoded(bench, first), bench.executor.around) is None
    for one in others:
        bench.executor.execute(one)
    assert held(bench) == 5

    bench.executor.execute(first)
    run_all(bench)

    assert order == ["a0", "b0", "c0", "a1", "b1", "a2"]
    assert held(bench) == 0


def decoded(bench: Bench, delivery: Any) -> Any:
    from celery_streams.worker.execution import Execution

    execution = Execution(delivery, None, {}, {}, {})
    assert bench.executor._decode(execution) is None
    return execution


@pytest.mark.parametrize(
    "ending", ["ok", "error", "retry", "reject", "requeue", "ignore", "limited", "expired", "revoked"]
)
def test_place_is_given_back_in_every_ending(bench: Bench, ending: str) -> None:
    from celery.exceptions import Ignore, Reject
    from celery.worker import state as worker_state

    @bench.task(bind=True, streams_concurrency=1, max_retries=5)
    def ends(self: Any, how: str) -> None:
        bench.ran.append(how)
        if how == "error":
            raise ValueError(how)
        if how == "retry":
            raise self.retry(countdown=1000)
        if how == "limited":
            raise RateLimited(0.001)
        if how in ("reject", "requeue"):
            raise Reject(how, requeue=how == "requeue")
        if how == "ignore":
            raise Ignore()

    options: dict[str, Any] = {"expires": 0.001} if ending == "expired" else {}
    sent = ends.apply_async((ending,), **options)
    if ending == "revoked":
        worker_state.revoked.add(sent.id)
    bench.run()
    state = redis_state(bench.broker.client)

    assert f"{STREAM}:held:places" not in state
    assert f"{STREAM}:held:running" not in state
    assert bench.ran == ([] if ending in ("expired", "revoked") else [ending])


def test_task_that_was_told_429_waits_with_its_key_and_burns_no_attempt(bench: Bench) -> None:
    @bench.task(rate_limit="10/s", streams_rate_limit_key="customer")
    def calls(number: int, customer: str) -> None:
        bench.ran.append(f"{customer}{number}")
        if bench.ran == ["a0"]:
            raise celery_streams.RateLimited(0.3)

    for number in range(2):
        calls.delay(number, "a")
    calls.delay(0, "b")
    began = time.monotonic()

    run_all(bench)

    assert bench.ran == ["a0", "b0"]
    assert held(bench) == 2
    eventually(lambda: release_all(bench) == 1, interval=0.01)
    assert time.monotonic() - began > 0.28
    history = bench.history()
    assert "crashes" not in history
    run_all(bench)
    eventually(lambda: release_all(bench) == 1 or held(bench) == 0, interval=0.01)
    run_all(bench)
    assert bench.ran == ["a0", "b0", "a0", "a1"]
    assert bench.left() == NOTHING


@pytest.mark.parametrize(
    ("options", "others_go_on"),
    [
        ({"streams_rate_limit_key": "customer"}, True),
        ({"streams_concurrency_key": "customer", "streams_concurrency_per_key": 2}, True),
        ({"rate_limit": "1000/s", "streams_concurrency_key": "customer", "streams_concurrency_per_key": 2}, True),
        ({"streams_concurrency": 5}, False),
        ({"rate_limit": "1000/s"}, False),
    ],
)
def test_task_that_was_told_429_holds_its_key_and_where_it_has_none_the_task(
    bench: Bench, options: dict[str, Any], others_go_on: bool
) -> None:
    @bench.task(**options)
    def calls(number: int, customer: str) -> None:
        bench.ran.append(f"{customer}{number}")
        if bench.ran == ["a0"]:
            raise celery_streams.RateLimited(3_600)

    def run_for_a_while() -> None:
        for _ in range(5):
            run_all(bench)
            let_pass(bench, seconds=1)
            release_all(bench)

    for number in range(2):
        calls.delay(number, "a")
    for number in range(2):
        calls.delay(number, "b")

    run_for_a_while()
    assert bench.ran == ["a0", *(["b0", "b1"] if others_go_on else [])]
    let_pass(bench, seconds=3_600)
    release_all(bench)
    run_for_a_while()
    assert sorted(bench.ran) == ["a0", "a0", "a1", "b0", "b1"]
    assert bench.left() == NOTHING


def test_keys_with_strokes_in_them_are_told_apart(bench: Bench) -> None:
    running: list[str] = []

    @bench.task(
        rate_limit="1000/s",
        streams_rate_limit_key="account",
        streams_concurrency_key="customer",
        streams_concurrency_per_key=1,
    )
    def slow(account: str, customer: str) -> None:
        running.append(customer)

    pairs = [("a | b", "c"), ("a", "b | c"), ("a || b", "c"), ("a |", "| c"), ("a", "| | c")]
    for pair in pairs:
        slow.delay(*pair)
        slow.delay(*pair)
    bench.executor.prepare()
    found = read_all(bench.broker, [QUEUE], ME)
    limits = limits_in_force(slow, streams_of(bench.app))
    for number, one in enumerate(found):
        lane = lane_of("slow", limits, pairs[number // 2], node="")
        bench.settler.admit(one, lane, "slow", limits, ahead=False)

    # Those of one account and customer wait in line, and no others.
    assert len(held_lanes(bench.broker, QUEUE)) == len(pairs)


@pytest.mark.parametrize("way", ["fast", "slow"])
def test_task_that_retries_for_every_exception_burns_no_attempt_either(bench: Bench, way: str) -> None:
    @bench.task(bind=True, autoretry_for=(Exception,), retry_backoff=True, streams_acks_late=True)
    def calls(self: Any) -> None:
        bench.ran.append(self.request.retries)
        if len(bench.ran) < 3:
            raise RateLimited(0.01)

    calls.apply_async(expires=600 if way == "slow" else None)
    while len(bench.ran) < 3:
        run_all(bench)
        release_all(bench)

    assert (bench.ran, bench.left(), held(bench)) == ([0, 0, 0], NOTHING, 0)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), "soon", None])
def test_task_that_is_limited_for_no_number_of_seconds_fails(bench: Bench, seconds: Any) -> None:
    @bench.task()
    def calls() -> None:
        raise RateLimited(seconds)

    calls.delay()
    bench.run()

    assert bench.left() == but(dead=["failed"])


def test_limited_message_without_a_limit_is_held_and_tried_again(bench: Bench) -> None:
    @bench.task()
    def calls() -> None:
        bench.ran.append(1)
        if len(bench.ran) == 1:
            raise RateLimited(0.05)

    calls.delay()
    run_all(bench)
    assert (bench.ran, held(bench)) == ([1], 1)
    eventually(lambda: release_all(bench) == 1)
    run_all(bench)

    assert (bench.ran, bench.left(), held(bench)) == ([1, 1], NOTHING, 0)


def test_limited_task_that_was_acknowledged_early_becomes_a_dead_letter(make: Callable[..., Bench]) -> None:
    bench = make(streams_acks_late=False)

    @bench.task()
    def calls() -> None:
        raise RateLimited(1)

    calls.delay()
    bench.run()

    assert bench.left() == but(dead=["failed"])


def runs_early(bench: Bench, *, fails: bool = False, retries: bool = False) -> tuple[Any, list[Any]]:
    """Return a task of which one may run, and what the first one sees: places given back, and the next one."""
    seen: list[Any] = []

    @bench.task(bind=True, streams_acks_late=False, streams_concurrency=1)
    def one_at_a_time(self: Any, number: int) -> None:
        bench.ran.append(number)
        if number == 0:
            second = bench.read()
            seen.append(reconcile(bench.broker, QUEUE, {}))
            seen.append(bench.settler.admit(second, *lane_of_all(bench, self), ahead=False))
        if fails:
            raise ValueError(number)
        if retries and number == 0:
            raise self.retry(countdown=1000, args=(5,))

    return one_at_a_time, seen


@pytest.mark.parametrize("ending", ["done", "failed", "retried"])
def test_place_of_a_task_that_was_acknowledged_early_is_taken_until_it_ends(bench: Bench, ending: str) -> None:
    task, seen = runs_early(bench, fails=ending == "failed", retries=ending == "retried")
    for number in range(2):
        task.delay(number)

    bench.run()

    assert seen[0] == 0
    assert not seen[1].admitted
    assert held(bench) == 0  # given back, and the next one released, in the end
    run_all(bench)
    assert bench.ran == [0, 1]
    assert not [key for key in redis_state(bench.broker.client) if ":held" in key]


def test_place_of_a_task_that_was_acknowledged_early_is_free_when_its_worker_runs_it_no_more(bench: Bench) -> None:
    @bench.task(streams_acks_late=False, streams_concurrency=1)
    def ends_with_its_process(number: int) -> None:
        raise SystemExit

    ends_with_its_process.delay(1)
    with pytest.raises(SystemExit):
        bench.run()
    asked: list[Any] = []

    def ended(early: Any) -> Any:
        asked.append(dict(early))
        return early if len(asked) > 1 else ()

    assert (reconcile(bench.broker, QUEUE, {}, ended=ended), reconcile(bench.broker, QUEUE, {}, ended=ended)) == (0, 1)
    assert [list(early.values()) for early in asked] == [["me"], ["me"]]
    assert not [key for key in redis_state(bench.broker.client) if ":held" in key]


def keeping(bench: Bench) -> list[Any]:
    """Register the task ``kept``, one at once, and return the requests that its strategy keeps."""
    requests: list[Any] = []

    class Keeps(Task):
        abstract = True

        def Strategy(self, task: Any, app: Any, consumer: Any) -> Any:  # noqa: N802  (Celery's name)
            def keep(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **_: Any) -> None:
                request = Request(message, on_ack=ack, on_reject=reject, app=app, task=task, connection_errors=())
                requests.append((request, consumer.pool))

            return keep

    @bench.task(base=Keeps, bind=True, streams_concurrency=1)
    def kept(self: Any, number: int) -> None:
        bench.ran.append(number)
        if number == 7 and self.request.retries == 0:
            raise self.retry(countdown=1000)

    return requests


@pytest.mark.parametrize("ending", ["acknowledged", "rejected", "put back", "run", "retried"])
def test_place_of_a_message_that_a_strategy_keeps_is_taken_until_that_is_done_with_it(
    bench: Bench, ending: str
) -> None:
    requests = keeping(bench)
    for number in (7 if ending == "retried" else 1, 2):
        bench.app.tasks["kept"].delay(number)
    run_all(bench)
    assert (len(requests), held(bench)) == (1, 1)

    ((request, pool),) = requests
    if ending == "acknowledged":
        request.acknowledge()
    elif ending in ("rejected", "put back"):
        request.reject(requeue=ending == "put back")
    else:
        request.execute_using_pool(pool)
    bench.executor.settle_later()

    assert held(bench) == 0, "the next one is released in the step that settles the first"
    run_all(bench)
    assert len(requests) == 2


#: What somebody does to an entry by hand, and whether it is nobody's then.
BY_HAND: dict[str, tuple[list[tuple[Any, ...]], bool]] = {
    "deleted": ([("XDEL", STREAM, "ID")], True),
    "deleted and acknowledged": ([("XACK", STREAM, keys.GROUP, "ID"), ("XDEL", STREAM, "ID")], True),
    "trimmed": ([("XTRIM", STREAM, "MAXLEN", 0)], True),
    "acknowledged": ([("XACK", STREAM, keys.GROUP, "ID")], True),
    "stream deleted": ([("DEL", STREAM)], True),
    "group made anew at the end": (
        [("XGROUP", "DESTROY", STREAM, keys.GROUP), ("XGROUP", "CREATE", STREAM, keys.GROUP, "$")],
        True,
    ),
    "group made anew": (
        [("XGROUP", "DESTROY", STREAM, keys.GROUP), ("XGROUP", "CREATE", STREAM, keys.GROUP, "0")],
        False,
    ),
    "group destroyed": ([("XGROUP", "DESTROY", STREAM, keys.GROUP)], False),
    "claimed": ([("XCLAIM", STREAM, keys.GROUP, "somebody", 0, "ID")], False),
}


@pytest.mark.parametrize("waiting", [True, False], ids=["one waits", "nobody waits"])
@pytest.mark.parametrize("way", BY_HAND)
def test_place_of_an_entry_that_somebody_took_away_is_given_back_at_the_next_look(
    bench: Bench, way: str, waiting: bool
) -> None:
    slow = limited(bench, streams_concurrency=1)
    slow.delay(1)
    bench.executor.prepare()
    first = bench.read()
    assert bench.settler.admit(first, *lane_of_all(bench, slow), ahead=False).admitted
    if waiting:
        slow.delay(2)
        bench.executor.execute(bench.read())
        assert held(bench) == 1
    assert reconcile(bench.broker, QUEUE, {}) == 0
    commands, gone = BY_HAND[way]

    for command in commands:
        bench.broker.client.call(*(first.entry_id if word == "ID" else word for word in command))

    assert reconcile(bench.broker, QUEUE, {}) == (1 if gone else 0)
    assert reconcile(bench.broker, QUEUE, {}) == 0
    assert held(bench) == (1 if waiting and not gone else 0)
    if way == "claimed":
        recover(bench.broker, QUEUE, "claimer", idle_ms=0, turn_ms=1, pauses_ms=[0] * 5)
    bench.broker.ensure_groups([QUEUE])
    run_all(bench)
    ran = sorted(bench.ran) if way == "claimed" else bench.ran  # what waited has the place of what crashed
    assert (ran, held(bench)) == ([*([] if gone else [1]), *([2] if waiting else [])], 0)
    assert f"{STREAM}:held:places" not in redis_state(bench.broker.client)


def test_place_of_a_task_that_is_limited_no_more_is_given_back_by_workers_that_know_of_no_limit(bench: Bench) -> None:
    slow = limited(bench, streams_concurrency=1)
    slow.delay(1)
    bench.executor.prepare()
    first = bench.read()
    assert bench.settler.admit(first, *lane_of_all(bench, slow), ahead=False).admitted
    slow.streams_concurrency = None
    bench.broker.ack(ME, [first.entry])  # as a worker does that knows of no place
    assert f"{STREAM}:held:places" in redis_state(bench.broker.client)

    streams = streams_of(bench.app)
    HeldMessages(streams, bench.broker, lambda: [QUEUE], turns=dict, on_limits=lambda found: None).run_once()

    assert not [key for key in redis_state(bench.broker.client) if ":held" in key]


@pytest.mark.parametrize("options", [{"streams_concurrency": 1}, {"streams_concurrency": 1, "rate_limit": "1000/s"}])
def test_worker_of_a_version_without_limits_starts_what_it_reads_and_releases_nothing(
    bench: Bench, options: dict[str, Any]
) -> None:
    slow = limited(bench, **options)
    for number in range(4):
        slow.delay(number)
    bench.executor.prepare()
    first, second, third, fourth = read_all(bench.broker, [QUEUE], ME)
    assert bench.settler.admit(first, *lane_of_all(bench, slow), ahead=False).admitted
    for one in (second, third):
        bench.executor.execute(one)
    assert held(bench) == 2

    # The older worker runs one beside the limit, and acknowledges it, and what was given a place before
    for one in (fourth, first):
        bench.broker.ack(ME, [one.entry])
    assert (held(bench), bench.left()) == (2, NOTHING)

    # And a newer one releases what waited for that, in order, one after the other
    assert reconcile(bench.broker, QUEUE, {}) == 1
    let_pass(bench, seconds=60)
    release_all(bench)
    assert held(bench) == 1
    (again,) = read_all(bench.broker, [QUEUE], ME)
    bench.broker.ack(ME, [again.entry])
    assert (held(bench), reconcile(bench.broker, QUEUE, {})) == (1, 1)
    let_pass(bench, seconds=60)
    release_all(bench)
    run_all(bench)
    assert (bench.ran, held(bench), bench.left()) == ([2], 0, NOTHING)


def test_raised_limit_releases_those_that_wait(bench: Bench) -> None:
    slow = limited(bench, rate_limit="1/h")
    for number in range(4):
        slow.delay(number)
    run_all(bench)

    found = release(bench.broker, [QUEUE], {"slow": {"interval": 0}}, everything=True)
    while found.next_ms is not None:
        run_all(bench)
        found = release(bench.broker, [QUEUE], {"slow": {"interval": 0}})
    run_all(bench)

    assert (bench.ran, held(bench)) == ([0, 1, 2, 3], 0)


def test_rate_that_was_raised_is_the_new_one_for_what_waits_for_a_token_of_the_old_one(bench: Bench) -> None:
    slow = limited(bench, rate_limit="1/h")
    for number in range(4):
        slow.delay(number)
    run_all(bench)
    faster = {"slow": {"interval": 50.0}}
    began = time.monotonic()

    assert release(bench.broker, [QUEUE], faster, everything=True).count == 0
    for _ in range(3):
        eventually(lambda: release(bench.broker, [QUEUE], faster).count == 1)
        slow.rate_limit = "20/s"
        run_all(bench)

    assert (bench.ran, held(bench)) == ([0, 1, 2, 3], 0)
    assert time.monotonic() - began > 0.1


def test_scripts_that_are_flushed_and_redis_that_forgets_nothing_change_nothing(bench: Bench) -> None:
    slow = limited(bench, streams_concurrency=1)
    slow.delay(1)
    slow.delay(2)
    bench.executor.prepare()
    first, second = bench.broker.read(bench.broker.streams([QUEUE]), "me", count=2)
    assert bench.settler.admit(first, *lane_of_all(bench, slow), ahead=False)
    bench.executor.execute(second)

    bench.broker.client.call("SCRIPT", "FLUSH")
    bench.executor.execute(first)
    run_all(bench)

    assert (bench.ran, bench.left()) == ([1, 2], NOTHING)


def test_nothing_is_left_behind_when_all_have_run(bench: Bench) -> None:
    slow = limited(bench, streams_concurrency=1, streams_concurrency_key="customer", streams_concurrency_per_key=1)
    for number in range(6):
        slow.delay(number, "ab"[number % 2])

    run_all(bench)

    assert len(bench.ran) == 6
    left = {key for key in redis_state(bench.broker.client) if ":held" in key}
    assert left == set()


def test_purge_and_letting_go_take_held_messages_along(bench: Bench) -> None:
    slow = limited(bench, rate_limit="1/h")
    for number in range(4):
        slow.delay(number)
    run_all(bench)
    assert held(bench) == 3

    assert let_go(bench.broker, QUEUE) == 3
    assert streams_inspect.queue_status(bench.broker, QUEUE).waiting == 3
    run_all(bench)
    assert streams_inspect.purge(bench.broker, QUEUE) == 3

    assert held(bench) == 0


def test_migration_to_lists_takes_held_messages_along_in_order_and_says_what_ends_there(bench: Bench) -> None:
    slow = limited(bench, rate_limit="1/h", streams_unique=True)
    sent = [slow.delay(number).id for number in range(4)]
    run_all(bench)
    context = CLIContext(app=bench.app, no_color=True, workdir=None)

    before = redis_state(bench.broker.client)

    planned = CliRunner().invoke(migrate, [QUEUE, "--to", "lists", "--dry-run"], obj=context).output
    unchanged = redis_state(bench.broker.client) == before
    said = CliRunner().invoke(migrate, [QUEUE, "--to", "lists"], obj=context).output

    assert unchanged
    assert f"{QUEUE}: 3 of them are held back by limits, which end on lists: Celery's rate_limit counts" in planned
    assert f"{QUEUE}: 3 locks of unique tasks would end" in planned
    on_list = [json.loads(one) for one in reversed(bench.broker.client.call("LRANGE", QUEUE, 0, -1))]
    assert [one["headers"]["id"] for one in on_list] == sent[1:]
    assert (bench.left(), held(bench)) == (NOTHING, 0)
    assert f"{QUEUE}: 3 of them were held back by limits, which end here" in said
    assert f"{QUEUE}: 3 locks of unique tasks ended" in said


def test_rate_limits_can_be_switched_off(make: Callable[..., Bench]) -> None:
    bench = make(worker_disable_rate_limits=True)
    slow = limited(bench, rate_limit="1/h")
    slow.delay(1)
    slow.delay(2)

    run_all(bench)

    assert bench.ran == [1, 2]


def test_what_was_set_at_run_time_wins_over_the_task_and_the_task_over_the_setting(make: Callable[..., Bench]) -> None:
    from celery_streams.worker.task_options import limits_in_force

    bench = make(streams_limits={"slow": {"rate": "5/s", "concurrency": 7}})
    slow = limited(bench, rate_limit="1/s")
    streams = streams_of(bench.app)

    assert (limits_in_force(slow, streams).rate, limits_in_force(slow, streams).concurrency) == (1.0, 7)
    streams.limits_in_redis = {"slow": {"concurrency": 3}}
    assert limits_in_force(slow, streams).concurrency == 3


async def later(task: Any, args: Any, kwargs: Any) -> str:
    return "a key"


class Later:
    async def __call__(self, task: Any, args: Any, kwargs: Any) -> str:
        return "a key"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"streams_concurrency": 0}, "concurrency must be a whole number from 1 to 1,000,000,000, got 0"),
        ({"streams_concurrency": -1}, "from 1 to"),
        ({"streams_concurrency": "many"}, "from 1 to"),
        ({"streams_concurrency": 1.5}, "from 1 to"),
        ({"streams_concurrency": 10**10}, "from 1 to 1,000,000,000, got 10000000000"),
        ({"streams_concurrency": 10**5000}, "from 1 to 1,000,000,000"),
        ({"streams_concurrency": True}, "from 1 to 1,000,000,000, got True"),
        ({"streams_rate_limit_key": later}, "must not be an async function"),
        ({"streams_concurrency_key": Later(), "streams_concurrency_per_key": 1}, "must not be an async function"),
        ({"rate_limit": 1e-320}, "finite and not negative"),
        ({"rate_limit": float("nan")}, "finite and not negative"),
        ({"rate_limit": -1}, "not negative"),
        ({"rate_limit": 10**400}, "a rate must be a number"),
        ({"rate_limit": 10**5000}, "a rate must be a number"),
        ({"rate_limit": "1" * 5000}, "finite and not negative"),
        ({"rate_limit": "1e400/s"}, "finite and not negative"),
        ({"rate_limit": "-1/s"}, "not negative"),
        ({"rate_limit": "10/d"}, "a rate must be a number"),
        ({"rate_limit": b"10/s"}, "a rate must be a number"),
        ({"rate_limit": [1]}, "a rate must be a number"),
        ({"rate_limit": "often"}, "a rate must be a number"),
        ({"streams_concurrency_per_key": 1}, "without a concurrency_key"),
        ({"streams_concurrency": 2, "streams_concurrency_key": "customer"}, "without concurrency_per_key"),
        ({"streams_rate_limit_key": "custmer"}, "has no argument 'custmer' to limit by; did you mean 'customer'?"),
        ({"streams_rate_limit_key": 3}, "an argument's name, or a callable"),
    ],
)
def test_limit_that_means_nothing_is_said_in_one_line(bench: Bench, options: dict[str, Any], said: str) -> None:
    slow = limited(bench, **options)

    with pytest.raises(ConfigurationError) as raised:
        bench.executor.prepare()

    assert said in str(raised.value)
    assert slow.name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_limits_of_tasks_that_the_project_does_not_have_are_said(make: Callable[..., Bench]) -> None:
    bench = make(streams_limits={"slo": {"rate": "1/s"}, "slow": {"rate": "2/s"}})
    limited(bench)

    said = without_task(streams_of(bench.app).conf.limits, bench.app.tasks)

    assert said == ["streams_limits names 'slo', and the project has no such task; did you mean 'slow'?"]
    context = CLIContext(app=bench.app, no_color=True, workdir=None)
    assert said[0] in CliRunner().invoke(limits, obj=context).output


def broken(task: Any, args: Any, kwargs: Any) -> str:
    raise KeyError("no such thing")


def huge(task: Any, args: Any, kwargs: Any) -> str:
    return "k" * 1_000_000


class NoText:
    def __str__(self) -> str:
        raise ZeroDivisionError


async def awaited() -> None: ...


#: What tells no key, or another one each time.
NO_KEYS = [
    broken,
    huge,
    lambda: "a key",
    lambda task: "a key",
    lambda task, args, kwargs: None,
    lambda task, args, kwargs: kwargs.get("customer"),
    lambda task, args, kwargs: NoText(),
    lambda task, args, kwargs: object(),
    lambda task, args, kwargs: awaited(),
    lambda task, args, kwargs: broken,
    lambda task, args, kwargs: (one for one in args),
]


@pytest.mark.parametrize("purpose", ["streams_rate_limit_key", "streams_unique_key"])
@pytest.mark.parametrize("key", NO_KEYS)
def test_publish_whose_key_cannot_be_told_fails_and_stores_nothing(bench: Bench, key: Any, purpose: str) -> None:
    slow = limited(bench, rate_limit="1/s", **{purpose: key}, streams_unique="unique" in purpose or None)
    before = redis_state(bench.broker.client)

    with pytest.raises(LimitKeyError) as raised:
        slow.delay(1)

    assert len(str(raised.value)) < 300
    assert redis_state(bench.broker.client) == before


@pytest.mark.parametrize("purpose", ["streams_rate_limit_key", "streams_concurrency_key"])
def test_argument_that_holds_none_is_a_key(bench: Bench, purpose: str) -> None:
    options = {"streams_concurrency_per_key": 1} if "concurrency" in purpose else {}
    slow = limited(bench, rate_limit="1/h", **{purpose: "customer"}, **options)
    for number, customer in enumerate((None, "x", None, "x")):
        slow.delay(number, customer)
    run_all(bench)

    assert {lane.name.rpartition(" ")[2] for lane in held_lanes(bench.broker, QUEUE)} == {"None", "x"}


def test_message_whose_key_is_none_where_it_is_told_by_a_worker_becomes_a_dead_letter(bench: Bench) -> None:
    limited(bench, rate_limit="1/h", streams_rate_limit_key=lambda task, args, kwargs: kwargs.get("customer"))
    bench.publish_task("slow", [[1], {}, {}])  # by a publisher that does not know the task

    run_all(bench)

    assert (bench.ran, held(bench)) == ([], 0)
    (death,) = bench.deaths()
    assert "returned None" in json.dumps(death)


class Keys:
    def of(self, task: Any, args: Any, kwargs: Any) -> str:
        return f"{task.name} {args[0] % 2}"

    @classmethod
    def of_class(cls, task: Any, args: Any, kwargs: Any) -> str:
        return f"{task.name} {args[0] % 2}"

    @staticmethod
    def static(task: Any, args: Any, kwargs: Any) -> str:
        return f"{task.name} {args[0] % 2}"

    __call__ = of


class Own(Task):
    """A task that is a class, whose own method tells its key."""

    rate_limit = "1/h"

    def streams_rate_limit_key(self, args: Any, kwargs: Any) -> str:
        return f"{self.name} {args[0] % 2}"

    def run(self, number: int) -> None: ...


@pytest.mark.parametrize("key", [Keys().of, Keys.of_class, Keys.static, Keys(), functools.partial(Keys().of), Own])
def test_whatever_can_be_called_with_three_tells_a_key(bench: Bench, key: Any) -> None:
    if key is Own:
        task = bench.app.register_task(type("Mine", (Own,), {"name": "slow"})())
    else:
        task = limited(bench, rate_limit="1/h", streams_rate_limit_key=key)
    for number in range(4):
        task.delay(number)

    run_all(bench)

    assert {lane.name: lane.held for lane in held_lanes(bench.broker, QUEUE)} == {"slow slow 0": 1, "slow slow 1": 1}


@pytest.mark.parametrize(
    ("key", "calls"),
    [
        ("by_default", [((1,), {}), ((1, "x"), {}), ((2,), {"by_default": "x"})]),
        ("only_by_name", [((1,), {"only_by_name": "x"}), ((1,), {}), ((2, 3), {})]),
        ("others", [((1, "x", 2, 3), {}), ((5, "y", 2, 3), {})]),
        ("more", [((1,), {"z": 4}), ((2,), {"z": 4})]),
        ("number", [(([1, {"x": 2}],), {}), (([1, {"x": 2}], 5), {})]),
    ],
)
def test_each_kind_of_argument_may_be_a_key(bench: Bench, key: str, calls: Any) -> None:
    @bench.task(rate_limit="1/h", streams_rate_limit_key=key)
    def slow(number: Any, by_default: Any = "x", *others: Any, only_by_name: Any = "x", **more: Any) -> None:
        bench.ran.append(number)

    for args, kwargs in calls:
        slow.apply_async(args, kwargs)

    run_all(bench)

    (lane,) = held_lanes(bench.broker, QUEUE)
    assert (len(bench.ran), lane.held) == (1, len(calls) - 1)


def test_message_of_a_publisher_that_does_not_know_the_task_is_limited_all_the_same(bench: Bench) -> None:
    limited(bench, rate_limit="1/h", streams_rate_limit_key=lambda task, args, kwargs: args[1])
    for number, customer in ((0, "a"), (1, "a"), (0, "b")):
        bench.publish_task("slow", [[number, customer], {}, {}])
    bench.publish_task("slow", [[0], {}, {}])

    run_all(bench)

    assert bench.ran == ["a0", "b0"]
    assert bench.left() == but(dead=["invalid"])
    assert json.loads(redis_state(bench.broker.client)[f"{STREAM}:held:lanes"]["slow a"])["task"] == "slow"


def test_message_whose_arguments_do_not_fit_fails_as_it_does_without_limits(bench: Bench) -> None:
    slow = limited(bench, rate_limit="1/h", streams_rate_limit_key="customer")
    sent = [bench.publish_task(slow.name, [args, {}, {}]) for args in ([], [1, "a", "b"])]

    run_all(bench)

    assert bench.ran == []
    assert bench.left() == but(dead=["failed", "failed"])
    for task_id in sent:
        assert isinstance(bench.app.AsyncResult(task_id).result, TypeError)


def test_each_publish_says_the_keys_of_its_own_arguments(bench: Bench) -> None:
    slow = limited(bench, rate_limit="1/h", streams_rate_limit_key="customer")
    for customer in ("a", "b", "c", "a"):
        slow.delay(0, customer)

    run_all(bench)

    assert bench.ran == ["a0", "b0", "c0"]
    assert [lane.name for lane in held_lanes(bench.broker, QUEUE)] == ["slow a"]


#: What a field of the lanes may hold that no lane is.
ODD_LANES = [
    b"",
    b"{",
    b"[" * 2_000,
    b"7",
    b"[]",
    b"{}",
    b'{"task":"slow","rate":"slow","interval":0,"number":1,"first":1}',
    b'{"task":"slow","rate":"slow","interval":0,"number":1,"first":1,"last":1e999}',
    b'{"task":"slow","rate":"slow","interval":0,"number":1,"first":NaN,"last":1}',
    b'{"task":"slow","rate":[],"interval":0,"number":1,"first":1,"last":1}',
    b'{"task":{},"rate":"slow","interval":0,"number":1,"first":1,"last":1}',
    b'{"task":"slow","rate":"slow","interval":0,"number":1,"first":1,"last":1,"limit":null}',
    b'{"task":"slow","rate":"slow","interval":0,"number":1,"first":1,"last":1,"key_limit":1}',
]


def test_odd_lanes_and_places_hold_up_no_other(bench: Bench) -> None:
    slow = limited(bench, streams_concurrency=1)
    for number in range(5):
        slow.delay(number)
    bench.executor.prepare()
    running = bench.broker.read(bench.broker.streams([QUEUE]), "me", count=5)
    lane = lane_of_all(bench, slow)
    for one in running:
        bench.settler.admit(one, *lane, ahead=False)
    assert held(bench) == 4

    _, lanes, ready, ring, _, places, _, _ = bench.broker.queue_keys(QUEUE).shelf
    for number, said in enumerate(ODD_LANES):
        name = b"odd-%d" % number
        bench.broker.client.call("HSET", lanes, name, said)
        bench.broker.client.call("HSET", places, b"0:1-%d" % number, said, b"odd-%d" % number, said)
        bench.broker.client.call("ZADD", ready, 0, name)
        bench.broker.client.call("ZADD", ring, 0, b"Tslow\0" + b"0" * 16 + b"\0" + name)
    limits = {"slow": {"interval": 0, "limit": 1}}
    assert release(bench.broker, [QUEUE], limits, everything=True).count == 0
    assert reconcile(bench.broker, QUEUE, limits) == 0
    bench.executor.execute(running[0])
    run_all(bench)

    assert bench.ran == [0, 1, 2, 3, 4]
    assert held(bench) == 0
    assert let_go(bench.broker, QUEUE) == 0

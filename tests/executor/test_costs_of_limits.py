"""What limits cost Redis, those commands counted that scripts carry out: a look, a release, a start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.lanes import release
from celery_streams.worker.outcome import Action, Outcome
from tests.executor.test_limits import held, lane_of_all, limited, run_all
from tests.support.bench import NOTHING, QUEUE, STREAM, Bench
from tests.support.redis_state import redis_state

RATES: dict[str, dict[str, Any]] = {
    "rate": {"rate_limit": "1/h"},
    "rate of a key": {"rate_limit": "1/h", "streams_rate_limit_key": "customer"},
    "rate and number of a key": {
        "rate_limit": "1/h",
        "streams_concurrency_key": "customer",
        "streams_concurrency_per_key": 1,
    },
}

rates = pytest.mark.parametrize("options", RATES.values(), ids=list(RATES))


def calls(broker: StreamBroker) -> Counter[str]:
    """Return what Redis has carried out so far, inside scripts too, but for this question, and scripts that are new."""
    lines = broker.client.call("INFO", "commandstats").decode().splitlines()
    parts = (line.removeprefix("cmdstat_").partition(":calls=") for line in lines if ":calls=" in line)
    return Counter({name: int(rest.partition(",")[0]) for name, _, rest in parts if name not in ("info", "eval")})


def count(broker: StreamBroker, act: Callable[[], Any]) -> int:
    before = calls(broker)
    act()
    return (calls(broker) - before).total()


def in_line(make: Callable[..., Bench], options: dict[str, Any], *, customers: str = "x", each: int = 6) -> Bench:
    """Have one message run, and all others be held."""
    bench = make(streams_rate_limit_scope="global")
    slow = limited(bench, ignore_result=True, **options)
    for number in range(each):
        for customer in customers:
            slow.delay(number, customer)
    run_all(bench)
    return bench


def its_time_comes(bench: Bench) -> None:
    names = bench.broker.queue_keys(QUEUE)
    bench.broker.client.call("DEL", names.shelf[4])
    for name in bench.broker.client.call("ZRANGEBYSCORE", names.shelf[2], "-inf", "(9e15"):
        bench.broker.client.call("ZADD", names.shelf[2], 1, name)


@rates
@pytest.mark.parametrize("customers", ["x", "xyz"])
def test_look_at_what_is_held_only_asks_when_the_next_is_due(
    make: Callable[..., Bench], options: dict[str, Any], customers: str
) -> None:
    bench = in_line(make, options, customers=customers)
    before = redis_state(bench.broker.client)

    assert count(bench.broker, lambda: release(bench.broker, [QUEUE], {})) <= 5

    assert redis_state(bench.broker.client) == before


@rates
def test_release_wakes_no_other_worker_and_whoever_releases_is_told_when_to_look_again(
    make: Callable[..., Bench], options: dict[str, Any]
) -> None:
    bench = in_line(make, options)
    wake = redis_state(bench.broker.client)[f"{STREAM}:wake"]
    its_time_comes(bench)

    found = release(bench.broker, [QUEUE], {"slow": {"interval": 3_600_000.0}})

    assert (found.count, found.next_ms is not None and found.next_ms > 3_500_000) == (1, True)
    assert redis_state(bench.broker.client)[f"{STREAM}:wake"] == wake


def rests(bench: Bench, slow: Any, options: dict[str, Any]) -> Callable[[], Any]:
    """Have one message run and six wait in line; returns what has the first of those be released."""
    bench.executor.prepare()
    slow.delay(0, "x")
    first = bench.read()
    key = "x" if "streams_concurrency_key" in options else None
    assert bench.settler.admit(first, *lane_of_all(bench, slow, key), ahead=False).placed
    for number in range(6):
        slow.delay(number, "x")
    run_all(bench)
    assert held(bench) == 6
    return lambda: (bench.settler.settle(first, Outcome(Action.ACK)), bench.settler.flush())


NUMBERS: dict[str, dict[str, Any]] = {
    "number": {"streams_concurrency": 1},
    "number of a key": {"streams_concurrency_key": "customer", "streams_concurrency_per_key": 1},
    "both numbers": {"streams_concurrency": 2, "streams_concurrency_key": "customer", "streams_concurrency_per_key": 1},
}


@pytest.mark.parametrize("options", NUMBERS.values(), ids=list(NUMBERS))
def test_message_that_ends_releases_the_next_one_for_a_few_commands(bench: Bench, options: dict[str, Any]) -> None:
    slow = limited(bench, ignore_result=True, **options)

    assert count(bench.broker, rests(bench, slow, options)) <= 37  # four of them acknowledge it

    assert (held(bench), len(bench.left())) == (5, len(NOTHING))


@rates
def test_message_whose_time_has_come_is_released_for_a_few_commands(
    make: Callable[..., Bench], options: dict[str, Any]
) -> None:
    bench = in_line(make, options, each=4)
    its_time_comes(bench)

    assert count(bench.broker, lambda: release(bench.broker, [QUEUE], {})) <= (41 if len(options) > 2 else 30)

    assert held(bench) == 2


@rates
def test_message_that_was_released_starts_and_ends_for_a_few_commands(
    make: Callable[..., Bench], options: dict[str, Any]
) -> None:
    bench = in_line(make, options, each=4)
    if "streams_concurrency_key" in options:
        # While others wait, the place that it gives back is theirs; here nobody does.
        its_time_comes(bench)
        release(bench.broker, [QUEUE], {})
        run_all(bench)
        its_time_comes(bench)
        release(bench.broker, [QUEUE], {})
        run_all(bench)
    its_time_comes(bench)
    assert release(bench.broker, [QUEUE], {}).count == 1
    bench.executor.prepare()
    found = bench.read()

    def run() -> None:
        bench.executor.execute(found)
        bench.settler.flush()

    assert count(bench.broker, run) <= 16  # four of them acknowledge it

    assert bench.left() == NOTHING
    assert held(bench) == (0 if "streams_concurrency_key" in options else 2)


def test_place_that_nobody_waits_for_is_given_back_for_a_handful_of_commands(bench: Bench) -> None:
    slow = limited(bench, ignore_result=True, streams_concurrency=2)
    for number in range(2):
        slow.delay(number)
        run_all(bench)  # the first goes Celery's way, and makes a plan
    slow.delay(2)
    found = bench.read()
    assert bench.settler.admit(found, *lane_of_all(bench, slow), ahead=False).placed

    def end() -> None:
        bench.settler.settle(found, Outcome(Action.ACK))
        bench.settler.flush()

    assert count(bench.broker, end) <= 14  # four of them acknowledge it
    assert [key for key in redis_state(bench.broker.client) if ":held" in key] == []

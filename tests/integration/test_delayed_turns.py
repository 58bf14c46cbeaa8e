"""Workers take turns at watching delayed messages: two commands each, however many workers; on time whoever dies."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.turns import take_turns
from celery_streams.worker.delayed import Promoter
from tests.support.eventually import eventually
from tests.support.redis_state import message, redis_now_ms

STREAM = "celery-streams:{q}"

Fleet = Callable[..., list[Promoter]]


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    """Make promoters of so many workers that read these queues."""
    made: list[Promoter] = []

    def make(count: int, *queues: str) -> list[Promoter]:
        new = [Promoter(StreamBroker(RedisClient(redis_url)), lambda: list(queues or ("q",))) for _ in range(count)]
        made.extend(new)
        return new

    yield make
    for one in made:
        one.stop()


def holders(broker: StreamBroker, queue: str = "q") -> list[str]:
    return [place[0] for place in json.loads(broker.client.call("GET", broker.queue_keys(queue).turns) or "[]")]


def commands(broker: StreamBroker) -> dict[str, int]:
    lines = broker.client.call("INFO", "commandstats").decode().splitlines()
    counts = {
        line.partition(":")[0]: int(line.partition("calls=")[2].partition(",")[0]) for line in lines if ":" in line
    }
    return {name: counts.get(f"cmdstat_{name}", 0) for name in ("evalsha", "eval", "xread")}


def listening(broker: StreamBroker) -> int:
    return int(broker.client.call("CLIENT", "LIST").count(b"cmd=xread "))


def lateness_ms(broker: StreamBroker, due: int) -> int:
    eventually(lambda: broker.client.call("XLEN", STREAM) == 1, interval=0.005)
    return redis_now_ms(broker.client) - due


@pytest.mark.parametrize("workers", [1, 10, 40])
def test_delayed_message_costs_as_many_commands_with_forty_workers_as_with_two(
    broker: StreamBroker, fleet: Fleet, workers: int
) -> None:
    promoters = fleet(workers)
    for one in promoters:
        one.run_once()
    watching = min(workers, 2)
    for one in promoters:
        if not one.turns():
            one._next_look = math.inf  # what the others do at their looks is no matter of the messages
        one.start()
    eventually(lambda: listening(broker) == watching)
    rounds = 5
    looks = sum(one.looks for one in promoters)
    before = commands(broker)

    for number in range(rounds):
        broker.delay("q", message(number), due_ms=redis_now_ms(broker.client) + 50, member=str(number))
        eventually(lambda: broker.client.call("XLEN", STREAM) == number + 1, interval=0.005)  # noqa: B023
        # The deputy has looked as well: nothing of this message is left to do.
        eventually(lambda: all(one.expected() is None for one in promoters))

    spent = {name: count - before[name] for name, count in commands(broker).items()}
    looks = sum(one.looks for one in promoters) - looks
    assert sum(one.moved for one in promoters) == rounds
    # One script stores the message, one moves it, the deputy's finds it moved; each of the two then listens again.
    assert spent["evalsha"] + spent["eval"] - looks <= 3 * rounds + 4
    assert spent["xread"] <= 2 * rounds + 4


def test_no_more_than_two_workers_listen_and_each_queue_has_its_own_two(broker: StreamBroker, fleet: Fleet) -> None:
    first, second, third = fleet(1, "a", "b")[0], fleet(1, "b")[0], fleet(1, "b", "c")[0]
    for one in (first, second, third):
        one.run_once()

    assert [len(holders(broker, queue)) for queue in "abc"] == [1, 2, 1]
    for one in (first, second, third):
        one.start()
    for queue in "abc":
        broker.delay(queue, message(1), due_ms=redis_now_ms(broker.client) + 100, member=queue)
    eventually(lambda: [broker.client.call("XLEN", f"celery-streams:{{{queue}}}") for queue in "abc"] == [1, 1, 1])


def test_message_is_on_time_when_the_worker_whose_turn_it_is_stands_still(broker: StreamBroker, fleet: Fleet) -> None:
    frozen, *others = fleet(4)
    frozen.run_once()  # it has the lead, and never does anything again
    for one in others:
        one.run_once()
        one.start()
    eventually(lambda: listening(broker) == 1)

    due = redis_now_ms(broker.client) + 100
    broker.delay("q", message(1), due_ms=due, member="m")

    assert -1 <= lateness_ms(broker, due) < 700


def test_worker_that_rests_takes_the_lead_when_leader_and_deputy_stand_still(
    broker: StreamBroker, fleet: Fleet
) -> None:
    leader, deputy, *others = fleet(4)
    for one in (leader, deputy):
        one.run_once()
    frozen = holders(broker)
    for one in others:
        one.run_once()
        one.start()

    due = redis_now_ms(broker.client) + 100
    broker.delay("q", message(1), due_ms=due, member="m")

    assert lateness_ms(broker, due) < 4_000
    assert holders(broker) != frozen
    eventually(lambda: not set(frozen) & set(holders(broker)), timeout=15)


def test_worker_that_stops_leaves_its_turn_to_the_deputy(broker: StreamBroker, fleet: Fleet) -> None:
    leader, deputy = fleet(2)
    for one in (leader, deputy):
        one.run_once()
        one.start()
    before = holders(broker)

    leader.stop()

    eventually(lambda: holders(broker) == before[1:])


@pytest.mark.parametrize("odd", ["{", "7", '[7, {"a": 1}]', '[["w", 1e999, 5]]', '[["w", 9999999999999, 5000]]'])
def test_turns_that_make_no_sense_or_lie_ahead_are_free(broker: StreamBroker, fleet: Fleet, odd: str) -> None:
    broker.client.call("SET", broker.queue_keys("q").turns, odd)
    (one,) = fleet(1)
    broker.delay("q", message(1), due_ms=1, member="m")

    one.run_once()

    assert one.moved == 1
    assert len(holders(broker)) == 1


@pytest.mark.parametrize("key", ["turns", "wake"])
def test_key_of_another_type_holds_up_no_delayed_message(broker: StreamBroker, fleet: Fleet, key: str) -> None:
    broker.client.call("LPUSH", f"{STREAM}:{key}", "of another type")
    for one in fleet(2, "q", "r"):
        one.start()
    eventually(lambda: listening(broker) == 2)

    for queue in "qr":
        broker.delay(queue, message(1), due_ms=redis_now_ms(broker.client) + 100, member=queue)

    eventually(lambda: broker.client.call("XLEN", "celery-streams:{r}") == 1, timeout=1.5)
    eventually(lambda: broker.client.call("XLEN", STREAM) == 1)


def test_idle_queues_cost_the_same_whatever_their_number(broker: StreamBroker, client: RedisClient) -> None:
    def commands(queues: list[str]) -> int:
        take_turns(broker, queues, "w", length_ms=60_000, overdue_ms=500)
        client.call("CONFIG", "RESETSTAT")
        take_turns(broker, queues, "w", length_ms=60_000, overdue_ms=500)
        stats = client.call("INFO", "commandstats").decode()
        calls = dict(re.findall(r"cmdstat_(\S+):calls=(\d+)", stats))
        return sum(int(number) for name, number in calls.items() if not name.startswith(("config", "info")))

    one, many = commands(["q"]), commands([f"q{number}" for number in range(100)])

    assert one == many
    assert many <= 5


def test_looks_are_rarer_while_nothing_is_delayed_and_not_when_something_is(broker: StreamBroker) -> None:
    promoter = Promoter(broker, lambda: ["q"], worker="w")
    promoter._began -= 60  # it has run for a while
    promoter.run_once()
    promoter._next_look = 0.0
    promoter.run_once()

    assert promoter._next_look - time.monotonic() > 5
    broker.delay("q", message(1), due_ms=broker.clock_ms() + 60_000, member="1")
    promoter.wait(None)
    promoter.wait(1)

    assert promoter._next_look - time.monotonic() < 3
    assert promoter.expected() is not None

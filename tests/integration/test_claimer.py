"""The claimer's sense of time: when it looks, and when it waits for living owners to speak first."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerError
from celery_streams.pages import STEP_BYTES
from celery_streams.worker.claimer import Claimer
from tests.support.redis_state import commands_processed, delivered, make_idle, message

VISIBILITY_TIMEOUT = 2.0


def _claimer(broker: StreamBroker, queues: Sequence[str] = ("q",)) -> Claimer:
    return Claimer(
        broker,
        "w@host/0.00000000",
        lambda: queues,
        visibility_timeout=VISIBILITY_TIMEOUT,
        delivery_limit=5,
        on_exhausted=lambda delivery, holder: None,
    )


def _held_by_the_dead(broker: StreamBroker) -> None:
    [found] = delivered(broker, "q", "dead@host/1.00000000", message())
    make_idle(broker, found.stream, "dead@host/1.00000000", found.entry_id, idle_ms=60_000)


@pytest.mark.parametrize("late", [0.0, 0.1, 0.3])
def test_a_claimer_that_is_always_a_little_late_claims_all_the_same(broker: StreamBroker, late: float) -> None:
    _held_by_the_dead(broker)
    claimer = _claimer(broker)

    moved = [claimer.run_once(now=number * (claimer.interval + late)) for number in range(6)]

    assert sum(moved) == 1


def test_a_claimer_waits_for_a_heartbeat_round_after_it_stood_still(broker: StreamBroker) -> None:
    claimer = _claimer(broker)
    for number in range(6):
        claimer.run_once(now=number * claimer.interval)
    _held_by_the_dead(broker)
    after = 6 * claimer.interval + VISIBILITY_TIMEOUT

    assert claimer.run_once(now=after) == 0
    assert claimer.run_once(now=after + VISIBILITY_TIMEOUT / 5) == 0
    assert claimer.run_once(now=after + VISIBILITY_TIMEOUT / 2) == 1


def test_a_claimer_waits_for_a_heartbeat_round_after_redis_was_away_however_shortly() -> None:
    with EmbeddedRedis(appendonly=True, args=("--appendfsync", "always")) as server:
        client = RedisClient(server.url)
        broker = StreamBroker(client)
        claimer = _claimer(broker)
        for number in range(6):
            claimer.run_once(now=number * claimer.interval)
        _held_by_the_dead(broker)
        server.kill()
        with pytest.raises(BrokerError):
            claimer.run_once(now=6 * claimer.interval)
        server.start()

        moved = [claimer.run_once(now=number * claimer.interval) for number in range(7, 11)]

        client.close()
        assert (moved[0], sum(moved)) == (0, 1)


@pytest.mark.parametrize("queues", [1, 50])
def test_where_nothing_lies_looks_cost_nothing_however_many_queues_there_are(broker: StreamBroker, queues: int) -> None:
    names = [f"q{number}" for number in range(queues)]
    broker.ensure_groups(names)
    claimer = _claimer(broker, names)
    for number in range(10):
        claimer.run_once(now=number * claimer.interval)
    before = commands_processed(broker)

    for number in range(10, 20):
        claimer.run_once(now=number * claimer.interval)

    assert commands_processed(broker) - before == 1  # the INFO before


@pytest.mark.parametrize("quiet", [2, 10])
def test_what_a_worker_that_died_had_read_after_a_quiet_time_is_put_back_in_time(
    broker: StreamBroker, quiet: int
) -> None:
    broker.ensure_groups(["q"])
    claimer = _claimer(broker)
    looks = int(quiet * VISIBILITY_TIMEOUT / claimer.interval)
    for number in range(looks):
        claimer.run_once(now=number * claimer.interval)

    _held_by_the_dead(broker)
    moved = [claimer.run_once(now=(looks + number) * claimer.interval) for number in range(6)]

    # An entry is silent for most of a visibility timeout before it may be claimed: nobody waits any longer.
    assert sum(moved[: int(0.5 * VISIBILITY_TIMEOUT / claimer.interval) + 1]) == 1


def test_queue_that_is_read_from_now_on_is_looked_at(broker: StreamBroker) -> None:
    queues = ["a"]
    broker.ensure_groups(["a", "q"])
    claimer = _claimer(broker, queues)
    for number in range(10):
        claimer.run_once(now=number * claimer.interval)
    _held_by_the_dead(broker)

    queues.append("q")
    moved = [claimer.run_once(now=number * claimer.interval) for number in range(10, 13)]

    assert sum(moved) == 1


@pytest.mark.parametrize("obstacle", ["not permitted", "a key of another type"])
def test_streams_that_cannot_be_listened_to_cost_looks_and_nothing_else(broker: StreamBroker, obstacle: str) -> None:
    client = RedisClient(broker.client.url)
    broker.ensure_groups(["q", "r"])
    if obstacle == "not permitted":
        broker.client.call("ACL", "SETUSER", "default", "-xread")
    else:
        broker.client.call("SET", broker.queue_keys("r").fronts[3], "of another type")
    try:
        claimer = _claimer(StreamBroker(client), ["q", "r"])
        for number in range(10):
            with contextlib.suppress(BrokerError):  # what else is refused there is said aloud
                claimer.run_once(now=number * claimer.interval)
        _held_by_the_dead(broker)

        moved = claimer.run_once(now=10 * claimer.interval)
    finally:
        broker.client.call("ACL", "SETUSER", "default", "+@all")
        client.close()

    assert moved == 1


def test_connection_that_was_lost_while_all_was_quiet_is_no_proof_of_quiet(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    claimer = _claimer(broker)
    for number in range(10):
        claimer.run_once(now=number * claimer.interval)
    broker.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    _held_by_the_dead(broker)

    moved = 0
    for number in range(10, 20):
        with contextlib.suppress(BrokerError):
            moved += claimer.run_once(now=number * claimer.interval)

    assert moved == 1


def test_what_one_look_puts_back_is_bounded_over_all_queues_together(broker: StreamBroker) -> None:
    names = [f"q{number}" for number in range(30)]
    body = b"[[%s],{},{}]" % (b"1" * 100_000)
    for name in names:
        for one in delivered(
            broker, name, "dead@host/1.00000000", *[message(n)._replace(body=body) for n in range(12)]
        ):
            make_idle(broker, one.stream, "dead@host/1.00000000", one.entry_id, idle_ms=600_000)
    ticks = itertools.count()
    claimer = Claimer(
        broker,
        "w@host/0.00000000",
        lambda: names,
        visibility_timeout=60.0,
        delivery_limit=5,
        on_exhausted=lambda delivery, holder: None,
        monotonic=lambda: next(ticks) * 0.05,  # each look at the clock takes so long
    )
    claimer.run_once(now=0.0)

    moved = []
    while sum(moved) < 12 * len(names) and len(moved) < 60:
        moved.append(claimer.run_once(now=100.0 + len(moved) * claimer.interval))

    assert sum(moved) == 12 * len(names)
    # A second, of twenty looks at the clock: one step is a megabyte, and looks at it at least once.
    assert max(moved) <= 20 * (STEP_BYTES // len(body) + 1), "in the rest of the time others are served"
    assert len(moved) > 2, "by the queue it would be all in one look"

"""The claimer's sense of time: when it looks, and when it waits for living owners to speak first."""

from __future__ import annotations

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerError
from celery_streams.worker.claimer import Claimer
from tests.support.redis_state import delivered, make_idle, message

VISIBILITY_TIMEOUT = 2.0


def _claimer(broker: StreamBroker) -> Claimer:
    return Claimer(
        broker,
        "w@host/0.00000000",
        lambda: ["q"],
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

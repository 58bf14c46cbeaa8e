"""Which workers have been silent for too long, as another one hears it: no clock and no pause makes any look dead."""

from __future__ import annotations

import pytest

from celery_streams import keys, presence
from celery_streams.broker import StreamBroker
from celery_streams.exceptions import BrokerError
from celery_streams.presence import WorkerPresence
from celery_streams.worker.silent_workers import SilentWorkers

ONE = "one@host/0.aa"
TIMEOUT = 15.0


class Listener:
    """A worker that listens, and its clock."""

    def __init__(self, broker: StreamBroker) -> None:
        self.broker = broker
        self.now = 1000.0
        self.silent = SilentWorkers(broker, TIMEOUT, monotonic=lambda: self.now)

    def beat(self, *, timeout: float = TIMEOUT, ahead_ms: int = 0) -> None:
        presence.beat(self.broker, WorkerPresence(ONE, "one@host", 1, "0", timeout, (), ()), forget=False)
        # No two beats come in the same millisecond.
        key = keys.workers(self.broker.prefix)
        at, _, said = self.broker.client.call("HGET", key, ONE).partition(b" ")
        self.broker.client.call("HSET", key, ONE, b"%d %s" % (int(at) + int(self.now) + ahead_ms, said))

    def hears(self, seconds: float) -> set[str]:
        """Look every three seconds for so long; returns what the last look found."""
        found = self.silent.among([ONE])
        for _ in range(int(seconds // 3)):
            self.now += 3.0
            found = self.silent.among([ONE])
        return found


@pytest.fixture
def listener(broker: StreamBroker) -> Listener:
    return Listener(broker)


def test_worker_that_beats_is_never_silent(listener: Listener) -> None:
    for _ in range(20):
        listener.beat()
        assert listener.hears(9) == set()


def test_worker_is_silent_once_it_has_not_beaten_for_its_own_timeout(listener: Listener) -> None:
    listener.beat(timeout=60.0)

    assert listener.hears(60) == set()
    assert listener.hears(3) == {ONE}
    listener.beat()
    assert listener.hears(15) == set()


def test_worker_that_is_not_known_is_silent_after_the_listener_s_timeout(listener: Listener) -> None:
    assert listener.hears(15) == set()
    assert listener.hears(3) == {ONE}


@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000])
def test_clock_of_redis_that_was_set_makes_nobody_silent_and_nobody_alive(listener: Listener, jump_ms: int) -> None:
    listener.beat()
    assert listener.hears(6) == set()
    listener.beat(ahead_ms=jump_ms)
    assert listener.hears(15) == set()
    assert listener.hears(3) == {ONE}


def test_after_a_pause_of_the_listener_everybody_speaks_first(listener: Listener) -> None:
    listener.beat()
    assert listener.hears(12) == set()
    listener.now += 100.0

    assert listener.hears(15) == set()
    assert listener.hears(3) == {ONE}


def test_after_redis_was_away_everybody_speaks_first(listener: Listener) -> None:
    listener.beat()
    assert listener.hears(12) == set()
    client = listener.broker.client
    client.call("RENAME", keys.workers(listener.broker.prefix), "aside")
    client.call("SET", keys.workers(listener.broker.prefix), "no hash: every look fails")
    with pytest.raises(BrokerError):
        listener.silent.among([ONE])
    client.call("RENAME", "aside", keys.workers(listener.broker.prefix))

    assert listener.hears(15) == set()
    assert listener.hears(3) == {ONE}

"""Tallies: what workers counted of a queue, added up by the minute and by ten minutes; and changes of version."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.exceptions import BrokerError, BrokerUnavailable
from celery_streams.presence import WorkerPresence, beat
from celery_streams.removal import forget_queue
from celery_streams.tallies import COARSE, FINE, Tally, add, mark, marks, tallies
from celery_streams.worker.counted import Counted
from celery_streams.worker.counts import RUNTIME_BUCKETS, WAIT_BUCKETS, CountsTable
from celery_streams.worker.outcome import Event
from celery_streams.worker.tallying import Tallying

DAY = 86_400.0
SOME = Tally(done=3, failed=1, waits={0.01: 2, math.inf: 1}, runs={0.25: 4}, wait_sum=9_000.004, run_sum=0.8)


def later(broker: StreamBroker, minutes: int, queue: str = "q") -> None:
    """Have what was counted until now be so many minutes older."""
    for key, length in zip(broker.queue_keys(queue).tallies, (FINE.length, COARSE.length), strict=True):
        flat = broker.client.call("HGETALL", key)
        broker.client.call("DEL", key)
        for step, text in zip(flat[::2], flat[1::2], strict=True):
            broker.client.call("HSET", key, int(step) - int(minutes * 60 // length), text)


def one_of(broker: StreamBroker, *, seconds: float = 3_600.0, queue: str = "q") -> Tally:
    """Return what was counted of a queue, which may be in two steps where the clock went over the end of one."""
    found = tallies(broker, [queue], seconds=seconds)[queue]
    assert 1 <= len(found) <= 2
    return replace(found[0], at=0, seconds=0) if len(found) == 1 else total(found)


def total(found: list[Tally]) -> Tally:
    both = [one.names() for one in found]
    return Tally(done=sum(one["done"] for one in both), failed=sum(one["failed"] for one in both))


def test_what_was_counted_is_read_again(broker: StreamBroker) -> None:
    assert add(broker, {"q": SOME.names(), "r": Tally(done=1).names(), "idle": Tally().names()}) == 2

    (found,) = tallies(broker, ["q"])["q"]
    assert replace(found, at=0, seconds=0) == SOME
    assert found.seconds == 60
    assert -1 < broker.clock_ms() / 1000 - found.at < 61
    assert one_of(broker, seconds=DAY) == SOME
    assert tallies(broker, ["idle", "nobody's"]) == {"idle": [], "nobody's": []}


def test_all_workers_of_a_minute_are_added_up(broker: StreamBroker) -> None:
    for _ in range(60):
        add(broker, {"q": {"done": 2, "failed": 1}})

    assert [one.done for one in tallies(broker, ["q"], seconds=DAY)["q"]] == [120]
    assert sum(one.failed for one in tallies(broker, ["q"])["q"]) == 60


def test_hour_has_its_minutes_and_a_day_its_tens(broker: StreamBroker) -> None:
    for minutes in (15 * 60, 3 * 60, 30, 1):
        add(broker, {"q": {"done": 1}})
        later(broker, minutes)

    hour, day = tallies(broker, ["q"])["q"], tallies(broker, ["q"], seconds=DAY)["q"]

    assert [one.done for one in hour] == [1, 1]
    assert round((hour[1].at - hour[0].at) / 60) == 30
    assert len(day) == 4
    assert all(one.at % 600 == 0 for one in day)


def test_newer_workers_count_what_this_version_does_not_know_and_lose_nothing(broker: StreamBroker) -> None:
    newer = {"done": 1, "dreamt": 5, "r125": 1, "r250": 1, "ran": 200}
    add(broker, {"q": newer})
    add(broker, {"q": SOME.names()})
    add(broker, {"q": newer})

    found = tallies(broker, ["q"], seconds=DAY)["q"][-1]

    assert (found.done, found.runs) == (5, {0.125: 2, 0.25: 6})
    texts = broker.client.call("HGETALL", broker.queue_keys("q").tallies[1])[1::2]
    assert "dreamt=10" in texts[-1].decode().split()


def test_what_others_wrote_there_is_left_out(broker: StreamBroker) -> None:
    key = broker.queue_keys("q").tallies[0]
    now = broker.clock_ms() // 60_000
    broker.client.call("HSET", key, now, b"done=2 failed=many \xff=1 w=9 wx=3 =4 r+", "soon", "done=9", -5, "done=9")

    (found,) = tallies(broker, ["q"])["q"]

    assert replace(found, at=0, seconds=0) == Tally(done=2)


def test_tallies_are_bounded_in_number_and_bytes_and_expire(broker: StreamBroker) -> None:
    most = Tally(
        done=10**6, failed=10**6, retried=10**6, waits=dict.fromkeys((*WAIT_BUCKETS, math.inf), 10**6),
        runs=dict.fromkeys((*RUNTIME_BUCKETS, math.inf), 10**6), wait_sum=1e9, run_sum=1e9,
    )  # fmt: skip
    for steps, key in zip((FINE, COARSE), broker.queue_keys("q").tallies, strict=True):
        now = int(broker.clock_ms() / 1000 // steps.length)
        text = " ".join(f"{name}={number}" for name, number in most.names().items())
        for back in range(1, 400):
            broker.client.call("HSET", key, now - back, text, now + back, text)

    add(broker, {"q": most.names()})

    size = 0
    for steps, key in zip((FINE, COARSE), broker.queue_keys("q").tallies, strict=True):
        assert steps.kept - 1 <= broker.client.call("HLEN", key) <= steps.kept
        assert 0 < broker.client.call("PTTL", key) <= (steps.kept + 1) * steps.length * 1000
        size += broker.client.call("MEMORY", "USAGE", key, "SAMPLES", 0)
    assert size < 140_000


def test_key_of_another_type_keeps_no_other_queue_from_its_tallies(broker: StreamBroker) -> None:
    broker.client.call("SET", broker.queue_keys("q").tallies[0], "of another type")

    with pytest.raises(BrokerError, match="history of a queue cannot be written"):
        add(broker, {"q": {"done": 1}, "r": {"done": 1}})

    assert one_of(broker, queue="r").done == 1


def test_tallies_and_marks_go_with_their_queue(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    add(broker, {"q": {"done": 1}})
    mark(broker, ["q"], worker="w", version="1")

    forget_queue(broker, "q")

    names = broker.queue_keys("q")
    assert broker.client.call("EXISTS", *names.tallies, names.versions) == 0


# -- versions ----------------------------------------------------------------------------------------------------------


def alive(broker: StreamBroker, worker: str, version: str, *queues: str) -> None:
    about = WorkerPresence(worker, worker, 1, version, 15.0, queues or ("q",), ())
    beat(broker, about, forget=False)


def versions(broker: StreamBroker, queue: str = "q") -> list[str]:
    return [one.version for one in marks(broker, [queue])[queue]]


def test_worker_of_another_version_is_marked_once_however_many_follow(broker: StreamBroker) -> None:
    for worker, version in (("a", "1"), ("b", "1"), ("c", "2"), ("d", "2"), ("e", "2")):
        mark(broker, ["q"], worker=worker, version=version)

    assert versions(broker) == ["1", "2"]
    assert versions(broker, "r") == []


def test_way_back_to_the_version_before_is_marked(broker: StreamBroker) -> None:
    for version in ("1", "2", "1"):
        mark(broker, ["q"], worker="a", version=version)

    assert versions(broker) == ["1", "2", "1"]


def test_restart_of_the_old_version_while_another_of_it_lives_is_no_change(broker: StreamBroker) -> None:
    mark(broker, ["q", "r"], worker="a", version="1")
    mark(broker, ["q", "r"], worker="b", version="2")
    alive(broker, "a", "1", "q")
    alive(broker, "c", "1", "q")

    mark(broker, ["q", "r"], worker="c", version="1")

    assert versions(broker) == ["1", "2"]
    assert versions(broker, "r") == ["1", "2", "1"]


def test_marks_are_bounded_and_those_of_the_last_hour_are_told_apart(broker: StreamBroker) -> None:
    key = broker.queue_keys("q").versions
    broker.client.call("XADD", key, f"{broker.clock_ms() - 5 * 3_600_000}-0", "v", "0")
    for number in range(120):
        mark(broker, ["q"], worker="a", version=str(number + 1))
    assert broker.client.call("XLEN", key) == 50
    broker.client.call("DEL", key)
    broker.client.call("XADD", key, f"{broker.clock_ms() - 5 * 3_600_000}-0", "v", "0")
    broker.client.call("XADD", key, "*", "v", "1")

    assert versions(broker) == ["1"]
    assert [one.version for one in marks(broker, ["q"], seconds=DAY)["q"]] == ["0", "1"]


# -- a worker ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted() -> Iterator[Counted]:
    made = Counted()
    made.table = CountsTable()
    made.table.watch(0)
    yield made
    made.close()


def test_worker_adds_what_it_and_its_children_counted_and_nothing_twice(broker: StreamBroker, counted: Counted) -> None:
    assert counted.table is not None
    tallying = Tallying(broker, "w", queues=lambda: ["q"], counted=counted, version="1")
    child = counted.table.of_child(0)
    child.started("q", "t", 0.2)
    child.ended("q", "t", Event.SUCCEEDED, 3.0)
    counted.own.ended("q", "t", Event.LOST, 40.0)
    counted.own.ended("elsewhere", "t", Event.FAILED, 1.0)
    tallying.run_once()
    tallying.run_once()
    child.ended("q", "u", Event.RETRIED, 3.0)
    tallying.write()

    (found,) = tallies(broker, ["q"], seconds=DAY)["q"]

    assert replace(found, at=0, seconds=0) == Tally(
        done=1, failed=1, retried=1, waits={0.25: 1}, runs={5.0: 2, 60.0: 1}, wait_sum=0.2, run_sum=46.0
    )
    assert tallies(broker, ["elsewhere"]) == {"elsewhere": []}
    assert versions(broker) == ["1"]


def test_what_was_counted_while_redis_was_away_is_added_later(
    broker: StreamBroker, counted: Counted, redis_url: str
) -> None:
    away = StreamBroker(RedisClient("redis://127.0.0.1:1/0"))
    tallying = Tallying(away, "w", queues=lambda: ["q"], counted=counted)
    counted.own.ended("q", "t", Event.SUCCEEDED, 1.0)
    with pytest.raises(BrokerUnavailable):
        tallying.run_once()

    tallying._broker = broker
    tallying.run_once()

    assert one_of(broker).done == 1


def test_worker_that_counts_nothing_and_reads_nothing_new_asks_for_nothing(broker: StreamBroker) -> None:
    tallying = Tallying(broker, "w", queues=lambda: ["q"], counted=None)
    tallying.run_once()
    tallying._broker = StreamBroker(RedisClient("redis://127.0.0.1:1/0"))

    tallying.run_once()
    tallying.write()


def test_user_who_may_use_the_keys_of_one_queue_only_leaves_it_to_others(
    broker: StreamBroker, client: RedisClient, redis_url: str, counted: Counted
) -> None:
    client.call("ACL", "SETUSER", "poor", "reset", "on", ">pw", "~celery-streams:{r}*", "+@all")
    poor = StreamBroker(RedisClient(redis_url.replace("://", "://poor:pw@")))
    counted.own.ended("q", "t", Event.SUCCEEDED, 1.0)
    try:
        tallying = Tallying(poor, "w", queues=lambda: ["q"], counted=counted)
        tallying.run_once()
        tallying.write()
    finally:
        poor.client.close()
        client.call("ACL", "DELUSER", "poor")

    assert tallies(broker, ["q"]) == {"q": []}


def test_keys_are_those_of_the_data_model() -> None:
    names = keys.queue_keys("celery-streams", "q")

    assert names.tallies == ("celery-streams:{q}:history:minutes", "celery-streams:{q}:history:tens")
    assert names.versions == "celery-streams:{q}:history:versions"

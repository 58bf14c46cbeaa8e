"""What goes by the clock: ages, alerts, heartbeats and revocations, on a Redis whose time the test sets.

fakeredis takes its time from this process, which freezegun stops: seconds and hours pass between two lines, and every
figure is exact. It knows no scripts of ours; what they do is tested on real servers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from celery import Celery
from fakeredis import TcpFakeServer
from freezegun import freeze_time
from freezegun.api import FrozenDateTimeFactory

import celery_streams
from celery_streams import keys, presence, revocations
from celery_streams.app import streams_of
from celery_streams.broker import StreamBroker
from celery_streams.conf import Alerts
from celery_streams.connection import RedisClient
from celery_streams.dead_letters import DeadLetter, obstacles
from celery_streams.inspect import QueueStatus, queue_status
from celery_streams.message import Message, encode_history
from celery_streams.monitoring.alerts import judge
from celery_streams.monitoring.health import judge_health
from celery_streams.monitoring.prometheus import exposition
from celery_streams.monitoring.status import collect

BEGIN = "2026-03-29 00:59:00"  # one minute before clocks go forward in Europe
BEGIN_MS = 1_774_745_940_000


@pytest.fixture
def clock() -> Iterator[FrozenDateTimeFactory]:
    with freeze_time(BEGIN) as frozen:
        assert isinstance(frozen, FrozenDateTimeFactory)
        yield frozen


@pytest.fixture
def url() -> Iterator[str]:
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis", server_version=(7, 0))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def broker(url: str, clock: FrozenDateTimeFactory) -> Iterator[StreamBroker]:
    client = RedisClient(url)
    yield StreamBroker(client)
    client.close()


def published(broker: StreamBroker, *, history: bytes = b"") -> None:
    broker.publish("q", Message(b'{"task": "t", "id": "1"}', b"{}", b"[]", history))


def state(broker: StreamBroker) -> QueueStatus:
    return queue_status(broker, "q", workers=[])


# -- ages


def test_age_of_a_queue_is_that_of_the_oldest_message_that_waits(
    broker: StreamBroker, clock: FrozenDateTimeFactory
) -> None:
    broker.ensure_groups(["q"])
    published(broker)
    clock.tick(90)
    published(broker)

    assert state(broker).oldest_waiting == 90.0

    broker.client.call("XREADGROUP", "GROUP", keys.GROUP, "c", "COUNT", 1, "STREAMS", broker.streams(["q"])[0].key, ">")
    clock.tick(1.5)

    assert state(broker).oldest_waiting == 1.5


def test_message_that_was_put_back_is_as_old_as_when_it_was_first_published(
    broker: StreamBroker, clock: FrozenDateTimeFactory
) -> None:
    clock.tick(600)
    published(broker, history=encode_history({"first": f"{BEGIN_MS}-0", "crashes": 1}))

    assert state(broker).oldest_waiting == 600.0


def test_age_does_not_go_below_zero_when_the_clock_of_redis_is_set_back(
    broker: StreamBroker, clock: FrozenDateTimeFactory
) -> None:
    published(broker)

    clock.move_to("2026-03-28 23:00:00")

    assert state(broker).oldest_waiting == 0.0


def test_delayed_message_is_late_from_its_due_time_on(broker: StreamBroker, clock: FrozenDateTimeFactory) -> None:
    broker.client.call("ZADD", broker.queue_keys("q").delayed, BEGIN_MS + 60_000, "m")

    late = []
    for seconds in (0, 59.999, 0.001, 7.5):
        clock.tick(seconds)
        late.append(state(broker).overdue)

    assert late == [0.0, 0.0, 0.0, 7.5]


@pytest.mark.parametrize(
    ("age", "level"), [(59.999, None), (60, "warning"), (599.999, "warning"), (600, "critical"), (86_400, "critical")]
)
def test_alert_about_age_begins_in_the_moment_of_its_threshold(
    broker: StreamBroker, clock: FrozenDateTimeFactory, age: float, level: str | None
) -> None:
    published(broker)
    clock.tick(age)

    found = [alert.level for alert in judge(state(broker), Alerts()) if alert.name == "age"]

    assert found == ([level] if level else [])


# -- heartbeats


def beat(broker: StreamBroker, node: str, *, at_ms: int, visibility_timeout: float = 15.0) -> None:
    """Write what a worker's heartbeat writes; see beat.lua."""
    said = {
        "node": node, "pid": 1, "version": "1", "visibility_timeout": visibility_timeout, "queues": ["q"],
        "consumers": [[f"{node}/1.aa", None, 0.5]],
    }  # fmt: skip
    broker.client.call("HSET", keys.workers(broker.prefix), f"{node}/1", f"{at_ms} {json.dumps(said)}")


@pytest.mark.parametrize(("silent", "alive"), [(0, True), (14.999, True), (15, False), (3_600, False)])
def test_worker_is_dead_once_it_was_silent_for_its_visibility_timeout(
    broker: StreamBroker, clock: FrozenDateTimeFactory, silent: float, alive: bool
) -> None:
    beat(broker, "w@h", at_ms=BEGIN_MS)
    clock.tick(silent)

    (worker,) = presence.workers(broker)
    status = queue_status(broker, "q")

    assert (worker.silent, worker.is_alive) == (silent, alive)
    assert (status.workers, status.dead_workers) == ((1, ()) if alive else (0, ("w@h",)))


def test_each_worker_is_judged_by_its_own_visibility_timeout(
    broker: StreamBroker, clock: FrozenDateTimeFactory
) -> None:
    beat(broker, "quick@h", at_ms=BEGIN_MS, visibility_timeout=3.0)
    beat(broker, "slow@h", at_ms=BEGIN_MS, visibility_timeout=120.0)
    clock.tick(10)

    found = judge_health(presence.workers(broker), node=None, host="h")

    assert [(one.node, one.is_healthy) for one in found] == [("quick@h", False), ("slow@h", True)]
    assert found[0].said == "is dead: last heartbeat 10.0 s ago, and one is due every 3 s"


def test_heartbeat_from_before_the_clock_was_set_back_counts_for_nothing(
    broker: StreamBroker, clock: FrozenDateTimeFactory
) -> None:
    beat(broker, "w@h", at_ms=BEGIN_MS)

    clock.move_to("2026-03-29 00:58:30")

    assert [one.is_alive for one in presence.workers(broker)] == [False]


# -- revocations


def test_revoked_task_is_known_until_its_time_is_over(broker: StreamBroker, clock: FrozenDateTimeFactory) -> None:
    revocations.revoke(broker, ["a"], seconds=10_800)
    clock.tick(10_799)
    revocations.revoke(broker, ["b"], seconds=10_800)

    assert sorted(revocations.revoked(broker)) == ["a", "b"]

    clock.tick(2)

    assert revocations.revoked(broker) == ["b"]


def test_dead_letter_cannot_be_replayed_once_it_has_expired_nor_while_its_task_is_revoked(
    broker: StreamBroker, clock: FrozenDateTimeFactory
) -> None:
    headers = {"task": "t", "id": "a", "expires": "2026-03-29T03:00:00+02:00"}  # in a minute
    fields = ((b"headers", json.dumps(headers).encode()), (b"properties", b"{}"), (b"body", b"[]"))
    letter = DeadLetter("q", "1-0", "failed", "t", "a", None, None, None, 0, 0.0, None, fields)
    revocations.revoke(broker, ["a"], seconds=30)

    kinds = []
    for seconds in (0, 30, 29.999, 0.001):
        clock.tick(seconds)
        kinds.append([one.kind for one in obstacles(broker, [letter])[0]])

    assert kinds == [["revoked"], [], [], ["expired"]]


# -- what monitors show


def test_monitors_show_ages_by_the_clock_of_redis(broker: StreamBroker, url: str, clock: FrozenDateTimeFactory) -> None:
    app = Celery("tests-ages", broker=url, set_as_current=False)
    celery_streams.install(app, queues=["q"], enabled=True)
    published(broker)
    beat(broker, "w@h", at_ms=BEGIN_MS)
    clock.tick(700)

    status = collect(streams_of(app))
    metrics = exposition(streams_of(app)).decode()
    streams_of(app).reload()
    app.close()

    assert status.totals.oldest_waiting == 700.0
    assert {alert.name: alert.level for alert in status.alerts} == {
        "age": "critical", "no_consumer": "critical", "dead_worker": "warning",
    }  # fmt: skip
    assert 'celery_streams_queue_oldest_waiting_seconds{queue="q"} 700.0' in metrics
    assert 'celery_streams_queue_dead_workers{queue="q"} 1.0' in metrics

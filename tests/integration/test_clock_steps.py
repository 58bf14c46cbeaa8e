"""Redis' clock is set while workers run: nothing is claimed or deleted wrongly, nothing waits for the whole step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.delayed_messages import DelayedMessage, delayed_messages
from celery_streams.entries import Delivery
from celery_streams.lanes import Lane, admit, release
from celery_streams.recovery import clock_was_set, recover
from celery_streams.revocations import revoke, revoked
from celery_streams.worker.claimer import Claimer
from celery_streams.worker.heartbeat import Heartbeat
from celery_streams.worker.outcome import crash_pauses_ms
from tests.integration.test_services import SHOT, StandIn
from tests.support.eventually import eventually
from tests.support.redis_state import delivered, message, number_of, read_all, redis_now_ms
from tests.support.stepping_redis import SteppingRedis, stepping_redis

TIMEOUT = 1.5
DAY = 86_400.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteppingRedis]:
    with stepping_redis(tmp_path_factory.mktemp("clock")) as running:
        yield running


@pytest.fixture
def stepped(server: SteppingRedis) -> Iterator[StreamBroker]:
    server.set_clock(0)
    client = RedisClient(server.url)
    client.call("FLUSHALL")
    yield StreamBroker(client)
    client.close()


class Fleet:
    """Claimers and heartbeats that are driven by the test, at their own pace."""

    def __init__(self, broker: StreamBroker, *queues: str, claimers: int = 2, timeout: float = TIMEOUT) -> None:
        self.broker = broker
        self.exhausted: list[int] = []
        self.holders: list[StandIn] = []
        self.claimers = [
            Claimer(
                broker,
                f"w{number}@host/0.0",
                lambda: queues,
                visibility_timeout=timeout,
                delivery_limit=2,
                on_exhausted=lambda delivery, holder: self.exhausted.append(number_of(delivery)),
            )
            for number in range(claimers)
        ]
        self.heartbeat = Heartbeat(broker, lambda: self.holders, visibility_timeout=timeout)
        self._next = [0.0] * (claimers + 1)

    def hold(self, *held: Delivery, consumer: str) -> None:
        for one in held:
            self.holders.append(StandIn(replace(SHOT, running=one.entry), consumer))

    def moved(self) -> int:
        return sum(claimer.moved for claimer in self.claimers)

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> float:
        """Run for so long; returns how long it took until the condition was true."""
        duties = [(self.heartbeat.interval, self.heartbeat.run_once)]
        duties += [(claimer.interval, claimer.run_once) for claimer in self.claimers]  # type: ignore[misc]
        start = time.monotonic()
        while time.monotonic() - start < seconds and not until():
            for index, (interval, duty) in enumerate(duties):
                if time.monotonic() >= self._next[index]:
                    self._next[index] = time.monotonic() + interval
                    duty()
            time.sleep(0.01)  # the pace of the duties is what is tested
        return time.monotonic() - start


@pytest.mark.parametrize("step", [60.0, 31 * DAY, -300.0, -31 * DAY])
@pytest.mark.parametrize("momentary", [False, True])
def test_task_that_runs_is_not_claimed_when_the_clock_is_set(
    server: SteppingRedis, stepped: StreamBroker, step: float, momentary: bool
) -> None:
    fleet = Fleet(stepped, "q", "other")
    for queue in ("q", "other"):
        fleet.hold(
            *delivered(stepped, queue, f"alive@{queue}/1.a", message(1), message(2)), consumer=f"alive@{queue}/1.a"
        )
    fleet.run(TIMEOUT)

    server.set_clock(step)
    fleet.run(TIMEOUT / 4 if momentary else TIMEOUT * 1.5)
    server.set_clock(0 if momentary else step)
    fleet.run(TIMEOUT * 1.5)

    assert (fleet.moved(), fleet.heartbeat.lost, fleet.exhausted) == (0, 0, [])


@pytest.mark.parametrize("step", [-300.0, -31 * DAY, 60.0])
@pytest.mark.parametrize("dead_before", [True, False])
def test_what_a_dead_worker_held_comes_back_in_time_though_the_clock_was_set(
    server: SteppingRedis, stepped: StreamBroker, step: float, dead_before: bool
) -> None:
    fleet = Fleet(stepped, "q", "other")
    held = [one for queue in ("q", "other") for one in delivered(stepped, queue, "dead@host/1.a", message(1))]
    fleet.hold(*held, consumer="dead@host/1.a")
    fleet.run(TIMEOUT)
    if dead_before:
        fleet.holders.clear()
    server.set_clock(step)
    fleet.run(TIMEOUT / 2)
    fleet.holders.clear()

    took = fleet.run(TIMEOUT * 4, until=lambda: fleet.moved() == 2)

    assert fleet.moved() == 2
    assert took < TIMEOUT * 2.5


def test_entries_from_before_a_step_back_come_back_also_to_a_worker_that_starts_after_it(
    server: SteppingRedis, stepped: StreamBroker
) -> None:
    delivered(stepped, "q", "dead@host/1.a", message(1))
    server.set_clock(-3_600)

    fleet = Fleet(stepped, "q")
    fleet.run(TIMEOUT * 4, until=lambda: fleet.moved() == 1)

    assert fleet.moved() == 1


def test_turn_of_a_claimer_does_not_outlive_a_step_back(server: SteppingRedis, stepped: StreamBroker) -> None:
    delivered(stepped, "q", "dead@host/1.a", message(1))
    options = {"idle_ms": 0, "turn_ms": 500, "pauses_ms": crash_pauses_ms(9)}
    assert recover(stepped, "q", "one", **options).moved == 1  # type: ignore[arg-type]
    read_all(stepped, ["q"], "dead@host/1.a")
    server.set_clock(-300)

    eventually(lambda: recover(stepped, "q", "two", **options).moved == 1, timeout=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", [("RPUSH", "x"), ("SET", "x"), ("SET", "500"), ("SET", "500", "PX", 10**10)])
def test_turn_of_a_claimer_that_somebody_wrote_by_hand_stops_nothing(
    server: SteppingRedis, stepped: StreamBroker, command: tuple[Any, ...]
) -> None:
    delivered(stepped, "q", "dead@host/1.a", message(1))
    verb, *value = command
    stepped.client.call(verb, stepped.queue_keys("q").claims, *value)

    found = recover(stepped, "q", "one", idle_ms=0, turn_ms=500, pauses_ms=crash_pauses_ms(9))

    assert found.moved == 1
    assert stepped.client.call("PTTL", stepped.queue_keys("q").claims) <= 500


def test_dead_letters_survive_a_clock_that_is_a_month_ahead_for_a_moment(
    server: SteppingRedis, stepped: StreamBroker
) -> None:
    first, second, third = delivered(stepped, "q", "w", *(message(number) for number in range(3)))

    def bury(one: Delivery) -> None:
        assert stepped.reject("w", one.entry, death=b"{}", max_length=None, ttl=30 * DAY)

    bury(first)
    server.set_clock(31 * DAY)
    bury(second)
    server.set_clock(0)
    bury(third)

    assert stepped.client.call("XLEN", stepped.queue_keys("q").dead) == 3


@pytest.mark.parametrize("interval_ms", [50, 1_000, 30_000])
def test_token_of_a_rate_limit_does_not_wait_for_a_whole_step_back(
    server: SteppingRedis, stepped: StreamBroker, interval_ms: int
) -> None:
    lane = Lane("t", f'{{"task":"t","rate":"t","interval":{interval_ms}}}', lasting=False)
    for one in delivered(stepped, "q", "w", message(1), message(2)):
        admit(stepped, "w", one.entry, lane)
    server.set_clock(-3_600)

    found = release(stepped, ["q"], {}, everything=True)

    assert found.next_ms is not None
    assert found.next_ms <= interval_ms


def test_messages_that_wait_for_a_moment_keep_their_order_after_a_step_back_and_dates_stay(
    server: SteppingRedis, stepped: StreamBroker
) -> None:
    now = redis_now_ms(stepped.client)
    held = delivered(stepped, "q", "w", *(message(number) for number in range(4)))
    for one, kind, delay in zip(held, ("limit", "limit", "crash", "eta"), (4_000, 8_000, 2_000, 600_000), strict=True):
        assert stepped.requeue("w", one.entry, history={}, delay_ms=delay, kind=kind)
    server.set_clock(-3_600)

    clock_was_set(stepped, "q")
    first = {number_of_member(m): due for m, due in delayed(stepped)}
    clock_was_set(stepped, "q")

    assert {number_of_member(m): due for m, due in delayed(stepped)} == first
    behind = now - 3_600_000
    assert first[0] < first[1] <= behind + 15_000
    assert 3_900 <= first[1] - first[0] <= 4_100
    assert first[2] <= behind + 65_000
    assert first[3] >= now + 500_000


def test_what_the_clock_left_wrong_is_set_right_in_small_steps_however_much_it_is(
    server: SteppingRedis, stepped: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = redis_now_ms(stepped.client)
    waits = {f"{number:03}:crash:a": now + 1_000 + 100 * number for number in range(150)}
    etas = {f"{number:03}:eta:a": now + 1_050 + 100 * number for number in range(150)}
    scores = [word for member, due in (waits | etas).items() for word in (due, member)]
    stepped.client.call("ZADD", stepped.queue_keys("q").delayed, *scores, "+inf", "999:unknown:a")
    delivered(stepped, "q", "w", *(message(number, step=number % 2) for number in range(130)))
    server.set_clock(-3_600)
    steps: list[tuple[str, int]] = []
    run = stepped.client.run

    def counted(script: Any, *command: Any) -> Any:
        reply = run(script, *command)
        steps.append((script.name, reply[0] + len(reply[4]) // 2 if isinstance(reply, list) else reply))
        return reply

    monkeypatch.setattr(stepped.client, "run", counted)
    assert clock_was_set(stepped, "q", step=40) == (130, 151)
    monkeypatch.undo()

    flat = stepped.client.call("ZRANGE", stepped.queue_keys("q").delayed, 0, -1, "WITHSCORES")
    found = {member.decode(): int(due) for member, due in zip(flat[::2], flat[1::2], strict=True)}
    assert max(most for _, most in steps) <= 40
    assert {name for name, _ in steps} == {"clock_was_set", "advance"}
    assert found["149:crash:a"] <= now - 3_600_000 + 65_000
    assert {found[f"{number:03}:crash:a"] - found["000:crash:a"] - 100 * number for number in range(150)} == {0}
    assert found["999:unknown:a"] <= now - 3_600_000 + 35_000
    assert found.items() >= etas.items()
    assert clock_was_set(stepped, "q")[1] == 0


def delayed(broker: StreamBroker) -> list[tuple[DelayedMessage, int]]:
    due = dict(zip(*[iter(broker.client.call("ZRANGE", broker.queue_keys("q").delayed, 0, -1, "WITHSCORES"))] * 2))  # noqa: B905
    return [(one, int(due[one.member.encode()])) for one in delayed_messages(broker, "q")]


def number_of_member(found: DelayedMessage) -> int:
    assert found.message is not None
    return int(found.message.decode_headers()["id"])


def test_revoked_ids_survive_a_clock_that_is_ahead_for_a_moment(server: SteppingRedis, stepped: StreamBroker) -> None:
    revoke(stepped, ["a"], seconds=10_800)
    server.set_clock(DAY)
    revoke(stepped, ["b"], seconds=10_800)
    server.set_clock(0)

    assert set(revoked(stepped)) == {"a", "b"}


def test_idle_time_begins_anew_only_where_it_cannot_be_told(server: SteppingRedis, stepped: StreamBroker) -> None:
    found = delivered(stepped, "q", "w", message(1))
    stepped.client.call("XCLAIM", found[0].stream.key, keys.GROUP, "w", 0, found[0].entry_id, "IDLE", 5_000, "JUSTID")

    assert clock_was_set(stepped, "q") == (0, 0)

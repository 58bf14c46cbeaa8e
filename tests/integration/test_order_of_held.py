"""The order of what is held, by chance: in a line of any length, of messages of any size, whatever was put back.

The model is a set of numbers, in the order of publishing: what is released must be the least of them.
"""

from __future__ import annotations

import json
import random

import pytest
from kombu.utils.json import loads

from celery_streams import inspect
from celery_streams.broker import StreamBroker
from celery_streams.entries import Delivery
from celery_streams.lanes import Lane, admit, held_lanes, held_reasons, let_go, release
from celery_streams.message import Message
from celery_streams.migration import Migration
from tests.support.redis_state import commands_processed, delivered, message, number_of, read_all

QUEUE, ME = "q", "w/1"
SAID = {"task": "t", "rate": "t", "interval": 3_600_000.0}
LANE = Lane("t", json.dumps(SAID), lasting=False)


class Line:
    """A line of messages, and what it must hold."""

    def __init__(self, broker: StreamBroker) -> None:
        self.broker = broker
        self.holds: set[int] = set()
        broker.ensure_groups([QUEUE])

    def wait(self, one: Delivery) -> None:
        """Have a message wait in line."""
        history = json.loads(one.message.history or b"{}")
        found = admit(
            self.broker, ME, one.entry, LANE, ahead=bool(history), published=history.get("first", ""), penalty_ms=1
        )
        assert not found.admitted
        assert not found.lost
        self.holds.add(number_of(one))

    def put_back(self, found: list[Delivery]) -> list[Delivery]:
        """Put messages back, and read them again."""
        assert self.broker.put_back(ME, [one.entry for one in found]) == len(found)
        return self.broker.read(self.broker.streams([QUEUE]), ME, count=len(found))

    def release(self) -> int:
        """Release one message, as if a token had come and nothing ran; return its number."""
        self.broker.client.call("DEL", *self.broker.queue_keys(QUEUE).shelf[4:7])
        assert release(self.broker, [QUEUE], {}, everything=True).count == 1
        (one,) = self.broker.read(self.broker.streams([QUEUE]), ME, count=1)
        self.broker.ack(ME, [one.entry])
        self.holds.remove(number_of(one))
        return number_of(one)

    def check(self) -> None:
        """Check that all tools count what is held."""
        count = len(self.holds)
        assert [lane.held for lane in held_lanes(self.broker, QUEUE)] == [count] * bool(count)
        assert held_reasons(self.broker, QUEUE) == {"rate": count, "concurrency": 0, "mixed": 0}
        assert inspect.queue_status(self.broker, QUEUE).held == count


@pytest.fixture
def line(broker: StreamBroker) -> Line:
    return Line(broker)


def published(broker: StreamBroker, count: int, *, chance: random.Random | None = None) -> list[Delivery]:
    """Return messages that ``ME`` has read, numbered; a few of them are large where there is a chance."""
    made = []
    for number in range(count):
        plain = message(number)
        large = chance is not None and chance.random() < 0.03
        body = json.dumps([["x" * 60_000], {}, {}]).encode() if large else plain.body
        made.append(Message(plain.headers, plain.properties, body, b"", 0))
    return delivered(broker, QUEUE, ME, *made)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "way",
    [
        "released",
        "let go",
        pytest.param("lists", marks=pytest.mark.one_server("a cluster holds no lists")),
        "purged",
    ],
)
def test_what_waits_in_a_line_goes_in_the_order_of_publishing_however_it_came_there(
    line: Line, way: str, seed: int
) -> None:
    chance = random.Random(f"{way} {seed}")
    spread = chance.choice([1, 40, 400, 2_000])
    coming = published(line.broker, 1_300, chance=chance)
    coming.sort(key=lambda one: number_of(one) + chance.random() * spread)
    away: list[Delivery] = []

    while coming or away:
        chosen = chance.random()
        if chosen < 0.03 and coming:
            count = chance.randint(1, 30)
            away += line.put_back(coming[:count])
            del coming[:count]
        elif away and (chosen < 0.15 or not coming):
            line.wait(away.pop(chance.randrange(len(away))))
        elif chosen < 0.18 and line.holds:
            least = min(line.holds)
            assert line.release() == least
        elif coming:
            line.wait(coming.pop(0))
    line.check()

    rest = sorted(line.holds)
    call, names = line.broker.client.call, line.broker.queue_keys(QUEUE)
    if way == "released":
        assert [line.release() for _ in range(200)] == rest[:200]
        line.check()
        rest = rest[200:]
    if way == "purged":
        assert inspect.purge(line.broker, QUEUE) == len(rest)
    elif way == "lists":
        moves = Migration(line.broker, line.broker.client, options={}, visibility_timeout=3600).to_lists(QUEUE)
        assert moves.held == len(rest)
        assert [int(loads(one)["headers"]["id"]) for one in reversed(call("LRANGE", QUEUE, 0, -1))] == rest
    else:
        assert let_go(line.broker, QUEUE) == len(rest)
        assert [number_of(one) for one in read_all(line.broker, [QUEUE], ME, count=2_000)] == rest
    line.holds.clear()
    line.check()
    assert not set(call("KEYS", "*:held*")) - {key.encode() for key in names.shelf[4:7]}


@pytest.mark.parametrize("count", [200, 3_000])
@pytest.mark.parametrize("new", [False, True], ids=["put back", "new"])
def test_message_that_belongs_far_inside_costs_the_same_in_a_line_of_any_length(
    line: Line, count: int, new: bool
) -> None:
    found = published(line.broker, count)
    one = found.pop(count // 2)
    for other in found:
        line.wait(other)
    if not new:
        (one,) = line.put_back([one])
    before = commands_processed(line.broker)

    line.wait(one)

    assert commands_processed(line.broker) - before < 40
    line.check()
    assert [line.release() for _ in range(3)] == [0, 1, 2]
    let_go(line.broker, QUEUE)
    assert [number_of(one) for one in read_all(line.broker, [QUEUE], ME, count=count)] == list(range(3, count))


@pytest.mark.parametrize("lost", ["turns", "turn", "message", "count"])
def test_turns_that_somebody_deleted_or_changed_lose_nothing(line: Line, lost: str) -> None:
    found = published(line.broker, 200)
    back = [found.pop(number) for number in (100, 50, 0)]
    for one in found:
        line.wait(one)
    for one in line.put_back(back):
        line.wait(one)
    held, lanes, _, ring, *_ = line.broker.queue_keys(QUEUE).shelf
    call = line.broker.client.call
    turns = call("ZRANGEBYLEX", ring, "[b", "(c")
    assert len(turns) == 3
    lost_order, gone = set(), set()
    if lost == "turns":
        call("ZREM", ring, *turns)
        lost_order = {0, 50, 100}
    elif lost == "turn":
        call("ZREM", ring, turns[1])
        lost_order = {50}
    elif lost == "message":
        call("HDEL", held, turns[1].rpartition(b"\0")[2])
        gone = {50}
    else:
        call("HSET", lanes, "t", json.dumps({**json.loads(call("HGET", lanes, "t")), "back": 1}))

    assert let_go(line.broker, QUEUE) == 200 - len(gone)

    numbers = [number_of(one) for one in read_all(line.broker, [QUEUE], ME, count=200)]
    assert sorted(numbers) == [number for number in range(200) if number not in gone]
    in_order = numbers[: len(numbers) - len(lost_order)]
    assert in_order == sorted(in_order)
    line.holds.clear()
    line.check()

"""Reader: what comes next, and how a consumer waits for it without missing a command, a message or a reconnect."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.cluster import connect
from celery_streams.conf import StreamsConf
from celery_streams.entries import Delivery, Entry
from celery_streams.exceptions import BrokerUnavailable
from celery_streams.worker.outcome import Circumstances, Event, decide
from celery_streams.worker.reader import Reader
from celery_streams.worker.settle import Settler
from tests.support.eventually import eventually
from tests.support.redis_state import message, number_of, redis_state

SUCCEEDED = decide(Event.SUCCEEDED, Circumstances())

STREAM = "celery-streams:{q}"


class Reading:
    """A reader of its own connections, with the pipe on which commands come."""

    def __init__(self, url: str, *queues: str) -> None:
        self.broker = StreamBroker(connect(url))
        self.heard = 0
        self.stopped = False
        #: What others of the same consumer have in their hands.
        self.in_hands: list[Entry] = []
        self.on_command: Callable[[], None] = lambda: None
        self._read, self._write = os.pipe()
        self.settler = Settler(self.broker, "me", conf=StreamsConf(), hostname="w@h")
        self.reader = Reader(
            self.broker,
            "me",
            self.settler,
            wake=self._read,
            on_wake=self._hear,
            stopped=lambda: self.stopped,
            held=lambda: self.in_hands,
        )
        self.reader.streams = self.broker.streams(queues or ["q"])
        self._thread: threading.Thread | None = None
        self.found: list[Delivery] = []

    def command(self) -> None:
        os.write(self._write, b".")

    def _hear(self) -> None:
        os.read(self._read, 1)
        self.heard += 1
        self.on_command()

    def next(self, count: int = 10, *, block: bool = False) -> list[int]:
        return [number_of(one) for one in self.reader.next(count, block=block)]

    def wait(self) -> None:
        """Read in a thread, and block there until something comes."""
        self._thread = threading.Thread(target=lambda: self.found.extend(self.reader.next(10)), daemon=True)
        self._thread.start()
        eventually(self.is_blocked)

    def is_blocked(self) -> bool:
        return any(b"cmd=xreadgroup " in node.call("CLIENT", "LIST") for node in self.broker.client.nodes)

    def ended(self) -> bool:
        assert self._thread is not None
        return not self._thread.is_alive()

    def close(self) -> None:
        self.reader.close()
        self.broker.client.close()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def reading(streams_url: str) -> Iterator[Callable[..., Reading]]:
    made: list[Reading] = []

    def make(*queues: str, url: str = streams_url) -> Reading:
        made.append(Reading(url, *queues))
        return made[-1]

    yield make
    for one in made:
        one.close()


def publish(broker: StreamBroker, *numbers: int, queue: str = "q", step: int = 0) -> None:
    for number in numbers:
        broker.publish(queue, message(number, step=step))


def test_what_waits_is_read_in_order_of_priority(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["q"])
    publish(broker, 1, step=3)
    publish(broker, 2, step=1)
    publish(broker, 3, 4)

    mine = reading()
    assert [mine.next(3), mine.next(3), mine.next(3)] == [[3, 4], [2], [1]]


def test_where_much_waits_it_is_read_without_the_script(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["q"])
    publish(broker, *range(100))
    mine = reading()
    mine.next(20)
    broker.client.call("CONFIG", "RESETSTAT")

    read = [mine.next(20), mine.next(30), mine.next(40), mine.next(40)]

    assert read == [[*range(20, 40)], [*range(40, 70)], [*range(70, 100)], []]
    assert commands_sent(broker)["evalsha"] == 1  # the last one: the third had found less than it asked for


def test_what_is_put_back_while_much_waits_comes_one_read_later(
    broker: StreamBroker, reading: Callable[..., Reading]
) -> None:
    broker.ensure_groups(["q"])
    publish(broker, *range(100))
    mine = reading()
    held = mine.reader.next(20, block=False)
    mine.settler.put_back([one.entry for one in held[:2]])

    read = [mine.next(20), mine.next(20), mine.next(20)]

    assert read == [[*range(20, 40)], [0, 1, *range(40, 58)], [*range(58, 78)]]


@pytest.mark.parametrize("count", [1, 40])
def test_higher_priority_comes_first_however_much_waits(
    broker: StreamBroker, reading: Callable[..., Reading], count: int
) -> None:
    broker.ensure_groups(["q"])
    publish(broker, *range(200), step=2)
    mine = reading()
    before = mine.next(count)
    publish(broker, *range(1_000, 1_040))
    publish(broker, *range(2_000, 2_040), step=1)

    read: list[int] = []
    while len(read) < 80:
        read += mine.next(count)

    assert (before, read) == ([*range(count)], [*range(1_000, 1_040), *range(2_000, 2_040)])


def test_queues_take_turns_also_where_much_waits(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["a", "b", "c"])
    for queue in ("a", "b", "c"):
        publish(broker, *range(200), queue=queue)
    mine = reading("a", "b", "c")

    read = [{one.stream.queue for one in mine.reader.next(20, block=False)} for _ in range(9)]

    assert read[:3] == read[3:6] == read[6:] == [{"b"}, {"c"}, {"a"}]


def test_acknowledgements_go_along_with_the_next_read(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["q"])
    publish(broker, 1, 2)
    mine = reading()
    (first,) = mine.reader.next(1, block=False)
    mine.settler.settle(first, SUCCEEDED)

    second = mine.next(1)

    assert (second, mine.settler.waiting) == ([2], 0)
    assert len(redis_state(broker.client)[STREAM].entries) == 1


def test_blocked_reader_starts_a_message_at_once(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["q"])
    mine = reading()
    mine.wait()
    began = time.monotonic()

    publish(broker, 1)
    eventually(mine.ended, interval=0.001)

    assert [number_of(one) for one in mine.found] == [1]
    assert time.monotonic() - began < 3.0


def commands_sent(broker: StreamBroker) -> dict[str, int]:
    found = "".join(node.call("INFO", "commandstats").decode() for node in broker.client.nodes)
    return {
        line.partition(":")[0].removeprefix("cmdstat_"): int(line.partition("calls=")[2].partition(",")[0])
        for line in found.splitlines()
        if line.startswith("cmdstat_")
    }


def test_message_that_comes_alone_costs_five_commands(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["q"])
    mine = reading()
    mine.wait()

    def costs() -> dict[str, int]:
        """Return what one message costs, from its start to the next wait."""
        publish(broker, 1)
        eventually(mine.ended, interval=0.001)
        mine.settler.settle(mine.found.pop(), SUCCEEDED)
        broker.client.call("CONFIG", "RESETSTAT")
        mine.wait()
        sent = commands_sent(broker)
        # What the test asks, and a script that is new to the server. Some count a read that blocks only when it ends.
        for name in ("client|list", "config|resetstat", "info", "eval"):
            sent.pop(name, None)
        return {**sent, "xreadgroup": max(sent.get("xreadgroup", 1), 1)}

    # Whether it came alone depends on how long was waited for it and how long it took: on a busy machine not each does.
    eventually(lambda: costs() == {"evalsha": 1, "xpending": 1, "xack": 1, "xdel": 1, "xreadgroup": 1})

    publish(broker, 2)
    eventually(mine.ended)


def test_reader_holds_no_more_than_it_asked_for(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    # Given a reader that does not expect anything to wait: its last message came alone.
    broker.ensure_groups(["a", "b", "c"])
    mine = reading("a", "b", "c")
    mine.wait()
    publish(broker, 0, queue="a")
    eventually(mine.ended)

    # When something waits in each queue, a blocking read brings it all.
    for number, queue in enumerate(("a", "b", "c")):
        publish(broker, number + 1, queue=queue)
    (found,) = mine.next(1, block=True)

    # Then it keeps one of them, and others can have the rest.
    others = broker.streams(["a", "b", "c"])
    assert {found, *(number_of(one) for one in broker.read(others, "other", count=5))} == {1, 2, 3}


def test_command_ends_a_blocking_read(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["q"])
    mine = reading()
    mine.on_command = lambda: setattr(mine, "stopped", True)
    mine.wait()
    began = time.monotonic()

    mine.command()
    eventually(mine.ended)

    assert (mine.heard, mine.found) == (1, [])
    assert time.monotonic() - began < 3.0
    assert redis_state(broker.client)[STREAM].pending == {keys.GROUP: {}}


def test_command_that_changes_nothing_goes_on_waiting(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["q"])
    mine = reading()
    mine.wait()

    mine.command()
    eventually(lambda: mine.heard == 1)
    still = not mine.ended()
    publish(broker, 1)
    eventually(mine.ended)

    assert (still, [number_of(one) for one in mine.found]) == (True, [1])


def test_new_queues_are_read_from_the_next_read_on(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["q", "other"])
    mine = reading("q")
    publish(broker, 1, queue="other")
    mine.on_command = lambda: setattr(mine.reader, "streams", broker.streams(["other"]))
    mine.wait()

    mine.command()
    eventually(mine.ended)

    assert mine.found == []
    assert mine.next() == [1]


def test_reader_without_streams_hears_commands(reading: Callable[..., Reading]) -> None:
    mine = reading()
    mine.reader.streams = []
    mine.command()

    assert mine.next(block=True) == []
    assert mine.heard == 1


def test_every_queue_comes_first_in_its_turn(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["a", "b", "c"])
    for queue in ("a", "b", "c"):
        publish(broker, *range(20), queue=queue)
    mine = reading("a", "b", "c")

    read = [mine.reader.next(1, block=False)[0].stream.queue for _ in range(9)]

    assert sorted(read[:3]) == sorted(read[3:6]) == sorted(read[6:]) == ["a", "b", "c"]


def test_turns_of_queues_do_not_come_before_priorities(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["a", "b"])
    publish(broker, *range(5), queue="a", step=3)
    publish(broker, *range(5), queue="b")
    mine = reading("a", "b")

    read = [mine.reader.next(1, block=False)[0].stream.queue for _ in range(6)]

    assert read == ["b"] * 5 + ["a"]


@pytest.mark.parametrize("command", [("FLUSHALL",), ("DEL", STREAM), ("XGROUP", "DESTROY", STREAM, keys.GROUP)])
def test_missing_groups_are_made_again_and_nothing_that_waits_is_skipped(
    broker: StreamBroker, reading: Callable[..., Reading], command: tuple[str, ...]
) -> None:
    broker.ensure_groups(["q"])
    mine = reading()
    mine.next()
    broker.client.call(*command)
    publish(broker, 1)

    read = [mine.next() for _ in range(2)]

    assert read == [[], [1]]
    assert mine.reader.recreated >= 1


@pytest.mark.parametrize("command", [("XGROUP", "DESTROY"), ("DEL",)], ids=["group", "stream"])
@pytest.mark.parametrize("count", [1, 200])
def test_missing_group_of_one_queue_costs_that_queue_one_read_and_the_others_nothing(
    broker: StreamBroker,
    reading: Callable[..., Reading],
    caplog: pytest.LogCaptureFixture,
    count: int,
    command: tuple[str, ...],
) -> None:
    others = [f"q{number}" for number in range(count)]
    broker.ensure_groups(["harmed", *others])
    mine = reading("harmed", *others)
    mine.next()
    held = list(range(3))
    publish(broker, *held, queue=others[-1])
    assert sorted(mine.next(3)) == held
    publish(broker, 7, queue="harmed")
    key = broker.queue_keys("harmed").streams[0]
    broker.client.call(*command, key, *([keys.GROUP] if len(command) > 1 else []))
    publish(broker, 8, queue="harmed")
    for number, queue in enumerate(others, start=10):
        publish(broker, number, queue=queue)
    waiting = {8, *range(10, 10 + count)} | ({7} if len(command) > 1 else set())
    before = redis_state(broker.client)[broker.queue_keys(others[-1]).streams[0]].pending

    read: list[int] = []
    empty = 0
    while not waiting.issubset(read):
        found = mine.next(100)
        empty += not found
        read += found
        assert empty <= 1, "made again at once, and only once"

    assert sorted(read) == sorted(waiting), "nothing is lost, and nothing that was read already comes again"
    after = redis_state(broker.client)[broker.queue_keys(others[-1]).streams[0]].pending
    assert before[keys.GROUP].items() <= after[keys.GROUP].items(), "what others hold is as it was"
    said = [record.getMessage() for record in caplog.records if "missing consumer groups" in record.getMessage()]
    assert len(said) == 1
    assert "of queues harmed:" in said[0], "it names the queue that it was, and no other"


@pytest.mark.parametrize("wrong", ["gone", "of another type"])
def test_what_was_read_is_handed_out_when_the_next_stream_cannot_be_read(
    broker: StreamBroker, reading: Callable[..., Reading], wrong: str
) -> None:
    broker.ensure_groups(["a", "b"])
    mine = reading("a", "b")
    mine.next()
    publish(broker, 1, queue="a", step=1)
    publish(broker, 2, 3, 4, queue="a")
    bad = broker.queue_keys("b").streams[0]
    broker.client.call("DEL", bad)
    if wrong != "gone":
        broker.client.call("SET", bad, wrong)

    read = [mine.next(count) for count in (9, 9, 9, 9)]

    assert sorted(number for some in read for number in some) == [1, 2, 3, 4]
    assert broker.client.call("XPENDING", "celery-streams:{a}", keys.GROUP)[0] == 3
    assert mine.reader.recreated == (wrong == "gone")


def test_what_was_read_is_handed_out_when_the_acknowledgements_are_refused(
    broker: StreamBroker, streams_url: str, reading: Callable[..., Reading]
) -> None:
    broker.client.call("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all")
    mine = reading(url=streams_url.replace("//", "//limited:pw@"))
    broker.ensure_groups(["q"])
    publish(broker, 1, 2)
    (first,) = mine.reader.next(1, block=False)
    mine.settler.settle(first, SUCCEEDED)
    broker.client.call("ACL", "SETUSER", "limited", "-xack")

    second = mine.reader.next(1, block=False)
    broker.client.call("ACL", "SETUSER", "limited", "+xack")
    mine.settler.settle(second[0], SUCCEEDED)
    mine.next()

    broker.client.call("ACL", "DELUSER", "limited")
    assert [number_of(one) for one in second] == [2]
    assert redis_state(broker.client)[STREAM].entries == {}


@pytest.mark.parametrize("command", [("FLUSHALL",), ("DEL", STREAM), ("XGROUP", "DESTROY", STREAM, keys.GROUP)])
def test_reader_that_is_blocked_while_its_group_vanishes_makes_it_again(
    broker: StreamBroker, reading: Callable[..., Reading], command: tuple[str, ...]
) -> None:
    broker.ensure_groups(["q"])
    mine = reading()
    mine.wait()

    broker.client.call(*command)
    publish(broker, 1)
    eventually(mine.ended)

    read = [number_of(one) for one in mine.found] + mine.next() + mine.next()
    assert read == [1]
    assert mine.reader.recreated >= 1


def test_reader_whose_connections_are_killed_resumes(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["q"])
    mine = reading()
    mine.wait()

    broker.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    eventually(mine.ended)
    publish(broker, 1)

    assert mine.found == []
    assert eventually(mine.next) == [1]


def test_entries_of_a_reply_that_was_lost_are_put_back_with_no_delivery_counted(
    broker: StreamBroker, reading: Callable[..., Reading]
) -> None:
    broker.ensure_groups(["q"])
    publish(broker, 1, 2, 3)
    mine = reading()
    (first,) = mine.reader.next(1, block=False)
    mine.settler.settle(first, SUCCEEDED)
    # What a read leaves behind whose reply never came.
    assert len(broker.read(broker.streams(["q"]), "me", count=1)) == 1
    mine.reader.recover_from(BrokerUnavailable("the connection was lost"))

    found = eventually(lambda: mine.next() or None)

    state = redis_state(broker.client)
    held = [one for key in (STREAM, f"{STREAM}:front") for one in state[key].pending[keys.GROUP].values()]
    assert found == [2, 3]
    assert held == [("me", 1)] * 2


def test_what_others_of_the_consumer_have_in_their_hands_is_no_stray(
    broker: StreamBroker, reading: Callable[..., Reading]
) -> None:
    broker.ensure_groups(["q", "p"])
    mine = reading("q", "p")
    for queue in ("q", "p"):
        for number in (1, 2):
            broker.publish(queue, message(number))
    held = broker.read(broker.streams(["q"]), "me", count=2) + broker.read(broker.streams(["p"]), "me", count=2)
    mine.in_hands = [held[0].entry, held[3].entry]

    mine.reader.recover_from(BrokerUnavailable("the connection was lost"))
    eventually(lambda: mine.next() or None)

    state = redis_state(broker.client)
    for one in (held[0], held[3]):
        assert state[one.stream.key].pending[keys.GROUP][one.entry_id.decode()] == ("me", 1)
    for one in (held[1], held[2]):
        assert one.entry_id.decode() not in state[one.stream.key].pending[keys.GROUP]


def test_acknowledgements_outlive_a_lost_connection(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.ensure_groups(["q"])
    publish(broker, 1)
    mine = reading()
    (first,) = mine.reader.next(1, block=False)
    mine.settler.settle(first, SUCCEEDED)
    broker.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    eventually(lambda: mine.next() == [] and not mine.settler.waiting)

    assert redis_state(broker.client)[STREAM].entries == {}
    assert mine.settler.lost == 0


@pytest.mark.parametrize("again", ["along with a read", "alone"])
def test_acknowledgement_that_was_carried_out_before_its_reply_was_lost_is_no_lost_entry(
    broker: StreamBroker, reading: Callable[..., Reading], caplog: pytest.LogCaptureFixture, again: str
) -> None:
    broker.ensure_groups(["q"])
    publish(broker, 1, 2)
    mine = reading()
    first, second = mine.reader.next(2, block=False)
    mine.settler.settle(first, SUCCEEDED)
    for command in mine.settler.commands():
        broker.client.run(*command)  # what the connection that broke had carried out
    mine.settler.settle(second, SUCCEEDED)
    broker.client.call("XCLAIM", STREAM, keys.GROUP, "other", 0, second.entry_id)

    if again == "alone":
        mine.settler.flush()
    else:
        mine.next()

    told = [record.getMessage() for record in caplog.records if "no longer held" in record.getMessage()]
    assert (mine.settler.waiting, mine.settler.lost) == (0, 1)
    assert [second.entry_id.decode() in line for line in told] == [True]


def test_key_of_another_type_is_no_hot_loop(broker: StreamBroker, reading: Callable[..., Reading]) -> None:
    broker.client.call("SET", STREAM, "not a stream")
    mine = reading()
    began = time.monotonic()

    read = [mine.next() for _ in range(4)]

    assert read == [[]] * 4
    # Pauses of at least half of 0.1, 0.2, 0.4 and 0.8 seconds.
    assert time.monotonic() - began > 0.5


def test_pause_ends_when_the_parent_has_something_to_say(reading: Callable[..., Reading]) -> None:
    mine = reading()
    mine.broker.client.call("SET", STREAM, "not a stream")
    mine.command()

    mine.next()

    assert mine.heard == 1


def spent(broker: StreamBroker) -> tuple[int, int]:
    """Return how many commands on streams Redis ran, inside scripts too, and the bytes that it was sent."""
    said = broker.client.call("INFO", "everything").decode().splitlines()
    found = [line.partition(":calls=") for line in said if line.startswith(("cmdstat_xgroup", "cmdstat_xread"))]
    (sent,) = [int(line.partition(":")[2]) for line in said if line.startswith("total_net_input_bytes:")]
    return sum(int(rest.partition(",")[0]) for _, _, rest in found), sent


def test_new_queue_costs_what_is_new_and_not_what_all_queues_cost(
    broker: StreamBroker, reading: Callable[..., Reading]
) -> None:
    queues = [f"tenant.{number}" for number in range(200)]
    broker.ensure_groups([*queues, "new"])
    publish(broker, 1, queue="new")
    mine = reading(*queues)
    mine.next()
    mine.wait()
    mine.on_command = lambda: setattr(mine.reader, "streams", mine.broker.streams([*queues, "new"]))
    mine.command()
    eventually(mine.ended)
    commands, sent = spent(broker)

    assert mine.next() == [1]

    more_commands, more_sent = spent(broker)
    # Four streams are new, and eight hundred are not.
    assert more_commands - commands <= 3 * 4
    assert more_sent - sent < 5_000
    publish(broker, 2, queue="tenant.7")
    assert mine.next() == [2]


def test_queue_that_is_not_new_any_more_is_read_in_its_turn(
    broker: StreamBroker, reading: Callable[..., Reading]
) -> None:
    broker.ensure_groups(["a", "b"])
    mine = reading("a")
    assert mine.next() == []
    mine.reader.streams = mine.broker.streams(["a", "b"])
    publish(broker, 1, 2, queue="b")
    publish(broker, 3, queue="a")

    assert mine.next(1) == [1]
    assert sorted(mine.next(5) + mine.next(5)) == [2, 3]


def test_key_of_another_type_does_not_keep_a_reader_from_waiting_for_other_queues(
    broker: StreamBroker, reading: Callable[..., Reading]
) -> None:
    broker.ensure_groups(["q"])
    broker.client.call("SET", "celery-streams:{odd}:3", "of another type")
    mine = reading("odd", "q")
    broker.ensure_groups(["q"])
    broker.client.pipeline(
        [("XGROUP", "CREATE", ref.key, keys.GROUP, "0", "MKSTREAM") for ref in broker.streams(["odd"])]
    )
    assert mine.next(block=True) == []

    mine.wait()
    publish(broker, 1)
    eventually(mine.ended)

    assert [number_of(one) for one in mine.found] == [1]

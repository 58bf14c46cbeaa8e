"""Reads that block at several nodes are ended early where these have no CLIENT UNBLOCK, or no CLIENT: Memorystore."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.cluster_map import slot_of
from celery_streams.pauses import pause_queue
from celery_streams.probes import server_info
from tests.integration.test_reader import Reading
from tests.support.cluster import Cluster
from tests.support.eventually import eventually
from tests.support.redis_state import message, number_of

#: What a user may not, which the smoke part looks at alone.
NO_UNBLOCK, NO_CLIENT = "-client|unblock", "-client"


class Unprivileged(Reading):
    """A reader of queues on several nodes, whose user may not end reads."""

    def __init__(self, nodes: Cluster, url: str, *queues: str) -> None:
        super().__init__(url, *queues)
        self.nodes, self.queues = nodes, queues
        self.on_command = lambda: setattr(self, "stopped", True)

    def is_blocked(self) -> bool:
        """Return whether it has a blocked read for each queue."""
        blocked = 0
        for client in self.nodes.clients:
            for line in client.call("CLIENT", "LIST").splitlines():
                blocked += b" flags=b " in line and b" cmd=xread" in line
        return blocked == len(self.queues)

    def go_on(self) -> None:
        """Read in a thread, again and again until it is stopped."""

        def read() -> None:
            while not self.stopped:
                self.found.extend(self.reader.next(10))

        self._thread = threading.Thread(target=read, daemon=True)
        self._thread.start()
        eventually(self.is_blocked)

    def own(self, number: int) -> str:
        return keys.unblock("celery-streams", self.queues[number], "me")


@pytest.fixture(params=[NO_UNBLOCK, NO_CLIENT])
def url(request: pytest.FixtureRequest, nodes: Cluster) -> Iterator[str]:
    """The URL of a user who may not end reads."""
    if "|" in request.param and server_info(nodes.clients[0]).version < (7,):
        pytest.skip("subcommands in ACL rules came with Redis 7")
    for client in nodes.clients:
        client.call("ACL", "SETUSER", "memorystore", "reset", "on", ">pw", "~*", "+@all", request.param)
    yield nodes.url.replace("://", "://memorystore:pw@", 1)
    for client in nodes.clients:
        client.call("ACL", "DELUSER", "memorystore")


@pytest.fixture
def reading(on_shards: StreamBroker, nodes: Cluster, url: str) -> Iterator[Callable[..., Unprivileged]]:
    made: list[Unprivileged] = []

    def make(*queues: str) -> Unprivileged:
        on_shards.ensure_groups(queues)
        one = Unprivileged(nodes, url, *queues)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def ends_at_once(mine: Unprivileged) -> None:
    began = time.monotonic()
    eventually(mine.ended)
    assert time.monotonic() - began < 3.0  # of the five seconds for which it blocks


def left(broker: StreamBroker, mine: Unprivileged) -> list[tuple[int, int]]:
    """Return how many entries lie, and are pending, in the streams that end reads."""
    found = []
    for number in range(len(mine.queues)):
        length = broker.client.call("XLEN", mine.own(number))
        found.append((length, broker.client.call("XPENDING", mine.own(number), keys.GROUP)[0] if length else 0))
    return found


def test_command_ends_the_reads_at_all_nodes_and_none_of_them_takes_short_turns(
    on_shards: StreamBroker, nodes: Cluster, reading: Callable[..., Unprivileged]
) -> None:
    mine = reading(*nodes.queues_apart(3))

    for _ in range(3):
        mine.stopped = False
        mine.wait()
        time.sleep(0.4)  # it took turns of a quarter of a second
        assert not mine.ended()
        mine.command()
        ends_at_once(mine)

    assert mine.found == []
    for queue in mine.queues:
        assert (
            on_shards.client.call("XPENDING", keys.queue_keys("celery-streams", queue).streams[0], keys.GROUP)[0] == 0
        )


@pytest.mark.cluster
def test_message_at_one_node_ends_the_reads_at_the_others_and_what_ended_them_does_not_stay(
    on_shards: StreamBroker, nodes: Cluster, reading: Callable[..., Unprivileged]
) -> None:
    mine = reading(*nodes.queues_apart(6))
    for number, queue in enumerate(mine.queues):
        mine.wait()
        on_shards.publish(queue, message(number))
        ends_at_once(mine)
        assert [number_of(one) for one in mine.found] == list(range(number + 1))

    mine.wait()
    assert left(on_shards, mine) == [(0, 0)] * 6
    for number in range(6):
        assert 0 < on_shards.client.call("PTTL", mine.own(number)) <= 300_000
    mine.command()
    ends_at_once(mine)


@pytest.mark.cluster
@pytest.mark.parametrize("count", [1, 3])
def test_reader_all_of_whose_queues_are_paused_hears_commands(
    on_shards: StreamBroker, nodes: Cluster, reading: Callable[..., Unprivileged], count: int
) -> None:
    mine = reading(*nodes.queues_apart(count))
    for queue in mine.queues:
        pause_queue(on_shards, queue)

    for _ in range(2):
        mine.stopped = False
        mine.wait()
        mine.command()
        ends_at_once(mine)


@pytest.mark.cluster
def test_stream_that_was_deleted_is_made_again(
    on_shards: StreamBroker, nodes: Cluster, reading: Callable[..., Unprivileged]
) -> None:
    mine = reading(*nodes.queues_apart(3))
    mine.go_on()

    for number, queue in enumerate(mine.queues):
        on_shards.client.call("UNLINK", mine.own(number))
        on_shards.publish(queue, message(number))  # Redis 6.2 does not end a read whose stream is deleted
    eventually(lambda: len(mine.found) == 3)
    eventually(lambda: all(on_shards.client.call("EXISTS", mine.own(number)) for number in range(3)))
    eventually(mine.is_blocked)
    mine.command()

    ends_at_once(mine)


@pytest.mark.cluster
def test_reads_are_ended_at_the_node_that_a_slot_has_moved_to(
    on_shards: StreamBroker, nodes: Cluster, reading: Callable[..., Unprivileged]
) -> None:
    mine = reading(*nodes.queues_apart(3))
    stream = keys.queue_keys("celery-streams", mine.queues[0]).streams[0]
    slot, source = slot_of(stream), nodes.owner(stream)
    target = (source + 1) % 3
    mine.go_on()

    nodes.begin_move(slot, source, target)
    nodes.end_move(slot, source, target)
    try:
        on_shards.publish(mine.queues[0], message(1))
        eventually(lambda: [number_of(one) for one in mine.found] == [1])
        eventually(mine.is_blocked)
        assert re.search(rb"cmd=xreadgroup .*user=memorystore", nodes.clients[target].call("CLIENT", "LIST"))
        mine.command()
        ends_at_once(mine)
    finally:
        mine.stopped = True
        nodes.begin_move(slot, target, source)
        nodes.end_move(slot, target, source)

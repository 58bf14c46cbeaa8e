"""A blocking read is ended early where Redis has no CLIENT UNBLOCK, or no CLIENT at all: managed servers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.connection import BlockingConnection, RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerError
from celery_streams.pauses import pause_queue, resume_queue
from celery_streams.probes import server_info
from celery_streams.reads import receive_blocking_read, send_blocking_read
from celery_streams.unblocking import Unblocker
from tests.integration.test_reader import Reading
from tests.support.eventually import eventually
from tests.support.redis_state import message, number_of, redis_state

OWN = "celery-streams:{q}:unblock:me"


class Unprivileged(Reading):
    """A reader whose user may not ask who is connected: ``admin`` may."""

    def __init__(self, url: str, admin: StreamBroker, *queues: str) -> None:
        super().__init__(url, *queues)
        self._admin = admin

    def is_blocked(self) -> bool:
        said = self._admin.client.call("CLIENT", "LIST").splitlines()
        return any(b" flags=b " in line and b" cmd=xread" in line for line in said)

    def go_on(self) -> None:
        """Read in a thread, again and again until it is stopped."""

        def read() -> None:
            while not self.stopped:
                self.found.extend(self.reader.next(10))

        self._thread = threading.Thread(target=read, daemon=True)
        self._thread.start()
        eventually(self.is_blocked)


@pytest.fixture(params=["-client", "-client|unblock"])
def url(request: pytest.FixtureRequest, client: RedisClient, redis_url: str) -> Iterator[str]:
    """The URL of a user who may not end reads."""
    if "|" in request.param and server_info(client).version < (7,):
        pytest.skip("subcommands in ACL rules came with Redis 7")
    client.call("ACL", "SETUSER", "memorystore", "reset", "on", ">pw", "~*", "+@all", request.param)
    yield redis_url.replace("://", "://memorystore:pw@")
    client.call("ACL", "DELUSER", "memorystore")


@pytest.fixture
def reading(broker: StreamBroker) -> Iterator[Callable[..., Unprivileged]]:
    made: list[Unprivileged] = []

    def make(url: str, *queues: str) -> Unprivileged:
        broker.ensure_groups(queues)
        one = Unprivileged(url, broker, *queues)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def ends_at_once(mine: Unprivileged) -> bool:
    began = time.monotonic()
    eventually(mine.ended)
    return time.monotonic() - began < 2.0


def test_command_ends_a_read_through_a_stream_that_it_watches(
    broker: StreamBroker, reading: Callable[..., Unprivileged], url: str
) -> None:
    mine = reading(url, "q")
    mine.on_command = lambda: setattr(mine, "stopped", True)

    for _ in range(3):
        mine.stopped = False
        mine.wait()
        mine.command()
        assert ends_at_once(mine)

    assert mine.found == []
    assert redis_state(broker.client)["celery-streams:{q}"].pending == {keys.GROUP: {}}


def test_entry_that_comes_with_the_command_is_not_lost_and_what_was_not_needed_does_not_stay(
    broker: StreamBroker, reading: Callable[..., Unprivileged], url: str
) -> None:
    mine = reading(url, "q")
    mine.wait()

    def publish_and_stop() -> None:
        broker.publish("q", message(1))
        mine.stopped = True

    mine.on_command = publish_and_stop
    mine.command()
    eventually(mine.ended)
    mine.stopped = False
    mine.wait()
    broker.publish("q", message(2))
    eventually(mine.ended)

    assert [number_of(one) for one in mine.found] == [1, 2]
    own = redis_state(broker.client)[OWN]
    assert (own.entries, own.pending) == ({}, {keys.GROUP: {}})


def test_stream_of_a_consumer_expires_when_it_is_killed(
    broker: StreamBroker, reading: Callable[..., Unprivileged], url: str
) -> None:
    mine = reading(url, "q")
    mine.wait()

    assert 0 < broker.client.call("PTTL", OWN) <= 300_000
    broker.publish("q", message(1))
    eventually(mine.ended)


@pytest.mark.parametrize("verb", ["UNLINK", "FLUSHALL"])
def test_stream_of_a_consumer_that_was_deleted_is_made_again(
    broker: StreamBroker, reading: Callable[..., Unprivileged], url: str, verb: str
) -> None:
    mine = reading(url, "q")
    mine.on_command = lambda: setattr(mine, "stopped", True)
    mine.go_on()

    broker.client.call(verb, *([OWN] if verb == "UNLINK" else []))
    if verb == "UNLINK":
        broker.publish("q", message(1))  # Redis 6.2 does not end a read whose stream is deleted
    eventually(lambda: broker.client.call("EXISTS", OWN) and mine.is_blocked())
    mine.command()

    assert ends_at_once(mine)


def test_reader_all_of_whose_queues_are_paused_hears_commands(
    broker: StreamBroker, reading: Callable[..., Unprivileged], url: str
) -> None:
    mine = reading(url, "q")
    mine.on_command = lambda: setattr(mine, "stopped", True)
    pause_queue(broker, "q")
    mine.next()
    mine.wait()
    assert b" cmd=xread " in broker.client.call("CLIENT", "LIST")

    mine.command()
    assert ends_at_once(mine)

    resume_queue(broker, "q")


def test_reader_without_any_way_waits_no_longer_than_five_seconds(
    client: RedisClient, reading: Callable[..., Unprivileged], redis_url: str
) -> None:
    client.call("ACL", "SETUSER", "bare", "reset", "on", ">pw", "~celery-streams:{q}", "~*queues", "+@all", "-client")
    mine = reading(redis_url.replace("://", "://bare:pw@"), "q")
    mine.reader._block_ms = 30_000
    with contextlib.suppress(BrokerError):
        mine.reader.arm()

    assert mine.reader._block_ms == 5_000
    mine.reader.disarm()
    client.call("ACL", "DELUSER", "bare")


def test_server_without_client_is_asked_for_it_once(broker: StreamBroker) -> None:
    with EmbeddedRedis(args=("--rename-command", "CLIENT", "")) as server:
        here = StreamBroker(RedisClient(server.url))
        here.ensure_groups(["q"])
        mine = Reading(server.url, "q")
        mine.on_command = lambda: setattr(mine, "stopped", True)
        failed = [_errors(here)]
        for _ in range(3):
            mine.stopped = False
            mine.reader.arm()
            mine.reader.disarm()
            assert mine.reader.collect() == []
            failed.append(_errors(here))
        mine.close()
        here.client.close()

    assert failed[1] == failed[2] == failed[3]


def _errors(broker: StreamBroker) -> int:
    """Return how many commands the server has refused."""
    said = broker.client.call("INFO", "stats").decode()
    return int(said.partition("total_error_replies:")[2].partition("\r")[0])


def test_read_that_waits_for_the_end_of_a_pause_is_ended_after_it_and_redis_lives_on(
    broker: StreamBroker, client: RedisClient, redis_url: str
) -> None:
    broker.ensure_groups(["q"])
    mine = StreamBroker(RedisClient(redis_url))
    streams, unblocker, blocking = mine.streams(["q"]), Unblocker(mine, "me"), mine.client.open()
    blocking.connect(lasting=5.0)
    assert unblocker.prepare(blocking, streams)
    number = b"id=%d " % client_id(blocking)

    client.call("CLIENT", "PAUSE", 400, "WRITE")
    send_blocking_read(blocking, streams, "me", block_ms=5_000)
    eventually(lambda: any(number in one and b" flags=b" in one for one in client.call("CLIENT", "LIST").splitlines()))
    assert unblocker.unblock()

    assert receive_blocking_read(blocking, streams, timeout=5.0) == []
    assert client.call("PING") in (b"PONG", "PONG")
    blocking.close()


def client_id(blocking: BlockingConnection) -> int:
    blocking.send("CLIENT", "ID")
    return int(blocking.receive())

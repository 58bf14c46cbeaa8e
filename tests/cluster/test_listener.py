"""What is published anywhere in a cluster is heard, and lists are waited for, whatever happens to nodes and slots."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from celery_streams.cluster import ClusterClient
from celery_streams.cluster_listener import ListWait, Subscription
from celery_streams.cluster_map import slot_of
from celery_streams.exceptions import BrokerUnavailable
from celery_streams.poll import readable
from celery_streams.redis_url import ConnectionOptions
from tests.support.cluster import Cluster, cluster
from tests.support.eventually import eventually

#: Seconds between two looks at whether a subscription hears; short, so that tests need not wait.
CHECK_EVERY = 0.4


@pytest.fixture
def listening(shards: ClusterClient) -> Iterator[Subscription]:
    """A subscription; tests have names of their own: what one published may reach another node during the next."""
    made = shards.subscription(check_every=CHECK_EVERY)
    yield made
    made.close()


def heard(listening: Subscription, count: int) -> list[tuple[str, bytes]]:
    """Return what is heard, once it is so much; looks at the subscription meanwhile, as a program does."""
    found: list[tuple[str, bytes]] = []

    def enough() -> bool:
        listening.check()
        readable(listening.watched, timeout=0.1)
        found.extend(listening.receive())
        return len(found) >= count

    eventually(enough, timeout=30, interval=0.0, message=f"{count} messages are heard")
    return found


def test_what_any_client_publishes_is_heard_in_order(listening: Subscription, nodes: Cluster) -> None:
    listening.listen(["/{control a}", "/{events a}/worker.*"])
    with_others = [nodes.client() for _ in range(3)]
    for number in range(300):
        with_others[number % 3].publish(f"/{{events a}}/worker.{number % 7}", str(number))
        with_others[number % 3].publish("/{events a}/task.started", "not asked for")
    with_others[0].publish("/{control a}", "last")

    found = heard(listening, 301)

    assert [text for name, text in found if name == "/{events a}/worker.*"] == [str(n).encode() for n in range(300)]
    assert [text for name, text in found if name == "/{control a}"] == [b"last"]
    for one in with_others:
        one.close()


def test_names_come_and_go_and_each_is_heard_from_the_return_on(listening: Subscription, shards: ClusterClient) -> None:
    listening.listen(["/{control b}", "/{events b}/worker.*"])
    listening.listen(["/{control b}", "/{more}"])
    shards.publish("/{more}", "1")
    shards.publish("/{events b}/worker.x", "no more")
    assert heard(listening, 1) == [("/{more}", b"1")]

    listening.listen([])
    assert listening.watched == {}
    shards.publish("/{control b}", "nobody listens")
    listening.listen(["/{control b}"])
    shards.publish("/{control b}", "2")

    assert heard(listening, 1) == [("/{control b}", b"2")]


def test_look_at_a_subscription_that_hears_changes_nothing(shards: ClusterClient, nodes: Cluster) -> None:
    listening = shards.subscription(check_every=0.0)
    listening.listen(["/{control c}", "/{events c}/worker.*"])
    link = listening.watched

    for _ in range(5):
        listening.check()
        assert len(listening._unheard) == 2
        eventually(lambda: not (listening.receive() or listening._unheard))

    assert listening.watched == link
    listening.close()


def test_program_that_did_something_else_for_long_has_lost_nothing(shards: ClusterClient) -> None:
    listening = shards.subscription(check_every=0.0)
    listening.listen(["/{control d}"])
    link = listening.watched
    listening.check()  # asks
    shards.publish("/{control d}", "meanwhile")
    time.sleep(3.0)  # what was published has arrived, and nobody has looked for longer than the time between two looks

    listening.check()

    assert listening.receive() == [("/{control d}", b"meanwhile")]
    assert listening.watched == link
    listening.close()


@pytest.mark.parametrize("what", ["killed", "cut", "deaf"])
def test_subscription_goes_to_another_node_when_its_own_one_is(what: str) -> None:
    with cluster(full_coverage=False) as nodes:
        shards = nodes.client()
        listening = shards.subscription(check_every=CHECK_EVERY)
        listening.listen(["/{control}", "/{events}/worker.*"])
        (at,) = nodes.listened_at("/{control}")
        others = [number for number in range(3) if number != at]

        if what == "killed":
            nodes.servers[at].kill()
        elif what == "cut":
            nodes.clients[at].call("CLIENT", "KILL", "TYPE", "pubsub")
        else:
            # It lives, answers, and hears no more of what is published elsewhere: an operator has taken it out.
            for other in others:
                nodes.clients[other].call("CLUSTER", "FORGET", nodes.ids[at])
            nodes.clients[at].call("CLUSTER", "RESET", "HARD")

        def elsewhere() -> bool:
            listening.check()
            listening.receive()
            return any(number != at or what == "cut" for number in nodes.listened_at("/{control}"))

        eventually(elsewhere, timeout=30, message="it listens at another node")
        publisher = nodes.client()
        for number in range(20):
            publisher.publish(f"/{{events}}/worker.{number}", str(number))
        publisher.publish("/{control}", "last")

        found = heard(listening, 21)

        assert [text for name, text in found if name == "/{events}/worker.*"] == [str(n).encode() for n in range(20)]
        assert [text for name, text in found if name == "/{control}"] == [b"last"]
        for one in (publisher, shards, listening):
            one.close()


@pytest.mark.cluster
def test_silent_node_is_left_and_holds_nobody_up_for_longer_than_a_timeout() -> None:
    with cluster(full_coverage=False) as nodes:
        shards = ClusterClient(nodes.url, ConnectionOptions(transport={"socket_timeout": 1.0}))
        listening = shards.subscription(check_every=CHECK_EVERY)
        listening.listen(["/{control}"])
        (at,) = nodes.listened_at("/{control}")
        pid = nodes.servers[at].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        longest = 0.0
        try:

            def again() -> bool:
                nonlocal longest
                began = time.monotonic()
                listening.check()
                longest = max(longest, time.monotonic() - began)
                with contextlib.suppress(BrokerUnavailable):
                    shards.publish("/{control}", "x")
                return bool(listening.receive())

            eventually(again, timeout=30, message="it is heard again")
        finally:
            os.kill(pid, signal.SIGCONT)
        # At most three nodes are asked for three things each, with a second's patience.
        assert longest < 9.0
        listening.close()
        shards.close()


def test_subscription_that_finds_no_node_says_so() -> None:
    with cluster(masters=1) as nodes:
        shards = nodes.client()
        listening = shards.subscription()
        listening.listen(["/{control}"])
        nodes.servers[0].kill()

        with pytest.raises(BrokerUnavailable):
            eventually(listening.receive, timeout=10)
        with pytest.raises(BrokerUnavailable):
            listening.listen(["/{control}"])

        listening.close()
        shards.close()


def entry(waiting: ListWait, *, timeout: float = 15.0) -> bytes:
    """Return the next entry, asking for it as a program does."""

    def found() -> bytes | None:
        waiting.ask()
        readable(waiting.watched, timeout=0.1)
        return waiting.take()

    return eventually(found, timeout=timeout, interval=0.0, message="an entry has come")


def test_entries_of_a_list_come_in_their_order_and_each_once(shards: ClusterClient) -> None:
    waiting = shards.wait_for("a.reply.celery.pidbox")
    pushing = threading.Timer(0.3, lambda: shards.call("LPUSH", "a.reply.celery.pidbox", *range(5)))
    pushing.start()

    assert [entry(waiting) for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]

    pushing.join()
    waiting.ask()
    assert waiting.take() is None
    waiting.close()


def test_list_whose_slot_moves_is_waited_for_where_it_is(nodes: Cluster, shards: ClusterClient) -> None:
    key = "b.reply.celery.pidbox"
    slot, source = slot_of(key), nodes.owner(key)
    target = (source + 1) % 3
    waiting = shards.wait_for(key)
    waiting.ask()
    publisher = nodes.client()
    try:
        publisher.call("LPUSH", key, "before")
        assert entry(waiting) == b"before"
        nodes.begin_move(slot, source, target)
        # The list does not exist, so it is made at the other end.
        publisher.call("LPUSH", key, "while it is open")
        assert entry(waiting) == b"while it is open"
        waiting.ask()
        nodes.end_move(slot, source, target)
        publisher.call("LPUSH", key, "after")
        assert entry(waiting) == b"after"
    finally:
        nodes.begin_move(slot, target, source)
        nodes.end_move(slot, target, source)
        publisher.close()
        waiting.close()

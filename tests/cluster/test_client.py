"""ClusterClient and StreamBroker on three masters: what goes where, in which order, and what is not sent twice."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from celery_streams import inspect, keys, scripts
from celery_streams.block_store import MessageBlock, QueuedMessage, publish_blocks
from celery_streams.broker import StreamBroker
from celery_streams.cluster import ClusterClient, connect
from celery_streams.cluster_map import key_of, slot_of, slot_owners, split
from celery_streams.consumers import forget_consumer, touch_consumers
from celery_streams.dead_letters import dead_letters, replay
from celery_streams.entries import Delivery
from celery_streams.exceptions import BrokerError, BrokerUnavailable, ClusterNode, ConfigurationError
from celery_streams.handovers import hand_over, take_over
from celery_streams.partitions import partition
from celery_streams.pauses import pause_queue, paused_queues, resume_queue
from celery_streams.probes import denied_commands, permitted_rules
from celery_streams.reads import receive_blocking_read, send_blocking_read
from celery_streams.recovery import busy_queues, gather
from celery_streams.transfers import store_retry
from tests.support.cluster import Cluster
from tests.support.eventually import eventually
from tests.support.redis_state import message, number_of


def read_all(broker: StreamBroker, queues: list[str], consumer: str) -> list[Delivery]:
    found: list[Delivery] = []
    while some := broker.read(broker.streams(queues), consumer, count=100):
        found += some
    return found


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("XADD", "a", "*", "f", "v"), "a"),
        (("XGROUP", "CREATE", "a", "g", "0", "MKSTREAM"), "a"),
        (("XINFO", "GROUPS", "a"), "a"),
        (("MEMORY", "USAGE", "a"), "a"),
        (("EVAL", "return 1", 1, "a", "b"), "a"),
        (("EVAL", "return 1", 0), None),
        (("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", "a", ">"), "a"),
        ((scripts.ACK, ["a"], ["g", "c", "1-1"]), "a"),
        (("TIME",), None),
        (("CLIENT", "UNBLOCK", 3), None),
    ],
)
def test_key_of_a_command_is_found(command: tuple[Any, ...], key: str | None) -> None:
    assert key_of(command) == key


def test_commands_over_several_slots_are_cut_at_their_keys() -> None:
    read = ("XREAD", "COUNT", 1, "BLOCK", 5, "STREAMS", "{a}1", "{b}1", "{a}2", "1-1", "2-2", "3-3")

    assert split(read) == {
        slot_of("a"): ("XREAD", "COUNT", 1, "BLOCK", 5, "STREAMS", "{a}1", "{a}2", "1-1", "3-3"),
        slot_of("b"): ("XREAD", "COUNT", 1, "BLOCK", 5, "STREAMS", "{b}1", "2-2"),
    }
    assert split(("EXISTS", "{a}", "{b}x", "{a}")) == {
        slot_of("{a}"): ("EXISTS", "{a}", "{a}"),
        slot_of("b"): ("EXISTS", "{b}x"),
    }


def test_node_that_does_not_know_its_own_address_is_the_one_that_was_asked() -> None:
    owners = slot_owners(
        [[0, 2, [b"", 7000, b"id"]], [4, 16383, [b"::1", 7001, b"id"], [b"r", 1, b"x"]]], asked=("h", 1)
    )

    assert owners[:5] == [("h", 7000), ("h", 7000), ("h", 7000), None, ("::1", 7001)]


def test_replies_of_a_pipeline_over_all_nodes_are_in_order(shards: ClusterClient, nodes: Cluster) -> None:
    names = nodes.queues_apart(6)

    replies = shards.pipeline(
        [command for number, name in enumerate(names) for command in (("SET", name, number), ("GET", name), ("TIME",))]
    )

    assert replies[1::3] == [b"%d" % number for number in range(6)]
    assert [len(reply) for reply in replies[2::3]] == [2] * 6
    assert [len(node.call("KEYS", "*")) for node in shards.nodes] == [2, 2, 2]


def test_script_that_no_node_knows_is_sent_in_full_to_each(on_shards: StreamBroker, nodes: Cluster) -> None:
    queues = nodes.queues_apart(3)
    for client in nodes.clients:
        client.call("SCRIPT", "FLUSH")
    on_shards.ensure_groups(queues)

    assert on_shards.read(on_shards.streams(queues), "me", count=1) == []


def test_single_server_behind_the_url_of_a_cluster_is_refused_with_the_scheme_to_use(redis_url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no node of a Redis Cluster.*use redis://"):
        connect(redis_url.replace("redis://", "redis+cluster://")).greet()


def test_start_node_that_is_gone_does_not_matter(nodes: Cluster) -> None:
    client = connect(f"redis+cluster://127.0.0.1:1;127.0.0.1:{nodes.servers[1].port}")

    client.greet()

    assert client.call("SET", "a", 1) == b"OK"
    client.close()


def test_cluster_that_is_away_is_unavailable() -> None:
    client = connect("redis+cluster://127.0.0.1:1;127.0.0.1:2")

    with pytest.raises(BrokerUnavailable):
        client.greet()
    with pytest.raises(BrokerUnavailable):
        client.call("GET", "a")
    (reply,) = client.attempt([("SET", "a", 1)])
    assert isinstance(reply, BrokerUnavailable)


def test_keys_of_one_command_in_two_slots_are_refused_with_what_to_do(shards: ClusterClient) -> None:
    with pytest.raises(ClusterNode, match="must not begin with '}'"):
        shards.call("MGET", "a", "b")


@pytest.mark.parametrize("queue", ["{a}", "{}", "a{b}c", "a}b", "a}{b", "{", "{{}}", "{a", partition("{a}", 3)])
def test_queue_with_braces_in_its_name_has_all_its_keys_in_one_slot(on_shards: StreamBroker, queue: str) -> None:
    on_shards.ensure_groups([queue])
    on_shards.publish(queue, message(1), max_length=10)
    on_shards.delay(queue, message(2), due_ms=1, member="m")
    assert on_shards.promote([queue]).moved == 1
    first, second = read_all(on_shards, [queue], "me")
    assert on_shards.reject("me", first.entry, death=b"{}", max_length=None, ttl=None)
    assert on_shards.requeue("me", second.entry, history={})
    (letter,) = dead_letters(on_shards, queue)
    assert replay(on_shards, letter)

    assert len(read_all(on_shards, [queue], "other")) == 2


@pytest.mark.parametrize(("queue", "prefix"), [("}", "x"), ("}{", "x"), ("}a{b}", "x"), ("a", "{}"), ("a", "x{}y{z}")])
def test_queue_whose_keys_would_lie_in_several_slots_is_refused_before_anything_is_stored(
    shards: ClusterClient, nodes: Cluster, queue: str, prefix: str
) -> None:
    here = StreamBroker(shards, prefix=prefix)
    block = MessageBlock(queue, "name", [QueuedMessage("1", message(1), 0, "")])

    with pytest.raises(ClusterNode, match="must not begin with '}'"):
        here.publish(queue, message(1))
    with pytest.raises(ClusterNode, match="must not begin with '}'"):
        here.delay(queue, message(1), due_ms=1, member="m")
    with pytest.raises(ClusterNode, match="must not begin with '}'"):
        here.ensure_groups(["good", queue])
    assert isinstance(publish_blocks(here, [block])[0], ClusterNode)
    assert set(nodes.keys()) <= {f"{prefix}:queues"}


def test_entries_of_queues_on_all_nodes_are_read_acknowledged_and_put_back(
    on_shards: StreamBroker, nodes: Cluster
) -> None:
    queues = nodes.queues_apart(6)
    on_shards.ensure_groups(queues)
    for number, queue in enumerate(queues):
        on_shards.publish(queue, message(number))

    found = read_all(on_shards, queues, "me")

    assert sorted(map(number_of, found)) == list(range(6))
    entries = [one.entry for one in found]
    assert on_shards.extend([("me", one) for one in entries]) == []
    assert on_shards.extend([("other", one) for one in entries]) == list(range(6))
    assert on_shards.put_back("me", entries[:3]) == 3
    assert on_shards.ack("me", entries[3:]) == []
    assert on_shards.ack("me", entries) == entries
    again = read_all(on_shards, queues, "other")
    assert sorted(map(number_of, again)) == sorted(map(number_of, found[:3]))
    assert on_shards.put_back_all(on_shards.streams(queues), "other") == 3
    assert inspect.known_queues(on_shards) == sorted(queues)
    assert sum(inspect.queue_status(on_shards, queue).waiting for queue in queues) == 3


def test_delayed_messages_of_queues_on_all_nodes_become_due(on_shards: StreamBroker, nodes: Cluster) -> None:
    queues = nodes.queues_apart(3)
    on_shards.ensure_groups(queues)
    for number, queue in enumerate(queues):
        on_shards.delay(queue, message(number), due_ms=1, member=f"m{number}")
    on_shards.delay(queues[1], message(9), due_ms=9_000_000_000_000, member="later")

    promotion = on_shards.promote(queues)

    assert (promotion.moved, promotion.refusal) == (3, "")
    assert [wait is None for wait in promotion.waits] == [True, False, True]
    assert promotion.next_due_ms == promotion.waits[1]
    assert sorted(map(number_of, read_all(on_shards, queues, "me"))) == [0, 1, 2]


def test_pauses_consumers_and_handovers_go_slot_by_slot(on_shards: StreamBroker, nodes: Cluster) -> None:
    queues = nodes.queues_apart(3)
    on_shards.ensure_groups(queues)
    assert paused_queues(on_shards, queues) == {}
    pause_queue(on_shards, queues[2], reason="why")
    assert list(paused_queues(on_shards, queues)) == [queues[2]]
    assert resume_queue(on_shards, queues[2])
    for number, queue in enumerate(queues):
        on_shards.publish(queue, message(number))
    found = read_all(on_shards, queues, "me")
    assert hand_over(on_shards, "me", "w.handed", [one.entry for one in found]) == 3
    taken = take_over(on_shards, "w.handed", "other", on_shards.streams(queues), count=2)
    assert len(taken) == 2
    assert busy_queues(on_shards, queues[:1]).queues == (queues[0],)
    assert touch_consumers(on_shards, queues, ["new"]) > 0
    assert forget_consumer(on_shards, queues, "new") > 0


def test_blocked_read_hears_each_node_and_calls_the_others_back(on_shards: StreamBroker, nodes: Cluster) -> None:
    queues = nodes.queues_apart(6)
    on_shards.ensure_groups(queues)
    streams = on_shards.streams(queues)
    reading = on_shards.client.open()
    for number, queue in enumerate(queues):
        send_blocking_read(reading, streams, "me", block_ms=20_000)
        assert not reading.ready()

        on_shards.publish(queue, message(number))
        eventually(reading.ready)

        (found,) = receive_blocking_read(reading, streams, timeout=5)
        assert (number_of(found), found.stream.queue) == (number, queue)
        assert on_shards.ack("me", [found.entry]) == []
    send_blocking_read(reading, streams, "me", block_ms=20_000)
    assert reading.call_back()
    assert receive_blocking_read(reading, streams, timeout=5) == []
    reading.close()


def test_blocked_reads_take_short_turns_where_none_can_be_called_back(nodes: Cluster) -> None:
    for client in nodes.clients:
        client.call("ACL", "SETUSER", "chat", "on", ">pw", "~*", "+@all", "-client", "+client|id")
    try:
        broker = StreamBroker(connect(nodes.url.replace("://", "://chat:pw@", 1)))
        queues = nodes.queues_apart(3)
        broker.ensure_groups(queues)
        streams = broker.streams(queues)
        reading = broker.client.open()
        for block_ms in (50, 20_000):
            send_blocking_read(reading, streams, "me", block_ms=block_ms)
            broker.publish(queues[1], message(block_ms))
            eventually(reading.ready)
            (found,) = receive_blocking_read(reading, streams, timeout=5)
            assert number_of(found) == block_ms
        reading.close()
        broker.client.close()
    finally:
        for client in nodes.clients:
            client.call("ACL", "DELUSER", "chat")


@pytest.mark.parametrize("due_ms", [0, 9_000_000_000_000])
def test_retry_to_a_queue_of_another_node_is_stored_once_however_often_it_is_tried(
    on_shards: StreamBroker, nodes: Cluster, due_ms: int
) -> None:
    here, there = nodes.queues_apart(2)
    on_shards.ensure_groups([here, there])
    on_shards.publish(here, message(1))
    (found,) = read_all(on_shards, [here], "me")

    where: dict[str, Any] = {"queue": there, "due_ms": due_ms, "member": "id:1:0"}
    for token in range(3):  # twice it dies before it acknowledges, and runs again
        assert store_retry(on_shards, "me", found.entry, message(2), **{**where, "member": f"id:1:{token}"})
        assert inspect.queue_status(on_shards, here).pending == 1

    assert on_shards.ack("me", [found.entry]) == []

    there_now = inspect.queue_status(on_shards, there)
    assert (there_now.waiting, there_now.delayed) == ((0, 1) if due_ms else (1, 0))
    assert inspect.queue_status(on_shards, here).length == 0
    assert not store_retry(on_shards, "me", found.entry, message(2), **where)


#: What people type at an entry that somebody runs.
HANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "acknowledged": (("XACK", "STREAM", keys.GROUP, "ENTRY"),),
    "without its consumer": (("XGROUP", "DELCONSUMER", "STREAM", keys.GROUP, "me"),),
    "in a new group": (("XGROUP", "DESTROY", "STREAM", keys.GROUP), ("XGROUP", "CREATE", "STREAM", keys.GROUP, "$")),
}


@pytest.mark.parametrize("apart", [True, False], ids=["another node", "the same queue"])
@pytest.mark.parametrize("found_before", [False, True])
@pytest.mark.parametrize("hand", HANDS)
def test_retry_of_what_somebody_took_by_hand_is_stored_whichever_queue_it_goes_to(
    on_shards: StreamBroker, nodes: Cluster, hand: str, found_before: bool, apart: bool
) -> None:
    here, there = nodes.queues_apart(2) if apart else nodes.queues_apart(1) * 2
    on_shards.ensure_groups([here, there])
    on_shards.publish(here, message(1))
    (found,) = read_all(on_shards, [here], "me")
    for words in HANDS[hand]:
        said = {"STREAM": found.stream.key, "ENTRY": found.entry_id}
        on_shards.client.call(*(said.get(word, word) for word in words))
    if found_before:
        assert gather(on_shards, [here]) == ({here: 1}, "")

    if apart:
        assert store_retry(on_shards, "me", found.entry, message(2), queue=there, due_ms=0, member="m")
        assert on_shards.ack("me", [found.entry]) == []
    else:
        assert on_shards.retry("me", found.entry, message(2), queue=here)

    assert [number_of(one) for one in read_all(on_shards, [here, there], "other")] == [2]
    assert [gather(on_shards, [queue]) for queue in (here, there)] == [({}, "")] * 2


def test_retry_of_what_another_worker_claimed_or_settled_is_not_stored(on_shards: StreamBroker, nodes: Cluster) -> None:
    here, there = nodes.queues_apart(2)
    on_shards.ensure_groups([here, there])
    for number in range(2):
        on_shards.publish(here, message(number))
    claimed, settled = read_all(on_shards, [here], "me")
    on_shards.client.call("XCLAIM", claimed.stream.key, keys.GROUP, "other", 0, claimed.entry_id)
    assert on_shards.ack("me", [settled.entry]) == []

    for one in (claimed, settled):
        assert not store_retry(on_shards, "me", one.entry, message(7), queue=there, due_ms=0, member="m")

    assert inspect.queue_status(on_shards, there).length == 0


def test_dead_letter_is_replayed_to_a_queue_of_another_node_once(on_shards: StreamBroker, nodes: Cluster) -> None:
    here, there = nodes.queues_apart(2)
    on_shards.ensure_groups([here, there])
    on_shards.publish(here, message(1))
    (found,) = read_all(on_shards, [here], "me")
    assert on_shards.reject("me", found.entry, death=b'{"reason":"failed"}', max_length=None, ttl=None)
    (letter,) = dead_letters(on_shards, here)

    assert replay(on_shards, letter, queue=there) == ""
    assert replay(on_shards, letter, queue=there) is None

    assert list(dead_letters(on_shards, here)) == []
    assert [number_of(one) for one in read_all(on_shards, [there], "me")] == [1]


def test_blocks_for_queues_on_all_nodes_are_stored_once(on_shards: StreamBroker, nodes: Cluster) -> None:
    queues = nodes.queues_apart(3)
    blocks = [
        MessageBlock(queue, f"block-{queue}", [QueuedMessage(f"{queue}-{n}", message(n), 0, "") for n in range(5)])
        for queue in queues
    ]

    assert publish_blocks(on_shards, blocks) == [[], [], []]
    assert publish_blocks(on_shards, blocks) == [[], [], []]

    on_shards.ensure_groups(queues)
    assert sorted(map(number_of, read_all(on_shards, queues, "me"))) == sorted([*range(5)] * 3)


def test_process_may_connect_to_a_node_as_often_as_it_likes(shards: ClusterClient, nodes: Cluster) -> None:
    queues = nodes.queues_apart(3)
    for _ in range(120):
        shards.close()
        read = shards.open()
        read.send("XREAD", "STREAMS", *queues, *("0" for _ in queues))
        assert not read.receive()
        read.close()
        assert shards.call_all([("EXISTS", queue) for queue in queues]) == [0, 0, 0]


def test_command_whose_reply_is_lost_is_not_sent_again(shards: ClusterClient, nodes: Cluster) -> None:
    apart = nodes.queues_apart(3)
    assert shards.pipeline([("DEL", f"{{{name}}}") for name in apart]) == [0, 0, 0]
    victim = nodes.owner(f"celery-streams:{{{apart[1]}}}")
    # Its connection is cut while it waits for the replies, which come from all nodes.
    blocked = threading.Event()

    def cut() -> None:
        blocked.wait(10)

        def waits() -> bool:
            said = nodes.clients[victim].call("CLIENT", "LIST").decode()
            return any("cmd=blpop" in line for line in said.splitlines())

        eventually(waits)
        nodes.clients[victim].call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    thread = threading.Thread(target=cut)
    thread.start()
    blocked.set()
    replies = shards.pipeline(
        [
            *(("RPUSH", f"celery-streams:{{{name}}}:list", 1) for name in apart),
            ("BLPOP", f"celery-streams:{{{apart[1]}}}:none", 10),
        ]
    )
    thread.join()

    assert [isinstance(reply, BrokerUnavailable) for reply in replies] == [False, True, False, True]
    assert shards.pipeline([("LLEN", f"celery-streams:{{{name}}}:list") for name in apart]) == [1, 1, 1]


@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone"])
@pytest.mark.parametrize("moved", ["before", "within"])
def test_moved_slot_is_followed_and_each_command_runs_once(
    shards: ClusterClient, nodes: Cluster, moved: str, alone: bool
) -> None:
    name = nodes.queues_apart(1)[0]
    key = f"celery-streams:{{{name}}}"
    shards.call("RPUSH", key, 0)
    slot, source = slot_of(key), nodes.owner(key)
    target = (source + 1) % 3
    nodes.begin_move(slot, source, target)
    try:
        if moved == "before":
            nodes.end_move(slot, source, target)
        else:
            assert shards.call("RPUSH", key, "at the source") == 2
            nodes.move_keys(slot, source, target)

        commands = [("RPUSH", key, number) for number in range(5)]
        replies = [shards.call(*command) for command in commands] if alone else shards.pipeline(commands)
        script = shards.run(scripts.Script("len", "return redis.call('LLEN', KEYS[1])", "0" * 40), [key], [])

        first = 2 if moved == "before" else 3
        assert replies == list(range(first, first + 5))
        assert script == first + 4
        (reply,) = shards.attempt([("RPUSH", key, "once")])
        assert reply == first + 5
    finally:
        nodes.end_move(slot, source, target)
        nodes.begin_move(slot, target, source)
        nodes.end_move(slot, target, source)


def test_slot_that_is_open_makes_scripts_wait_and_loses_nothing(on_shards: StreamBroker, nodes: Cluster) -> None:
    name = nodes.queues_apart(1)[0]
    on_shards.ensure_groups([name])
    on_shards.publish(name, message(1))
    key = on_shards.queue_keys(name).streams[0]
    slot, source = slot_of(key), nodes.owner(key)
    target = (source + 1) % 3
    nodes.begin_move(slot, source, target)
    try:
        with pytest.raises(BrokerUnavailable, match=r"TRYAGAIN|not ready"):
            on_shards.read(on_shards.streams([name]), "me", count=1)
        on_shards.publish(name, message(2))
        nodes.end_move(slot, source, target)

        assert [number_of(one) for one in read_all(on_shards, [name], "me")] == [1, 2]
    finally:
        nodes.begin_move(slot, target, source)
        nodes.end_move(slot, target, source)


def test_queue_whose_name_empties_the_hash_tag_is_refused(on_shards: StreamBroker) -> None:
    with pytest.raises(BrokerError, match="must not begin with '}'"):
        on_shards.publish("}x", message(1), max_length=10)
    assert keys.queue_keys("p", "a}b").streams[0] == "p:{a}b}"


def test_documented_permissions_are_enough(on_shards: StreamBroker, nodes: Cluster) -> None:
    (name,) = nodes.queues_apart(1)
    for client in nodes.clients:
        rules = permitted_rules(on_shards)
        client.call("ACL", "SETUSER", "chat", "reset", "on", ">pw", *rules, "+cluster|slots", "+asking")
    key = on_shards.queue_keys(name).streams[0]
    slot, source = slot_of(key), nodes.owner(key)
    target = (source + 1) % 3
    broker = StreamBroker(connect(nodes.url.replace("://", "://chat:pw@", 1)))
    try:
        broker.client.greet()
        broker.ensure_groups([name])
        broker.publish(name, message(1))
        broker.delay(name, message(2), due_ms=1, member="m")
        assert broker.promote([name]).moved == 1
        found = read_all(broker, [name], "me")
        assert sorted(map(number_of, found)) == [1, 2]
        assert broker.ack("me", [one.entry for one in found]) == []
        assert denied_commands(broker, name) == []
        nodes.begin_move(slot, source, target)
        while nodes.move_keys(slot, source, target):
            pass
        broker.publish(name, message(3))
        nodes.end_move(slot, source, target)
        assert [number_of(one) for one in read_all(broker, [name], "me")] == [3]
        nodes.begin_move(slot, target, source)
        nodes.end_move(slot, target, source)
    finally:
        broker.client.close()
        for client in nodes.clients:
            client.call("ACL", "DELUSER", "chat")

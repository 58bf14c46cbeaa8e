"""Migration between Celery's lists and the streams: nothing lost, nothing doubled, wherever it is cut off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_streams import keys, streams_of
from celery_streams.bin.migrate import migrate
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.kombu_lists import list_keys, unwrap
from celery_streams.message import Message, unpack
from celery_streams.migration import Migration, Plan
from tests.proj.ledger import Ledger
from tests.support.eventually import eventually
from tests.support.processes import Worker, project_environment
from tests.support.redis_state import StreamState, delivered, make_idle, redis_now_ms, redis_state

ROOT = Path(__file__).resolve().parents[2]

#: A port on which nothing listens.
AWAY = "redis://127.0.0.1:1/0"

#: Where an element of the lowest priority lies.
LOWEST = "q\x06\x169"

MakeApp = Callable[..., Celery]


class Cut(RedisClient):
    """A client that breaks at the Nth round trip of all that share its count: before Redis saw it, or after it."""

    def __init__(self, url: str, left: list[int], *, after: bool) -> None:
        super().__init__(url)
        self.left, self.after = left, after

    def call(self, *command: Any) -> Any:
        return self._count(lambda: super(Cut, self).call(*command))

    def pipeline(self, commands: Any) -> list[Any]:
        found: list[Any] = self._count(lambda: super(Cut, self).pipeline(commands))
        return found

    def _count(self, go: Callable[[], Any]) -> Any:
        self.left[0] -= 1
        if self.left[0] == 0 and not self.after:
            raise ConnectionResetError
        reply = go()
        if self.left[0] == 0:
            raise ConnectionResetError
        return reply


@pytest.fixture
def other(redis_url: str) -> Iterator[RedisClient]:
    """A client of another database of the same server."""
    made = RedisClient(redis_url.rpartition("/")[0] + "/5")
    yield made
    made.close()


def migration(broker: StreamBroker, lists: RedisClient | None = None, **options: Any) -> Migration:
    return Migration(broker, lists or broker.client, options=options, visibility_timeout=15.0)


def publish(stock: Celery, number: int, **options: Any) -> None:
    """Publish to a Celery list, as a project does that has never heard of streams."""
    with stock.connection_for_write() as connection:
        stock.send_task(
            "chat.send", (number,), {"text": "ü"}, task_id=f"t{number}", queue="q", connection=connection, **options
        )


def on_lists(client: RedisClient, queue: str = "q") -> list[str]:
    """Return the task ids on the lists, in the order in which a stock worker takes them."""
    return [
        json.loads(element)["headers"]["id"]
        for key in list_keys(queue, {}).lists
        for element in client.call("LRANGE", key, 0, -1)[::-1]
    ]


def on_streams(broker: StreamBroker, queue: str = "q") -> list[str]:
    """Return the task ids on the streams, highest priority first."""
    return [
        Message.from_fields(fields).decode_headers()["id"]
        for key in broker.queue_keys(queue).streams
        for _, fields in broker.client.call("XRANGE", key, "-", "+")
    ]


def delayed(broker: StreamBroker, queue: str = "q") -> list[str]:
    """Return the task ids of the delayed messages, the earliest first."""
    names = broker.queue_keys(queue)
    members = broker.client.call("ZRANGE", names.delayed, 0, -1)
    return [
        unpack(broker.client.call("HGET", names.delayed_messages, member)).decode_headers()["id"] for member in members
    ]


def seed_lists(stock: Celery) -> list[str]:
    """Publish ten messages of several priorities, two of them for later; returns their task ids."""
    for number in range(6):
        publish(stock, number)
    publish(stock, 6, priority=9)
    publish(stock, 7, priority=3)
    publish(stock, 8, countdown=3_600)
    publish(stock, 9, eta=datetime.now(timezone.utc) + timedelta(hours=2), priority=6)
    return [f"t{number}" for number in range(10)]


# -- lists to streams -------------------------------------------------------------------------------------------------


def test_what_is_on_the_lists_goes_to_the_streams_in_order(app: MakeApp, broker: StreamBroker) -> None:
    seed_lists(app(installed=False))

    moves = migration(broker).to_streams("q")

    state = redis_state(broker.client)
    assert (moves.moved, moves.delayed, moves.total) == (8, 2, 10)
    assert on_streams(broker) == ["t0", "t1", "t2", "t3", "t4", "t5", "t7", "t6"]
    assert delayed(broker) == ["t8", "t9"]
    assert on_lists(broker.client) == []
    assert [key for key in state if "migrating" in key] == []
    assert state["celery-streams:queues"] == {"q"}


def test_moved_message_is_the_one_that_a_publish_to_the_stream_writes(app: MakeApp, broker: StreamBroker) -> None:
    publish(app(installed=False), 1, priority=3, reply_to="r", headers={"trace": "x"})
    publish(app(), 1, priority=3, reply_to="r", headers={"trace": "x"})
    key = broker.queue_keys("q").streams[1]

    migration(broker).to_streams("q")

    ours, moved = (Message.from_fields(fields) for _, fields in broker.client.call("XRANGE", key, "-", "+"))
    own = {"origin", "stamps", "parent_id", "root_id"}
    assert {k: v for k, v in moved.decode_headers().items() if k not in own} == {
        k: v for k, v in ours.decode_headers().items() if k not in own
    }
    assert moved.decode_properties() == {**ours.decode_properties(), "reply_to": "r"}
    assert (moved.body, moved.history) == (ours.body, ours.history)


def test_eta_ahead_becomes_the_due_time(app: MakeApp, broker: StreamBroker) -> None:
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    publish(app(installed=False), 1, eta=due)
    publish(app(installed=False), 2, eta=datetime.now(timezone.utc) - timedelta(seconds=5))

    migration(broker).to_streams("q")

    [(_, score)] = redis_state(broker.client)["celery-streams:{q}:delayed"].items()
    assert score == int(due.timestamp() * 1000)
    assert on_streams(broker) == ["t2"]


def test_earlier_delayed_message_wakes_the_promoters(app: MakeApp, broker: StreamBroker) -> None:
    broker.delay("q", Message(b'{"id":"far"}', b"{}", b""), due_ms=2**45, member="far")
    before = broker.client.call("XREVRANGE", broker.queue_keys("q").wake, "+", "-")
    publish(app(installed=False), 1, countdown=60)

    migration(broker).to_streams("q")

    assert broker.client.call("XREVRANGE", broker.queue_keys("q").wake, "+", "-") != before


def test_redelivered_message_stays_marked(app: MakeApp, broker: StreamBroker) -> None:
    publish(app(installed=False), 1)
    envelope = json.loads(broker.client.call("RPOP", "q"))
    envelope["headers"]["redelivered"] = envelope["properties"]["delivery_info"]["redelivered"] = True
    broker.client.call("LPUSH", "q", json.dumps(envelope))

    migration(broker).to_streams("q")

    [(_, fields)] = broker.client.call("XRANGE", broker.queue_keys("q").streams[0], "-", "+")
    moved = Message.from_fields(fields)
    assert moved.decode_history() == {"redelivered": 1}
    assert "redelivered" not in moved.decode_headers()


@pytest.mark.parametrize("element", [b"junk", b"[1]", b"{}", b"\xff", b'{"body":1,"properties":{}}'])
def test_element_that_is_no_message_moves_whole_for_a_worker_to_dead_letter(
    app: MakeApp, broker: StreamBroker, element: bytes
) -> None:
    broker.client.call("LPUSH", "q", element)
    publish(app(installed=False), 1)

    moves = migration(broker).to_streams("q")

    [bad, good] = redis_state(broker.client)["celery-streams:{q}"].entries.values()
    assert (moves.malformed, moves.moved) == (1, 1)
    assert bad == {"element": element}
    assert "headers" in good


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_every_serializer_goes_there_and_back(
    app: MakeApp, broker: StreamBroker, serializer: str, compression: str | None
) -> None:
    publish(app(installed=False), 1, serializer=serializer, compression=compression)
    before = json.loads(broker.client.call("LINDEX", "q", 0))

    migration(broker).to_streams("q")
    migration(broker).to_lists("q")

    after = json.loads(broker.client.call("LINDEX", "q", 0))
    assert before["properties"].pop("delivery_tag") != after["properties"].pop("delivery_tag")
    assert after == before


def test_keys_of_a_prefixed_broker_with_other_steps_are_found(app: MakeApp, broker: StreamBroker) -> None:
    options: dict[str, Any] = {"global_keyprefix": "shop.", "priority_steps": [0, 5], "sep": ":"}
    stock = app(installed=False, broker_transport_options=options)
    publish(stock, 1)
    publish(stock, 2, priority=7)
    assert broker.client.call("LLEN", "shop.q:5") == 1

    moves = migration(broker, **options).to_streams("q")

    assert moves.moved == 2
    assert on_streams(broker) == ["t1", "t2"]


def test_what_a_stock_worker_has_fetched_moves_only_when_asked(app: MakeApp, broker: StreamBroker) -> None:
    publish(app(installed=False), 1)
    publish(app(installed=False), 2)
    fetched = json.loads(broker.client.call("RPOP", "q"))
    broker.client.call("HSET", "unacked", "tag-1", json.dumps([fetched, "", "q"]))
    broker.client.call("HSET", "unacked", "tag-2", json.dumps([fetched, "", "another"]))
    broker.client.call("ZADD", "unacked_index", 1, "tag-1", 1, "tag-2")

    first = migration(broker).to_streams("q")
    without = on_streams(broker)
    second = migration(broker).to_streams("q", include_unacked=True)

    state = redis_state(broker.client)
    assert (first.moved, first.recalled, without) == (1, 0, ["t2"])
    assert (second.moved, second.recalled) == (1, 1)
    assert on_streams(broker) == ["t2", "t1"]
    assert list(state["unacked"]) == list(state["unacked_index"]) == ["tag-2"]


def test_fetched_message_of_a_named_exchange_is_found_by_its_binding(app: MakeApp, broker: StreamBroker) -> None:
    publish(app(installed=False), 1)
    fetched = json.loads(broker.client.call("RPOP", "q"))
    broker.client.call("HSET", "unacked", "tag-1", json.dumps([fetched, "shop", "orders"]))
    broker.client.call("SADD", "_kombu.binding.shop", "orders\x06\x16\x06\x16q", "other\x06\x16\x06\x16z")

    moves = migration(broker).to_streams("q", include_unacked=True)

    assert (moves.recalled, moves.moved) == (1, 1)


# -- streams to lists -------------------------------------------------------------------------------------------------


def test_what_waits_and_is_delayed_goes_to_the_lists(app: MakeApp, broker: StreamBroker) -> None:
    for number in range(3):
        publish(app(), number)
    publish(app(), 3, priority=9)
    publish(app(), 4, countdown=600)

    moves = migration(broker).to_lists("q")

    state = redis_state(broker.client)
    assert (moves.moved, moves.delayed, moves.abandoned) == (4, 1, 0)
    assert on_lists(broker.client) == ["t4", "t0", "t1", "t2", "t3"]
    assert [json.loads(one)["headers"]["id"] for one in state[LOWEST]] == ["t3"]
    assert on_streams(broker) == delayed(broker) == []
    assert [key for key in state if "migrating" in key] == []


def test_list_element_is_what_kombu_itself_would_have_written(app: MakeApp, broker: StreamBroker) -> None:
    publish(app(installed=False), 1, priority=3, countdown=600)
    publish(app(), 1, priority=3, countdown=600)
    by_kombu = json.loads(broker.client.call("RPOP", "q\x06\x163"))

    migration(broker).to_lists("q")

    ours = json.loads(broker.client.call("RPOP", "q\x06\x163"))
    assert list(ours) == list(by_kombu)
    assert set(ours["headers"]) == set(by_kombu["headers"])
    assert set(ours["properties"]) == set(by_kombu["properties"])
    for name in ("delivery_info", "priority", "body_encoding", "delivery_mode"):
        assert ours["properties"][name] == by_kombu["properties"][name]
    assert ours["body"] == by_kombu["body"]


def test_message_delayed_after_a_crash_keeps_its_time_as_eta(app: MakeApp, broker: StreamBroker) -> None:
    headers = b'{"id":"t1","task":"chat.send","eta":null}'
    due_ms = redis_now_ms(broker.client) + 60_000
    broker.delay(
        "q",
        Message(headers, b'{"content_type":"application/json"}', b"[]", b'{"crashes":2}'),
        due_ms=due_ms,
        member="m",
    )

    migration(broker).to_lists("q")

    element = json.loads(broker.client.call("LINDEX", "q", 0))
    assert datetime.fromisoformat(element["headers"]["eta"]).timestamp() == pytest.approx(due_ms / 1000, abs=0.01)
    assert element["headers"]["redelivered"] is True


def test_what_runs_stays_and_what_dead_consumers_held_moves(app: MakeApp, broker: StreamBroker) -> None:
    for number in range(3):
        publish(app(), number)
    broker.ensure_groups(["q"])
    running, abandoned = broker.read(broker.streams(["q"]), "w", count=2)
    make_idle(broker, abandoned.stream, "w", abandoned.entry_id, idle_ms=20_000)

    moves = migration(broker).to_lists("q")

    state = redis_state(broker.client)["celery-streams:{q}"]
    [element] = [json.loads(one) for one in broker.client.call("LRANGE", "q", 0, -1) if b'"t1"' in one]
    assert (moves.moved, moves.abandoned) == (1, 1)
    assert list(state.entries) == [running.entry_id.decode()]
    assert state.pending[keys.GROUP] == {running.entry_id.decode(): ("w", 1)}
    assert sorted(on_lists(broker.client)) == ["t1", "t2"]
    assert element["properties"]["delivery_info"]["redelivered"] is True


def test_entries_that_are_no_messages_stay_and_hide_no_other(app: MakeApp, broker: StreamBroker) -> None:
    names = broker.queue_keys("q")
    for _ in range(150):
        broker.client.call("XADD", names.streams[0], "*", "junk", "1")
    publish(app(), 1)
    broker.delay("q", Message(b"{}", b"{}", b""), due_ms=2**44, member="gone")
    broker.client.call("HDEL", names.delayed_messages, "gone")
    publish(app(), 2, countdown=600)

    moves = migration(broker).to_lists("q")

    assert (moves.moved, moves.delayed, moves.skipped) == (1, 1, 151)
    assert sorted(on_lists(broker.client)) == ["t1", "t2"]
    assert broker.client.call("XLEN", names.streams[0]) == 150


def test_dead_letters_stay_on_the_streams(app: MakeApp, broker: StreamBroker) -> None:
    [held] = delivered(broker, "q", "w", Message(b"{}", b"{}", b""))
    broker.reject("w", held.entry, death=b"{}", max_length=None, ttl=None)
    before = redis_state(broker.client)

    moves = migration(broker).to_lists("q")

    assert moves.total == 0
    assert redis_state(broker.client) == before


def test_queue_that_was_never_used_is_nothing_to_move(broker: StreamBroker) -> None:
    assert migration(broker).to_lists("q").total == 0
    assert redis_state(broker.client) == {}


# -- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("databases", ["one", "two"])
def test_roundtrip_leaves_the_lists_as_they_were(
    app: MakeApp, broker: StreamBroker, other: RedisClient, databases: str
) -> None:
    lists = broker.client if databases == "one" else other
    seed_lists(app(installed=False, broker_url=lists.url))
    before = _elements(lists)

    there = migration(broker, lists).to_streams("q")
    between = _elements(lists)
    back = migration(broker, lists).to_lists("q")

    assert there.total == back.total == 10
    assert between == {}
    assert _elements(lists) == before
    assert on_streams(broker) == delayed(broker) == []


def _elements(client: RedisClient) -> dict[str, Any]:
    """Return everything on the lists by task id, without what is new for each delivery."""
    found: dict[str, Any] = {}
    for key in list_keys("q", {}).lists:
        for element in client.call("LRANGE", key, 0, -1):
            envelope = json.loads(element)
            envelope["properties"].pop("delivery_tag")
            assert envelope["headers"]["id"] not in found
            found[envelope["headers"]["id"]] = (key, envelope)
    return found


def test_tags_of_a_migration_between_databases_expire(app: MakeApp, broker: StreamBroker, other: RedisClient) -> None:
    seed_lists(app(installed=False, broker_url=other.url))

    migration(broker, other).to_streams("q")

    tags = keys.migration_keys(broker.prefix, "q").tags
    assert [key for key in redis_state(other) if "migrating" in key] == []
    assert [key for key in redis_state(broker.client) if "migrating" in key] == [tags]
    assert 0 < broker.client.call("TTL", tags) <= 3_600


# -- cut off ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before-redis-saw-it", "after-redis-did-it"])
@pytest.mark.parametrize("then", ["same", "opposite"])
@pytest.mark.parametrize("direction", ["streams", "lists"])
@pytest.mark.parametrize("databases", ["one", "two"])
def test_migration_cut_off_at_any_command_loses_and_doubles_nothing(
    app: MakeApp,
    broker: StreamBroker,
    other: RedisClient,
    redis_url: str,
    databases: str,
    direction: str,
    then: str,
    after: bool,
) -> None:
    # F29. Every command in turn is the last one; then another migration, in the same or the opposite direction.
    lists = broker.client if databases == "one" else other
    stock = app(installed=False, broker_url=lists.url)
    expected = sorted(seed_lists(stock))
    if direction == "lists":
        migration(broker, lists).to_streams("q")
    seeded = {client: _dump(client) for client in {broker.client, lists}}
    second = direction if then == "same" else {"streams": "lists", "lists": "streams"}[direction]
    at = 0
    finished = False
    while not finished:
        at += 1
        for client, dump in seeded.items():
            _restore(client, dump)
        left = [at + 10_000]
        cut_streams = Cut(redis_url, left, after=after)
        cut_lists = cut_streams if databases == "one" else Cut(other.url, left, after=after)
        cut = migration(StreamBroker(cut_streams), cut_lists)
        left[0] = at
        try:
            _go(cut, direction)
            finished = True
        except ConnectionResetError:
            pass

        _go(migration(broker, lists), second)

        found = on_streams(broker) + delayed(broker) if second == "streams" else on_lists(lists)
        assert sorted(found) == expected, f"cut off at command {at}"
    assert at > 5


def _go(one: Migration, direction: str) -> None:
    if direction == "streams":
        one.to_streams("q")
    else:
        one.to_lists("q")


def _dump(client: RedisClient) -> dict[bytes, bytes]:
    return {key: client.call("DUMP", key) for key in client.call("KEYS", "*")}


def _restore(client: RedisClient, dump: dict[bytes, bytes]) -> None:
    client.call("FLUSHDB")
    client.pipeline([("RESTORE", key, 0, value) for key, value in dump.items()])


@pytest.mark.parametrize("databases", ["one", "two"])
def test_killed_command_run_again_moves_each_message_once(
    app: MakeApp, broker: StreamBroker, other: RedisClient, redis_url: str, tmp_path: Path, databases: str
) -> None:
    count = 6_000
    lists = broker.client if databases == "one" else other
    publish(app(installed=False, broker_url=lists.url), 0)
    element = lists.call("RPOP", "q")
    lists.pipeline([("LPUSH", "q", element.replace(b'"t0"', b'"t%d"' % number)) for number in range(count)])
    (tmp_path / "killed_app.py").write_text(
        textwrap.dedent(
            f"""
            import celery, celery_streams
            app = celery.Celery("killed", broker="{lists.url}")
            app.conf.streams_url = "{redis_url}"
            celery_streams.install(app, enabled=True)
            """
        )
    )
    command = [sys.executable, "-m", "celery_streams", "-A", "killed_app", "--workdir", str(tmp_path), "migrate", "q"]
    stream = broker.queue_keys("q").streams[0]
    kills = 0
    for threshold in (1, count // 3):
        with subprocess.Popen([*command, "--to", "streams"], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            try:
                # The program has to start first, and on a busy machine that takes a while.
                eventually(
                    lambda least=threshold: broker.client.call("XLEN", stream) >= least, interval=0.001, timeout=60
                )
                kills += process.poll() is None
            finally:
                process.send_signal(signal.SIGKILL)
    assert broker.client.call("XLEN", stream) < count

    done = subprocess.run([*command, "--to", "streams"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert kills == 2
    assert "q: moved " in done.stdout
    assert Counter(on_streams(broker)) == Counter(f"t{number}" for number in range(count))
    assert on_lists(lists) == []


# -- under load -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("databases", ["one", "two"])
def test_nothing_is_lost_or_doubled_while_publishers_and_workers_of_both_sides_go_on(
    app: MakeApp, broker: StreamBroker, other: RedisClient, redis_url: str, databases: str
) -> None:
    lists_url = redis_url if databases == "one" else other.url
    stock, ours = app(installed=False, broker_url=lists_url), app(broker_url=lists_url, streams_url=redis_url)
    broker.ensure_groups(["q"])
    stop = threading.Event()
    ran: list[str] = []
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as exc:
                failures.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def stock_worker() -> None:
        client = RedisClient(lists_url)
        while not stop.is_set():
            for key in list_keys("q", {}).lists:
                element = client.call("RPOP", key)
                if element:
                    ran.append(unwrap(element, keys.queue_keys("x", "q")).decode_headers()["id"])
            time.sleep(0.001)  # the others want their turn
        client.close()

    def streams_worker() -> None:
        client = RedisClient(redis_url)
        reader = StreamBroker(client)
        while not stop.is_set():
            found = reader.read(reader.streams(["q"]), "w", count=3)
            ran.extend(one.message.decode_headers()["id"] for one in found if one.message)
            reader.ack("w", [one.entry for one in found])
            reader.promote(["q"])
            time.sleep(0.001)  # the others want their turn
        client.close()

    def publisher(publishing: Celery, start: int) -> Callable[[], None]:
        def work() -> None:
            for number in range(start, start + 200):
                publish(publishing, number, **({"countdown": 0.3} if number % 5 == 0 else {"priority": number % 10}))

        return work

    helpers = [guarded(stock_worker), guarded(streams_worker)]
    publishers = [guarded(publisher(stock, 0)), guarded(publisher(ours, 1_000))]
    for direction in ("streams", "lists", "streams", "lists", "streams"):
        client, lists = RedisClient(redis_url), RedisClient(lists_url)
        _go(migration(StreamBroker(client), lists), direction)
        client.close()
        lists.close()
    for thread in publishers:
        thread.join(30)
    eventually(lambda: len(ran) >= 400 or bool(failures), timeout=60)
    time.sleep(0.05)  # what was doubled would run by then
    stop.set()
    for thread in helpers:
        thread.join(10)

    assert failures == []
    assert Counter(ran) == Counter(f"t{start + number}" for start in (0, 1_000) for number in range(200))
    streams_of(ours).reload()


class Overtaken(RedisClient):
    """A client that lets somebody else act between what it read and the script that it runs next."""

    def __init__(self, url: str, meanwhile: Callable[[], Any]) -> None:
        super().__init__(url)
        self.meanwhile: Callable[[], Any] | None = meanwhile

    def run(self, *script: Any) -> Any:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().run(*script)


def test_element_that_a_stock_worker_takes_first_is_its_own(app: MakeApp, broker: StreamBroker, redis_url: str) -> None:
    for number in range(3):
        publish(app(installed=False), number)
    overtaken = Overtaken(redis_url, lambda: broker.client.call("RPOP", "q"))

    moves = migration(StreamBroker(overtaken), overtaken).to_streams("q")

    assert moves.moved == 2
    assert on_streams(broker) == ["t1", "t2"]


def test_element_that_is_put_back_at_the_tail_moves_too(app: MakeApp, broker: StreamBroker, redis_url: str) -> None:
    for number in range(3):
        publish(app(installed=False), number)
    restored = broker.client.call("RPOP", "q")
    overtaken = Overtaken(redis_url, lambda: broker.client.call("RPUSH", "q", restored))

    moves = migration(StreamBroker(overtaken), overtaken).to_streams("q")

    assert moves.moved == 3
    assert on_streams(broker) == ["t0", "t1", "t2"]


def test_entry_that_a_worker_reads_first_is_its_own(app: MakeApp, broker: StreamBroker, redis_url: str) -> None:
    for number in range(3):
        publish(app(), number)
    broker.ensure_groups(["q"])
    overtaken = Overtaken(redis_url, lambda: broker.read(broker.streams(["q"]), "w", count=1))

    moves = migration(StreamBroker(overtaken), overtaken).to_lists("q")

    assert moves.moved == 2
    assert on_lists(broker.client) == ["t1", "t2"]
    assert on_streams(broker) == ["t0"]


def test_entry_whose_owner_speaks_again_is_its_own(app: MakeApp, broker: StreamBroker, redis_url: str) -> None:
    publish(app(), 0)
    broker.ensure_groups(["q"])
    [held] = broker.read(broker.streams(["q"]), "w", count=1)
    make_idle(broker, held.stream, "w", held.entry_id, idle_ms=20_000)
    overtaken = Overtaken(redis_url, lambda: broker.extend([("w", held.entry)]))

    moves = migration(StreamBroker(overtaken), overtaken).to_lists("q")

    assert moves.total == 0
    assert on_streams(broker) == ["t0"]


def test_delayed_message_that_is_promoted_first_moves_once(app: MakeApp, broker: StreamBroker, redis_url: str) -> None:
    publish(app(), 0, countdown=600)
    names = broker.queue_keys("q")
    [member] = broker.client.call("ZRANGE", names.delayed, 0, -1)

    def come_due() -> None:
        broker.client.call("ZADD", names.delayed, 1, member)
        broker.promote(["q"])

    overtaken = Overtaken(redis_url, come_due)

    moves = migration(StreamBroker(overtaken), overtaken).to_lists("q")

    assert (moves.delayed, moves.moved) == (0, 1)
    assert on_lists(broker.client) == ["t0"]


def test_message_that_is_acknowledged_first_is_not_recalled(app: MakeApp, broker: StreamBroker, redis_url: str) -> None:
    publish(app(installed=False), 1)
    fetched = json.loads(broker.client.call("RPOP", "q"))
    broker.client.call("HSET", "unacked", "tag-1", json.dumps([fetched, "", "q"]))
    overtaken = Overtaken(redis_url, lambda: broker.client.call("HDEL", "unacked", "tag-1"))

    moves = migration(StreamBroker(overtaken), overtaken).to_streams("q", include_unacked=True)

    assert (moves.recalled, moves.total) == (0, 0)


# -- real workers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_migrated_messages_run_once_on_a_stock_worker_and_on_ours(
    redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path
) -> None:
    ledger = Ledger(redis_server.database_url(3))
    environment = project_environment(
        broker=redis_url, results=redis_server.database_url(1), ledger=ledger.url, queue="q", enabled=False
    )
    stock = Celery("publisher", broker=redis_url, set_as_current=False)
    broker = StreamBroker(RedisClient(redis_url))
    for number in range(20):
        stock.send_task(
            "tests.proj.tasks.send_message",
            (number,),
            {"text": "hi"},
            task_id=f"t{number}",
            queue="q",
            priority=number % 10,
            countdown=1 if number % 4 == 0 else None,
        )
    moving = migration(broker)
    workers = [
        Worker(program, name=program, queues="q", directory=tmp_path, environment=environment, pool="prefork")
        for program in ("lists", "streams")
    ]

    assert moving.to_streams("q").total == 20
    assert moving.to_lists("q").total == 20
    try:
        workers[0].start()
        eventually(lambda: len(ledger.runs()) >= 20, timeout=40)
        workers[0].stop()
        for number in range(20, 40):
            stock.send_task("tests.proj.tasks.send_message", (number,), task_id=f"t{number}", queue="q")
        assert moving.to_streams("q").total == 20
        workers[1].start()
        eventually(lambda: len(ledger.runs()) >= 40, timeout=40)
    finally:
        for worker in workers:
            worker.stop()
        stock.close()

    assert Counter(run["id"] for run in ledger.runs()) == Counter(f"t{number}" for number in range(40))
    assert moving.plan("q", "streams").total == moving.plan("q", "lists").total == 0
    ledger.close()
    broker.client.close()


# -- the command ------------------------------------------------------------------------------------------------------


def run(app: Celery, *words: str) -> Result:
    """Run the command as the root group would."""
    return CliRunner().invoke(migrate, list(words), obj=CLIContext(app=app, no_color=True, workdir=None))


def test_plan_counts_every_place(app: MakeApp, broker: StreamBroker) -> None:
    seed_lists(app(installed=False))
    fetched = json.loads(broker.client.call("RPOP", "q"))
    broker.client.call("HSET", "unacked", "tag-1", json.dumps([fetched, "", "q"]))
    for number in range(20, 24):
        publish(app(), number)
    publish(app(), 24, countdown=600)
    broker.ensure_groups(["q"])
    _, abandoned = broker.read(broker.streams(["q"]), "w", count=2)
    make_idle(broker, abandoned.stream, "w", abandoned.entry_id, idle_ms=20_000)
    before = redis_state(broker.client)

    plan = migration(broker).plan("q", "lists")

    assert plan == Plan("q", "lists", queued=9, waiting=2, delayed=1, abandoned=1, running=1, unacked=1, in_transit=0)
    assert (plan.total, migration(broker).plan("q", "streams").total) == (4, 9)
    assert redis_state(broker.client) == before


@pytest.mark.parametrize("direction", ["streams", "lists"])
def test_dry_run_counts_and_changes_nothing(app: MakeApp, broker: StreamBroker, direction: str) -> None:
    seed_lists(app(installed=False))
    publish(app(), 20)
    before = redis_state(broker.client)

    table = run(app(), "q", "--to", direction, "--dry-run")
    found = json.loads(
        run(app(streams_enabled=direction == "streams"), "q", "--to", direction, "--dry-run", "--json").stdout
    )

    total = 10 if direction == "streams" else 1
    assert table.exit_code == 0
    assert table.stdout.splitlines()[-1].split()[-1] == str(total)
    assert found["queues"][0]["total"] == total
    assert redis_state(broker.client) == before


def test_command_moves_the_named_queues_and_says_what_it_did(app: MakeApp, broker: StreamBroker) -> None:
    seed_lists(app(installed=False))
    broker.client.call("LPUSH", "other", b"stays")

    result = run(app(), "q", "--to", "streams")

    assert result.exit_code == 0
    assert result.stdout == "q: moved 10 to streams (8 waiting, 2 delayed).\n"
    assert result.stderr == ""
    assert isinstance(redis_state(broker.client)["celery-streams:{q}"], StreamState)
    assert broker.client.call("LLEN", "other") == 1


def test_command_says_what_it_left_to_workers_that_run(app: MakeApp, broker: StreamBroker) -> None:
    publish(app(), 1)
    broker.ensure_groups(["q"])
    broker.read(broker.streams(["q"]), "w", count=1)

    result = run(app(streams_enabled=False), "q", "--to", "lists")

    assert "q: 1 message is held by stream workers." in result.stdout


@pytest.mark.parametrize(
    ("enabled", "share", "direction", "said"),
    [
        (False, 1, "streams", "write queue q to Celery's lists"),
        (True, 1, "lists", "write queue q to streams"),
        (True, 0.05, "streams", "write 95 % of queue q to Celery's lists"),
        (True, 0.05, "lists", "write 5 % of queue q to streams"),
        (False, 1, "lists", None),
        (True, 1, "streams", None),
    ],
)
def test_switch_that_still_points_to_the_other_side_is_a_warning(
    app: MakeApp, redis_url: str, enabled: bool, share: float, direction: str, said: str | None
) -> None:
    publish(app(installed=False), 1)
    publish(app(), 2)

    result = run(app(streams_enabled=enabled, streams_queues={"q": share}), "q", "--to", direction)

    assert result.exit_code == 0
    assert result.stderr.partition(", by")[0] == ("" if said is None else f"Warning: publishers still {said}")


def test_queue_that_nobody_knows_is_one_line_with_a_suggestion_and_leaves_no_trace(
    app: MakeApp, broker: StreamBroker
) -> None:
    publish(app(), 1)
    before = redis_state(broker.client)

    result = run(app(task_default_queue="send_message"), "send_mesage", "--to", "streams")

    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.endswith("; did you mean 'send_message'?")
    assert redis_state(broker.client) == before


def test_queue_of_the_project_that_holds_nothing_is_fine(app: MakeApp, broker: StreamBroker) -> None:
    result = run(app(task_default_queue="send_message"), "send_message", "--to", "streams")

    assert result.exit_code == 0
    assert result.stdout == "send_message: moved 0 to streams (0 waiting, 0 delayed).\n"
    assert redis_state(broker.client) == {}


def test_queue_that_is_chosen_by_name_and_was_never_used_is_fine(app: MakeApp, broker: StreamBroker) -> None:
    publish(app(installed=False), 1)

    result = run(app(streams_queues=["q", "send_message"]), "q", "send_message", "--to", "streams")

    assert result.exit_code == 0, result.output
    assert on_streams(broker) == ["t1"]


def test_include_unacked_is_for_one_direction_only(app: MakeApp, redis_url: str) -> None:
    result = run(app(), "q", "--to", "lists", "--include-unacked")

    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_broker_that_is_no_redis_is_one_line(app: MakeApp, redis_url: str) -> None:
    result = run(app(broker_url="amqp://guest@localhost//", streams_url=redis_url), "q", "--to", "streams")

    assert result.exit_code == 78
    assert len(result.stderr.splitlines()) == 1


def test_redis_away_is_one_line(app: MakeApp) -> None:
    result = run(app(broker_url=AWAY), "q", "--to", "streams")

    assert result.exit_code == 69
    [line] = result.stderr.splitlines()
    assert "cannot be reached" in line


@pytest.mark.parametrize("variable", ["CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL"])
def test_command_finds_the_lists_on_the_broker_that_the_environment_names(
    app: MakeApp, broker: StreamBroker, redis_url: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    publish(app(installed=False), 1)
    monkeypatch.setenv(variable, redis_url)

    result = run(app(broker_url=AWAY, streams_url=redis_url), "q", "--to", "streams")

    assert result.exit_code == 0, result.output
    assert on_streams(broker) == ["t1"]


def test_command_finds_the_lists_on_the_first_of_several_brokers(
    app: MakeApp, broker: StreamBroker, redis_url: str
) -> None:
    publish(app(installed=False), 1)

    result = run(app(broker_url=f"{redis_url};{AWAY}"), "q", "--to", "streams")

    assert result.exit_code == 0, result.output
    assert on_streams(broker) == ["t1"]


@pytest.mark.parametrize("words", [(), ("q",), ("q", "--to", "rabbit")])
def test_missing_words_are_an_error(app: MakeApp, redis_url: str, words: tuple[str, ...]) -> None:
    assert run(app(), *words).exit_code == 2


def test_help_ends_with_examples(app: MakeApp) -> None:
    text = run(app(), "--help").stdout

    assert "Examples:" in text
    assert text.rstrip().splitlines()[-1].strip().startswith("celery-streams -A proj migrate")

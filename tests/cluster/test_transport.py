"""kombu on a Redis Cluster, in this process: what is carried, what is refused, and what is left behind."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub
from kombu.pidbox import Mailbox

from celery_streams.exceptions import BrokerUnavailable, ConfigurationError, NotPermitted
from celery_streams.installation import connect_to_clusters
from tests.support.cluster import Cluster
from tests.support.eventually import eventually

pytestmark = pytest.mark.filterwarnings("ignore::celery.app.control.DuplicateNodenameWarning")


@pytest.fixture
def connect(nodes: Cluster) -> Iterator[Callable[..., Connection]]:
    """Make kombu connections to the empty cluster."""
    connect_to_clusters()
    made: list[Connection] = []

    def make(url: str = nodes.url, **options: Any) -> Connection:
        made.append(Connection(url, transport_options={"health_check_interval": 0.5, **options}))
        return made[-1]

    yield make
    for one in made:
        one.release()


@pytest.fixture
def cluster_app(app: Callable[..., Celery], nodes: Cluster) -> Celery:
    """An app whose broker is the empty cluster."""
    return app(broker_url=nodes.url, result_backend=nodes.url)


class Node:
    """A mailbox that answers, in a thread: what a worker has, without the worker."""

    def __init__(self, connection: Connection, name: str, namespace: str = "celery") -> None:
        self._connection = connection
        mailbox = Mailbox(namespace, type="fanout", accept=["json"])(connection)
        self.node = mailbox.Node(name, state=None, handlers={"say": lambda state, word: f"{name}: {word}"})
        self.node.channel = connection.channel()
        self.node.listen()
        self._stop = threading.Event()
        #: What it has subscribed to is told at the first look.
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"node-{name}")
        self._thread.start()
        assert self.ready.wait(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._connection.drain_events(timeout=0.05)
            except TimeoutError:
                self.ready.set()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)


@pytest.fixture
def node(connect: Callable[..., Connection]) -> Iterator[Callable[..., Node]]:
    """Start mailboxes that answer."""
    made: list[Node] = []

    def start(name: str, connection: Connection | None = None, **options: Any) -> Node:
        made.append(Node(connection or connect(), name, **options))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def ask(connection: Connection, word: str, namespace: str = "celery", **options: Any) -> list[str]:
    """Broadcast a question and return the answers, sorted."""
    mailbox = Mailbox(namespace, type="fanout", accept=["json"])(connection)
    answers = mailbox.multi_call("say", {"word": word}, **{"timeout": 5, **options})
    return sorted(said for answer in answers for said in answer.values())


def test_broadcast_reaches_all_and_each_answer_comes_once(
    connect: Callable[..., Connection], node: Callable[..., Node], nodes: Cluster
) -> None:
    for number in range(4):
        node(f"n{number}")
    asking = connect()

    for turn in range(3):
        assert ask(asking, f"word {turn}", limit=4) == [f"n{number}: word {turn}" for number in range(4)]

    assert nodes.keys() == []


def test_question_that_is_tried_again_after_its_connection_was_lost_is_answered(
    connect: Callable[..., Connection], node: Callable[..., Node], nodes: Cluster
) -> None:
    node("n")
    asking = connect()
    assert ask(asking, "before", limit=1) == ["n: before"]
    before = asking.transport
    lost: list[str] = []

    def publish(word: str, channel: Any = None) -> list[str]:
        if not lost:
            lost.append(word)
            raise BrokerUnavailable("the node fell")
        return ask(asking, word, limit=1)

    # What kombu does for all that is published with a retry: it drops the transport, and connects again.
    assert asking.ensure(Producer(asking.default_channel), publish, max_retries=3)("again") == ["n: again"]

    assert lost == ["again"]
    assert asking.transport is not before
    assert before._subscription.watched == {}


def test_answers_that_nobody_takes_expire(
    connect: Callable[..., Connection], node: Callable[..., Node], nodes: Cluster
) -> None:
    node("late")
    asking = connect()
    mailbox = Mailbox("celery", type="fanout", accept=["json"])(asking)

    # Asked, and not waited for.
    mailbox._publish("say", {"word": "x"}, reply_ticket="t", channel=asking.default_channel)

    (key,) = eventually(lambda: nodes.keys("*.reply.celery.pidbox"))
    with_ttl = nodes.client()
    assert 0 < with_ttl.call("PTTL", key) <= 60_000
    with_ttl.close()


def test_projects_with_a_prefix_of_their_own_do_not_hear_each_other(
    connect: Callable[..., Connection], node: Callable[..., Node], nodes: Cluster
) -> None:
    node("one", connect(global_keyprefix="one:"))
    node("other", connect(global_keyprefix="other:"))

    assert ask(connect(global_keyprefix="one:"), "x", limit=1) == ["one: x"]
    assert ask(connect(global_keyprefix="other:"), "x", timeout=0.7) == ["other: x"]


def test_task_for_a_list_is_refused_and_leaves_nothing(cluster_app: Celery, nodes: Cluster) -> None:
    cluster_app.conf.streams_queues = ["on_streams"]

    @cluster_app.task
    def add(x: int, y: int) -> int:
        return x + y

    for publish in (
        lambda: add.delay(1, 2),
        lambda: add.apply_async((1, 2), queue="another"),
        lambda: cluster_app.send_task("by.name", exchange="chat", routing_key="room", exchange_type="topic"),
    ):
        with pytest.raises(
            ConfigurationError, match=r"is not on streams, and the broker .* is a Redis Cluster"
        ) as caught:
            publish()
        assert "\n" not in str(caught.value)

    assert nodes.keys() == []
    assert add.apply_async((1, 2), queue="on_streams").id
    assert nodes.keys("*on_streams*")


def test_list_of_tasks_is_not_consumed(connect: Callable[..., Connection], nodes: Cluster) -> None:
    connection = connect()

    with pytest.raises(ConfigurationError, match="Queue 'celery' is not on streams"):
        Consumer(connection.channel(), [Queue("celery", Exchange("celery", "direct"), "celery")]).consume()

    assert connection.default_channel.queue_purge("celery") == 0
    assert nodes.keys() == []


def test_receiver_gets_the_events_of_all_in_the_order_of_each(cluster_app: Celery) -> None:
    got: list[tuple[str, int]] = []
    count = 200
    with cluster_app.connection_for_read() as connection:
        receiver = cluster_app.events.Receiver(
            connection, handlers={"*": lambda event: got.append((event["hostname"], event["n"]))}
        )

        def send(name: str) -> None:
            with cluster_app.connection_for_write() as writing:
                dispatcher = cluster_app.events.Dispatcher(writing, hostname=name, buffer_while_offline=False)
                for number in range(count):
                    dispatcher.send("task-progress" if number % 3 else "worker-progress", n=number)

        # As Flower's and Celery's own `capture` begin.
        with receiver.consumer_context(wakeup=False) as (reading, _, _):
            with pytest.raises(TimeoutError):
                reading.drain_events(timeout=0.1)  # the subscription is told
            threads = [threading.Thread(target=send, args=(name,)) for name in ("a", "b", "c")]
            for thread in threads:
                thread.start()
            while len(got) < 3 * count:
                reading.drain_events(timeout=20)
            for thread in threads:
                thread.join()

    for name in ("a", "b", "c"):
        assert [number for sender, number in got if sender == name] == list(range(count))


def test_event_loop_delivers_at_once_and_follows_what_is_consumed(connect: Callable[..., Connection]) -> None:
    reading, writing = connect(), connect()
    got: list[str] = []
    exchange = Exchange("news", "fanout", durable=False)
    hub = Hub()
    reading.connect()
    reading.transport.register_with_event_loop(reading.connection, hub)
    hub.propagate_errors = reading.connection_errors
    loop = hub.create_loop()
    consumer = Consumer(reading.channel(), [Queue("q1", exchange)], no_ack=True, callbacks=[lambda b, m: got.append(b)])
    consumer.consume()
    next(loop)
    producer = Producer(writing.channel(), exchange)

    def turn_until(wanted: list[str]) -> None:
        eventually(lambda: next(loop) or got == wanted, interval=0.0)

    for number in range(50):
        producer.publish(str(number))
    turn_until([str(number) for number in range(50)])
    watched = set(reading.transport._watched)
    assert watched <= set(hub.readers)
    reading.transport._subscription._connection.close()  # as a node that fell
    turn_until([str(number) for number in range(50)])
    eventually(lambda: next(loop) or len(reading.transport._watched) == 1, interval=0.0)
    producer.publish("again")
    turn_until([*map(str, range(50)), "again"])

    consumer.cancel()
    next(loop)
    assert not set(reading.transport._watched)
    reading.release()
    assert not hub.on_tick
    assert not any(callback[0] == reading.transport.on_readable for callback in hub.readers.values())
    hub.close()


def test_server_that_is_no_cluster_is_one_line(redis_url: str, connect: Callable[..., Connection]) -> None:
    url = redis_url.replace("redis://", "redis+cluster://").rpartition("/")[0]

    with pytest.raises(ConfigurationError, match="is no node of a Redis Cluster"):
        connect(url).connect()


def test_user_with_the_documented_rules_has_remote_control_and_events(
    nodes: Cluster, connect: Callable[..., Connection], node: Callable[..., Node], documented_rules: list[str]
) -> None:
    for client in nodes.clients:
        client.call(
            "ACL", "SETUSER", "control", "on", ">secret", "resetkeys", "resetchannels", "-@all", *documented_rules
        )
    try:
        url = nodes.url.replace("://", "://control:secret@")
        answering = node("n", connect(url))
        asking = connect(url)
        assert ask(asking, "x", limit=1) == ["n: x"]
        time.sleep(1.2)  # the subscription is looked at
        assert ask(asking, "y", limit=1) == ["n: y"]
        # The names that Celery's receivers and its gossip listen to.
        listening = asking.transport.nodes.subscription()
        listening.listen(["/{celeryev}/*", "/{celeryev}/worker.*"])
        listening.close()
        with pytest.raises(NotPermitted):
            asking.transport.nodes.call("SET", "anything", "1")
        answering.stop()
    finally:
        for client in nodes.clients:
            client.call("ACL", "DELUSER", "control")


@pytest.fixture
def documented_rules() -> list[str]:
    """The rules of MIGRATION.md for the user of the broker."""
    guide = (Path(__file__).parents[2] / "MIGRATION.md").read_text()
    found = re.search(r"for Celery's broker on a cluster[^`]*`([^`]+)`", guide)
    assert found is not None
    return found[1].split()


def test_odd_messages_are_said_and_dropped(
    connect: Callable[..., Connection], node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    node("n")
    asking = connect()
    asking.connect()

    for text in ("no JSON", "[]", "{}", '{"properties": null}', '{"properties": {}}', "\xff"):
        asking.transport.nodes.publish("/{celery.pidbox}", text)

    assert ask(asking, "still there", limit=1) == ["n: still there"]
    assert sum("is no message of kombu's" in record.message for record in caplog.records) == 6

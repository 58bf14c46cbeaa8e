"""The publish seam: messages of chosen queues become entries, and nothing else about publishing changes."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import kombu
import pytest
from celery import Celery, chain, chord, group, signals
from celery.app.amqp import AMQP
from kombu.compression import decompress
from kombu.exceptions import OperationalError
from kombu.serialization import loads

import celery_streams
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerError, BrokerUnavailable, ConfigurationError, QueueFull
from celery_streams.message import Message
from tests.support.eventually import eventually
from tests.support.redis_state import redis_now_ms, redis_state
from tests.support.versions import needs_kombu

MakeApp = Callable[..., Celery]

#: What differs between two publishes of the same message: random ids, and the milliseconds until `expires`.
VARYING = re.compile(rb'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|(?<="expiration": ")[0-9]+')


class Sent(NamedTuple):
    headers: dict[str, Any]
    properties: dict[str, Any]
    body: Any
    raw: bytes


class OwnAMQP(AMQP):  # type: ignore[misc]
    """A user's subclass that marks its messages."""

    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(*args, **kwargs)
        message.headers["own"] = "yes"
        return message


class OwnApp(Celery):  # type: ignore[misc]
    amqp_cls = f"{__name__}:OwnAMQP"


def with_task(app: Celery, **options: Any) -> Any:
    @app.task(name="t", shared=False, **options)
    def t(*args: Any, **kwargs: Any) -> str:
        return "ran"

    return t


def as_sent(message: Message) -> Sent:
    headers, properties = message.decode_headers(), message.decode_properties()
    raw = message.body
    if headers.get("compression"):
        raw = decompress(raw, headers["compression"])
    accept = [properties["content_type"]]
    return Sent(
        headers,
        properties,
        loads(raw, properties["content_type"], properties["content_encoding"], accept),
        message.body,
    )


def sent(broker: StreamBroker, queue: str = "celery", *, step: int = 0) -> list[Sent]:
    """Return what was published to a stream, in order."""
    found = broker.client.call("XRANGE", broker.queue_keys(queue).streams[step], "-", "+")
    return [as_sent(Message.from_fields(flat)) for _, flat in found]


def listed(broker: StreamBroker, queue: str = "celery") -> list[dict[str, Any]]:
    """Return what lies on Celery's list, the oldest first."""
    return [json.loads(raw) for raw in reversed(broker.client.call("LRANGE", queue, 0, -1))]


@pytest.fixture
def dead_url() -> Iterator[str]:
    """URL of a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://user:secret@127.0.0.1:{taken.getsockname()[1]}/0"


@pytest.fixture
def published() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What before_task_publish and after_task_publish were sent with, in order."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def before(**kwargs: Any) -> None:
        seen.append(("before", kwargs))

    def after(**kwargs: Any) -> None:
        seen.append(("after", kwargs))

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    yield seen
    signals.before_task_publish.disconnect(before)
    signals.after_task_publish.disconnect(after)


# -- what lies on the stream ------------------------------------------------------------------------------------------


def test_delay_writes_the_protocol_2_message_that_celery_made(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app())

    result = t.delay(1, key="ü")

    (message,) = sent(broker)
    assert message.headers["id"] == result.id
    assert message.headers["task"] == "t"
    assert message.headers["root_id"] == result.id
    assert message.headers["argsrepr"] == "(1,)"
    assert message.body == [[1], {"key": "ü"}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    assert message.properties["correlation_id"] == result.id
    assert message.properties["content_type"] == "application/json"
    assert message.properties["content_encoding"] == "utf-8"
    assert message.properties["priority"] == 0
    assert "celery_streams_queue" not in message.properties


def test_headers_and_body_are_those_of_a_list_message(app: MakeApp, broker: StreamBroker) -> None:
    options: dict[str, Any] = {
        "task_id": "the-id",
        "headers": {"trace": "abc"},
        "shadow": "other-name",
        "expires": dt.datetime(2031, 1, 1, tzinfo=dt.timezone.utc),
        "time_limit": 9,
        "soft_time_limit": 8,
        "ignore_result": True,
        "reply_to": "me",
        "app_id": "mine",
        "priority": 3,
    }
    on_stream, on_list = with_task(app()), with_task(app(installed=False))

    on_stream.apply_async((1,), {"a": 2}, link=on_stream.s(5).set(task_id="linked"), **options)
    on_list.apply_async((1,), {"a": 2}, link=on_list.s(5).set(task_id="linked"), **options)

    (stream_message,) = sent(broker, step=1)
    (list_message,) = [json.loads(raw) for raw in broker.client.call("LRANGE", "celery\x06\x163", 0, -1)]
    assert stream_message.headers == list_message["headers"]
    assert stream_message.raw == base64.b64decode(list_message["body"])
    ours = {**stream_message.properties, "content_type": None, "content_encoding": None}
    theirs = {**list_message["properties"], "content_type": None, "content_encoding": None}
    for own_to_lists in ("delivery_tag", "delivery_info", "body_encoding"):
        theirs.pop(own_to_lists)
    # Milliseconds that remain until `expires`, reckoned at each publish.
    assert int(ours.pop("expiration")) == pytest.approx(int(theirs.pop("expiration")), abs=10_000)
    assert ours == theirs


@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack", "yaml"])
@pytest.mark.parametrize("compression", [None, "zlib", "bzip2"])
def test_every_serializer_and_compression_is_kept(
    app: MakeApp, broker: StreamBroker, serializer: str, compression: str | None
) -> None:
    t = with_task(app(accept_content=[serializer]))

    t.apply_async((["x" * 1000], 1.5), serializer=serializer, compression=compression)

    (message,) = sent(broker)
    assert list(message.body[0]) == [["x" * 1000], 1.5]
    assert message.headers.get("compression") == (
        None if compression is None else {"zlib": "application/x-gzip", "bzip2": "application/x-bz2"}[compression]
    )
    assert (len(message.raw) < 900) == (compression is not None)


def test_binary_serializer_is_stored_without_base64(app: MakeApp, broker: StreamBroker) -> None:
    with_task(app(task_serializer="pickle")).delay(b"\xff\x00")

    (message,) = sent(broker)
    assert pickle.loads(message.raw)[0] == (b"\xff\x00",)


def test_settings_for_serializer_and_compression_are_used(app: MakeApp, broker: StreamBroker) -> None:
    with_task(app(task_serializer="yaml", task_compression="zlib")).delay(1)

    (message,) = sent(broker)
    assert message.properties["content_type"] == "application/x-yaml"
    assert message.headers["compression"] == "application/x-gzip"


@pytest.mark.parametrize(("priority", "step"), [(None, 0), (0, 0), (2, 0), (3, 1), (6, 2), (9, 3)])
def test_priority_chooses_the_stream(app: MakeApp, broker: StreamBroker, priority: int | None, step: int) -> None:
    with_task(app()).apply_async(priority=priority)

    assert [message.properties["priority"] for message in sent(broker, step=step)] == [priority or 0]


def test_protocol_1_is_published_as_it_is(app: MakeApp, broker: StreamBroker) -> None:
    with_task(app(task_protocol=1)).apply_async((1,), task_id="one")

    (message,) = sent(broker)
    assert message.body["id"] == "one"
    assert message.body["args"] == [1]


# -- later ------------------------------------------------------------------------------------------------------------


def in_a_minute(zone: dt.timezone = dt.timezone.utc) -> dt.datetime:
    return dt.datetime.now(zone) + dt.timedelta(seconds=60)


@pytest.mark.parametrize(
    "options",
    [
        lambda: {"countdown": 60},
        lambda: {"eta": in_a_minute()},
        lambda: {"eta": in_a_minute().isoformat()},
        lambda: {"eta": in_a_minute(dt.timezone(dt.timedelta(hours=5)))},
    ],
    ids=["countdown", "aware", "text", "other zone"],
)
def test_message_for_later_is_delayed_until_its_time(
    app: MakeApp, broker: StreamBroker, options: Callable[[], dict[str, Any]]
) -> None:
    now = redis_now_ms(broker.client)

    result = with_task(app()).apply_async((1,), priority=3, **options())

    state = redis_state(broker.client)
    ((member, due),) = state["celery-streams:{celery}:delayed"].items()
    assert member.startswith(result.id + ":")
    assert now + 59_000 < due <= redis_now_ms(broker.client) + 60_000
    assert sent(broker, step=1) == []


def test_naive_eta_is_utc_as_celerys_worker_has_it(app: MakeApp, broker: StreamBroker) -> None:
    naive = (dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=60)).replace(tzinfo=None)

    with_task(app(timezone="Asia/Tokyo", enable_utc=False)).apply_async(eta=naive)

    ((_, due),) = redis_state(broker.client)["celery-streams:{celery}:delayed"].items()
    assert due == pytest.approx(redis_now_ms(broker.client) + 60_000, abs=5_000)


@pytest.mark.parametrize("options", [{"countdown": 0}, {"countdown": -5}, {"eta": dt.datetime(2020, 1, 1)}])
def test_message_whose_time_has_come_is_not_delayed(
    app: MakeApp, broker: StreamBroker, options: dict[str, Any]
) -> None:
    with_task(app()).apply_async(**options)

    assert len(sent(broker)) == 1
    assert "celery-streams:{celery}:delayed" not in redis_state(broker.client)


def test_same_message_delayed_twice_is_two_messages(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app())

    t.apply_async(task_id="same", countdown=60)
    t.apply_async(task_id="same", countdown=60)

    assert len(redis_state(broker.client)["celery-streams:{celery}:delayed"]) == 2


# -- which queues -----------------------------------------------------------------------------------------------------


def test_other_queues_go_to_lists_byte_for_byte(app: MakeApp, broker: StreamBroker) -> None:
    settings: dict[str, Any] = {"task_routes": {"t": {"queue": "plain"}}, "task_compression": "zlib"}

    def connected(number: int) -> dict[str, Any]:
        # kombu shares its pools, and what it remembers to have declared, between apps with equal connections.
        return {**settings, "broker_transport_options": {"visibility_timeout": 99 + number}}

    def publish_all(made: Celery) -> list[tuple[str, Any]]:
        t = with_task(made)
        t.apply_async((1,), {"a": "ü"}, task_id="one", headers={"x": 1})
        t.apply_async(task_id="two", priority=9, serializer="pickle", compression="bzip2")
        t.apply_async(task_id="three", expires=dt.datetime(2031, 1, 1, tzinfo=dt.timezone.utc))
        t.apply_async(task_id="four", eta=dt.datetime(2031, 1, 1, tzinfo=dt.timezone.utc))
        t.apply_async(task_id="five", link=t.s(1).set(task_id="six"), exchange="plain", routing_key="plain")
        made.send_task("by.name", task_id="seven", queue="plain")
        state = redis_state(broker.client)
        broker.client.call("FLUSHALL")
        return [
            (key, [VARYING.sub(b"...", raw) for raw in value] if isinstance(value, list) else value)
            for key, value in state.items()
        ]

    stock = publish_all(app(installed=False, **connected(1)))
    installed = publish_all(app(streams_queues=["fast"], **connected(2)))
    switched_off = publish_all(app(streams_enabled=False, **connected(3)))

    assert sum(len(value) for _, value in stock if isinstance(value, list)) == 6
    assert installed == stock
    assert switched_off == stock


def test_only_the_chosen_queues_are_on_streams(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(streams_queues=["fast*", "mail"]))

    for queue in ("fast-lane", "mail", "slow", "celery"):
        t.apply_async(queue=queue)

    assert [len(sent(broker, queue)) for queue in ("fast-lane", "mail", "slow", "celery")] == [1, 1, 0, 0]
    assert [len(listed(broker, queue)) for queue in ("fast-lane", "mail", "slow", "celery")] == [0, 0, 1, 1]


def test_share_sends_the_rest_to_the_list(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(streams_queues={"celery": 0.5}))

    for _ in range(60):
        t.delay()

    on_stream, on_list = len(sent(broker)), len(listed(broker))
    assert on_stream + on_list == 60
    assert on_stream > 0
    assert on_list > 0


def test_switch_takes_effect_at_the_next_publish(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    t.delay(1)
    made.conf.streams_enabled = False
    t.delay(2)
    made.conf.streams_enabled = True
    t.delay(3)

    assert [message.body[0] for message in sent(broker)] == [[1], [3]]
    assert len(listed(broker)) == 1


def test_environment_switches_it_off_without_code(
    app: MakeApp, broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = with_task(app())

    monkeypatch.setenv("CELERY_STREAMS_ENABLED", "False")
    t.delay()

    assert (len(sent(broker)), len(listed(broker))) == (0, 1)


def test_routes_choose_the_queue_as_ever(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(task_routes={"t": {"queue": "routed", "priority": 6}}))

    t.delay()

    assert len(sent(broker, "routed", step=2)) == 1


def test_direct_exchange_leads_to_the_queue_that_is_bound_to_it(app: MakeApp, broker: StreamBroker) -> None:
    exchange = kombu.Exchange("media", type="direct")
    t = with_task(app(task_queues=[kombu.Queue("images", exchange, routing_key="img"), kombu.Queue("celery")]))

    t.apply_async(exchange="media", routing_key="img")
    t.apply_async(queue="images")

    assert len(sent(broker, "images")) == 2


def test_queues_with_one_binding_get_a_message_each_as_with_kombu(app: MakeApp, broker: StreamBroker) -> None:
    exchange = kombu.Exchange("media", type="direct")
    both = [kombu.Queue(name, exchange, routing_key="img") for name in ("images", "copies")]
    t = with_task(app(task_queues=both))

    t.apply_async(exchange="media", routing_key="img")

    assert (len(sent(broker, "images")), len(sent(broker, "copies"))) == (1, 1)


def test_one_binding_cannot_lead_to_lists_and_streams(app: MakeApp, broker: StreamBroker) -> None:
    exchange = kombu.Exchange("media", type="direct")
    both = [kombu.Queue(name, exchange, routing_key="img") for name in ("images", "copies")]
    t = with_task(app(task_queues=both, streams_queues=["copies"]))

    with pytest.raises(ConfigurationError, match="images, copies"):
        t.apply_async(exchange="media", routing_key="img")

    assert (sent(broker, "copies"), listed(broker, "images")) == ([], [])


def test_queue_that_is_added_later_is_found(app: MakeApp, broker: StreamBroker) -> None:
    exchange = kombu.Exchange("media", type="direct")
    project = app(task_queues=[kombu.Queue("celery")], streams_queues=["images"])
    t = with_task(project)
    t.apply_async(exchange="media", routing_key="img")

    project.amqp.queues.add(kombu.Queue("images", exchange, routing_key="img"))
    t.apply_async(exchange="media", routing_key="img")

    assert len(sent(broker, "images")) == 1


def test_producer_with_an_exchange_of_its_own_publishes(app: MakeApp, broker: StreamBroker) -> None:
    exchange = kombu.Exchange("media", type="direct")
    project = app(task_queues=[kombu.Queue("images", exchange, routing_key="images")])
    t = with_task(project)

    with project.connection_for_write() as connection:
        t.apply_async(queue="images", producer=project.amqp.Producer(connection, exchange=exchange))

    assert len(sent(broker, "images")) == 1


@pytest.mark.parametrize(
    ("kind", "bound", "published", "found"),
    [
        ("direct", "sport", "sport", True),
        ("direct", "sport", "sports", False),
        ("topic", "sport.#", "sport.football.results", True),
        ("topic", "sport.#", "weather", False),
        ("topic", "sport.*", "sport.football", True),
        pytest.param(
            *("topic", "sport.*", "sport.football.results", False),
            marks=needs_kombu((5, 7), "before, a star stood for several words"),
        ),
        ("topic", "#", "anything", True),
        ("fanout", "", "anything", True),
    ],
)
def test_queue_gets_what_kombu_would_route_to_it(
    app: MakeApp, broker: StreamBroker, kind: str, bound: str, published: str, found: bool
) -> None:
    exchange = kombu.Exchange("news", type=kind)
    t = with_task(app(task_queues=[kombu.Queue("celery"), kombu.Queue("sport", exchange, routing_key=bound)]))

    t.apply_async(exchange="news", routing_key=published)

    assert len(sent(broker, "sport")) == int(found)


def test_queue_with_several_bindings_gets_what_any_of_them_matches(app: MakeApp, broker: StreamBroker) -> None:
    news, more = kombu.Exchange("news", type="topic"), kombu.Exchange("more", type="direct")
    bindings = [kombu.binding(news, "sport.#"), kombu.binding(more, "extra")]
    t = with_task(app(task_queues=[kombu.Queue("celery"), kombu.Queue("sport", bindings=bindings)]))

    t.apply_async(exchange="news", routing_key="sport.football")
    t.apply_async(exchange="more", routing_key="extra")
    t.apply_async(exchange="news", routing_key="weather")

    assert len(sent(broker, "sport")) == 2


def test_layout_of_celerys_routing_guide_goes_to_its_streams(app: MakeApp, broker: StreamBroker) -> None:
    project = app(
        task_default_queue="default",
        task_default_exchange="tasks",
        task_default_exchange_type="topic",
        task_default_routing_key="task.default",
        task_queues=[kombu.Queue("default", routing_key="task.#"), kombu.Queue("feeds", routing_key="feed.#")],
        task_routes={"feeds.import": {"queue": "feeds", "routing_key": "feed.import"}},
    )

    with_task(project).delay()
    project.send_task("feeds.import")

    assert (len(sent(broker, "default")), len(sent(broker, "feeds"))) == (1, 1)


def test_exchange_of_a_queue_that_stays_on_lists_is_declared_by_its_publisher(
    app: MakeApp, broker: StreamBroker
) -> None:
    exchange = kombu.Exchange("news", type="topic")
    queues = [kombu.Queue("celery"), kombu.Queue("sport", exchange, routing_key="sport.#")]
    t = with_task(app(task_queues=queues, streams_queues=["celery"]))

    t.apply_async(exchange="news", routing_key="sport.football")

    assert (len(sent(broker, "sport")), len(listed(broker, "sport"))) == (0, 1)


def test_routing_keys_made_of_data_are_not_kept_for_ever(app: MakeApp, broker: StreamBroker) -> None:
    exchange = kombu.Exchange("news", type="topic")
    project = app(task_queues=[kombu.Queue("celery"), kombu.Queue("sport", exchange, routing_key="sport.#")])
    streams = celery_streams.streams_of(project)

    for number in range(5_000):
        streams.route("news", f"sport.{number}")
        streams.route("news", f"weather.{number}")

    assert len(streams._bindings._found) <= 1_024
    assert streams.route("news", "sport.1") == ("sport",)


# -- what is no task, and what is another broker's --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"result": 3, "task_id": "one", "status": "SUCCESS"}, None),
        ({"hello": "world"}, {"id": "one"}),
        ({"hello": "world"}, {"task": "t"}),
        ("text", {"kind": "event"}),
        ([1, 2], None),
    ],
)
def test_what_is_no_task_stays_with_kombu(app: MakeApp, broker: StreamBroker, body: Any, headers: Any) -> None:
    project = app(task_queues=[kombu.Queue("celery")])

    with project.amqp.producer_pool.acquire(block=True) as producer:
        declare = [kombu.Queue("celery")]
        producer.publish(body, exchange="", routing_key="celery", headers=headers, serializer="json", declare=declare)

    assert (len(sent(broker, "celery")), len(listed(broker, "celery"))) == (0, 1)


@pytest.mark.parametrize("body", [{"task": "t", "id": "one", "args": [], "kwargs": {}}, [[], {}, {}]])
def test_task_of_either_protocol_goes_to_its_stream(app: MakeApp, broker: StreamBroker, body: Any) -> None:
    project = app(task_queues=[kombu.Queue("celery")])
    headers = None if isinstance(body, dict) else {"task": "t", "id": "one"}

    with project.amqp.producer_pool.acquire(block=True) as producer:
        producer.publish(body, exchange="", routing_key="celery", headers=headers, serializer="json")

    assert len(sent(broker, "celery")) == 1


def other(redis_url: str) -> str:
    """Another database of the same server: another broker."""
    return redis_url.rpartition("/")[0] + "/7"


OTHER_WAYS: dict[str, Any] = {
    "send_task": lambda project, t, c: project.send_task("t", queue="partner", connection=c),
    "apply_async": lambda project, t, c: t.apply_async(queue="partner", connection=c),
    "producer": lambda project, t, c: t.apply_async(queue="partner", producer=project.amqp.Producer(c)),
    "kombu's producer": lambda project, t, c: t.apply_async(queue="partner", producer=kombu.Producer(c)),
    "producer of a channel": lambda project, t, c: t.apply_async(queue="partner", producer=kombu.Producer(c.channel())),
    "group": lambda project, t, c: group([t.s().set(queue="partner")]).apply_async(connection=c),
    "publish": lambda project, t, c: project.amqp.Producer(c).publish(
        [[], {}, {}],
        routing_key="partner",
        headers={"task": "t", "id": "one"},
        serializer="json",
        declare=[kombu.Queue("partner")],
    ),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_message_for_another_broker_goes_there(app: MakeApp, broker: StreamBroker, redis_url: str, way: str) -> None:
    project = app()
    t = with_task(project)

    with kombu.Connection(other(redis_url)) as connection:
        OTHER_WAYS[way](project, t, connection)

        assert connection.default_channel.client.llen("partner") == 1
        connection.default_channel.client.delete("partner")
    assert (sent(broker, "partner"), listed(broker, "partner")) == ([], [])


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_message_through_an_explicit_connection_to_the_own_broker_goes_to_its_stream(
    app: MakeApp, broker: StreamBroker, redis_url: str, way: str
) -> None:
    project = app()
    t = with_task(project)

    with kombu.Connection(redis_url) as connection:
        OTHER_WAYS[way](project, t, connection)

    assert len(sent(broker, "partner")) == 1


def test_two_delayed_messages_with_one_task_id_are_two(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app())

    for _ in range(2):
        t.apply_async(task_id="import-5", countdown=60)
        t.apply_async(task_id="import-5", countdown=60, retries=1)

    assert broker.client.call("ZCARD", "celery-streams:{celery}:delayed") == 4


def test_tracing_libraries_see_the_arguments_as_a_stock_publish_passes_them(
    app: MakeApp, broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []
    publish = kombu.Producer.publish

    def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((args[1:], kwargs))
        return publish(self, *args, **kwargs)

    monkeypatch.setattr(kombu.Producer, "publish", traced)
    with_task(app()).delay()
    with_task(app(streams_enabled=False)).delay()

    (ours, on_streams), (stock, on_lists) = seen
    assert ours == stock == ()
    assert on_streams["routing_key"] == on_lists["routing_key"] == "celery"
    assert set(on_lists) - {"retry", "retry_policy"} <= set(on_streams)


# -- every way to publish ---------------------------------------------------------------------------------------------


def test_send_task_needs_no_task_here(app: MakeApp, broker: StreamBroker) -> None:
    result = app().send_task("somewhere.else", (1,), queue="q")

    assert [(message.headers["task"], message.headers["id"]) for message in sent(broker, "q")] == [
        ("somewhere.else", result.id)
    ]


def test_canvas_goes_to_streams(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    chain(t.s(1), t.s(2)).apply_async()
    group(t.s(3), t.s(4)).apply_async()
    chord([t.s(5), t.s(6)], t.s(7)).apply_async()

    found = sent(broker)
    assert [message.body[0] for message in found] == [[1], [3], [4], [5], [6]]
    assert found[0].body[2]["chain"][0]["args"] == [2]
    assert found[4].body[2]["chord"]["args"] == [7]
    assert listed(broker) == []


def test_producer_of_the_pool_may_be_shared(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    with made.producer_or_acquire() as producer:
        for number in range(3):
            t.apply_async((number,), producer=producer)

    assert [message.body[0] for message in sent(broker)] == [[0], [1], [2]]


def test_producer_that_the_user_made_publishes_to_streams_too(
    app: MakeApp, broker: StreamBroker, redis_url: str
) -> None:
    t = with_task(app(streams_queues=["celery"]))

    with kombu.Connection(redis_url) as connection:
        producer = connection.Producer()
        t.apply_async((1,), producer=producer)
        t.apply_async((2,), producer=producer, queue="plain")
        producer.publish({"not": "a task"}, routing_key="celery", exchange="", declare=[kombu.Queue("celery")])

    assert [message.body[0] for message in sent(broker)] == [[1]]
    assert len(listed(broker, "plain")) == 1
    assert len(listed(broker)) == 1


def test_always_eager_runs_here_and_stores_nothing(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(task_always_eager=True))

    assert t.delay().get() == "ran"
    assert redis_state(broker.client) == {}


def test_delay_on_an_app_that_was_not_installed_is_untouched(app: MakeApp, broker: StreamBroker) -> None:
    plain = with_task(app(installed=False))
    on_stream = with_task(app())

    on_stream.delay(1)
    plain.delay(2)

    assert (len(sent(broker)), len(listed(broker))) == (1, 1)


# -- install ----------------------------------------------------------------------------------------------------------


def test_install_works_after_amqp_was_built_and_used(app: MakeApp, broker: StreamBroker) -> None:
    made = app(installed=False)
    t = with_task(made)
    t.delay(1)
    before = made.amqp

    celery_streams.install(made, enabled=True)
    t.delay(2)

    assert made.amqp is before
    assert isinstance(made.amqp, AMQP)
    assert len(listed(broker)) == 1
    assert [message.body[0] for message in sent(broker)] == [[2]]


def test_install_before_the_app_is_configured(broker: StreamBroker, redis_url: str) -> None:
    made = Celery("late", set_as_current=False)
    celery_streams.install(made, queues=["celery"], enabled=True)
    made.config_from_object({"broker_url": redis_url, "result_backend": None})

    with_task(made).delay(1)

    assert len(sent(broker)) == 1
    made.close()


def test_install_twice_is_install_once(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    assert celery_streams.install(made) is made
    celery_streams.install(made, queues=["other"])

    with_task(made).delay()

    assert (len(sent(broker)), len(listed(broker))) == (0, 1)


def test_keywords_override_the_settings(app: MakeApp, broker: StreamBroker) -> None:
    made = app(installed=False)
    made.conf.update(streams_enabled=False, streams_queues=["other"])

    celery_streams.install(made, queues={"celery": 1.0}, enabled=lambda: True)
    with_task(made).delay()

    assert len(sent(broker)) == 1


def test_own_amqp_class_keeps_its_ways(app: MakeApp, broker: StreamBroker) -> None:
    before_built = app(cls=OwnApp)
    after_built = app(cls=OwnApp, installed=False)
    assert isinstance(after_built.amqp, OwnAMQP)
    celery_streams.install(after_built, enabled=True)

    with_task(before_built).delay(1)
    with_task(after_built).delay(2)

    assert isinstance(before_built.amqp, OwnAMQP)
    assert [(message.body[0], message.headers["own"]) for message in sent(broker)] == [([1], "yes"), ([2], "yes")]


def test_pickled_app_is_installed(app: MakeApp, broker: StreamBroker) -> None:
    made = app(cls=OwnApp, streams_queues=["celery"])

    copy = pickle.loads(pickle.dumps(made))

    assert celery_streams.is_installed(copy)
    copy.send_task("t", queue="celery")
    copy.send_task("t", queue="plain")
    assert [message.headers["own"] for message in sent(broker)] == ["yes"]
    assert len(listed(broker, "plain")) == 1
    copy.close()


def test_several_apps_in_one_process_keep_their_settings(app: MakeApp, broker: StreamBroker, redis_url: str) -> None:
    other_url = redis_url.rpartition("/")[0] + "/2"
    one = with_task(app(streams_queues=["a"]))
    two = with_task(app(streams_queues=["b"], streams_key_prefix="two"))
    three = with_task(app(streams_url=other_url))

    for t in (one, two, three, one, two, three):
        t.apply_async(queue="a")

    second, third = StreamBroker(broker.client, prefix="two"), StreamBroker(RedisClient(other_url))
    assert (len(sent(broker, "a")), len(sent(second, "a")), len(sent(third, "a"))) == (2, 0, 2)
    assert len(listed(broker, "a")) == 2
    third.client.close()


def test_unknown_setting_is_said_at_the_first_publish(app: MakeApp) -> None:
    t = with_task(app(streams_queus=["a"]))

    with pytest.raises(ConfigurationError, match="did you mean 'streams_queues'"):
        t.delay()


# -- connections and errors -------------------------------------------------------------------------------------------


def test_stream_publish_opens_no_connection_of_kombus(
    app: MakeApp, broker: StreamBroker, redis_url: str, dead_url: str
) -> None:
    t = with_task(app(broker_url=dead_url, streams_url=redis_url, result_backend=None))

    t.delay(1)
    t.apply_async((2,), countdown=60)

    assert len(sent(broker)) == 1
    assert len(redis_state(broker.client)["celery-streams:{celery}:delayed"]) == 1


def connections(broker: StreamBroker) -> set[bytes]:
    """Return the ids of the server's connections; those of earlier tests may still be closed meanwhile."""
    return {line.split()[0] for line in broker.client.call("CLIENT", "LIST").splitlines()}


def test_many_publishes_use_one_connection(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(result_backend=None))
    t.delay()
    before = connections(broker)

    for _ in range(20):
        t.delay()

    assert connections(broker) <= before


def test_server_away_is_what_celerys_users_catch_and_names_the_host(app: MakeApp, dead_url: str) -> None:
    t = with_task(app(broker_url=dead_url, result_backend=None))

    with pytest.raises(OperationalError) as caught:
        t.apply_async(retry=False)

    host = dead_url.rpartition("@")[2].partition("/")[0]
    assert isinstance(caught.value, BrokerUnavailable)
    assert host in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_password_is_said_and_not_tried_again(app: MakeApp, redis_url: str) -> None:
    with EmbeddedRedis(args=("--requirepass", "right")) as server:
        url = server.url.replace("//", "//:wrong@")
        t = with_task(app(broker_url=url, result_backend=None))

        with pytest.raises(OperationalError, match="refused the login") as caught:
            t.apply_async(retry=True, retry_policy={"max_retries": None, "interval_start": 60})

    assert isinstance(caught.value, BrokerError)
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")


def test_retry_policy_bounds_the_attempts(
    app: MakeApp, dead_url: str, published: list[tuple[str, dict[str, Any]]]
) -> None:
    t = with_task(app(broker_url=dead_url, result_backend=None))
    policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0, "interval_max": 0}

    with pytest.raises(OperationalError):
        t.apply_async(retry=True, retry_policy=policy)

    assert [name for name, _ in published] == ["before"]


def test_publish_is_tried_again_until_the_server_is_back(app: MakeApp) -> None:
    with EmbeddedRedis(appendonly=True) as server:
        t = with_task(app(broker_url=server.url, result_backend=None))
        t.delay(1)
        server.kill()
        # Not from the main thread: the kernel's death signal is for those that live on.
        back = threading.Timer(0.3, server.start)
        back.start()

        t.apply_async((2,), retry=True, retry_policy={"max_retries": 200, "interval_start": 0.05, "interval_step": 0})

        back.join()
        found = StreamBroker(RedisClient(server.url))
        assert [message.body[0] for message in sent(found)] == [[1], [2]]
        found.client.close()


def test_connection_that_the_server_closed_is_replaced(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(result_backend=None))
    t.delay(1)

    broker.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    t.apply_async((2,), retry=True)

    assert [message.body[0] for message in sent(broker)] == [[1], [2]]


def test_full_queue_raises_at_once(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(streams_max_length=2))
    t.delay(1)
    t.apply_async((2,), countdown=60)

    with pytest.raises(QueueFull, match="'celery' holds 2 messages") as caught:
        t.apply_async((3,), retry=True, retry_policy={"max_retries": None, "interval_start": 60})
    with pytest.raises(QueueFull):
        t.apply_async((4,), countdown=60)

    assert isinstance(caught.value, OperationalError)
    assert [message.body[0] for message in sent(broker)] == [[1]]


def test_body_that_cannot_be_serialized_raises_what_celery_raises(app: MakeApp, broker: StreamBroker) -> None:
    t, plain = with_task(app()), with_task(app(installed=False))

    with pytest.raises(Exception) as ours:
        t.delay(object())
    with pytest.raises(Exception) as theirs:
        plain.delay(object())

    assert type(ours.value) is type(theirs.value)
    assert sent(broker) == []


# -- signals and events -----------------------------------------------------------------------------------------------


def test_signals_are_sent_as_celery_sends_them(
    app: MakeApp, broker: StreamBroker, published: list[tuple[str, dict[str, Any]]]
) -> None:
    with_task(app()).apply_async((1,), task_id="same", priority=3)
    with_task(app(installed=False)).apply_async((1,), task_id="same", priority=3)

    ours, theirs = published[:2], published[2:]
    assert [name for name, _ in ours] == [name for name, _ in theirs] == ["before", "after"]
    for (_, got), (_, expected) in zip(ours, theirs, strict=True):
        got, expected = dict(got), dict(expected)
        assert got.keys() == expected.keys()
        for name in ("sender", "body", "exchange", "routing_key", "headers"):
            assert got[name] == expected[name], name


def test_headers_that_a_receiver_adds_are_published(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app())

    def add(headers: dict[str, Any], **kwargs: Any) -> None:
        headers["trace"] = "abc"

    signals.before_task_publish.connect(add)
    try:
        t.delay()
    finally:
        signals.before_task_publish.disconnect(add)

    assert [message.headers["trace"] for message in sent(broker)] == ["abc"]


def test_task_sent_event_is_sent(app: MakeApp, broker: StreamBroker) -> None:
    made = app(task_send_sent_event=True)
    t = with_task(made)
    events: list[dict[str, Any]] = []
    ready, done = threading.Event(), threading.Event()

    def listen() -> None:
        with app().connection_for_read() as connection:
            receiver = made.events.Receiver(connection, handlers={"task-sent": events.append})
            with receiver.consumer_context() as (own_connection, _, _):
                ready.set()
                while not done.is_set():
                    try:
                        own_connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    listener = threading.Thread(target=listen)
    listener.start()
    assert ready.wait(10)

    result = t.delay(1)

    eventually(lambda: events, message="task-sent arrived")
    done.set()
    listener.join(10)
    assert (events[0]["uuid"], events[0]["name"], events[0]["queue"]) == (result.id, "t", "celery")
    assert (events[0]["exchange"], events[0]["routing_key"]) == ("", "celery")
    assert len(sent(broker)) == 1


# -- purge ------------------------------------------------------------------------------------------------------------


def test_control_purge_empties_lists_and_streams(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)
    t.delay(1)
    t.apply_async((2,), countdown=60)
    made.conf.streams_enabled = False
    t.delay(3)

    count = made.control.purge()

    assert count == 3
    assert (sent(broker), listed(broker)) == ([], [])


# -- processes --------------------------------------------------------------------------------------------------------


def test_forked_children_publish_through_connections_of_their_own(broker: StreamBroker, redis_url: str) -> None:
    code = textwrap.dedent(
        """
        import os, sys
        from celery import Celery
        import celery_streams

        app = Celery("forking", broker=sys.argv[1])
        celery_streams.install(app, enabled=True)
        app.send_task("t", ("parent",))
        children = []
        for number in range(4):
            pid = os.fork()
            if pid == 0:
                for _ in range(25):
                    app.send_task("t", (number,))
                os._exit(0)
            children.append(pid)
        for _ in range(25):
            app.send_task("t", ("parent",))
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
        app.send_task("t", ("parent",))
        """
    )
    environ = {**os.environ, "PYTHONWARNINGS": "error"}

    run = subprocess.run(
        [sys.executable, "-c", code, redis_url], capture_output=True, text=True, timeout=60, env=environ, check=False
    )

    assert run.returncode == 0, run.stderr
    names = [message.body[0][0] for message in sent(broker)]
    assert {name: names.count(name) for name in set(names)} == {"parent": 27, 0: 25, 1: 25, 2: 25, 3: 25}


def test_threads_publish_side_by_side(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app())
    start = threading.Barrier(6)

    def publish(name: int) -> None:
        start.wait(10)
        for _ in range(20):
            t.delay(name)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    names = [message.body[0][0] for message in sent(broker)]
    assert [names.count(number) for number in range(6)] == [20] * 6


def test_publishing_does_not_import_the_worker(redis_url: str) -> None:
    code = textwrap.dedent(
        """
        import sys
        from celery import Celery
        import celery_streams

        app = Celery("web", broker=sys.argv[1])
        celery_streams.install(app, enabled=True)
        app.send_task("t")
        ours = ("celery_streams.worker", "celery_streams.concurrency")
        print([name for name in sys.modules if name.startswith(ours)])
        """
    )

    run = subprocess.run(
        [sys.executable, "-c", code, redis_url], capture_output=True, text=True, timeout=60, check=False
    )

    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_consumer_class_of_an_installed_app_can_be_replaced_on_the_instance(
    app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Replaced(kombu.Consumer):
        pass

    fresh = app()

    monkeypatch.setattr(fresh.amqp, "Consumer", Replaced)

    with fresh.connection_for_read() as connection:
        assert type(fresh.amqp.TaskConsumer(connection)) is Replaced


def test_process_that_only_publishes_counts_by_the_side_when_it_is_told_to(app: MakeApp, broker: StreamBroker) -> None:
    from prometheus_client import CollectorRegistry

    from celery_streams.monitoring.publishers import count_published

    registry, other = CollectorRegistry(), CollectorRegistry()
    made = app(streams_queues=["celery"])
    t = with_task(made)
    t.delay()
    count_published(made, registry)
    count_published(made, registry)  # as where a module is imported twice

    t.delay()
    t.apply_async(countdown=600)
    with celery_streams.bulk(made):
        for _ in range(4):
            t.delay()
    t.apply_async(queue="plain")

    def counted(queue: str, side: str) -> float | None:
        return registry.get_sample_value("celery_streams_published_total", {"queue": queue, "side": side})

    assert (counted("celery", "stream"), counted("plain", "list")) == (6, 1)
    assert (counted("celery", "list"), counted("plain", "stream")) == (None, None)
    count_published(made, other)
    for number in range(201):
        celery_streams.streams_of(made).broker.publish(f"q{number}", Message(b"{}", b"{}", b""))
    assert other.get_sample_value("celery_streams_published_total", {"queue": "other", "side": "stream"}) == 1

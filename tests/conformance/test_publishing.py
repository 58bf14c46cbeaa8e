"""Every way to publish a task, and every option of ``apply_async`` that travels with the message."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import signature
from celery.signals import after_task_publish, before_task_publish

import celery_streams
from celery_streams.message import encode
from tests.support.eventually import eventually
from tests.support.versions import needs_celery


def test_delay_runs_the_task_and_returns_its_result(side):
    result = side.act.delay("ok", 42)

    assert side.value(result) == 42


def test_task_runs_exactly_once(side):
    result = side.act.delay("ok", 1)

    side.value(result)
    side.settled()

    assert len(side.ledger.runs(result.id)) == 1


def test_send_task_by_name_needs_no_task_object(side):
    result = side.app.send_task("tests.proj.actions.act", args=["ok"], kwargs={"value": "by name"})

    assert side.value(result) == "by name"


def test_signature_is_applied_with_its_own_options(side, new_id):
    sig = signature("tests.proj.actions.act", args=("ok",), kwargs={"value": 7}, app=side.app).set(task_id=new_id)

    result = sig.apply_async()

    assert result.id == new_id
    assert side.value(result) == 7


def test_immutable_and_partial_signatures_merge_their_arguments(side):
    partial = side.task("collect").s(2, key="own")
    immutable = side.task("collect").si(3)

    assert side.value(partial.apply_async((1,), {"other": "given"})) == [[1, 2], {"key": "own", "other": "given"}]
    assert side.value(immutable.apply_async((1,))) == [[3], {}]


def test_calling_with_wrong_arguments_is_refused_before_publishing(side):
    with pytest.raises(TypeError):
        side.task("add").delay(1)


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
def test_every_serializer_carries_the_arguments(side, serializer):
    value = {"text": "grüße", "numbers": [1, 2.5, None, True]}

    result = side.act.apply_async(("ok", value), serializer=serializer)

    assert side.value(result) == value


def test_pickle_carries_objects_that_json_cannot(side):
    result = side.act.apply_async(("repr", {1, 2, 3}), serializer="pickle")

    assert side.value(result) == "{1, 2, 3}"


@pytest.mark.parametrize("compression", ["zlib", "bzip2"])
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_compressed_message_is_decompressed(side, compression, serializer):
    value = "repeat " * 500

    result = side.act.apply_async(("ok", value), compression=compression, serializer=serializer)

    assert side.value(result) == value


def test_dates_and_uuids_in_json_arguments_arrive_as_objects(side):
    when = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)

    result = side.act.apply_async(("ok", {"when": when}), serializer="json")

    assert side.value(result) == {"when": when}


def test_large_message_arrives_whole(side):
    value = "x" * 2_000_000

    assert side.value(side.act.delay("ok", value)) == value


def test_task_id_can_be_chosen(side, new_id):
    result = side.act.apply_async(("ok", "mine"), task_id=new_id)

    assert result.id == new_id
    assert side.value(result) == "mine"
    assert side.ledger.runs(new_id)


def test_queue_option_goes_to_that_queue_only(side, new_id):
    elsewhere = side.act.apply_async(("ok", 1), queue=f"nobody-reads-{new_id}")

    side.settled()

    assert side.ledger.runs(elsewhere.id) == []
    assert elsewhere.state == "PENDING"


def test_routing_key_alone_names_the_queue_on_the_default_exchange(side):
    result = side.act.apply_async(("ok", "routed"), exchange="", routing_key=side.queue)

    assert side.value(result) == "routed"


def test_route_of_the_configuration_names_the_queue(side):
    result = side.task("act_routed").delay("request")

    assert side.value(result)["delivery_info"]["routing_key"] == side.routed_queue


def test_exchange_and_routing_key_name_the_queue_that_is_bound_to_them(side):
    by_key = side.act.apply_async(("ok", "bound"), exchange=f"{side.queue}-exchange", routing_key="bound.key")
    by_name = side.act.apply_async(("ok", "named"), queue=side.bound_queue)

    assert side.value(by_key) == "bound"
    assert side.value(by_name) == "named"


def test_retry_returns_to_the_queue_it_came_from(side):
    by_key = side.act.apply_async(
        ("retry", "bound"), {"countdown": 0}, exchange=f"{side.queue}-exchange", routing_key="bound.key"
    )

    assert side.value(by_key) == "bound"
    assert len(side.ledger.runs(by_key.id)) == 2


def test_message_properties_of_the_caller_reach_the_request(side):
    result = side.act.apply_async(("request",), app_id="shop", reply_to="answers", correlation_id="corr-1")

    request = side.value(result)

    assert request["properties"]["app_id"] == "shop"
    assert request["reply_to"] == "answers"
    assert request["correlation_id"] == "corr-1"


def test_headers_of_the_caller_reach_the_request(side):
    result = side.act.apply_async(("request",), headers={"tenant": "acme", "trace": {"id": 1}})

    request = side.value(result)

    assert request["headers"]["tenant"] == "acme"
    assert request["tenant"] == "acme"
    assert request["trace"] == {"id": 1}


def test_shadow_replaces_the_name_in_the_log_and_not_the_task(side):
    result = side.act.apply_async(("ok", 1), shadow=f"shadow-of-{side.name}")

    side.value(result)

    assert f"shadow-of-{side.name}[{result.id}] received" in side.worker.log


@pytest.mark.parametrize("priority", [0, 3, 6, 9])
def test_priority_reaches_the_request(side, priority):
    result = side.act.apply_async(("request",), priority=priority)

    assert side.value(result)["delivery_info"]["priority"] == priority


def test_message_with_priority_never_mentioned_has_priority_zero(side):
    assert side.value(side.act.delay("request"))["delivery_info"]["priority"] == 0


@needs_celery((5, 7), "before, receivers that come after a first publish may be missed")
def test_publish_signals_are_sent_in_order_with_the_message(side):
    seen = []

    def before(sender=None, body=None, headers=None, properties=None, routing_key=None, **_):
        headers["added"] = "by before_task_publish"
        seen.append(("before", sender, routing_key, headers["id"], properties["correlation_id"], body[0]))

    def after(sender=None, headers=None, body=None, routing_key=None, **_):
        seen.append(("after", sender, routing_key, headers["id"], None, body[0]))

    before_task_publish.connect(before)
    after_task_publish.connect(after)
    try:
        result = side.act.delay("request")
    finally:
        before_task_publish.disconnect(before)
        after_task_publish.disconnect(after)

    name = "tests.proj.actions.act"
    assert seen == [
        ("before", name, side.queue, result.id, result.id, ("request",)),
        ("after", name, side.queue, result.id, None, ("request",)),
    ]
    assert side.value(result)["added"] == "by before_task_publish"


def test_always_eager_runs_in_the_publisher_and_sends_nothing(side):
    side.app.conf.task_always_eager = True
    try:
        result = side.act.delay("request")
    finally:
        side.app.conf.task_always_eager = False

    assert result.get()["is_eager"] is True
    assert side.ledger.runs(result.id) == []


def test_apply_runs_in_the_caller(side):
    result = side.task("add").apply((1, 2))

    assert result.get() == 3
    assert result.state == "SUCCESS"


def test_task_called_as_a_function_is_the_function(side):
    assert side.task("add")(1, 2) == 3


def test_expired_message_is_dropped_and_revoked(side):
    result = side.act.apply_async(("ok", 1), expires=datetime.now(timezone.utc) - timedelta(seconds=5))

    assert side.state(result, "REVOKED") == "REVOKED"
    side.settled()
    assert side.ledger.runs(result.id) == []


def test_message_that_has_not_expired_runs(side):
    result = side.act.apply_async(("ok", "in time"), expires=60)

    assert side.value(result) == "in time"


def test_producer_and_connection_of_the_caller_are_used(side):
    with side.app.connection_for_write() as connection:
        by_connection = side.act.apply_async(("ok", "connection"), connection=connection)
        with side.app.amqp.Producer(connection) as producer:
            by_producer = side.act.apply_async(("ok", "producer"), producer=producer)

    assert side.value(by_connection) == "connection"
    assert side.value(by_producer) == "producer"


def test_task_publishes_from_inside_a_task(side):
    inner = side.value(side.act.delay("publish", "from inside"))

    assert side.value(side.app.AsyncResult(inner)) == "from inside"


def test_message_whose_content_type_is_not_accepted_is_not_run(side, new_id):
    from kombu.serialization import register, unregister

    register("secret", lambda obj: "not for you", lambda text: text, "application/x-secret", "utf-8")
    try:
        result = side.act.apply_async(("ok", 1), serializer="secret")
    finally:
        unregister("secret")

    eventually(lambda: side.ledger.signals(result.id))
    side.settled()

    assert side.ledger.signals(result.id) == ["task_rejected"]
    assert side.ledger.runs(result.id) == []
    assert result.state == "PENDING"


def test_message_that_names_no_task_is_rejected(side, new_id):
    if side.on_streams:  # where only task messages go by themselves
        properties = {"content_type": "application/json", "content_encoding": "utf-8"}
        nameless = encode({"id": new_id}, properties, '{"hello": "world"}')
        celery_streams.streams_of(side.app).broker.publish(side.queue, nameless)
    else:
        with side.app.connection_for_write() as connection, side.app.amqp.Producer(connection) as producer:
            producer.publish({"hello": "world"}, routing_key=side.queue, headers={"id": new_id}, serializer="json")

    eventually(lambda: side.ledger.signals(new_id))
    side.settled()

    assert side.ledger.signals(new_id) == ["task_rejected"]


needs_id_as_text = needs_celery((5, 7), "before, the Redis result backend takes ids that are texts only")

ODD_OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "id is a UUID": lambda: {"task_id": uuid.uuid4()},
    "id is a UUID with a time": lambda: {"task_id": uuid.uuid1()},
    "id is long": lambda: {"task_id": uuid.uuid4().hex * 20},
    "id has braces, spaces and colons": lambda: {"task_id": f"{{a}} b:c {uuid.uuid4().hex} é"},
    "priority is text": lambda: {"priority": "5"},
    "priority is text, delayed": lambda: {"priority": "5", "countdown": 0.2},
    "priority is a float": lambda: {"priority": 3.7},
    "priority is high": lambda: {"priority": 77},
    "priority is negative": lambda: {"priority": -1},
    "priority is a boolean": lambda: {"priority": True},
    "expires is a float": lambda: {"expires": 60.5},
    "expires is a date": lambda: {"expires": dt.datetime.now(dt.timezone.utc) + dt.timedelta(minutes=1)},
    "eta is a naive date": lambda: {"eta": dt.datetime.now(dt.timezone.utc).replace(tzinfo=None)},
    "eta is far in the past": lambda: {"eta": dt.datetime(1999, 1, 1, tzinfo=dt.timezone.utc)},
    "countdown is negative": lambda: {"countdown": -5},
    "headers are nested": lambda: {"headers": {"a": {"b": [1, None, {"c": uuid.uuid4()}]}, "when": dt.datetime.now()}},
    "headers have odd names": lambda: {"headers": {"": 1, "a b": 2, "é": 3}},
    "shadow": lambda: {"shadow": "another name"},
    "retries": lambda: {"retries": 2},
    "ignore_result": lambda: {"ignore_result": False},
    "reply_to": lambda: {"reply_to": "somewhere"},
    "group, root and parent": lambda: {"root_id": "r", "parent_id": "p", "group_id": "g"},
    "compression and serializer": lambda: {"compression": "gzip", "serializer": "yaml"},
    "argsrepr": lambda: {"argsrepr": "hidden", "kwargsrepr": ""},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=needs_id_as_text) if options.startswith("id is a UUID") else options
        for options in ODD_OPTIONS
    ],
)
def test_whatever_stock_takes_for_an_option_runs(side, options):
    given = ODD_OPTIONS[options]()

    result = side.act.apply_async(("ok", options), **given)

    assert side.value(result) == options
    assert len(side.ledger.runs(str(given.get("task_id", result.id)))) == 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("id is a UUID", marks=needs_id_as_text),
        *("priority is text", "priority is a float", "headers are nested"),
    ],
)
def test_whatever_stock_takes_for_an_option_is_retried(side, options):
    result = side.act.apply_async(("retry", "done"), {"countdown": 0.1}, **ODD_OPTIONS[options]())

    assert side.value(result) == "done"


def test_priority_that_a_retry_gives_as_text_is_taken(side):
    result = side.act.apply_async(("retry", "done"), {"countdown": 0, "priority": "3"})

    assert side.value(result) == "done"

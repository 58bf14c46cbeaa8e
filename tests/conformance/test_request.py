"""``self.request``: the same fields with the same values on both sides."""

from __future__ import annotations

import json
import re

import pytest

#: How Redis lists carry a message; a stream entry has no need of them, and Celery documents none.
TRANSPORT_PROPERTIES = {
    "body_encoding",
    "content_encoding",
    "content_type",
    "delivery_info",
    "delivery_mode",
    "delivery_tag",
}


def comparable(request, side):
    """Return the request without what differs between any two tasks: ids, node and queue names."""
    text = json.dumps(request, sort_keys=True)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "AN-ID", text)
    text = re.sub(r"gen\d+@", "genPID@", text)
    text = text.replace(side.worker.hostname, "NODE").replace(side.queue, "QUEUE").replace(request["id"], "THE-ID")
    fields = json.loads(text)
    fields["properties"] = {
        name: value for name, value in fields["properties"].items() if name not in TRANSPORT_PROPERTIES
    }
    return fields


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"priority": 5}, id="priority"),
        pytest.param({"headers": {"tenant": "acme"}, "app_id": "shop"}, id="headers"),
        pytest.param({"time_limit": 30, "soft_time_limit": 20.5}, id="limits"),
        pytest.param({"shadow": "another name"}, id="shadow"),
        pytest.param({"ignore_result": False, "reply_to": "answers"}, id="results"),
        pytest.param({"serializer": "yaml", "compression": "zlib"}, id="serializer"),
        pytest.param({"argsrepr": "hidden", "kwargsrepr": "secret"}, id="repr"),
        pytest.param({"group_id": "a-group", "group_index": 3, "root_id": "root", "parent_id": "parent"}, id="family"),
        pytest.param({"retries": 2}, id="retries"),
    ],
)
def test_request_is_the_same_on_lists_and_on_streams(both, options):
    seen = []
    for side in both:
        result = side.act.apply_async(("request", [1]), **options)
        seen.append(comparable(side.value(result), side))

    on_lists, on_streams = seen

    assert on_streams == on_lists


def test_request_of_a_retry_is_the_same_on_lists_and_on_streams(both):
    seen = []
    for side in both:
        result = side.act.apply_async(
            ("retry_then_request",), {"countdown": 0}, priority=3, headers={"tenant": "acme"}, time_limit=30
        )
        request = comparable(side.value(result), side)
        request.pop("eta")
        seen.append(request)

    on_lists, on_streams = seen

    assert on_streams == on_lists
    assert on_streams["retries"] == 1
    assert on_streams["tenant"] == "acme"


def test_request_of_a_link_and_a_chain_is_the_same_on_lists_and_on_streams(both):
    seen = []
    for side in both:
        link, error = side.task("remember").s().set(task_id="linked"), side.task("on_error").s().set(task_id="failed")
        chain = (
            side.act.si("ok", 1) | side.act.si("request").set(link=link, link_error=error) | side.task("collect").s()
        )
        result = chain.apply_async()
        seen.append(comparable(side.value(result.parent), side))

    on_lists, on_streams = seen

    assert on_streams == on_lists
    assert on_streams["parent_id"] == "AN-ID"


def test_delivery_info_is_what_retries_are_sent_by(side):
    request = side.value(side.act.apply_async(("request",), priority=6))

    assert request["delivery_info"] == {
        "exchange": "",
        "routing_key": side.queue,
        "priority": 6,
        "redelivered": False,
    }


def test_request_names_the_worker_and_the_task(side, new_id):
    request = side.value(side.act.apply_async(("request", "x"), task_id=new_id))

    assert request["id"] == new_id
    assert request["hostname"] == side.worker.hostname
    assert request["task"] == "tests.proj.actions.act"
    assert request["args"] == ["request", "x"]
    assert request["kwargs"] == {}
    assert request["root_id"] == new_id
    assert request["is_eager"] is False
    assert request["called_directly"] is False


def test_publisher_is_named_as_origin(side):
    request = side.value(side.act.delay("request"))

    assert re.fullmatch(r"gen\d+@.+", request["origin"])


def test_stamps_reach_the_request(side):
    sig = side.act.s("request")
    sig.stamp(tenant="acme")

    request = side.value(sig.apply_async())

    assert request["stamps"] == {"tenant": "acme"}
    assert request["stamped_headers"] == ["tenant"]


def test_children_of_a_task_are_listed_in_its_result(side):
    result = side.act.delay("publish", "child")

    inner = side.value(result)

    assert [child.id for child in result.children] == [inner]

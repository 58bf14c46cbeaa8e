"""Compact messages: what is left out comes back, byte for byte, and what is not Celery's own form stays as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from celery_streams.compact import HEADERS, PROPERTIES, is_compact
from celery_streams.exceptions import MessageError
from celery_streams.message import Message, encode, encode_json

TEXTS = st.text(max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(TEXTS, SCALARS, max_size=2) | st.dates() | st.uuids()


def _some(names: dict[str, Any], usual: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return what has these names in their order, each with its usual value or any other, and perhaps others behind."""
    own = st.fixed_dictionaries({name: st.just(usual.get(name, value)) | VALUES for name, value in names.items()})
    return st.builds(lambda first, more: {**first, **more}, own, st.dictionaries(TEXTS, VALUES, max_size=2))


USUAL = {"task": "t", "id": "i", "root_id": "i", "origin": "gen1@host"}
USUAL_PROPERTIES = {
    "correlation_id": "i",
    "reply_to": "r",
    "content_type": "application/json",
    "content_encoding": "utf-8",
}


@given(
    headers=_some(HEADERS, USUAL) | st.dictionaries(TEXTS | st.sampled_from(list(HEADERS)), VALUES, max_size=4),
    properties=_some(PROPERTIES, USUAL_PROPERTIES) | st.dictionaries(TEXTS, VALUES, max_size=3),
)
def test_what_is_read_is_what_was_written_in_the_same_order(
    headers: dict[str, Any], properties: dict[str, Any]
) -> None:
    full = encode(headers, properties, b"body", step=1)

    short = encode(headers, properties, b"body", step=1, compact=True)

    assert short.decode() == full.decode() == (short.decode_headers(), short.decode_properties())
    assert [list(part) for part in short.decode()] == [list(part) for part in full.decode()]
    assert short.written_out() == full


def _message(*, compact: bool = True, **options: Any) -> Message:
    """Return the message of a task as Celery makes it."""
    app = Celery("compact", set_as_current=False)
    made = app.amqp.as_task_v2("8f0c3b0a-6e3c-4a53-9f4e-3f7e8a6b7c5d", "noop", args=(5, "x" * 64), **options)
    properties = {
        **made.properties,
        "delivery_mode": 2,
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "priority": 0,
    }
    return encode(made.headers, properties, encode_json(made.body), compact=compact)


def test_message_of_a_task_takes_half_of_the_bytes() -> None:
    full, short = (
        sum(map(len, _message(compact=compact, reply_to="0dc42df4-621d-380e-a48e-f1a7a0345b36").as_fields()))
        for compact in (False, True)
    )

    assert is_compact(_message(reply_to="r").properties)
    assert short < 0.6 * full


def test_message_of_this_celery_is_in_the_form_that_is_known() -> None:
    made = Celery("compact", set_as_current=False).amqp.as_task_v2("i", "t")

    assert tuple(made.headers) == tuple(HEADERS)


def test_tasks_do_not_share_what_was_left_out() -> None:
    message = _message(reply_to="r")
    headers, properties = message.decode()
    headers["stamps"]["x"] = headers["timelimit"][0] = properties["mine"] = 1

    assert message.decode()[0]["stamps"] == {}
    assert message.decode()[0]["timelimit"] == [None, None]
    assert "mine" not in message.decode()[1]


def test_version_that_does_not_know_the_mark_finds_what_it_needs() -> None:
    message = _message(reply_to="r", ignore_result=True, time_limit=3)
    headers, properties = json.loads(message.headers), json.loads(message.properties)

    assert (headers["task"], headers["id"], headers["timelimit"]) == (
        "noop",
        "8f0c3b0a-6e3c-4a53-9f4e-3f7e8a6b7c5d",
        [3, None],
    )
    assert headers["argsrepr"].startswith("(5, 'xxx")
    assert properties == {
        "compact": 1,
        "reply_to": "r",
        "content_type": "application/json",
        "content_encoding": "utf-8",
    }


@pytest.mark.parametrize(
    ("headers", "properties"),
    [
        (b"{}", b'{"compact":1,"reply_to":"r","content_type":"a","content_encoding":"b"}'),
        (b'{"task":"t","id":"i"}', b'{"compact":1,"reply_to":"r","content_type":"a","content_encoding":"b"}'),
        (b'{"task":"t","id":"i","origin":"o"}', b'{"compact":1,"reply_to":"r"}'),
        (b'{"task":"t","id":"i","origin":"o"}', b'{"compact":1,'),
        (b"[]", b'{"compact":1,"reply_to":"r","content_type":"a","content_encoding":"b"}'),
    ],
)
def test_what_only_looks_like_a_compact_message_is_malformed(headers: bytes, properties: bytes) -> None:
    message = Message(headers, properties, b"")

    with pytest.raises(MessageError):
        message.decode()
    with pytest.raises(MessageError):
        message.written_out()

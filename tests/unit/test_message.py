"""Message: what goes in comes out, and what is no message is said to be none."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import json
import struct
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from celery_streams.exceptions import MessageError
from celery_streams.message import Message, decode_json, encode, encode_history, pack, unpack

messages = st.builds(
    Message,
    headers=st.binary(max_size=200),
    properties=st.binary(max_size=200),
    body=st.binary(max_size=2000),
    history=st.binary(max_size=100),
    step=st.integers(0, 9),
)


@given(message=messages)
def test_packed_message_unpacks_to_itself(message: Message) -> None:
    assert unpack(pack(message)) == message


@given(message=messages)
def test_fields_of_an_entry_give_the_same_message(message: Message) -> None:
    assert Message.from_fields(message.as_fields(), step=message.step) == message


@given(message=messages, cut=st.integers(1, 30))
def test_shortened_value_is_not_a_packed_message(message: Message, cut: int) -> None:
    with pytest.raises(MessageError, match="not a packed message"):
        unpack(pack(message)[:-cut])


@given(raw=st.binary(max_size=60))
def test_any_bytes_unpack_or_raise_our_error(raw: bytes) -> None:
    try:
        message = unpack(raw)
    except MessageError:
        return

    assert pack(message) == raw


def test_packed_layout_is_the_one_that_the_scripts_read() -> None:
    packed = pack(Message(b"HH", b"P", b"body", b"hist", step=2))

    assert packed == struct.pack(">IIIII", 2, 2, 1, 4, 4) + b"HHPbodyhist"


def test_history_is_a_field_only_when_there_is_one() -> None:
    fresh = Message(b"{}", b"{}", b"")

    assert fresh.as_fields() == [b"headers", b"{}", b"properties", b"{}", b"body", b""]
    assert fresh.decode_history() == {}
    assert encode_history({}) == b""
    assert Message(b"{}", b"{}", b"", encode_history({"first": "1-0"})).as_fields()[-2:] == [
        b"history",
        b'{"first":"1-0"}',
    ]


def test_fields_may_come_in_any_order() -> None:
    shuffled = [b"body", b"b", b"history", b"{}", b"properties", b"p", b"headers", b"h"]

    assert Message.from_fields(shuffled) == Message(b"h", b"p", b"b", b"{}")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ([], "no field headers, properties, body"),
        ([b"headers", b"{}"], "no field properties, body"),
        ([b"headers", b"{}", b"properties", b"{}"], "no field body"),
        ([b"x", b"1", b"headers", b"{}", b"properties", b"{}", b"body", b""], "unknown fields b'x'"),
    ],
)
def test_entry_that_is_no_message_says_what_is_wrong(fields: list[bytes], complaint: str) -> None:
    with pytest.raises(MessageError, match=complaint):
        Message.from_fields(fields)


@pytest.mark.parametrize(
    "value",
    [
        dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.timezone.utc),
        dt.datetime(2026, 1, 2, 3, 4, 5),
        dt.date(2026, 1, 2),
        uuid.UUID("12345678-1234-5678-1234-567812345678"),
        decimal.Decimal("1.10"),
        b"raw\xff",
        ["a", 1, None, True, {"deep": [1.5]}],
        "emoji 😀 and \x00",
    ],
    ids=repr,
)
def test_types_of_kombus_json_survive_in_headers(value: Any) -> None:
    message = encode({"value": value}, {"content_type": "application/json", "content_encoding": "utf-8"}, "[]")

    assert message.decode_headers() == {"value": value}


def test_plain_json_is_what_a_plain_decoder_reads() -> None:
    message = encode({"id": "1", "retries": 0}, {"priority": 3}, "[]")

    assert json.loads(message.headers) == {"id": "1", "retries": 0}
    assert json.loads(message.properties) == {"priority": 3}


def test_text_body_is_utf8_and_binary_body_is_untouched() -> None:
    assert encode({}, {}, "ü").body == "ü".encode()
    assert encode({}, {}, b"\x80\x02").body == b"\x80\x02"
    assert encode({}, {}, memoryview(b"\x80\x02")).body == b"\x80\x02"  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_bytes_that_are_no_json_raise_our_error(raw: bytes) -> None:
    with pytest.raises(MessageError, match="not JSON"):
        decode_json(raw)


@given(raw=st.binary(max_size=60))
def test_decoding_any_bytes_raises_no_other_error(raw: bytes) -> None:
    with contextlib.suppress(MessageError):
        decode_json(raw)


@pytest.mark.parametrize(
    "raw", ['{"__type__": "datetime", "__value__": "no date"}', '{"__type__": "uuid", "__value__": 3}']
)
def test_marker_with_a_wrong_value_raises_our_error(raw: str) -> None:
    with pytest.raises(MessageError, match="not JSON"):
        decode_json(raw.encode())


def test_deeply_nested_json_raises_our_error() -> None:
    with pytest.raises(MessageError, match="not JSON"):
        decode_json(b"[" * 200_000)


@pytest.mark.parametrize("part", ["headers", "properties", "history"])
@pytest.mark.parametrize("raw", [b"[]", b"1", b"null", b'"text"'])
def test_part_that_is_no_object_raises_our_error(part: str, raw: bytes) -> None:
    values: dict[str, Any] = {"headers": b"{}", "properties": b"{}", "body": b"", "history": b"{}", part: raw}

    with pytest.raises(MessageError, match=f"{part} must be a JSON object"):
        getattr(Message(**values), f"decode_{part}")()


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.dates() | st.uuids() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    ),
    around=st.sampled_from(["", " ", "\n", "\t\r\n "]),
    escaped=st.booleans(),
)
def test_json_is_decoded_as_kombu_decodes_it(value: Any, around: str, escaped: bool) -> None:
    text = kombu_json.dumps(value)
    if escaped:
        text = text.replace('"__type__"', '"\\u005f_type_\\u005F"')
    raw = f"{around}{text}{around}".encode()

    assert decode_json(raw) == kombu_json.loads(raw)


@pytest.mark.parametrize("raw", [b"", b" ", b"{", b"1 2", b"{}x", b"nul", b"\xff"])
def test_what_is_no_json_is_said_to_be_none(raw: bytes) -> None:
    with pytest.raises(MessageError, match="not JSON"):
        decode_json(raw)

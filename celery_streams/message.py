"""Message: the translation between a Celery task message (protocol 1 or 2) and a stream entry; no Redis here.

An entry keeps what kombu would have sent: ``headers`` and ``properties`` as JSON (kombu's dialect, so that dates and
UUIDs in headers survive), and ``body`` as the raw bytes of the serializer, without kombu's base64. The content type,
content encoding and priority are properties. ``history`` is there only for an entry that was put back, or is a retry:

==============  ====================================================================================================
``first``       id of the first entry of this message (its time stamp is when it was published)
``crashes``     deliveries that ended with the death of the process that ran it
``redelivered`` 1 when a process had started it before
``unknown``     milliseconds since the epoch at which a worker first did not know the task
``worker``      who had it last
``hurried``     1 when somebody asked that it run now, whatever eta it names
``attempts``    how each of its starts ended, in lines of text: see :mod:`.attempts`
==============  ====================================================================================================

A delayed message is the same four fields packed into one value (:func:`pack`), so that the script which promotes it
copies bytes and never parses JSON.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from kombu.utils.json import JSONEncoder, object_hook

from .compact import expand_headers, expand_properties, is_compact, shorten
from .exceptions import MessageError
from .said import say

__all__ = (
    "FIELDS",
    "Message",
    "decode_json",
    "decode_object",
    "encode",
    "encode_json",
    "pack",
    "unpack",
    "unpack_fields",
)

#: Field names of an entry, in the order in which they are written.
FIELDS = (b"headers", b"properties", b"body", b"history")

_HEADER = struct.Struct(">IIIII")

#: Bytes of properties that are remembered, how many of them, and what they consist of, so that a copy is a copy.
_REMEMBERED, _MOST_REMEMBERED = 400, 1_000
_SIMPLE = (str, int, float, type(None))
#: Encode JSON in kombu's dialect, compactly; the text that :func:`decode_json` takes as bytes.
encode_json = JSONEncoder(separators=(",", ":")).encode
_decoder = json.JSONDecoder()
_plain_decode = _decoder.decode
_plain_scan = json.scanner.make_scanner(_decoder)  # type: ignore[attr-defined]
_hooked_decode = json.JSONDecoder(object_hook=object_hook).decode


def decode_json(raw: bytes) -> Any:
    """Decode JSON in kombu's dialect; the object hook runs only where a marker occurs.

    Raises:
        MessageError: the bytes are not JSON.
    """
    try:
        text = raw.decode("utf-8")
        if "__type__" in text or "\\u005" in text:  # the marker, or what may be an escaped underscore of one
            return _hooked_decode(text)
        try:
            # What nobody indented needs no search for white space around it, which takes as long as a small message.
            value, end = _plain_scan(text, 0)
        except StopIteration:
            end = -1
        return value if end == len(text) else _plain_decode(text)
    except Exception as exc:  # kombu's decoders, and those that users register, raise anything
        raise MessageError(say("not JSON: %(error)s", error=str(exc))) from exc


def decode_object(raw: bytes) -> dict[str, Any]:
    """Decode a JSON object that anybody may have written; empty when it is none."""
    try:
        value = decode_json(raw) if raw else {}
    except MessageError:
        return {}
    return value if isinstance(value, dict) else {}


class Message(NamedTuple):
    """One message as it lies in Redis: undecoded, because moves between streams never need more.

    A named tuple, not a dataclass, for one is made of every message that is read.
    """

    headers: bytes
    properties: bytes
    body: bytes
    history: bytes = b""
    #: Index of the priority step that its stream stands for.
    step: int = 0

    @classmethod
    def from_fields(cls, raw: list[bytes], *, step: int = 0) -> Message:
        """Build from the flat field list of a stream entry.

        Raises:
            MessageError: one of ``headers``, ``properties``, ``body`` is missing, or a field is not known.
        """
        if len(raw) == 6 and raw[0] == b"headers" and raw[2] == b"properties" and raw[4] == b"body":
            return cls(raw[1], raw[3], raw[5], b"", step)
        values = dict(zip(raw[::2], raw[1::2], strict=False))
        missing = [name.decode() for name in FIELDS[:3] if name not in values]
        if missing:
            raise MessageError(f"the entry has no field {', '.join(missing)}")
        extra = [name for name in values if name not in FIELDS]
        if extra:
            shown = ", ".join(repr(name[:40]) for name in extra[:5]) + (", ..." if len(extra) > 5 else "")
            raise MessageError(f"the entry has unknown fields {shown}")
        return cls(values[b"headers"], values[b"properties"], values[b"body"], values.get(b"history", b""), step)

    def as_fields(self) -> list[bytes]:
        """Return the flat field list for XADD."""
        fields = [b"headers", self.headers, b"properties", self.properties, b"body", self.body]
        if self.history:
            fields += [b"history", self.history]
        return fields

    def changed(self, **fields: bytes) -> Message:
        """Return the message with other ``headers``, ``properties``, ``body`` or ``history``."""
        return self._replace(**fields)  # type: ignore[arg-type]

    def decode_headers(self) -> dict[str, Any]:
        """Return the headers (empty for protocol 1).

        Raises:
            MessageError: they are not a JSON object.
        """
        found = _as_object(decode_json(self.headers), "headers")
        return expand_headers(found) if is_compact(self.properties) else found

    def decode_properties(self) -> dict[str, Any]:
        """Return the properties.

        Raises:
            MessageError: they are not a JSON object.
        """
        return self.decode()[1] if is_compact(self.properties) else _decode_properties(self.properties)

    def decode(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return headers and properties.

        Raises:
            MessageError: one of them is not a JSON object.
        """
        headers = _as_object(decode_json(self.headers), "headers")
        if not is_compact(self.properties):
            return headers, _decode_properties(self.properties)
        headers = expand_headers(headers)
        return headers, expand_properties(_remembered(self.properties), headers["id"])

    def written_out(self) -> Message:
        """Return the message as it was before it was made compact, byte for byte.

        Raises:
            MessageError: headers or properties are not JSON objects.
        """
        if not is_compact(self.properties):
            return self
        try:
            headers, properties = (_plain_decode(raw.decode()) for raw in (self.headers, self.properties))
        except ValueError as exc:
            raise MessageError(say("not JSON: %(error)s", error=str(exc))) from exc
        headers = expand_headers(_as_object(headers, "headers"))
        properties = expand_properties(_as_object(properties, "properties"), headers["id"])
        return self._replace(headers=encode_json(headers).encode(), properties=encode_json(properties).encode())

    def decode_history(self) -> dict[str, Any]:
        """Return what of the history makes sense; empty for a message that was never put back, and is no retry.

        Anybody can write a history: numbers in it are finite, counts and times whole and not negative, ``first``,
        ``worker`` and ``attempts`` are texts. ``recover.lua`` reads it likewise.

        Raises:
            MessageError: it is not a JSON object.
        """
        return _sane(_as_object(decode_json(self.history), "history")) if self.history else {}


def _decode_properties(raw: bytes) -> dict[str, Any]:
    return _as_object(decode_json(raw), "properties")


_known_properties: dict[bytes, dict[str, Any]] = {}


def _remembered(raw: bytes) -> dict[str, Any]:
    """Decode properties that most messages of a publisher have in common; the caller copies them."""
    known = _known_properties.get(raw)
    if known is None:
        known = _decode_properties(raw)
        if len(raw) <= _REMEMBERED and all(isinstance(value, _SIMPLE) for value in known.values()):
            if len(_known_properties) >= _MOST_REMEMBERED:
                _known_properties.clear()
            _known_properties[raw] = known
    return known


def encode(
    headers: Mapping[str, Any],
    properties: Mapping[str, Any],
    body: str | bytes,
    *,
    step: int = 0,
    compact: bool = False,
) -> Message:
    """Encode a message for Redis; ``compact`` leaves out what goes without saying (see :mod:`.compact`).

    ``properties`` must hold ``content_type`` and ``content_encoding``; a text body is written as UTF-8, which is what
    kombu's ``loads`` expects for ``content_encoding`` utf-8.
    """
    short = shorten(headers, properties) if compact else None
    if short is not None:
        headers, properties = short
    return Message(
        encode_json(headers).encode(),
        encode_json(properties).encode(),
        body.encode() if isinstance(body, str) else bytes(body),
        b"",
        step,
    )


def encode_history(history: Mapping[str, Any]) -> bytes:
    """Encode a history; an empty one is no field at all."""
    return encode_json(history).encode() if history else b""


def pack(message: Message) -> bytes:
    """Pack a message into one value: five big-endian 32-bit numbers (step and four lengths), then the four fields.

    ``lua/prelude`` knows the same layout: ``pack.lua`` and ``unpacked.lua``.
    """
    return b"".join(
        (
            _HEADER.pack(
                message.step,
                len(message.headers),
                len(message.properties),
                len(message.body),
                len(message.history),
            ),
            message.headers,
            message.properties,
            message.body,
            message.history,
        )
    )


def unpack(packed: bytes) -> Message:
    """Undo :func:`pack`.

    Raises:
        MessageError: the value is shorter or longer than its header says.
    """
    try:
        step, *lengths = _HEADER.unpack_from(packed)
    except struct.error as exc:
        raise MessageError(f"not a packed message: {exc}") from exc
    if _HEADER.size + sum(lengths) != len(packed):
        raise MessageError("not a packed message: its lengths do not add up")
    parts: list[bytes] = []
    start = _HEADER.size
    for length in lengths:
        parts.append(packed[start : start + length])
        start += length
    return Message(parts[0], parts[1], parts[2], parts[3], step)


def unpack_fields(packed: bytes) -> list[bytes]:
    """Return the fields of an entry that had too many for a script to store one by one; see ``storable.lua``.

    Raises:
        MessageError: the value is no such list.
    """
    found: list[bytes] = []
    at = 0
    while at < len(packed):
        end = at + 4 + int.from_bytes(packed[at : at + 4], "big")
        if end > len(packed) or at + 4 > len(packed):
            raise MessageError("not packed fields: their lengths do not add up")
        found.append(packed[at + 4 : end])
        at = end
    if not found or len(found) % 2:
        raise MessageError("not packed fields: they are no pairs of name and value")
    return found


#: What a history may say, and of which kind; other names may hold any plain value.
_COUNTS, _TEXTS = ("crashes", "unknown"), ("first", "worker", "attempts")


def _sane(history: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in history.items():
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if name in _COUNTS:
            if isinstance(value, (int, float)) and value >= 0:
                found[name] = int(value)
        elif isinstance(value, str) if name in _TEXTS else isinstance(value, (str, int, float)):
            found[name] = value
    return found


def _as_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MessageError(say("%(what)s must be a JSON object, not %(kind)s", what=what, kind=type(value).__name__))
    return value

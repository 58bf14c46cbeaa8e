"""The whole of a Redis database as one value, to be compared before and after; and seeds for what a test needs.

Idle times are left out: they differ at each look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.entries import Delivery, StreamRef
from celery_streams.message import Message


@dataclass(frozen=True)
class StreamState:
    """Entries in order, what is pending (id -> consumer and deliveries) per group, and the consumers per group."""

    entries: dict[str, dict[str, bytes]]
    pending: dict[str, dict[str, tuple[str, int]]]
    consumers: dict[str, list[str]]


def redis_state(client: RedisClient) -> dict[str, Any]:
    """Return everything in the database of ``client``, by key."""
    names = sorted(key for node in client.nodes for key in node.call("KEYS", "*"))
    return {key.decode(): _value(client, key) for key in names}


def _value(client: RedisClient, key: bytes) -> Any:
    kind = client.call("TYPE", key).decode()
    if kind == "stream":
        return _stream(client, key)
    if kind == "zset":
        flat = client.call("ZRANGE", key, 0, -1, "WITHSCORES")
        return {
            member.decode(errors="surrogateescape"): float(score)
            for member, score in zip(flat[::2], flat[1::2], strict=True)
        }
    if kind == "hash":
        flat = client.call("HGETALL", key)
        return dict(zip([name.decode() for name in flat[::2]], flat[1::2], strict=True))
    if kind == "set":
        return {member.decode() for member in client.call("SMEMBERS", key)}
    if kind == "list":
        return client.call("LRANGE", key, 0, -1)
    return client.call("GET", key)


def _stream(client: RedisClient, key: bytes) -> StreamState:
    entries = {
        entry_id.decode(): dict(zip([name.decode() for name in flat[::2]], flat[1::2], strict=True))
        for entry_id, flat in client.call("XRANGE", key, "-", "+")
    }
    pending, consumers = {}, {}
    for group in client.call("XINFO", "GROUPS", key):
        name = dict(zip(group[::2], group[1::2], strict=True))[b"name"]
        pending[name.decode()] = {
            entry_id.decode(): (consumer.decode(), deliveries)
            for entry_id, consumer, _, deliveries in client.call("XPENDING", key, name, "-", "+", 10_000)
        }
        consumers[name.decode()] = sorted(
            dict(zip(info[::2], info[1::2], strict=True))[b"name"].decode()
            for info in client.call("XINFO", "CONSUMERS", key, name)
        )
    return StreamState(entries, pending, consumers)


def message(number: int = 0, *, step: int = 0, history: bytes = b"") -> Message:
    """Return a message that is told from others by its number."""
    return Message(b'{"id":"%d","task":"t"}' % number, b'{"priority":0}', b"[[%d],{},{}]" % number, history, step)


def number_of(found: Delivery) -> int:
    """Undo :func:`message`."""
    assert found.message is not None
    return int(found.message.decode_headers()["id"])


def delivered(broker: StreamBroker, queue: str, consumer: str, *messages: Message) -> list[Delivery]:
    """Publish ``messages`` and deliver them to ``consumer``."""
    broker.ensure_groups([queue])
    for one in messages:
        broker.publish(queue, one)
    found = read_all(broker, [queue], consumer, count=len(messages))
    assert len(found) == len(messages)
    return found


def read_all(broker: StreamBroker, queues: Sequence[str], consumer: str, *, count: int = 100) -> list[Delivery]:
    """Read up to ``count`` entries in as many reads as it takes: each brings entries of one priority only."""
    found: list[Delivery] = []
    while len(found) < count and (more := broker.read(broker.streams(queues), consumer, count=count - len(found))):
        found += more
    return found


def make_idle(broker: StreamBroker, stream: StreamRef, consumer: str | bytes, entry_id: bytes, *, idle_ms: int) -> None:
    """Make an entry look as if ``consumer`` had given no heartbeat for ``idle_ms``."""
    broker.client.call("XCLAIM", stream.key, keys.GROUP, consumer, 0, entry_id, "IDLE", idle_ms, "JUSTID")


def flush(client: RedisClient) -> None:
    """Delete everything, on every node of a cluster."""
    for node in client.nodes:
        node.call("FLUSHALL")


def redis_now_ms(client: RedisClient) -> int:
    """Return Redis' clock in milliseconds since the epoch."""
    seconds, micros = client.call("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


def commands_processed(broker: StreamBroker) -> int:
    """Return how many commands Redis has carried out, those of scripts included."""
    said = [node.call("INFO", "stats").decode() for node in broker.client.nodes]
    return sum(int(one.partition("total_commands_processed:")[2].partition("\r\n")[0]) for one in said)

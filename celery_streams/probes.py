"""Probes: the raw looks at Redis that ``monitoring.doctor`` judges; each changes nothing and judges nothing.

It knows neither Celery nor the worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import keys
from .broker import StreamBroker
from .connection import RedisClient, pairs
from .exceptions import BrokerError, BrokerUnavailable, CommandMissing, NotPermitted
from .inspect import own_group
from .kombu_lists import ListKeys

__all__ = (
    "DOCTOR_COMMANDS",
    "ClockSkew",
    "Denial",
    "ServerInfo",
    "SilentHolder",
    "clock_skew",
    "denied_commands",
    "denied_to_readers",
    "heard_of",
    "list_length",
    "list_lengths",
    "needed_commands",
    "permitted_rules",
    "server_info",
    "server_version",
    "set_size",
    "silent_consumers",
    "silent_holders",
    "streams_without_group",
    "streams_without_holder",
)

#: Seconds by which clocks may differ before it is worth a word.
CLOCK_WARNING = 0.5

#: Looks at the clock; the one with the shortest round trip counts.
_CLOCK_LOOKS = 5

#: Commands whose second word is a command of its own.
_CONTAINERS = frozenset(("CLIENT", "MEMORY", "XGROUP", "XINFO"))


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the server says of itself; None where it does not say."""

    #: ``Redis`` or ``Valkey``.
    name: str
    version: tuple[int, ...]
    cluster: bool
    #: ``master``, ``slave`` or another word of the server's.
    role: str
    used_memory: int
    #: 0 is no bound.
    maxmemory: int
    policy: str | None
    append_only: bool
    append_fsync: str | None
    #: The ``save`` setting; empty when no snapshots are made.
    snapshots: str | None
    #: Whether the last write to disk succeeded, of the append-only file and of snapshots.
    append_ok: bool
    snapshot_ok: bool
    #: Whether it takes CONFIG, which managed servers keep to themselves.
    configurable: bool = True


@dataclass(frozen=True, slots=True)
class ClockSkew:
    """How far this host's clock is ahead of Redis' (negative: behind), in seconds."""

    ahead: float
    #: Half of the round trip: the clocks may differ by so much more or less.
    uncertainty: float


@dataclass(frozen=True, slots=True)
class Denial:
    """A command that the user may not send, and the server's words."""

    command: str
    text: str
    #: The server has no such command: no rule permits it.
    missing: bool = False


@dataclass(frozen=True, slots=True)
class SilentHolder:
    """A consumer that holds entries and gave no heartbeat for too long."""

    consumer: str
    entries: int
    #: Seconds since the last heartbeat for the longest silent entry.
    silent: float


def server_version(client: RedisClient) -> str:
    """Return the version of the server: ``7.0.15``, or ``Valkey 8.1.1``.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    told = _info(client, "server")
    valkey = told.get("valkey_version")
    return f"Valkey {valkey}" if valkey else told.get("redis_version", "")


def _info(client: RedisClient, section: str) -> dict[str, str]:
    told = {}
    for line in client.call("INFO", section).decode(errors="replace").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            told[name] = value
    return told


def server_info(client: RedisClient) -> ServerInfo:
    """Return what the server says of itself."""
    told: dict[str, str] = {}
    for section in ("server", "memory", "persistence", "replication", "cluster"):
        told |= _info(client, section)
    valkey = told.get("valkey_version")
    settings = _settings(client, "appendfsync", "save")
    return ServerInfo(
        name="Valkey" if valkey else "Redis",
        version=tuple(int(part) for part in (valkey or told.get("redis_version", "0")).split(".") if part.isdigit()),
        cluster=told.get("cluster_enabled") == "1",
        role=told.get("role", "master"),
        used_memory=int(told.get("used_memory", 0)),
        maxmemory=int(told.get("maxmemory", 0)),
        policy=told.get("maxmemory_policy"),
        append_only=told.get("aof_enabled") == "1",
        append_fsync=settings.get("appendfsync"),
        snapshots=settings.get("save"),
        configurable=bool(settings),
        append_ok=told.get("aof_last_write_status", "ok") == "ok",
        snapshot_ok=told.get("rdb_last_bgsave_status", "ok") == "ok",
    )


def _settings(client: RedisClient, *names: str) -> dict[str, str]:
    """Return settings of the server by their names; none where it does not say."""
    found: dict[str, str] = {}
    for name in names:
        try:
            said = client.call("CONFIG", "GET", name)
        except BrokerUnavailable:
            raise
        except BrokerError:
            break  # managed servers keep CONFIG to themselves, whatever is asked for
        if said:
            found[name] = said[1].decode()
    return found


def full_coverage(client: RedisClient) -> str | None:
    """Return ``cluster-require-full-coverage`` of a node of a Redis Cluster; None where it keeps that to itself."""
    name = "cluster-require-full-coverage"
    return _settings(client, name).get(name)


def clock_skew(client: RedisClient, *, clock: Callable[[], float] = time.time) -> ClockSkew:
    """Compare this host's clock with Redis'."""
    best: ClockSkew | None = None
    for _ in range(_CLOCK_LOOKS):
        before = clock()
        seconds, micros = client.call("TIME")
        after = clock()
        look = ClockSkew((before + after) / 2 - int(seconds) - int(micros) / 1e6, (after - before) / 2)
        if best is None or look.uncertainty < best.uncertainty:
            best = look
    assert best is not None
    return best


def needed_commands(broker: StreamBroker, queue: str) -> list[tuple[Any, ...]]:
    """Return one example of each command that publishers, workers and operators send, with the keys of ``queue``."""
    names = broker.queue_keys(queue)
    stream, group = names.streams[0], keys.GROUP
    return [
        ("PING",),
        ("TIME",),
        ("EVAL", "return 0", 0),
        ("EVALSHA", "0" * 40, 0),
        ("CLIENT", "ID"),
        ("CLIENT", "UNBLOCK", 0),
        ("EXISTS", stream),
        ("GET", names.claims),
        ("MGET", names.turns),
        ("SADD", keys.queues(broker.prefix), queue),
        ("SMEMBERS", keys.queues(broker.prefix)),
        ("SET", names.claims, "", "NX", "PX", 1),
        ("PERSIST", names.claims),
        ("PTTL", names.claims),
        ("PEXPIRE", names.claims, 1),
        ("XADD", stream, "*", "field", "value"),
        ("XREADGROUP", "GROUP", group, "doctor", "COUNT", 1, "STREAMS", stream, ">"),
        ("XREAD", "COUNT", 1, "STREAMS", names.wake, "0-0"),
        ("XACK", stream, group, "0-1"),
        ("XDEL", stream, "0-1"),
        ("XCLAIM", stream, group, "doctor", 0, "0-1", "JUSTID"),
        ("XPENDING", stream, group),
        ("XRANGE", stream, "-", "+"),
        ("XREVRANGE", names.dead, "+", "-"),
        ("XLEN", stream),
        ("XTRIM", names.dead, "MINID", "0"),
        ("MEMORY", "USAGE", names.dead),
        ("XINFO", "GROUPS", stream),
        ("XINFO", "CONSUMERS", stream, group),
        ("XGROUP", "CREATE", stream, group, "0", "MKSTREAM"),
        ("XGROUP", "CREATECONSUMER", stream, group, "doctor"),
        ("XGROUP", "DELCONSUMER", stream, group, "doctor"),
        ("ZADD", names.delayed, 0, "member"),
        ("ZREM", names.delayed, "member"),
        ("ZCARD", names.delayed),
        ("ZCOUNT", names.delayed, 0, 0),
        ("ZSCORE", names.delayed, "member"),
        ("ZRANGE", names.delayed, 0, 0),
        ("ZRANGEBYSCORE", names.delayed, 0, 0),
        ("ZRANGEBYLEX", names.shelf[3], "-", "+"),
        ("ZLEXCOUNT", names.shelf[6], "-", "+"),
        ("HLEN", names.shelf[0]),
        ("ZREVRANGEBYSCORE", keys.revoked(broker.prefix), 0, 0),
        ("ZREMRANGEBYSCORE", keys.revoked(broker.prefix), 0, 0),
        ("HSET", names.delayed_messages, "member", ""),
        ("HGET", names.delayed_messages, "member"),
        ("HMGET", names.delayed_messages, "member"),
        ("HDEL", names.delayed_messages, "member"),
        ("HSCAN", names.shelf[1], 0),
        ("HGETALL", keys.workers(broker.prefix)),
        ("HSCAN", names.unique, 0),
        ("UNLINK", names.delayed),
    ]


def denied_commands(broker: StreamBroker, queue: str) -> list[Denial]:
    """Return the commands of :func:`needed_commands` that the user of this connection may not send.

    They are queued in a transaction, which is when Redis checks permissions, and the transaction is discarded: nothing
    is executed, no permission for ACL DRYRUN is needed, and it works from Redis 6.2 on.
    """
    commands = needed_commands(broker, queue)
    opened, *replies, _ = broker.client.pipeline([("MULTI",), *commands, ("DISCARD",)])
    if isinstance(opened, BrokerError):
        # Without MULTI they would be executed: then only those without effect could be tried, and are not worth it.
        raise opened
    denied: dict[str, Denial] = {}
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, NotPermitted):
            name = _command_name(command)
            denied[name] = Denial(name, str(reply), missing=isinstance(reply, CommandMissing))
    return list(denied.values())


#: What the doctor sends besides: it looks at permissions inside a transaction that it discards, at the server's own
#: account and settings, and at Celery's lists.
DOCTOR_COMMANDS = ("MULTI", "DISCARD", "INFO", "CONFIG GET", "LLEN", "SCARD")

#: What the history has besides, with this permission: how many messages arrived.
HISTORY_COMMANDS = ("XINFO STREAM",)

#: Without these a worker cannot read a queue, run what is on it and settle it.
_READERS_COMMANDS = frozenset(
    (
        *("EVAL", "EVALSHA", "TIME", "PERSIST", "SET"),
        *("XADD", "XREADGROUP", "XACK", "XDEL", "XCLAIM", "XPENDING", "XRANGE", "XGROUP CREATE"),
        *("ZADD", "ZRANGE", "ZRANGEBYSCORE", "ZREM", "HSET", "HGET", "HDEL"),
    )
)


def permitted_rules(broker: StreamBroker) -> list[str]:
    """Return the rules of ``ACL SETUSER`` for a user who publishes, works, operates and lets the doctor look."""
    names = {_command_name(command) for command in needed_commands(broker, "q")} | {*DOCTOR_COMMANDS, *HISTORY_COMMANDS}
    commands = sorted(f"+{name.lower().replace(' ', '|')}" for name in names)
    return [f"~{broker.prefix}:*", "resetchannels", "-@all", *commands]


def denied_to_readers(broker: StreamBroker, queues: Iterable[str]) -> dict[str, list[Denial]]:
    """Return the queues that the user of this connection cannot read, and what is denied; without MULTI none is known.

    Raises:
        BrokerUnavailable: Redis is away.
    """
    found: dict[str, list[Denial]] = {}
    for queue in queues:
        try:
            denied = [one for one in denied_commands(broker, queue) if one.command in _READERS_COMMANDS]
        except NotPermitted:
            return {}
        if denied:
            found[queue] = denied
    return found


def _command_name(command: tuple[Any, ...]) -> str:
    return " ".join(command[:2]) if command[0] in _CONTAINERS else str(command[0])


def _streams(broker: StreamBroker, queue: str) -> list[str]:
    """Return the streams of all partitions of ``queue``, and those of their fronts that are there."""
    return [stream for name in broker.partitions(queue) for stream in broker.present(name)]


def streams_without_group(broker: StreamBroker, queue: str) -> dict[str, int]:
    """Return the streams of ``queue`` that hold entries and have no consumer group, with the number of entries."""
    found: dict[str, int] = {}
    for stream in _streams(broker, queue):
        length, groups = broker.client.call_all([("XLEN", stream), ("XINFO", "GROUPS", stream)], missing_is_none=True)
        if length and own_group(groups) is None:
            found[stream] = int(length)
    return found


def streams_without_holder(broker: StreamBroker, queue: str) -> list[str]:
    """Return the streams of ``queue`` whose first entry was delivered and is in nobody's list."""
    found = []
    for stream in _streams(broker, queue):
        looks = [
            ("XINFO", "GROUPS", stream),
            ("XPENDING", stream, keys.GROUP, "-", "+", 1),
            ("XRANGE", stream, "-", "+", "COUNT", 1),
        ]
        groups, held, first = broker.client.call_all(looks, missing_is_none=True)
        group = own_group(groups)
        if group is None or not first:
            continue
        begins = _order(first[0][0])
        if begins <= _order(group[b"last-delivered-id"]) and (not held or begins < _order(held[0][0])):
            found.append(stream)
    return found


def _order(entry_id: bytes) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split(b"-")))


def silent_holders(broker: StreamBroker, queue: str, *, idle_ms: int) -> list[SilentHolder]:
    """Return the consumers whose entries had no heartbeat for ``idle_ms``, by name; 1,000 entries a stream are read."""
    found: dict[str, SilentHolder] = {}
    for stream in _streams(broker, queue):
        look = ("XPENDING", stream, keys.GROUP, "IDLE", idle_ms, "-", "+", 1_000)
        (held,) = broker.client.call_all([look], missing_is_none=True)
        for _, consumer, idle, _ in held or ():
            name = consumer.decode()
            known = found.get(name)
            found[name] = SilentHolder(
                name, (known.entries if known else 0) + 1, max(idle / 1000, known.silent if known else 0.0)
            )
    return sorted(found.values(), key=lambda holder: holder.consumer)


def silent_consumers(broker: StreamBroker, queue: str, *, silent: float) -> list[str]:
    """Return the consumers that hold nothing and that Redis has not heard of for ``silent`` seconds."""
    holding: set[str] = set()
    idle: dict[str, float] = {}
    for stream in _streams(broker, queue):
        (reply,) = broker.client.call_all([("XINFO", "CONSUMERS", stream, keys.GROUP)], missing_is_none=True)
        for consumer in map(pairs, reply or ()):
            name = consumer[b"name"].decode()
            idle[name] = min(consumer[b"idle"] / 1000, idle.get(name, float("inf")))
            if consumer[b"pending"]:
                holding.add(name)
    return sorted(name for name, seconds in idle.items() if seconds >= silent and name not in holding)


def heard_of(broker: StreamBroker, queues: Iterable[str]) -> tuple[float, dict[str, float]]:
    """Return Redis' time, and when it last heard of each consumer of ``queues``, by its name; both in seconds."""
    now = 0.0
    found: dict[str, float] = {}
    for queue in queues:
        looks = [("XINFO", "CONSUMERS", stream, keys.GROUP) for stream in _streams(broker, queue)]
        clock, *replies = broker.client.call_all([("TIME",), *looks], missing_is_none=True)
        now = int(clock[0]) + int(clock[1]) / 1e6
        for consumer in (pairs(one) for reply in replies for one in reply or ()):
            name = consumer[b"name"].decode(errors="replace")
            found[name] = max(now - consumer[b"idle"] / 1000, found.get(name, 0.0))
    return now, found


def list_length(client: RedisClient, names: ListKeys) -> int:
    """Return the number of messages on the Celery lists of a queue."""
    return list_lengths(client, [names])[0]


def list_lengths(client: RedisClient, queues: Sequence[ListKeys]) -> list[int]:
    """Return the number of messages on the Celery lists of each queue; 100 queues in a round trip."""
    found: list[int] = []
    for start in range(0, len(queues), 100):
        part = queues[start : start + 100]
        lengths = iter(client.call_all([("LLEN", key) for names in part for key in names.lists]))
        found += [sum(int(next(lengths)) for _ in names.lists) for names in part]
    return found


def set_size(client: RedisClient, key: str) -> int:
    """Return the number of members of a set; 0 for none."""
    return int(client.call("SCARD", key))

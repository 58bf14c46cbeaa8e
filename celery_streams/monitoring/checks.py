"""checks: what a look at the server, its settings, the clock or a queue means; pure functions, no Redis."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..hints import command
from ..inspect import QueueStatus
from ..presence import WorkerPresence
from ..probes import CLOCK_WARNING, ClockSkew, Denial, ServerInfo

__all__ = (
    "CHECKS",
    "LEVELS",
    "Finding",
    "Level",
    "Workers",
    "cannot",
    "check_asked_names",
    "check_clock",
    "check_eviction",
    "check_memory",
    "check_names",
    "check_namesakes",
    "check_partitioned",
    "check_permissions",
    "check_persistence",
    "check_role",
    "check_settings",
    "check_timeouts",
    "check_version",
    "check_worlds",
    "messages",
    "namesakes",
)

Level = Literal["ok", "info", "warning", "critical"]

#: Worst first.
LEVELS: tuple[Level, ...] = ("critical", "warning", "info", "ok")

#: What findings are called, for whoever accepts some.
CHECKS: tuple[str, ...] = (
    "both worlds",
    "clock",
    "cluster",
    "consumers",
    "database",
    "delayed",
    "disk",
    "eviction",
    "groups",
    "held",
    "install",
    "lists",
    "memory",
    "migration",
    "names",
    "node names",
    "paused",
    "permissions",
    "persistence",
    "queue",
    "queues",
    "role",
    "server",
    "settings",
    "timeouts",
    "version",
    "workers",
)

#: The oldest Redis with XAUTOCLAIM, XPENDING IDLE and XTRIM MINID.
OLDEST_REDIS = (6, 2)

#: Seconds by which clocks may differ before it is critical: an eta is off by so much.
CLOCK_CRITICAL = 10.0

#: Shares of maxmemory.
MEMORY_WARNING, MEMORY_CRITICAL = 0.8, 0.95

#: Seconds by which a consumer must have been heard of later to be alive: what two looks at the clock differ by is less.
HEARD_AGAIN = 0.2


#: Commands that some servers refuse to everybody: what is done, or missing, without them.
SPARED: Mapping[str, str] = {
    **dict.fromkeys(
        ("CLIENT ID", "CLIENT UNBLOCK"), "Blocking reads are ended through a stream of each consumer instead"
    ),
    "MEMORY USAGE": "Metrics do not say how much memory queues take, and streams_dead_letter_max_memory has no effect",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    what: str
    why: str = ""
    #: What to do.
    todo: str = ""
    queue: str | None = None
    #: A person knows and accepts it: it counts for nothing.
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Workers:
    """Node names of the workers that answered, by the queue that they consume."""

    stock: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ours: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def unknown(check: str, text: str, todo: str) -> Finding:
    """Return the finding for what the server does not tell anybody, as managed ones do."""
    why = "Managed servers keep some of their settings to themselves; nothing is wrong because of that."
    return Finding(check, "info", f"Not known: {text}", why, todo)


def _set(server: ServerInfo, name: str, value: str) -> str:
    """Return how to change a setting of the server."""
    if server.configurable:
        return f"CONFIG SET {name} {value} (and in redis.conf)."
    return f"Set {name} to {value} where your provider has its settings, if it has this one (docs/providers.md)."


def cannot(check: str, text: str) -> Finding:
    """Return the finding for a check that could not be made."""
    return Finding(check, "warning", f"Could not be checked: {text}", "A problem there would go unnoticed.")


# -- the server -------------------------------------------------------------------------------------------------------


def check_version(server: ServerInfo) -> Finding:
    """Redis 6.2 or later, or any Valkey."""
    version = ".".join(map(str, server.version))
    if server.name == "Redis" and server.version < OLDEST_REDIS:
        return Finding(
            "version",
            "critical",
            f"Redis {version} is too old",
            "XPENDING IDLE, XTRIM MINID and other commands that recovery needs came with Redis 6.2.",
            "Upgrade to Redis 6.2 or later, or to Valkey.",
        )
    return Finding("version", "ok", f"{server.name} {version}")


def check_role(server: ServerInfo) -> Finding:
    """A primary, and no cluster."""
    if server.cluster:
        return Finding(
            "role",
            "critical",
            "The server is a node of a Redis Cluster",
            "Keys of other slots are refused with MOVED; publishes to some queues will fail.",
            "Set streams_url to redis+cluster://HOST:PORT.",
        )
    if server.role != "master":
        return Finding(
            "role",
            "critical",
            f"The server is a {'replica' if server.role == 'slave' else server.role}",
            "It takes no writes: nothing can be published or acknowledged.",
            "Point streams_url at the primary, or use a sentinel:// URL.",
        )
    return Finding("role", "ok", "A primary, not a cluster")


def check_eviction(server: ServerInfo) -> Finding:
    """The policy is noeviction."""
    policy = server.policy
    if policy is None:
        return unknown(
            "eviction",
            "the server does not report its maxmemory-policy",
            "Look it up at your provider: with allkeys-... it would throw tasks away.",
        )
    if policy == "noeviction":
        return Finding("eviction", "ok", "maxmemory-policy noeviction")
    todo = _set(server, "maxmemory-policy", "noeviction")
    if policy.startswith("volatile-"):
        return Finding(
            "eviction",
            "warning" if server.configurable else "info",
            f"maxmemory-policy {policy}",
            "Streams have no expiry and are safe; results and other keys with one are evicted when memory is short.",
            todo if server.configurable else f"Nothing, for tasks; for results: {todo}",
        )
    return Finding(
        "eviction",
        "critical" if server.maxmemory else "warning",
        f"maxmemory-policy {policy}",
        "When memory is short Redis deletes whole streams: every task in them is lost, without an error anywhere."
        + ("" if server.maxmemory else " (maxmemory is not set, so not yet.)"),
        todo,
    )


def check_memory(server: ServerInfo) -> Finding:
    """There is a bound, and it is not near."""
    if not server.maxmemory:
        return Finding(
            "memory",
            "info",
            "maxmemory is not set",
            "A backlog can grow until the system kills Redis.",
            "Set maxmemory: publishers then get an error (BrokerFull), workers go on."
            if server.configurable
            else "Nothing, if your provider bounds the memory; streams_max_length bounds queues.",
        )
    share = server.used_memory / server.maxmemory
    if share < MEMORY_WARNING:
        return Finding("memory", "ok", f"{share:.0%} of maxmemory is used")
    return Finding(
        "memory",
        "critical" if share >= MEMORY_CRITICAL else "warning",
        f"{share:.0%} of maxmemory is used",
        "When it is full, publishing fails with BrokerFull; workers go on.",
        "Start more workers, raise maxmemory, purge dead letters, or set streams_max_length.",
    )


def check_persistence(server: ServerInfo) -> Finding:
    """What Redis has confirmed survives its restart."""
    if not server.append_ok or not server.snapshot_ok:
        return Finding(
            "disk",
            "critical",
            f"The last {'append to the AOF' if not server.append_ok else 'snapshot'} failed",
            "Redis may refuse writes (MISCONF), and a restart loses what is not on disk.",
            "Look at the server's log: a full disk, or permissions.",
        )
    if server.append_only:
        if server.append_fsync == "always":
            return Finding("persistence", "ok", "AOF, appendfsync always")
        if server.append_fsync is None:
            return unknown(
                "persistence",
                "how often the AOF is flushed to the disk (appendfsync); everysec is the default",
                "Nothing, unless a second of publishes matters: ask your provider.",
            )
        if server.append_fsync == "no":
            return Finding(
                "persistence",
                "warning",
                "AOF, appendfsync no",
                "A power failure loses what the system had not written, often half a minute.",
                _set(server, "appendfsync", "everysec"),
            )
        return Finding(
            "persistence",
            "info",
            f"AOF, appendfsync {server.append_fsync}",
            "A power failure can lose about the last second of publishes, and so can a crash of Redis on a slow disk.",
            "Nothing, unless that second matters: appendfsync always.",
        )
    if server.snapshots is None:
        return unknown(
            "persistence",
            "the server has no AOF, and does not report whether it makes snapshots",
            "Look up at your provider what survives a restart or a failover: without persistence or replica no task.",
        )
    if server.snapshots:
        return Finding(
            "persistence",
            "warning",
            f"Snapshots only (save {server.snapshots})",
            "A crash of Redis loses everything since the last snapshot, which may be minutes of tasks.",
            _set(server, "appendonly", "yes"),
        )
    return Finding(
        "persistence",
        "critical",
        "Nothing is written to disk",
        "A restart of Redis loses every task.",
        _set(server, "appendonly", "yes"),
    )


def check_clock(skew: ClockSkew) -> Finding:
    """The clock of this host agrees with Redis'."""
    apart = max(abs(skew.ahead) - skew.uncertainty, 0.0)
    what = f"This host's clock is {abs(skew.ahead):.2f} s {'ahead of' if skew.ahead > 0 else 'behind'} Redis'"
    if apart < CLOCK_WARNING:
        return Finding("clock", "ok", what)
    return Finding(
        "clock",
        "critical" if apart >= CLOCK_CRITICAL else "warning",
        what,
        "Redis' clock decides when a delayed message is due: eta and countdown of tasks published here are off by it.",
        "Run NTP on this host (timedatectl set-ntp true), and on that of Redis if it is yours.",
    )


def check_permissions(denied: list[Denial]) -> Finding:
    """The user may send every command that is needed."""
    if not denied:
        return Finding("permissions", "ok", "Every command that is needed is permitted")
    needed = [one for one in denied if one.command not in SPARED]
    if not needed:
        return Finding(
            "permissions",
            "info",
            f"Not permitted, and not needed: {', '.join(one.command for one in denied)}",
            "; ".join(dict.fromkeys(SPARED[one.command] for one in denied)) + ".",
            "Nothing.",
        )
    names = ", ".join(one.command for one in needed)
    rules = [f"+{one.command.lower().replace(' ', '|')}" for one in denied if not one.missing]
    if any("key" in one.text.rpartition("permissions")[2] for one in needed):
        todo = "ACL SETUSER the user with ~PREFIX:* (streams_key_prefix) for the keys, and the commands above."
    elif any(one.missing for one in needed):
        todo = "The server does not have these commands: use Redis 6.2 or later, or another plan or provider."
    else:
        todo = "ACL SETUSER the user with " + " ".join(rules)
    return Finding(
        "permissions",
        "critical",
        f"Not permitted: {names}",
        f"Publishing, running or recovering tasks will fail. The server says: {needed[0].text}",
        todo,
    )


# -- node names -------------------------------------------------------------------------------------------------------


def namesakes(heard: Mapping[str, float], *, since: float) -> tuple[frozenset[str], ...]:
    """Return the sets of consumers that would be the same child of the same worker, were there not two of them.

    Args:
        heard: when Redis last heard of each consumer; of those before ``since`` nothing is said.
    """
    found: dict[str, set[str]] = {}
    for consumer, at in heard.items():
        child, dot, chance = consumer.rpartition(".")
        if at >= since and dot and chance and "/" in child:
            found.setdefault(child, set()).add(consumer)
    return tuple(frozenset(found[child]) for child in sorted(found) if len(found[child]) > 1)


def check_namesakes(before: Mapping[str, float], after: Mapping[str, float]) -> Iterable[Finding]:
    """No two workers that live have the same node name.

    A child that was replaced or killed may have been heard of a moment ago: alive is who was heard of again.

    Args:
        before: when Redis last heard of each consumer, as it was at a first look.
        after: the same at a later look.
    """
    again = {name: at for name, at in after.items() if name in before and at > before[name] + HEARD_AGAIN}
    workers: dict[str, int] = {}
    for same in namesakes(again, since=0.0):
        node = next(iter(same)).rpartition("/")[0]
        workers[node] = max(len(same), workers.get(node, 0))
    for node, count in workers.items():
        yield Finding(
            "node names",
            "warning",
            f"{count} live workers have the node name {node}",
            "No task is lost or run twice because of it, for each acknowledges only its own messages; but remote "
            "control, events and rate limits treat them as one worker.",
            "Give each worker a name of its own (-n NAME@%h), and each container a host name of its own.",
        )


# -- names ------------------------------------------------------------------------------------------------------------


def check_names(unknown: Mapping[str, str | None], chosen: Iterable[str]) -> Iterable[Finding]:
    """Every queue that ``streams_queues`` names is one that somebody knows.

    Args:
        unknown: the names that no queue, route or message has, and the nearest name that one has.
        chosen: the queues that are on streams.
    """
    on_streams = set(chosen)
    for name, near in unknown.items():
        if near is not None:
            yield Finding(
                "names",
                "warning",
                f"streams_queues names {name!r}, which no queue, route or message has; did you mean {near!r}?",
                f"Messages for {near!r} go to the stream all the same."
                if near in on_streams
                else f"Messages for {near!r} go to Celery's list.",
                f"Correct streams_queues: {near!r}.",
                name,
            )
        else:
            yield Finding(
                "names",
                "info",
                f"streams_queues names {name!r}, which no queue, route or message has yet",
                "If it is misspelt, messages for the intended queue go to Celery's list.",
                "Nothing, if the name is right.",
                name,
            )


def check_asked_names(unknown: Mapping[str, str | None]) -> Iterable[Finding]:
    """Every queue that was asked about is one that somebody knows; else nothing odd is found, whatever was meant."""
    for name, near in unknown.items():
        meant = f"; did you mean {near!r}?" if near is not None else ": is the name right?"
        yield Finding(
            "names",
            "warning",
            f"no message, worker or setting knows this queue{meant}",
            "What is said about it here is true of any name.",
            f"celery-streams doctor {near}" if near is not None else "Ask without a name for all queues.",
            name,
        )


def check_partitioned(unknown: Mapping[str, str | None]) -> Iterable[Finding]:
    """Every queue that ``streams_partitions`` names is one that is on streams."""
    for name, near in unknown.items():
        meant = f"; did you mean {near!r}?" if near is not None else ""
        yield Finding(
            "names",
            "warning" if near is not None else "info",
            f"streams_partitions names {name!r}, which is no queue on streams yet{meant}",
            "No queue is spread by it.",
            f"Correct streams_partitions: {near!r}." if near is not None else "Nothing, if the name is right.",
            name,
        )


def check_settings(misspelt: Iterable[str]) -> Iterable[Finding]:
    """No setting or environment variable is nearly one of ours."""
    for sentence in misspelt:
        yield Finding("settings", "warning", sentence, "It has no effect: the default applies.", "Correct its name.")


def check_timeouts(workers: Iterable[WorkerPresence]) -> Iterable[Finding]:
    """All living workers have the same visibility timeout."""
    nodes: dict[float, list[str]] = {}
    for worker in workers:
        if worker.is_alive:
            nodes.setdefault(worker.visibility_timeout, []).append(worker.node)
    if len(nodes) > 1:
        shown = "; ".join(f"{timeout:g} s: {', '.join(sorted(set(nodes[timeout])))}" for timeout in sorted(nodes))
        yield Finding(
            "timeouts",
            "warning",
            f"Live workers have different visibility timeouts ({shown})",
            "Each is judged by its own timeout; but a worker of an older version judges all others by its own, and may "
            "claim what a slower one is still running.",
            "Give all of them the same streams_visibility_timeout, and restart those that still have the old one.",
        )


# -- both sides of a queue --------------------------------------------------------------------------------------------


def check_worlds(
    name: str, status: QueueStatus, *, listed: int, share: float, workers: Workers | None
) -> Iterable[Finding]:
    """No message waits on the side that nobody consumes.

    Args:
        listed: messages on Celery's lists.
        share: how much of what publishers of this configuration write goes to the stream, 0.0 to 1.0.
        workers: None when they were not asked.
    """
    on = share > 0.0
    stock = workers.stock.get(name, ()) if workers else ()
    ours = workers.ours.get(name, ()) if workers else ()
    held = status.length + status.delayed
    if on and listed:
        what = f"{messages(listed)} {_are(listed)} on Celery's list while publishers write to the stream"
        if stock:
            yield Finding(
                "both worlds",
                "info",
                f"{what}; {', '.join(stock)} drains it",
                "Order between the two sides is not kept.",
                "Stop the stock worker when the list is empty.",
                name,
            )
        else:
            yield Finding(
                "both worlds",
                "critical" if workers else "warning",
                what,
                "No stock worker consumes the list: these tasks never run."
                if workers
                else "If no stock worker consumes the list, these tasks never run.",
                command("migrate", name, "--to", "streams"),
                name,
            )
    elif share >= 1.0 and stock:
        yield Finding(
            "both worlds",
            "warning",
            f"The stock worker {', '.join(stock)} consumes Celery's list, which gets no new messages",
            "It sits idle, and its capacity is missing.",
            f"Replace it: {command('worker', '-Q', name)}",
            name,
        )
    if not on and listed and workers is not None and not stock:
        yield Finding(
            "both worlds",
            "critical",
            f"{_wait(listed)} on Celery's list, where publishers write, and no stock worker consumes it",
            "These tasks never run.",
            f"Start a stock worker (celery worker -Q {shlex.quote(name)}), or turn streams on and "
            f"{command('migrate', name, '--to', 'streams')}",
            name,
        )
    if not on and held:
        what = f"{messages(held)} {_are(held)} on the stream while publishers write to Celery's list"
        if ours or status.workers or (workers is None and status.consumers):
            by = f"; {', '.join(ours)} drains it" if ours else ""
            yield Finding(
                "both worlds",
                "info",
                what + by,
                "Order between the two sides is not kept.",
                "Stop the stream worker when the stream is empty.",
                name,
            )
        else:
            yield Finding(
                "both worlds",
                "critical",
                what,
                "No stream worker consumes the stream: these tasks never run.",
                f"{command('migrate', name, '--to', 'lists')}, or until it is empty {command('worker', '-Q', name)}",
                name,
            )
    if status.consumers or ours:
        return
    if on and status.length:
        yield Finding(
            "consumers",
            "critical",
            f"{_wait(status.length)} and no worker consumes the stream" + _dead(status),
            "These tasks do not run.",
            command("worker", "-Q", name),
            name,
        )
    elif status.dead_workers:
        yield Finding(
            "consumers",
            "warning",
            "No worker consumes the stream" + _dead(status),
            "It was killed, or cannot reach Redis; new messages will wait.",
            command("worker", "-Q", name),
            name,
        )


def _dead(status: QueueStatus) -> str:
    return f"; {', '.join(status.dead_workers)} died" if status.dead_workers else ""


def messages(count: int) -> str:
    """Write a number of messages."""
    return "1 message" if count == 1 else f"{count:,} messages"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _wait(count: int) -> str:
    return f"{messages(count)} {'waits' if count == 1 else 'wait'}"

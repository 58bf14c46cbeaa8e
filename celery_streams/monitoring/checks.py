"""checks: what a look at the server, its settings, the clock or a queue means; pure functions, no Redis."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..hints import command
from ..presence import WorkerPresence
from ..probes import CLOCK_WARNING, ClockSkew, Denial, ServerInfo
from ..said import Said, say

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
    "check_types",
    "check_version",
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
    "keys",
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
SPARED: Mapping[str, Said] = {
    **dict.fromkeys(
        ("CLIENT ID", "CLIENT UNBLOCK"), say("Blocking reads are ended through a stream of each consumer instead")
    ),
    "MEMORY USAGE": say(
        "Metrics do not say how much memory queues take, and streams_dead_letter_max_memory has no effect"
    ),
}


_NO_MORE = Said()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    what: Said
    why: Said = _NO_MORE
    #: What to do.
    todo: Said = _NO_MORE
    queue: str | None = None
    #: A person knows and accepts it: it counts for nothing.
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Workers:
    """Node names of the workers that answered, by the queue that they consume."""

    stock: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ours: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def unknown(check: str, text: Said, todo: Said) -> Finding:
    """Return the finding for what the server does not tell anybody, as managed ones do."""
    why = say("Managed servers keep some of their settings to themselves; nothing is wrong because of that.")
    return Finding(check, "info", say("Not known: %(text)s", text=text), why, todo)


def _set(server: ServerInfo, name: str, value: str) -> Said:
    """Return how to change a setting of the server."""
    if server.configurable:
        return say("CONFIG SET %(name)s %(value)s (and in redis.conf).", name=name, value=value)
    return say(
        "Set %(name)s to %(value)s where your provider has its settings, if it has this one (docs/providers.md).",
        name=name,
        value=value,
    )


def cannot(check: str, text: str) -> Finding:
    """Return the finding for a check that could not be made."""
    why = say("A problem there would go unnoticed.")
    return Finding(check, "warning", say("Could not be checked: %(text)s", text=text), why)


# -- the server -------------------------------------------------------------------------------------------------------


def check_version(server: ServerInfo) -> Finding:
    """Redis 6.2 or later, or any Valkey."""
    version = ".".join(map(str, server.version))
    if server.name == "Redis" and server.version < OLDEST_REDIS:
        return Finding(
            "version",
            "critical",
            say("Redis %(version)s is too old", version=version),
            say("XPENDING IDLE, XTRIM MINID and other commands that recovery needs came with Redis 6.2."),
            say("Upgrade to Redis 6.2 or later, or to Valkey."),
        )
    return Finding("version", "ok", Said(f"{server.name} {version}"))


def check_role(server: ServerInfo) -> Finding:
    """A primary, and no cluster."""
    if server.cluster:
        return Finding(
            "role",
            "critical",
            say("The server is a node of a Redis Cluster"),
            say("Keys of other slots are refused with MOVED; publishes to some queues will fail."),
            say("Set streams_url to redis+cluster://HOST:PORT."),
        )
    if server.role != "master":
        return Finding(
            "role",
            "critical",
            say("The server is a replica")
            if server.role == "slave"
            else say("The server is a %(role)s", role=server.role),
            say("It takes no writes: nothing can be published or acknowledged."),
            say("Point streams_url at the primary, or use a sentinel:// URL."),
        )
    return Finding("role", "ok", say("A primary, not a cluster"))


def check_eviction(server: ServerInfo) -> Finding:
    """The policy is noeviction."""
    policy = server.policy
    if policy is None:
        return unknown(
            "eviction",
            say("the server does not report its maxmemory-policy"),
            say("Look it up at your provider: with allkeys-... it would throw tasks away."),
        )
    what = Said(f"maxmemory-policy {policy}")
    if policy == "noeviction":
        return Finding("eviction", "ok", what)
    todo = _set(server, "maxmemory-policy", "noeviction")
    if policy.startswith("volatile-"):
        return Finding(
            "eviction",
            "warning" if server.configurable else "info",
            what,
            say(
                "Streams have no expiry and are safe; results and other keys with one are evicted when memory is short."
            ),
            todo if server.configurable else say("Nothing, for tasks; for results: %(todo)s", todo=todo),
        )
    why = say(
        "When memory is short Redis deletes whole streams: every task in them is lost, without an error anywhere."
    )
    return Finding(
        "eviction",
        "critical" if server.maxmemory else "warning",
        what,
        why if server.maxmemory else say("%(why)s (maxmemory is not set, so not yet.)", why=why),
        todo,
    )


def check_memory(server: ServerInfo) -> Finding:
    """There is a bound, and it is not near."""
    if not server.maxmemory:
        return Finding(
            "memory",
            "info",
            say("maxmemory is not set"),
            say("A backlog can grow until the system kills Redis."),
            say("Set maxmemory: publishers then get an error (BrokerFull), workers go on.")
            if server.configurable
            else say("Nothing, if your provider bounds the memory; streams_max_length bounds queues."),
        )
    share = server.used_memory / server.maxmemory
    what = say("%(share)s of maxmemory is used", share=f"{share:.0%}")
    if share < MEMORY_WARNING:
        return Finding("memory", "ok", what)
    return Finding(
        "memory",
        "critical" if share >= MEMORY_CRITICAL else "warning",
        what,
        say("When it is full, publishing fails with BrokerFull; workers go on."),
        say("Start more workers, raise maxmemory, purge dead letters, or set streams_max_length."),
    )


def check_persistence(server: ServerInfo) -> Finding:
    """What Redis has confirmed survives its restart."""
    if not server.append_ok or not server.snapshot_ok:
        return Finding(
            "disk",
            "critical",
            say("The last snapshot failed") if server.append_ok else say("The last append to the AOF failed"),
            say("Redis may refuse writes (MISCONF), and a restart loses what is not on disk."),
            say("Look at the server's log: a full disk, or permissions."),
        )
    if server.append_only:
        what = Said(f"AOF, appendfsync {server.append_fsync}")
        if server.append_fsync == "always":
            return Finding("persistence", "ok", what)
        if server.append_fsync is None:
            return unknown(
                "persistence",
                say("how often the AOF is flushed to the disk (appendfsync); everysec is the default"),
                say("Nothing, unless a second of publishes matters: ask your provider."),
            )
        if server.append_fsync == "no":
            return Finding(
                "persistence",
                "warning",
                what,
                say("A power failure loses what the system had not written, often half a minute."),
                _set(server, "appendfsync", "everysec"),
            )
        return Finding(
            "persistence",
            "info",
            what,
            say(
                "A power failure can lose about the last second of publishes, and so can a crash of Redis on a slow "
                "disk."
            ),
            say("Nothing, unless that second matters: appendfsync always."),
        )
    if server.snapshots is None:
        return unknown(
            "persistence",
            say("the server has no AOF, and does not report whether it makes snapshots"),
            say(
                "Look up at your provider what survives a restart or a failover: without persistence or replica no "
                "task."
            ),
        )
    if server.snapshots:
        return Finding(
            "persistence",
            "warning",
            say("Snapshots only (save %(save)s)", save=server.snapshots),
            say("A crash of Redis loses everything since the last snapshot, which may be minutes of tasks."),
            _set(server, "appendonly", "yes"),
        )
    return Finding(
        "persistence",
        "critical",
        say("Nothing is written to disk"),
        say("A restart of Redis loses every task."),
        _set(server, "appendonly", "yes"),
    )


def check_clock(skew: ClockSkew) -> Finding:
    """The clock of this host agrees with Redis'."""
    apart = max(abs(skew.ahead) - skew.uncertainty, 0.0)
    what = (
        say("This host's clock is %(seconds)s s ahead of Redis'", seconds=skew.ahead)
        if skew.ahead > 0
        else say("This host's clock is %(seconds)s s behind Redis'", seconds=abs(skew.ahead))
    )
    if apart < CLOCK_WARNING:
        return Finding("clock", "ok", what)
    return Finding(
        "clock",
        "critical" if apart >= CLOCK_CRITICAL else "warning",
        what,
        say(
            "Redis' clock decides when a delayed message is due: eta and countdown of tasks published here are off by "
            "it."
        ),
        say("Run NTP on this host (timedatectl set-ntp true), and on that of Redis if it is yours."),
    )


def check_permissions(denied: list[Denial]) -> Finding:
    """The user may send every command that is needed."""
    if not denied:
        return Finding("permissions", "ok", say("Every command that is needed is permitted"))
    needed = [one for one in denied if one.command not in SPARED]
    if not needed:
        return Finding(
            "permissions",
            "info",
            say("Not permitted, and not needed: %(commands)s", commands=", ".join(one.command for one in denied)),
            say("%(what)s.", what=tuple(dict.fromkeys(SPARED[one.command] for one in denied))),
            say("Nothing."),
        )
    rules = [f"+{one.command.lower().replace(' ', '|')}" for one in denied if not one.missing]
    if any("key" in one.text.rpartition("permissions")[2] for one in needed):
        todo = say("ACL SETUSER the user with ~PREFIX:* (streams_key_prefix) for the keys, and the commands above.")
    elif any(one.missing for one in needed):
        todo = say("The server does not have these commands: use Redis 6.2 or later, or another plan or provider.")
    else:
        todo = say("ACL SETUSER the user with %(rules)s", rules=" ".join(rules))
    return Finding(
        "permissions",
        "critical",
        say("Not permitted: %(commands)s", commands=", ".join(one.command for one in needed)),
        say("Publishing, running or recovering tasks will fail. The server says: %(text)s", text=needed[0].text),
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
            say("%(count)s live workers have the node name %(node)s", count=count, node=node),
            say(
                "No task is lost or run twice because of it, for each acknowledges only its own messages; but remote "
                "control, events and rate limits treat them as one worker."
            ),
            say(
                "Give each worker a name of its own (%(option)s), and each container a host name of its own.",
                option="-n NAME@%h",
            ),
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
                say(
                    "streams_queues names %(name)s, which no queue, route or message has; did you mean %(near)s?",
                    name=repr(name),
                    near=repr(near),
                ),
                say("Messages for %(near)s go to the stream all the same.", near=repr(near))
                if near in on_streams
                else say("Messages for %(near)s go to Celery's list.", near=repr(near)),
                say("Correct streams_queues: %(near)s.", near=repr(near)),
                name,
            )
        else:
            yield Finding(
                "names",
                "info",
                say("streams_queues names %(name)s, which no queue, route or message has yet", name=repr(name)),
                say("If it is misspelt, messages for the intended queue go to Celery's list."),
                say("Nothing, if the name is right."),
                name,
            )


def check_asked_names(unknown: Mapping[str, str | None]) -> Iterable[Finding]:
    """Every queue that was asked about is one that somebody knows; else nothing odd is found, whatever was meant."""
    for name, near in unknown.items():
        yield Finding(
            "names",
            "warning",
            say("no message, worker or setting knows this queue: is the name right?")
            if near is None
            else say("no message, worker or setting knows this queue; did you mean %(near)s?", near=repr(near)),
            say("What is said about it here is true of any name."),
            say("Ask without a name for all queues.") if near is None else Said(command("doctor", near)),
            name,
        )


def check_partitioned(unknown: Mapping[str, str | None]) -> Iterable[Finding]:
    """Every queue that ``streams_partitions`` names is one that is on streams."""
    for name, near in unknown.items():
        what = say("streams_partitions names %(name)s, which is no queue on streams yet", name=repr(name))
        yield Finding(
            "names",
            "warning" if near is not None else "info",
            what if near is None else say("%(what)s; did you mean %(near)s?", what=what, near=repr(near)),
            say("No queue is spread by it."),
            say("Nothing, if the name is right.")
            if near is None
            else say("Correct streams_partitions: %(near)s.", near=repr(near)),
            name,
        )


def check_settings(misspelt: Iterable[Said]) -> Iterable[Finding]:
    """No setting or environment variable is nearly one of ours."""
    for sentence in misspelt:
        why = say("It has no effect: the default applies.")
        yield Finding("settings", "warning", sentence, why, say("Correct its name."))


def check_types(odd: Iterable[str], queue: str | None = None) -> Iterable[Finding]:
    """Every key holds what it is there for."""
    for key in odd:
        yield Finding(
            "keys",
            "critical",
            say("The key %(key)s holds a value of another type, which celery-streams did not write", key=key),
            say(
                "Redis refuses all that needs it (WRONGTYPE). The rest goes on, and so does this when the key is gone."
            ),
            say("Find out who wrote it, and move it away: RENAME %(key)s KEPT", key=shlex.quote(key)),
            queue,
        )


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
            say("Live workers have different visibility timeouts (%(timeouts)s)", timeouts=shown),
            say(
                "Each is judged by its own timeout; but a worker of an older version judges all others by its own, and "
                "may claim what a slower one is still running."
            ),
            say("Give all of them the same streams_visibility_timeout, and restart those that still have the old one."),
        )

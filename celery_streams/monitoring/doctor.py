"""Doctor: looks for what will hurt, and says what it is, why it matters and what to do; it changes nothing.

``diagnosis`` looks, ``checks`` judges; this brings them together, and asks the workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .. import keys, presence, probes
from ..app import Streams
from ..cluster import is_cluster_url
from ..conf import misspelt_settings
from ..connection import RedisClient
from ..exceptions import BrokerError, BrokerUnavailable, ConfigurationError, NotPermitted
from ..hints import command
from ..inspect import odd_keys, queue_status
from ..installation import is_installed
from ..kombu_lists import list_keys
from ..migration import same_database
from ..probes import ServerInfo
from ..redis_url import place, safe_url
from ..said import say
from ..spelling import misspelt
from .checks import (
    LEVELS,
    Finding,
    Level,
    Workers,
    cannot,
    check_asked_names,
    check_eviction,
    check_memory,
    check_names,
    check_namesakes,
    check_partitioned,
    check_permissions,
    check_persistence,
    check_role,
    check_settings,
    check_timeouts,
    check_types,
    check_version,
    namesakes,
)
from .names import declared_queues, queues_in_use, unknown_names, unknown_partitioned
from .nodes import check_clocks, check_nodes
from .workers import WORKERS_AWAY, find_workers, sort_workers
from .worlds import check_worlds

__all__ = ("Diagnosis", "diagnose", "find_workers", "sort_workers")

#: Seconds after which a consumer that holds nothing and was not heard of belongs to a dead worker; workers delete such
#: after five minutes.
SILENT_CONSUMER = 1_800.0

#: Seconds by which a delayed message may be late before it is clear that nobody promotes.
OVERDUE = 5.0

#: Seconds within which a consumer that lives is heard of again (a blocking read lasts 5 s, a heartbeat comes each fifth
#: of the visibility timeout), and for how long a heartbeat is waited for at most.
HEARD_WITHIN, HEARD_PATIENCE = 6.0, 12.0

#: Seconds between two looks at who was heard of.
_LOOK_AGAIN = 0.5


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, the worst first."""

    server: str
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The worst level of what is not accepted."""
        return next((finding.level for finding in self.findings if not finding.accepted), "ok")

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {"server": self.server, "level": self.level, "findings": [asdict(one) for one in self.findings]}


def diagnose(
    streams: Streams,
    queues: Iterable[str] | None = None,
    *,
    ask_workers: bool = True,
    timeout: float = 1.0,
    accept: Collection[str] = (),
) -> Diagnosis:
    """Run all checks; for ``queues``, by default all of :meth:`Streams.known_queues`.

    Findings of the checks in ``accept`` are there and count for nothing. ``ask_workers`` asks running workers through
    Celery's remote control and waits ``timeout`` seconds for them.

    Raises:
        BrokerUnavailable: Redis is away.
        ConfigurationError: a setting is wrong, or the URL is not one of a Redis.
    """
    broker = streams.broker
    _first_contact(broker.client)
    findings: list[Finding] = []

    def run(check: str, look: Callable[[], Iterable[Finding]]) -> None:
        try:
            findings.extend(look())
        except BrokerUnavailable:
            raise
        except BrokerError as exc:
            findings.append(cannot(check, str(exc)))

    server: list[ServerInfo] = []

    def look_at_server() -> Iterable[Finding]:
        server.append(probes.server_info(broker.client))
        for judge in (check_version, check_role, check_eviction, check_memory, check_persistence):
            yield judge(server[0])

    run("server", lambda: check_nodes(broker.client) if is_cluster_url(streams.url) else look_at_server())
    run("clock", lambda: [check_clocks(broker.client)])
    names = _queues(streams, queues, run)
    run("permissions", lambda: [check_permissions(probes.denied_commands(broker, [*names, "doctor"][0]))])
    findings += [_check_install(streams), _check_databases(streams)]
    findings += check_settings(misspelt_settings(streams.app.conf).values())
    run("names", lambda: _check_queue_names(streams, names if queues else ()))
    lists, trouble = _lists(streams)
    findings += trouble
    workers: Workers | None = None
    if ask_workers and lists is not None:
        try:
            workers = find_workers(streams, timeout=timeout)
        except WORKERS_AWAY as exc:
            findings.append(cannot("workers", say("workers cannot be asked: %(error)s", error=str(exc))))
    run("keys", lambda: check_types(odd_keys(broker, keys.shared_types(broker.prefix))))
    run("timeouts", lambda: check_timeouts(presence.workers(broker)))
    run("node names", lambda: _check_node_names(streams, names))
    for name in names:
        run("queue", lambda name=name: _check_queue(streams, name, lists, workers))  # type: ignore[misc]
    if lists is not None:
        lists.close()
    findings = [replace(finding, accepted=finding.check in accept) for finding in findings]
    return Diagnosis(
        server=safe_url(streams.url),
        findings=tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))),
    )


def _lists(streams: Streams) -> tuple[RedisClient | None, list[Finding]]:
    """Return a client for Celery's own queues, or None and why."""
    try:
        client = streams.new_list_client()
        _first_contact(client)
    except ConfigurationError as exc:
        text = say("Celery's own queues cannot be read: %(error)s", error=str(exc))
        why = say("The broker is not Redis, or is a Redis Cluster.")
        return None, [Finding("lists", "info", text, why, say("Nothing."))]
    except BrokerError as exc:
        return None, [
            Finding(
                "lists",
                "critical",
                say("Celery's own broker: %(error)s", error=str(exc)),
                say("Remote control, events and every queue that is not on streams need it."),
                say("Set broker_url, or start it."),
            )
        ]
    return client, []


def _first_contact(client: RedisClient) -> None:
    try:
        client.call("PING")
    except BrokerUnavailable:
        raise
    except BrokerError as exc:
        if not isinstance(exc, NotPermitted):  # that is a finding, and not the only one
            raise


def _queues(
    streams: Streams, wanted: Iterable[str] | None, run: Callable[[str, Callable[[], Iterable[Finding]]], None]
) -> list[str]:
    if wanted is not None:
        return list(dict.fromkeys(wanted))
    found = streams.named_queues()

    def look() -> Iterable[Finding]:
        found[:] = streams.known_queues()
        return ()

    run("queues", look)
    return found


def _check_queue_names(streams: Streams, asked: Iterable[str]) -> Iterable[Finding]:
    used = queues_in_use(streams)
    known = {*used, *streams.known_queues(), *streams.app.amqp.queues}
    yield from check_asked_names({name: misspelt(name, known) for name in asked if name not in known})
    yield from check_names(unknown_names(streams, used=used), filter(streams.on_streams, declared_queues(streams)))
    yield from check_partitioned(unknown_partitioned(streams, used=used))


def _check_install(streams: Streams) -> Finding:
    """The app publishes to streams if its settings say so."""
    if is_installed(streams.app):
        if streams.enabled():
            return Finding("install", "ok", say("celery_streams.install was called; streams_enabled is on"))
        what = say("celery_streams.install was called; streams_enabled is off: publishes go to Celery's lists")
        return Finding("install", "ok", what)
    return Finding(
        "install",
        "warning",
        say("celery_streams.install was never called for this app"),
        say("Its publishes go to Celery's lists whatever streams_enabled says."),
        say(
            "Call celery_streams.install(app) where it is made (with Django: %(setting)s).",
            setting='INSTALLED_APPS += ["django_integration"]',
        ),
    )


def _check_databases(streams: Streams) -> Finding:
    """The streams share their database with nothing that is emptied."""
    ours = place(streams.url)
    backend = str(streams.app.conf.result_backend or "")
    if is_cluster_url(backend) and place(backend) == ours:
        return Finding(
            "database",
            "info",
            say("Results are kept in the cluster of the streams"),
            say("Both share the memory of its nodes; FLUSHALL to clear results deletes every queued task."),
            say("Give one of them another cluster or server: streams_url or result_backend."),
        )
    if backend and "://" in backend and place(backend) == ours:
        return Finding(
            "database",
            "info",
            say("Results are kept in the database of the streams"),
            say("FLUSHDB to clear results deletes every queued task; both share one maxmemory."),
            say("Give one of them another database, or another server: streams_url or result_backend."),
        )
    return Finding("database", "ok", say("The streams share their database with no results"))


# -- workers ----------------------------------------------------------------------------------------------------------


def _check_node_names(streams: Streams, queues: Sequence[str]) -> list[Finding]:
    """Find node names that several living workers have; it takes seconds, and only when it looks as if some had.

    Before Redis 7.2 a consumer that waits for work is not heard of: there, workers are told apart while they are busy.
    """
    visibility_timeout = streams.conf.visibility_timeout
    now, before = probes.heard_of(streams.broker, queues)
    suspects = namesakes(before, since=now - max(visibility_timeout, HEARD_WITHIN))
    suspected = {name: before[name] for same in suspects for name in same}
    deadline = time.monotonic() + max(HEARD_WITHIN, min(visibility_timeout * 0.4, HEARD_PATIENCE))
    found: list[Finding] = []
    while namesakes(suspected, since=0.0):
        # Redis tells nobody of a consumer's next sign of life: it is asked again.
        time.sleep(_LOOK_AGAIN)
        _, after = probes.heard_of(streams.broker, queues)
        # Whoever is gone was replaced; whoever is there may only not have been heard of again yet.
        suspected = {name: at for name, at in suspected.items() if name in after}
        found = list(check_namesakes(suspected, after))
        if len(found) == len({name.rpartition("/")[0] for name in suspected}) or time.monotonic() > deadline:
            break
    return found


# -- one queue --------------------------------------------------------------------------------------------------------


def _check_queue(streams: Streams, name: str, lists: RedisClient | None, workers: Workers | None) -> Iterable[Finding]:
    found = False
    for finding in _look_at_queue(streams, name, lists, workers):
        found = True
        yield finding
    if not found:
        yield Finding("queue", "ok", say("Nothing odd"), queue=name)


def _look_at_queue(
    streams: Streams, name: str, lists: RedisClient | None, workers: Workers | None
) -> Iterable[Finding]:
    """Yield one after the other, so that a look that is refused hides only those behind it."""
    broker = streams.broker
    odd = [key for one in broker.partitions(name) for key in odd_keys(broker, broker.queue_keys(one).types)]
    yield from check_types(odd, name)
    worker = command("worker", "-Q", name)
    start = say("Start a worker (%(command)s).", command=worker)
    for stream, entries in probes.streams_without_group(broker, name).items():
        yield Finding(
            "groups",
            "warning",
            say(
                "%(stream)s holds %(n)s message and has no consumer group",
                "%(stream)s holds %(n)s messages and has no consumer group",
                stream=stream,
                n=entries,
            ),
            say("No worker has read this stream yet, or the group was destroyed; what is in it waits."),
            say("Start a worker (%(command)s): it creates the group and skips nothing.", command=worker),
            name,
        )
    for stream in probes.streams_without_holder(broker, name):
        yield Finding(
            "consumers",
            "warning",
            say(
                "%(stream)s begins with messages that were delivered and are in no consumer's list",
                stream=stream,
            ),
            say(
                "Somebody deleted their consumer or acknowledged them by hand (XGROUP, XACK), or made the group anew "
                "at its end. They wait until a worker finds them, which looks once a minute."
            ),
            start,
            name,
        )
    # Twice the time-out: what is younger is about to be claimed.
    visibility_timeout = streams.conf.visibility_timeout
    for holder in probes.silent_holders(broker, name, idle_ms=int(visibility_timeout * 2_000)):
        yield Finding(
            "consumers",
            "critical",
            say(
                "%(consumer)s holds %(n)s message and was silent for %(seconds)s s",
                "%(consumer)s holds %(n)s messages and was silent for %(seconds)s s",
                consumer=holder.consumer,
                n=holder.entries,
                seconds=round(holder.silent),
            ),
            say("Its process is dead, and no live worker of the queue takes over what it held."),
            say(
                "Start a worker (%(command)s): it puts them back within %(seconds)s s.",
                command=worker,
                seconds=f"{visibility_timeout:g}",
            ),
            name,
        )
    silent = probes.silent_consumers(broker, name, silent=SILENT_CONSUMER)
    if silent and not (workers and workers.ours.get(name)):
        yield Finding(
            "consumers",
            "info",
            say(
                "%(n)s consumer of a dead worker is left in the group",
                "%(n)s consumers of dead workers are left in the group",
                n=len(silent),
            ),
            say("They hold nothing and cost a little memory."),
            say("Nothing: the next worker of the queue deletes them."),
            name,
        )
    status = queue_status(broker, name)
    if status.paused is not None:
        what = say("It has been paused for %(seconds)s s", seconds=round(status.paused))
        yield Finding(
            "paused",
            "warning",
            say("%(what)s: %(reason)s", what=what, reason=status.pause_reason) if status.pause_reason else what,
            say("Its waiting tasks do not start. A pause survives every restart, and may have been forgotten."),
            say("If its tasks should run again: %(command)s", command=command("resume", name)),
            name,
        )
        reading = [
            one.node for one in presence.workers(broker) if name in one.queues and one.is_alive and not one.pauses
        ]
        if reading:
            yield Finding(
                "paused",
                "critical",
                say(
                    "Workers of an older version, which knows no pauses, read it: %(workers)s",
                    workers=", ".join(sorted(set(reading))),
                ),
                say("They start its tasks as if it were not paused."),
                say("Update these workers, or stop them from reading it: celery control cancel_consumer"),
                name,
            )
    if status.held and not status.workers:
        yield Finding(
            "held",
            "warning",
            say(
                "%(n)s message held back by limits, and no live worker releases any",
                "%(n)s messages held back by limits, and no live worker releases any",
                n=status.held,
            ),
            say("A worker of the queue releases them when their limits leave room."),
            start,
            name,
        )
    if status.overdue > OVERDUE:
        yield Finding(
            "delayed",
            "critical",
            say("The earliest delayed message is %(seconds)s s late", seconds=round(status.overdue)),
            say("No worker of the queue moves delayed messages to the stream when they are due."),
            start,
            name,
        )
    yield from _check_transit(streams, name, lists)
    listed = 0
    if lists is not None:
        listed = probes.list_length(lists, list_keys(name, dict(streams.app.conf.broker_transport_options or {})))
    on = is_installed(streams.app) and streams.enabled()
    share = streams.conf.queues.share(name) if on else 0.0
    yield from check_worlds(name, status, listed=listed, share=share, workers=workers)


def _check_transit(streams: Streams, name: str, lists: RedisClient | None) -> Iterable[Finding]:
    kept = [keys.migration_keys(streams.conf.key_prefix, one) for one in streams.broker.partitions(name)]
    sides = [streams.broker.client]
    if lists is not None and not same_database(lists, streams.broker.client):
        sides.append(lists)
    left = sum(
        int(client.call("LLEN", key)) for client in sides for keep in kept for key in (keep.outgoing, keep.incoming)
    )
    if left:
        yield Finding(
            "migration",
            "critical",
            say(
                "%(n)s message is on its way between two databases",
                "%(n)s messages are on their way between two databases",
                n=left,
            ),
            say("A migration is running, or was killed: no worker sees these messages."),
            say(
                "If none is running: %(command)s (or --to lists) again; it goes on.",
                command=command("migrate", name, "--to", "streams"),
            ),
            name,
        )

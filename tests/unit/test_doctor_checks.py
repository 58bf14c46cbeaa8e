"""The doctor's judgement: what each look at a server, a clock or a queue means, as tables."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import celery_streams
from celery_streams import database_transfer, migration, removal
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.inspect import QueueStatus
from celery_streams.monitoring.checks import (
    CHECKS,
    Finding,
    Workers,
    check_clock,
    check_eviction,
    check_memory,
    check_namesakes,
    check_permissions,
    check_persistence,
    check_role,
    check_timeouts,
    check_version,
    namesakes,
)
from celery_streams.monitoring.doctor import sort_workers
from celery_streams.monitoring.worlds import check_worlds
from celery_streams.presence import WorkerPresence
from celery_streams.probes import ClockSkew, Denial, ServerInfo, needed_commands
from celery_streams.scripts import Script

PACKAGE = Path(celery_streams.__file__).parent

GOOD = ServerInfo(
    name="Redis",
    version=(7, 0, 15),
    cluster=False,
    role="master",
    used_memory=10,
    maxmemory=100,
    policy="noeviction",
    append_only=True,
    append_fsync="always",
    snapshots="",
    append_ok=True,
    snapshot_ok=True,
)


def is_complete(finding: Finding) -> bool:
    """Return whether a finding that is not ok says what, why and what to do."""
    return finding.level == "ok" or bool(finding.what and finding.why and finding.todo)


@pytest.mark.parametrize(
    ("name", "version", "level"),
    [
        ("Redis", (6, 2, 14), "ok"),
        ("Redis", (7, 0, 15), "ok"),
        ("Redis", (6, 0, 16), "critical"),
        ("Redis", (5, 0), "critical"),
        ("Valkey", (7, 2, 5), "ok"),
    ],
)
def test_version_floor(name: str, version: tuple[int, ...], level: str) -> None:
    found = check_version(replace(GOOD, name=name, version=version))

    assert found.level == level
    assert is_complete(found)


@pytest.mark.parametrize(
    ("cluster", "role", "level"), [(False, "master", "ok"), (True, "master", "critical"), (False, "slave", "critical")]
)
def test_only_a_primary_outside_a_cluster_will_do(cluster: bool, role: str, level: str) -> None:
    found = check_role(replace(GOOD, cluster=cluster, role=role))

    assert found.level == level
    assert is_complete(found)


@pytest.mark.parametrize(
    ("policy", "maxmemory", "level"),
    [
        ("noeviction", 100, "ok"),
        ("noeviction", 0, "ok"),
        ("allkeys-lru", 100, "critical"),
        ("allkeys-random", 0, "warning"),
        ("volatile-ttl", 100, "warning"),
        (None, 0, "info"),
    ],
)
def test_eviction_policy(policy: str | None, maxmemory: int, level: str) -> None:
    assert check_eviction(replace(GOOD, policy=policy, maxmemory=maxmemory)).level == level


@pytest.mark.parametrize(
    ("used", "maxmemory", "level"),
    [
        (79, 100, "ok"),
        (80, 100, "warning"),
        (94, 100, "warning"),
        (95, 100, "critical"),
        (120, 100, "critical"),
        (9, 0, "info"),
    ],
)
def test_memory_bound(used: int, maxmemory: int, level: str) -> None:
    found = check_memory(replace(GOOD, used_memory=used, maxmemory=maxmemory))

    assert found.level == level
    assert is_complete(found)


@pytest.mark.parametrize(
    ("append_only", "fsync", "snapshots", "level", "word"),
    [
        (True, "always", "", "ok", "always"),
        (True, "everysec", "", "info", "last second"),
        (True, None, None, "info", "Not known: how often"),
        (True, "no", "", "warning", "appendfsync no"),
        (False, "everysec", "3600 1", "warning", "Snapshots only"),
        (False, None, None, "info", "Not known: the server has no AOF"),
        (False, "everysec", "", "critical", "Nothing is written"),
    ],
)
def test_persistence(append_only: bool, fsync: str | None, snapshots: str | None, level: str, word: str) -> None:
    found = check_persistence(replace(GOOD, append_only=append_only, append_fsync=fsync, snapshots=snapshots))

    assert found.level == level
    assert word in found.what + found.why
    assert is_complete(found)


def test_write_to_disk_that_failed_is_critical() -> None:
    assert check_persistence(replace(GOOD, append_ok=False)).level == "critical"
    assert check_persistence(replace(GOOD, snapshot_ok=False)).level == "critical"


@pytest.mark.parametrize(
    ("ahead", "uncertainty", "level"),
    [
        (0.1, 0.0, "ok"),
        (-0.4, 0.0, "ok"),
        (0.6, 0.0, "warning"),
        (-0.6, 0.0, "warning"),
        (0.6, 0.3, "ok"),
        (-12.0, 0.1, "critical"),
    ],
)
def test_clock_skew_counts_beyond_its_uncertainty(ahead: float, uncertainty: float, level: str) -> None:
    found = check_clock(ClockSkew(ahead, uncertainty))

    assert found.level == level
    assert ("behind" in found.what) == (ahead < 0)
    assert is_complete(found)


def test_denied_commands_are_named_with_what_permits_them() -> None:
    denied = [
        Denial("XCLAIM", "... this user has no permissions to run the 'xclaim' command"),
        Denial("XINFO GROUPS", "... this user has no permissions to run the 'xinfo|groups' command"),
    ]

    found = check_permissions(denied)

    assert found.level == "critical"
    assert "XCLAIM, XINFO GROUPS" in found.what
    assert "+xclaim +xinfo|groups" in found.todo


def test_denied_keys_are_told_from_denied_commands() -> None:
    found = check_permissions([Denial("XADD", "... this user has no permissions to access one of the keys used")])

    assert "~PREFIX:*" in found.todo


EMPTY = QueueStatus("q", 0, 0, 0, 0, 0, None, 0.0)
FULL = replace(EMPTY, waiting=3, delayed=1)
STOCK, OURS, BOTH, NONE = (
    Workers({"q": ("old@h",)}, {}),
    Workers({}, {"q": ("new@h",)}),
    Workers({"q": ("old@h",)}, {"q": ("new@h",)}),
    Workers({}, {}),
)


@pytest.mark.parametrize(
    ("status", "listed", "share", "workers", "levels"),
    [
        # Nothing on the wrong side.
        (EMPTY, 0, 1.0, OURS, []),
        (replace(FULL, consumers=2), 0, 1.0, OURS, []),
        (EMPTY, 9, 0.0, STOCK, []),
        # Streams are on, and the list holds messages.
        (EMPTY, 5, 1.0, NONE, ["critical"]),
        (EMPTY, 5, 1.0, OURS, ["critical"]),
        (EMPTY, 5, 1.0, None, ["warning"]),
        (EMPTY, 5, 1.0, BOTH, ["info"]),
        (EMPTY, 5, 0.2, BOTH, ["info"]),
        # A stock worker that gets nothing.
        (EMPTY, 0, 1.0, BOTH, ["warning"]),
        (EMPTY, 0, 0.2, BOTH, []),
        # Streams are off, and the stream holds messages.
        (FULL, 0, 0.0, STOCK, ["critical"]),
        (FULL, 0, 0.0, BOTH, ["info"]),
        (FULL, 0, 0.0, None, ["critical"]),
        (replace(FULL, consumers=1), 0, 0.0, None, ["info"]),
        (replace(EMPTY, delayed=1), 0, 0.0, NONE, ["critical"]),
        (replace(EMPTY, pending=1), 0, 0.0, NONE, ["critical"]),
        # Nobody at all.
        (FULL, 0, 1.0, None, ["critical"]),
        (FULL, 5, 1.0, NONE, ["critical", "critical"]),
    ],
)
def test_messages_on_the_side_that_nobody_consumes(
    status: QueueStatus, listed: int, share: float, workers: Workers | None, levels: list[str]
) -> None:
    found = list(check_worlds("q", status, listed=listed, share=share, workers=workers))

    assert [finding.level for finding in found] == levels
    assert all(is_complete(finding) and finding.queue == "q" for finding in found)


@pytest.mark.parametrize(
    ("heard", "found"),
    [
        ({"w@h/1.aa": 10.0, "w@h/1.bb": 11.0}, [{"w@h/1.aa", "w@h/1.bb"}]),
        ({"w@h/1.aa": 10.0, "w@h/2.bb": 11.0}, []),
        ({"w@h/1.aa": 10.0, "v@h/1.bb": 11.0}, []),
        ({"w@h/1.aa": 4.0, "w@h/1.bb": 11.0}, []),
        ({"w@h.b.c/1.aa": 10.0, "w@h.b.d/1.bb": 11.0}, []),
        # Names that are not ours.
        ({"doctor": 10.0, "a.b": 10.0, "a.c": 10.0, "w@h/1": 10.0}, []),
    ],
)
def test_consumers_that_would_be_the_same_child_are_put_together(
    heard: dict[str, float], found: list[set[str]]
) -> None:
    assert [set(same) for same in namesakes(heard, since=5.0)] == found


@pytest.mark.parametrize(
    ("after", "nodes"),
    [
        # Both were heard of again.
        ({"w@h/1.aa": 13.0, "w@h/1.bb": 13.0, "w@h/2.cc": 13.0}, ["2 live workers have the node name w@h"]),
        # A child that was replaced: deleted.
        ({"w@h/1.bb": 13.0}, []),
        # A child that was killed a moment ago: still there, and silent; two looks differ by a rounding.
        ({"w@h/1.aa": 10.001, "w@h/1.bb": 13.0}, []),
        # Two children after one another, between the looks.
        ({"w@h/1.dd": 13.0, "w@h/1.bb": 13.0}, []),
        ({}, []),
    ],
)
def test_node_name_of_two_workers_is_found_when_both_are_heard_of_again(
    after: dict[str, float], nodes: list[str]
) -> None:
    before = {"w@h/1.aa": 10.0, "w@h/1.bb": 10.0, "w@h/2.cc": 10.0}

    found = list(check_namesakes(before, after))

    assert [finding.what for finding in found] == nodes
    assert all(finding.level == "warning" and is_complete(finding) for finding in found)


def test_workers_are_told_apart_by_their_pool() -> None:
    consumed = {
        "a@h": [{"name": "q"}, {"name": "r"}],
        "b@h": [{"name": "q"}],
        "c@h": [{"name": "q"}],
        "d@h": None,
    }
    stats = {
        "a@h": {"pool": {"implementation": "celery.concurrency.prefork:TaskPool"}},
        "b@h": {"pool": {"implementation": "celery_streams.concurrency.prefork:TaskPool"}},
    }

    found = sort_workers(consumed, stats)

    assert found == Workers({"q": ("a@h", "c@h"), "r": ("a@h",)}, {"q": ("b@h",)})


def test_every_command_that_is_sent_is_checked_for_permission() -> None:
    operators_only = {
        one.name
        for module in (migration, database_transfer, removal)
        for one in vars(module).values()
        if isinstance(one, Script)
    }
    sent: set[str] = set()
    for script in (PACKAGE / "lua").rglob("*.lua"):
        if script.stem not in operators_only:
            sent |= set(re.findall(r"redis\.p?call\('([A-Z]+)'", script.read_text()))
    for module in ("broker", "inspect", "worker/delayed", "worker/claimer", "worker/reader"):
        text = (PACKAGE / f"{module}.py").read_text()
        sent |= set(re.findall(r"""(?:\.call\(|\.send\(|[(\[]\()\s*"([A-Z]{3,})\"""", text))

    broker = StreamBroker(RedisClient("redis://127.0.0.1:1/0"))
    checked = {str(command[0]) for command in needed_commands(broker, "q")}

    assert {"XADD", "XREADGROUP", "HSET", "SMEMBERS", "TIME"} <= sent
    assert sent - checked == set()


def test_every_check_can_be_accepted_by_its_name() -> None:
    named: set[str] = set()
    for path in (PACKAGE / "monitoring").glob("*.py"):
        named |= set(re.findall(r'Finding\(\s*"([^"]+)"', path.read_text()))
        named |= set(re.findall(r'(?:cannot|\brun)\(\s*"([^"]+)"', path.read_text()))

    assert {"persistence", "node names", "queue", "workers"} <= named
    assert named == set(CHECKS)


def test_failed_write_is_no_matter_of_accepting_a_server_without_persistence() -> None:
    found = check_persistence(replace(GOOD, append_ok=False))

    assert (found.check, found.level) == ("disk", "critical")


@pytest.mark.parametrize(
    ("share", "stock", "level"),
    [(0.0, (), "critical"), (0.0, ("s@host",), None), (0.05, (), "critical"), (0.05, ("s@host",), "info")],
)
def test_messages_on_a_list_that_no_stock_worker_consumes_are_critical(
    share: float, stock: tuple[str, ...], level: str | None
) -> None:
    workers = Workers({"q": stock} if stock else {}, {"q": ("w@host",)})

    found = list(check_worlds("q", replace(EMPTY, consumers=1), listed=3, share=share, workers=workers))

    assert [one.level for one in found] == ([level] if level else [])


def test_one_of_anything_is_said_in_the_singular() -> None:
    said = [
        *check_worlds("q", EMPTY, listed=1, share=1.0, workers=None),
        *check_worlds("q", replace(EMPTY, waiting=1), listed=0, share=0.0, workers=None),
        *check_worlds("q", replace(EMPTY, waiting=1), listed=0, share=1.0, workers=None),
        *check_worlds("q", EMPTY, listed=1, share=0.0, workers=Workers({}, {"q": ("w@h",)})),
    ]

    assert len(said) == 4
    assert all(one.what.startswith(("1 message is ", "1 message waits ")) for one in said)


def living(node: str, timeout: float, *, silent: float = 1.0) -> WorkerPresence:
    return WorkerPresence(f"{node}/0.a", node, 1, "0.1.0", timeout, ("q",), (), silent)


def test_living_workers_with_different_visibility_timeouts_are_found() -> None:
    [found] = check_timeouts([living("a@h", 15.0), living("b@h", 60.0), living("c@h", 15.0)])

    assert found.level == "warning"
    assert "15 s: a@h, c@h; 60 s: b@h" in found.what


def test_dead_worker_with_another_visibility_timeout_is_no_matter() -> None:
    assert list(check_timeouts([living("a@h", 15.0), living("b@h", 60.0, silent=100.0)])) == []

"""What anybody can write to the keys that workers and tools read: what is odd there is passed over, the rest counts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_streams import keys, lanes, pauses, presence, revocations, streams_of, told_alerts
from celery_streams.bin.limits import limits as limits_command
from celery_streams.broker import StreamBroker
from celery_streams.worker.held_messages import HeldMessages
from celery_streams.worker.holders import HolderTimeouts

MakeApp = Callable[..., Celery]

DEEP = b'{"a":' * 5_000


def presence_of(**changed: Any) -> dict[str, Any]:
    return {
        "node": "w@h",
        "pid": 7,
        "version": "0.1.0",
        "visibility_timeout": 15,
        "queues": ["q"],
        "consumers": [["w@h/0.1", None, 0.5]],
        **changed,
    }


def beat_of(broker: StreamBroker, worker: str, said: Any, *, at: bytes | None = None) -> None:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    broker.client.call("HSET", keys.workers(broker.prefix), worker, (at or b"%d" % broker.clock_ms()) + b" " + text)


ODD_PRESENCES: dict[str, tuple[Any, bytes | None]] = {
    "no JSON": (b"{", None),
    "deep": (DEEP, None),
    "a list": ([1], None),
    "no time-out": ({**presence_of(), "visibility_timeout": None}, None),
    "endless": (b'{"visibility_timeout": 1e999', None),
    "a time-out that never ends": (presence_of(visibility_timeout=float("inf")), None),
    "a time-out that is no number": (presence_of(visibility_timeout=float("nan")), None),
    "no time at all": (presence_of(visibility_timeout=0), None),
    "less than no time": (presence_of(visibility_timeout=-60), None),
    "a pid beyond all measure": (json.dumps(presence_of(pid=0)).encode().replace(b'"pid": 0', b'"pid": 1e999'), None),
    "a read that is a word": (presence_of(consumers=[["w@h/0.1", None, "soon"]]), None),
    "consumers without a name": (presence_of(consumers=[[]]), None),
    "a beat that is no time": (presence_of(), b"now"),
    "a beat of many digits": (presence_of(), b"9" * 5_000),
    "a beat beyond all measure": (presence_of(), b"9" * 400),
}


@pytest.mark.parametrize("odd", ODD_PRESENCES)
def test_worker_that_says_odd_things_of_itself_is_no_worker_and_hides_no_other(broker: StreamBroker, odd: str) -> None:
    said, at = ODD_PRESENCES[odd]
    beat_of(broker, "odd", said, at=at)
    beat_of(broker, "fine", presence_of(visibility_timeout=60))
    holders = HolderTimeouts(broker, 15.0)

    holders.refresh()

    assert [one.worker for one in presence.workers(broker)] == ["fine"]
    assert (holders.shortest, holders.of("w@h/0.1")) == (15.0, 60.0)


def test_odd_revocations_are_passed_over(broker: StreamBroker) -> None:
    revocations.revoke(broker, ["task-1"], seconds=60)
    revocations.revoke_stamps(broker, [("tenant", "a"), ("tenant", 7)], seconds=60)
    far = 2**40
    broker.client.call("ZADD", keys.revoked(broker.prefix), far, b"\xff\xfe", "+inf", "for ever")
    for member in (b"{", b"[1]", b'["a","b","c"]', b'"ab"', b"7", b"null", b"[7,8]", DEEP, b"\xff"):
        broker.client.call("ZADD", keys.revoked_stamps(broker.prefix), far, member)

    assert "task-1" in revocations.revoked(broker)
    assert sorted(revocations.revoked_stamps(broker), key=repr) == [("tenant", "a"), ("tenant", 7)]


@pytest.mark.parametrize("said", [b"", b"x", b"9" * 5_000, b"9" * 400 + b" why", b"-1 x", b"\xff \xfe", b"1e999"])
def test_queue_is_paused_whatever_its_key_says(broker: StreamBroker, said: bytes) -> None:
    broker.client.call("SET", broker.queue_keys("q").paused, said)

    assert pauses.paused_queues(broker, ["q", "other"]).keys() == {"q"}


def test_alert_that_somebody_else_wrote_is_left_where_it_is(broker: StreamBroker) -> None:
    for name in (b"{", b"\xff", b"[]", b"[1,2]", b'["q"]', b"null", DEEP):
        broker.client.call("HSET", keys.alerts(broker.prefix), name, "critical")
    before = broker.client.call("HLEN", keys.alerts(broker.prefix))

    first = told_alerts.changes(broker, {("q", "backlog"): "warning"})
    second = told_alerts.changes(broker, {})

    assert [(one.queue, one.name, one.before, one.level) for one in (*first, *second)] == [
        ("q", "backlog", "ok", "warning"),
        ("q", "backlog", "warning", "ok"),
    ]
    assert broker.client.call("HLEN", keys.alerts(broker.prefix)) == before


ODD_LIMITS = [
    b"{",
    DEEP,
    b"[1]",
    b'{"concurrency": 0}',
    b'{"concurrency": "many"}',
    b'{"concurrency": 1e999}',
    b'{"rate": "often"}',
    b'{"rate": NaN}',
    b'{"rate": -1}',
    b'{"rate": [1]}',
    b'{"concurrency_per_key": 1}',
    b'{"concurrency_key": "nobody"}',
    b'{"of a newer version": 1, "concurrency": 1}',
]


@pytest.mark.parametrize("odd", ODD_LIMITS, ids=lambda odd: repr(odd[:40]))
def test_odd_limit_of_one_task_keeps_no_other_from_being_followed(
    app: MakeApp, broker: StreamBroker, odd: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    project = app()

    def nothing() -> None:
        pass

    for name in ("odd", "fine"):
        project.task(nothing, name=name, shared=False, streams_concurrency=9)
    project.finalize()
    streams, told = streams_of(project), list[Any]()
    held = HeldMessages(streams, broker, lambda: ["q"], turns=dict, on_limits=told.append)
    broker.client.call("HSET", keys.limits(broker.prefix), "odd", odd, "fine", '{"concurrency": 2}', b"\xff", "{}")

    with caplog.at_level(logging.WARNING, "celery_streams.worker.held_messages"):
        for _ in range(3):
            held.run_once()
    shown = CliRunner().invoke(
        limits_command, ["--json"], obj=CLIContext(app=project, no_color=True, workdir=None), catch_exceptions=False
    )

    assert "odd" not in streams.limits_in_redis
    assert streams.limits_in_redis["fine"] == {"concurrency": 2}
    assert {row["task"]: row["concurrency"] for row in json.loads(shown.stdout)["limits"]}.items() >= {
        ("odd", 9),
        ("fine", 2),
    }
    assert len(told) == 1
    assert sum("not followed" in line for line in caplog.messages) <= 1


def test_odd_lane_hides_no_other(broker: StreamBroker) -> None:
    fine = json.dumps({"task": "t", "first": 1, "last": 3})
    odd = (
        b"{",
        DEEP,
        b"[]",
        b"{}",
        b'{"task": "t", "first": "a", "last": 1}',
        b'{"task": 1, "first": 0, "last": 1e999}',
    )
    fields = [word for number, said in enumerate(odd) for word in (b"odd-%d" % number, said)]
    broker.client.call("HSET", broker.queue_keys("q").shelf[1], "", "7", "fine", fine, *fields)

    assert [(one.task, one.held) for one in lanes.held_lanes(broker, "q")] == [("t", 3)]

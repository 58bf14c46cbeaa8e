"""Somebody else writes to a key of ours: what needs it is refused and says which key; all other queues go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_streams import keys, streams_of
from celery_streams.bin.status import status
from celery_streams.bin.terminal import EXIT_CRITICAL
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.consumers import forget_idle_consumers
from celery_streams.exceptions import BrokerError, KeyOfOtherType
from celery_streams.inspect import odd_keys, queue_status
from celery_streams.lanes import admit, release, vacating
from celery_streams.limits import Limits, lane_of
from celery_streams.migration import Migration
from celery_streams.monitoring.doctor import diagnose
from celery_streams.monitoring.status import collect
from celery_streams.pauses import pause_queue, paused_queues
from celery_streams.presence import ConsumerPresence, WorkerPresence, beat
from celery_streams.worker.claimer import Claimer
from celery_streams.worker.held_messages import HeldMessages
from tests.support.eventually import eventually
from tests.support.redis_state import delivered, message, number_of, read_all

MakeApp = Callable[..., Celery]

TYPES = keys.queue_keys(keys.DEFAULT_PREFIX, "odd").types
NAMES = {key.partition("}")[2] or "stream": key for key in TYPES}


def replace_by_another(broker: StreamBroker, key: str) -> None:
    """Put a value of another type where ``key`` is."""
    types = {**TYPES, **keys.shared_types(broker.prefix)}
    broker.client.call("DEL", key)
    if types[key] == "string":
        broker.client.call("RPUSH", key, "x")
    else:
        broker.client.call("SET", key, "x")


def test_every_key_of_a_queue_has_a_type() -> None:
    names = keys.queue_keys(keys.DEFAULT_PREFIX, "odd")

    known: set[Any] = set()
    for one in fields(names):
        value = getattr(names, one.name)
        known.update(value if isinstance(value, tuple) else [value])

    assert {one for one in known if isinstance(one, str)} - {"odd"} == set(TYPES)


@pytest.mark.parametrize("key", NAMES.values(), ids=NAMES)
def test_key_of_another_type_is_named_and_hides_no_other_queue(app: MakeApp, broker: StreamBroker, key: str) -> None:
    project: Any = app(streams_queues=["fine", "odd"])
    for queue in ("fine", "odd"):
        delivered(broker, queue, "w@h/1.a", message(1), message(2))
        broker.publish(queue, message(3))
    streams = streams_of(project)
    replace_by_another(broker, key)

    found = {report.state.queue: report for report in collect(streams).queues}
    findings = [one for one in diagnose(streams, ask_workers=False).findings if one.check == "keys"]

    assert (found["fine"].state.pending, found["fine"].state.waiting) == (2, 1)
    assert not found["fine"].state.odd_keys
    assert found["odd"].state.odd_keys in ((), (key,))  # it is not asked about all that there is
    assert any(one.name == "odd_key" and key in one.message for one in found["odd"].alerts) == bool(
        found["odd"].state.odd_keys
    )
    assert [(one.level, one.queue, key in one.what) for one in findings] == [("critical", "odd", True)]
    assert odd_keys(broker, TYPES) == [key]

    broker.client.call("DEL", key)

    assert odd_keys(broker, TYPES) == []
    assert not [one for one in diagnose(streams, ask_workers=False).findings if one.check == "keys"]


@pytest.mark.parametrize("name", ["stream", ":3", ":front", ":delayed", ":dead", ":paused", ":held", ":unique"])
def test_status_says_which_key_it_cannot_read(app: MakeApp, broker: StreamBroker, name: str) -> None:
    project = app(streams_queues=["odd"])
    broker.publish("odd", message(1))
    replace_by_another(broker, NAMES[name])

    result = CliRunner().invoke(
        status, ["--json"], obj=CLIContext(app=project, no_color=True, workdir=None), catch_exceptions=False
    )

    assert result.exit_code == EXIT_CRITICAL
    [alert] = [one for one in json.loads(result.stdout)["alerts"] if one["name"] == "odd_key"]
    assert (alert["level"], alert["queue"]) == ("critical", "odd")
    assert NAMES[name] in alert["message"]


@pytest.mark.parametrize("key", keys.shared_types(keys.DEFAULT_PREFIX))
def test_shared_key_of_another_type_is_a_finding(app: MakeApp, broker: StreamBroker, key: str) -> None:
    project = app(streams_queues=["fine"])
    replace_by_another(broker, key)

    found = [one for one in diagnose(streams_of(project), ask_workers=False).findings if one.check == "keys"]

    assert [(one.level, one.queue, key in one.what) for one in found] == [("critical", None, True)]


def test_names_of_queues_that_nobody_can_write_keep_no_message_from_its_worker(
    broker: StreamBroker, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    replace_by_another(broker, keys.queues(broker.prefix))
    fresh = StreamBroker(RedisClient(redis_url))

    fresh.ensure_groups(["fine"])
    fresh.publish("fine", message(1))
    fresh.publish("other", message(2))
    fresh.delay("third", message(3), due_ms=1, member="m")

    assert [number_of(one) for one in read_all(broker, ["fine"], "me")] == [1]
    assert broker.client.call("XLEN", broker.queue_keys("other").streams[0]) == 1
    assert broker.client.call("ZCARD", broker.queue_keys("third").delayed) == 1
    assert [keys.queues(broker.prefix) in line for line in caplog.messages] == [True]


def test_what_a_known_worker_held_comes_back_though_nobody_can_read_who_lives(
    broker: StreamBroker, caplog: pytest.LogCaptureFixture
) -> None:
    for consumer, number in (("known@h/1.a", 1), ("new@h/1.a", 2)):
        delivered(broker, "q", consumer, message(number))
    known = WorkerPresence(
        "known@h/0.0", "known@h", 1, "1", 0.5, ("q",), (ConsumerPresence("known@h/1.a", None, None),)
    )
    beat(broker, known, forget=False)
    claimer = Claimer(
        broker, "w@h/0.0", lambda: ["q"], visibility_timeout=0.5, delivery_limit=5, on_exhausted=lambda *_: None
    )
    claimer.run_once()
    claimer._refreshed()
    replace_by_another(broker, keys.workers(broker.prefix))

    with pytest.raises(KeyOfOtherType, match=keys.workers(broker.prefix)):
        beat(broker, known, forget=False)

    def is_back() -> bool:
        claimer.run_once()
        return claimer.moved > 0

    eventually(is_back, timeout=10)
    claimer.close()
    assert claimer.moved == 1
    assert sum(keys.workers(broker.prefix) in line for line in caplog.messages) == 1


def test_refusal_names_the_key(broker: StreamBroker) -> None:
    replace_by_another(broker, NAMES["stream"])
    replace_by_another(broker, NAMES[":delayed"])

    with pytest.raises(KeyOfOtherType, match=r"the key celery-streams:\{odd\}\)"):
        broker.publish("odd", message(1))
    with pytest.raises(KeyOfOtherType, match="celery-streams doctor names the key"):
        broker.delay("odd", message(1), due_ms=1, member="m")


def test_queue_whose_messages_nobody_can_count_is_not_migrated(app: MakeApp, broker: StreamBroker) -> None:
    broker.publish("odd", message(1))
    replace_by_another(broker, NAMES[":delayed"])
    moving = Migration(broker, broker.client, options={}, visibility_timeout=1.0)

    with pytest.raises(KeyOfOtherType, match="delayed"):
        moving.plan("odd", "lists")


def test_key_of_another_type_pauses_as_readers_see_it(broker: StreamBroker) -> None:
    pause_queue(broker, "fine", reason="lunch")
    replace_by_another(broker, NAMES[":paused"])
    broker.publish("odd", message(1))
    broker.publish("fine", message(1))

    assert paused_queues(broker, ["odd", "fine", "other"]).keys() == {"odd", "fine"}
    assert paused_queues(broker, ["odd", "fine"])["fine"].reason == "lunch"
    assert queue_status(broker, "odd").paused is not None


def test_front_of_another_type_refuses_no_read(broker: StreamBroker) -> None:
    broker.ensure_groups(["odd", "fine"])
    replace_by_another(broker, NAMES[":front"])
    streams = broker.streams(["odd", "fine"])

    assert broker.read(streams, "me", count=1) == []

    for queue in ("odd", "fine"):
        broker.publish(queue, message(1))
    assert {one.stream.queue for one in broker.read(streams, "me", count=9)} == {"odd", "fine"}


def test_front_of_another_type_keeps_no_dead_consumer(broker: StreamBroker) -> None:
    broker.ensure_groups(["odd", "fine"])
    for queue in ("odd", "fine"):
        broker.client.call("XGROUP", "CREATECONSUMER", broker.queue_keys(queue).streams[0], keys.GROUP, "gone")
    replace_by_another(broker, NAMES[":front"])

    assert forget_idle_consumers(broker, ["odd", "fine"], idle_ms=-1) == 2


@pytest.mark.parametrize("name", [":held:lanes", ":held:ready", ":held:ring", ":held:rates", ":held:running"])
def test_key_of_another_type_holds_back_no_other_queue(app: MakeApp, broker: StreamBroker, name: str) -> None:
    project = app(streams_queues="*")

    @project.task(name="t", rate_limit="1000/s", shared=False)
    def task() -> None: ...

    streams = streams_of(project)
    streams.limits_in_redis = {}
    lane = lane_of("t", Limits(rate=1000.0), (None, None), node="")
    for queue in ("odd", "fine"):
        [one] = delivered(broker, queue, "me", message(1))
        assert not admit(broker, "me", one.entry, lane, penalty_ms=1).admitted
    assert queue_status(broker, "fine").held == queue_status(broker, "odd").held == 1
    kept = broker.client.call("DUMP", NAMES[name])
    replace_by_another(broker, NAMES[name])
    turns = {"odd": 0.0, "fine": 0.0}
    held = HeldMessages(streams, broker, lambda: list(turns), turns=lambda: turns, on_limits=lambda found: None)
    held.refresh()

    # Without the other queue, it is refused
    with pytest.raises(BrokerError):
        release(broker, ["odd"], {})
    while queue_status(broker, "fine").held:
        held.look()
    assert queue_status(broker, "fine").waiting == 1
    assert broker.client.call("HLEN", NAMES[":held"]) == 1

    # And goes on when the key is what it was
    broker.client.call("DEL", NAMES[name])
    if kept is not None:
        broker.client.call("RESTORE", NAMES[name], 0, kept)
    while queue_status(broker, "odd").held:
        held.look()
    assert queue_status(broker, "odd").waiting == 1


def test_places_are_given_back_though_those_of_another_queue_cannot_be_read(app: MakeApp, broker: StreamBroker) -> None:
    project = app(streams_queues="*")

    @project.task(name="t", streams_concurrency=1, shared=False)
    def task() -> None: ...

    lane = lane_of("t", Limits(concurrency=1), (None, None), node="")
    for queue in ("odd", "fine"):
        first, second = delivered(broker, queue, "me", message(1), message(2))
        assert admit(broker, "me", first.entry, lane).admitted
        assert not admit(broker, "me", second.entry, lane).admitted
        # By hand: no script gives its place back
        broker.client.call("XACK", first.entry.stream.key, keys.GROUP, first.entry.id)
        broker.client.call("XDEL", first.entry.stream.key, first.entry.id)
    replace_by_another(broker, NAMES[":held:places"])
    replace_by_another(broker, keys.limits(broker.prefix))
    queues = ["odd", "fine"]
    held = HeldMessages(streams_of(project), broker, lambda: queues, turns=dict, on_limits=lambda found: None)

    with pytest.raises(KeyOfOtherType):
        held.run_once()

    assert (queue_status(broker, "fine").held, queue_status(broker, "fine").waiting) == (0, 1)


@pytest.mark.parametrize("limits", [Limits(concurrency=1), Limits(concurrency_key="k", concurrency_per_key=1)])
def test_place_whose_next_message_is_refused_is_taken_by_it_once_it_is_not(
    broker: StreamBroker, limits: Limits
) -> None:
    # Given one that runs, one that waits for its place, and one that would stand before it on the stream
    lane = lane_of("t", limits, (None, "x" if limits.concurrency_key else None), node="")
    first, second = delivered(broker, "odd", "me", message(1), message(2))
    assert admit(broker, "me", first.entry, lane).admitted
    assert not admit(broker, "me", second.entry, lane).admitted
    broker.publish("odd", message(3))
    replace_by_another(broker, NAMES[":front"])

    # When the first ends
    with pytest.raises(BrokerError):
        vacating(broker, [first.entry], {}).ack("me", [first.entry])
    assert (queue_status(broker, "odd").held, release_refused(broker)) == (1, True)

    # Then the second follows as soon as Redis takes it, though nobody gives a place back any more
    broker.client.call("DEL", NAMES[":front"])
    assert release(broker, ["odd"], {}).count == 1
    assert queue_status(broker, "odd").held == 0


def release_refused(broker: StreamBroker) -> bool:
    try:
        release(broker, ["odd"], {})
    except BrokerError:
        return True
    return False

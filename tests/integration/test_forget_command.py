"""``celery-streams forget``: a queue that nobody uses leaves nothing behind; one that is used stays."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_streams import broker as broker_module
from celery_streams import presence, streams_of
from celery_streams.bin.forget import forget
from celery_streams.broker import StreamBroker
from celery_streams.inspect import known_queues, queue_status
from celery_streams.message import encode
from tests.support.redis_state import delivered, redis_state

MESSAGE = encode({"task": "t", "id": "1"}, {}, "[[], {}, {}]")


def run(project: Celery, *words: str) -> Result:
    context = CLIContext(app=project, no_color=True, workdir=None)
    return CliRunner().invoke(forget, list(words), obj=context)


def beat(broker: StreamBroker, queue: str) -> None:
    """Be a worker that reads ``queue``."""
    consumer = presence.ConsumerPresence("w@h/1", None, 0.0)
    presence.beat(broker, presence.WorkerPresence("w", "w@h", 1, "1", 15.0, (queue,), (consumer,)), forget=False)


def hold(broker: StreamBroker, what: str) -> None:
    """Let the queue "old" hold one message."""
    if what == "waiting":
        broker.publish("old", MESSAGE)
    elif what == "delayed":
        broker.delay("old", MESSAGE, due_ms=int(time.time() * 1000) + 60_000, member="1:0")
    elif what == "pending":
        beat(broker, "elsewhere")  # the worker lives, and what it held is no longer its own
        delivered(broker, "old", "w@h/1", MESSAGE)
    elif what == "dead":
        broker.client.call("XADD", broker.queue_keys("old").dead, "*", "death", "{}")
    elif what == "migrating":
        broker.client.call("RPUSH", "celery-streams:{old}:migrating:out", "x")


HELD = ("waiting", "delayed", "pending", "dead", "migrating")


def test_queue_of_a_misspelt_name_leaves_nothing_behind(app: Callable[..., Celery], broker: StreamBroker) -> None:
    before = redis_state(broker.client)
    broker.ensure_groups(["send_message:0", "other", ":x"])

    result = run(app(), "send_message:0", ":x")

    assert result.exit_code == 0, result.output
    assert known_queues(broker) == ["other"]
    assert run(app(), "other").exit_code == 0
    assert redis_state(broker.client) == before


@pytest.mark.parametrize("what", HELD)
def test_queue_that_holds_a_message_stays_unless_it_shall_go_with_it(
    app: Callable[..., Celery], broker: StreamBroker, what: str
) -> None:
    project = app()
    broker.ensure_groups(["old"])
    hold(broker, what)
    before = redis_state(broker.client)

    refused = run(project, "old")

    assert refused.exit_code == 1
    assert "it holds 1 message (waiting" in refused.output
    assert redis_state(broker.client) == before
    assert "Removed queue old and its 1 message." in run(project, "old", "--with-messages").output
    assert not [key for key in redis_state(broker.client) if "{old}" in key]
    assert known_queues(broker) == []


def test_queue_that_a_living_worker_reads_stays(app: Callable[..., Celery], broker: StreamBroker) -> None:
    broker.ensure_groups(["read", "unread"])
    beat(broker, "read")

    result = run(app(), "unread", "read", "--with-messages")

    assert result.exit_code == 1
    assert "Queue read is read by live workers (1 consumer)" in result.output
    assert known_queues(broker) == ["read", "unread"]


def test_queue_that_was_never_used_is_named_with_the_nearest(app: Callable[..., Celery], broker: StreamBroker) -> None:
    broker.ensure_groups(["send_message"])

    result = run(app(), "send_mesage")

    assert "did you mean 'send_message'?" in result.output
    assert result.exit_code == 2


def test_queue_that_the_settings_name_is_said_to_stay_in_the_status(app: Callable[..., Celery]) -> None:
    assert "The settings still name chat" in run(app(streams_queues=["chat"]), "chat").output


@pytest.mark.parametrize("delayed", [False, True])
def test_publisher_of_before_makes_a_forgotten_queue_known_again(
    app: Callable[..., Celery], broker: StreamBroker, monkeypatch: pytest.MonkeyPatch, delayed: bool
) -> None:
    monkeypatch.setattr(broker_module, "_INTRODUCE_EVERY", 0.0)
    publisher: Any = app()
    publisher.send_task("t", queue="old")

    run(publisher, "old", "--with-messages")
    publisher.send_task("t", queue="old", countdown=60 if delayed else None)

    assert known_queues(broker) == ["old"]
    assert queue_status(streams_of(publisher).broker, "old").waiting == (not delayed)

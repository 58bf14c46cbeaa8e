"""``queue_alert``: sent when a level changes, once, whoever looks; a receiver that fails stops nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from django.test import override_settings

from celery_streams import streams_of
from celery_streams.broker import StreamBroker
from tests.support.redis_state import message

Heard = list[tuple[str, str, str, str]]


@pytest.fixture
def heard(site: Celery) -> Iterator[Heard]:
    from django_integration.signals import queue_alert

    found: Heard = []

    def hear(queue: str, name: str, level: str, before: str, message: str, **named: Any) -> None:
        assert message
        found.append((queue, name, before, level))

    queue_alert.connect(hear)
    yield found
    queue_alert.disconnect(hear)


def test_signal_is_sent_when_a_level_changes_and_not_again(site: Celery, broker: StreamBroker, heard: Heard) -> None:
    from django_integration.alerting import look

    streams = streams_of(site)
    look(streams)
    assert heard == []
    dead = broker.queue_keys("send_message").dead
    first = broker.client.call("XADD", dead, "*", "death", "{}")
    look(streams)
    look(streams)
    assert heard == [("send_message", "dead", "ok", "warning")]
    for _ in range(100):
        broker.client.call("XADD", dead, "*", "death", "{}")
    look(streams)
    broker.client.call("DEL", dead)
    look(streams)
    look(streams)

    assert first
    assert heard[1:] == [("send_message", "dead", "warning", "critical"), ("send_message", "dead", "critical", "ok")]


def test_command_sends_it_too(site: Celery, broker: StreamBroker, heard: Heard) -> None:
    from django.core.management import CommandError, call_command

    broker.publish("send_message", message(1))

    for _ in range(2):
        with pytest.raises(CommandError) as error:
            call_command("celery_streams", "alerts")
        assert error.value.returncode == 2
    with pytest.raises(CommandError):
        call_command("celery_streams", "alerts", "send_message")

    assert heard == [("send_message", "no_consumer", "ok", "critical")]


def test_receiver_that_fails_is_logged_and_stops_nobody(
    site: Celery, broker: StreamBroker, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    from django_integration.alerting import look
    from django_integration.signals import queue_alert

    def fail(**named: Any) -> None:
        raise ValueError("pager is away")

    broker.publish("send_message", message(1))
    queue_alert.connect(fail)
    try:
        look(streams_of(site))
    finally:
        queue_alert.disconnect(fail)

    assert [name for _, name, _, _ in heard] == ["no_consumer"]
    assert "pager is away" in caplog.text


def test_redis_that_is_away_is_an_error_and_forgets_nothing(site: Celery, broker: StreamBroker, heard: Heard) -> None:
    from celery_streams import BrokerError
    from django_integration.alerting import look

    broker.publish("send_message", message(1))
    look(streams_of(site))
    with override_settings(CELERY_STREAMS_URL="redis://127.0.0.1:1/0"), pytest.raises(BrokerError):
        look(streams_of(site))
    look(streams_of(site))

    assert len(heard) == 1

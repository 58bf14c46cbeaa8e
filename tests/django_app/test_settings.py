"""Django's settings on their way to the streams, and publishing from Django."""

from __future__ import annotations

import pytest
from celery import Celery
from django.db import transaction
from django.test import override_settings

import celery_streams
from celery_streams import streams_of
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.inspect import queue_status


def on_stream(client: RedisClient, queue: str = "send_message") -> int:
    return queue_status(StreamBroker(client), queue).waiting


def on_list(client: RedisClient, queue: str = "send_message") -> int:
    return int(client.call("LLEN", queue))


def publish(name: str = "send_message") -> None:
    from chat import tasks

    getattr(tasks, name).delay(1)


def test_settings_with_the_prefix_celery_arrive(site: Celery) -> None:
    assert site.conf.streams_enabled is True
    assert site.conf.streams_queues == ["send_message", "mark_as_read"]
    assert streams_of(site).conf.queues.names == ("send_message", "mark_as_read")


def test_chosen_queues_go_to_streams_and_others_to_lists(site: Celery, client: RedisClient) -> None:
    publish("send_message")
    publish("fetch_profile_pic")

    assert (on_stream(client), on_list(client)) == (1, 0)
    assert (on_stream(client, "fetch_profile_pic"), on_list(client, "fetch_profile_pic")) == (0, 1)


def test_overridden_switch_takes_effect_and_is_restored(site: Celery, client: RedisClient) -> None:
    with override_settings(CELERY_STREAMS_ENABLED=False):
        publish()

        assert (on_stream(client), on_list(client)) == (0, 1)
        with override_settings(CELERY_STREAMS_ENABLED=True):
            publish()

            assert (on_stream(client), on_list(client)) == (1, 1)
        publish()

        assert (on_stream(client), on_list(client)) == (1, 2)
    publish()

    assert (on_stream(client), on_list(client)) == (2, 2)


def test_overridden_switch_may_be_a_function(site: Celery, client: RedisClient) -> None:
    answers = iter([False, True])
    with override_settings(CELERY_STREAMS_ENABLED=lambda: next(answers)):
        publish()
        publish()

    assert (on_stream(client), on_list(client)) == (1, 1)


def test_overridden_queues_take_effect_and_are_restored(site: Celery, client: RedisClient) -> None:
    with override_settings(CELERY_STREAMS_QUEUES={"fetch_*": 1.0, "send_message": 0.0}):
        publish("fetch_profile_pic")
        publish("send_message")

        assert (on_stream(client, "fetch_profile_pic"), on_list(client, "fetch_profile_pic")) == (1, 0)
        assert (on_stream(client), on_list(client)) == (0, 1)
    publish("send_message")

    assert (on_stream(client), on_list(client)) == (1, 1)


def test_value_given_to_install_wins_over_the_settings(site: Celery, client: RedisClient) -> None:
    celery_streams.install(site, enabled=False)
    try:
        with override_settings(CELERY_STREAMS_ENABLED=True):
            publish()
    finally:
        del site.conf.changes["streams_enabled"]
    publish()

    assert (on_stream(client), on_list(client)) == (1, 1)


def test_environment_variable_overrides_the_switch(
    site: Celery, client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_STREAMS_ENABLED", "False")

    publish()

    assert (on_stream(client), on_list(client)) == (0, 1)


def test_environment_variable_overrides_the_queues(
    site: Celery, client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_STREAMS_QUEUES", "fetch_profile_pic, mark_as_read")
    streams_of(site).reload()

    publish("send_message")
    publish("fetch_profile_pic")

    assert (on_stream(client), on_list(client)) == (0, 1)
    assert (on_stream(client, "fetch_profile_pic"), on_list(client, "fetch_profile_pic")) == (1, 0)


def test_delay_on_commit_publishes_after_the_commit(site: Celery, client: RedisClient) -> None:
    from chat.models import Message
    from chat.tasks import send_message

    with transaction.atomic():
        message = Message.objects.create(text="hello")
        send_message.delay_on_commit(message.pk)

        assert on_stream(client) == 0
    assert on_stream(client) == 1


def test_delay_on_commit_publishes_nothing_after_a_rollback(site: Celery, client: RedisClient) -> None:
    from chat.tasks import send_message

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        send_message.delay_on_commit(1)
        raise ZeroDivisionError

    assert on_stream(client) == 0

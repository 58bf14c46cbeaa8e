"""Publishing on commit: what a transaction publishes goes out when it commits, and only then."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, group

from celery_streams import ConfigurationError, NotPublished, after_commit, bulk, signals, streams_of
from celery_streams.connection import RedisClient
from celery_streams.message import Message
from tests.support.eventually import eventually

STREAM = "celery-streams:{send_message}"


@pytest.fixture
def task(site: Celery) -> Any:
    return site.tasks["chat.tasks.send_message"]


@pytest.fixture
def atomic(site: Celery) -> Any:
    from django.db import transaction

    return transaction.atomic


@pytest.fixture
def on_commit(site: Celery) -> Iterator[None]:
    """The setting, switched on."""
    from django.test import override_settings

    with override_settings(CELERY_STREAMS_PUBLISH_ON_COMMIT=True):
        yield


@pytest.fixture
def sent(client: RedisClient) -> Callable[[], list[Any]]:
    """The first arguments of what lies on the stream, in order."""

    def look() -> list[Any]:
        found = [Message.from_fields(flat) for _, flat in client.call("XRANGE", STREAM, "-", "+")]
        return [json.loads(message.body)[0][0] for message in found]

    return look


@pytest.fixture
def scripts_run(client: RedisClient) -> Callable[[], int]:
    """How many scripts the server ran since the last look."""
    last = 0

    def look() -> int:
        nonlocal last
        lines = client.call("INFO", "commandstats").decode().splitlines()
        calls = sum(
            int(line.partition("calls=")[2].partition(",")[0])
            for line in lines
            if line.startswith(("cmdstat_evalsha:", "cmdstat_eval:"))
        )
        ran, last = calls - last, calls
        return ran

    look()
    return look


pytestmark = pytest.mark.usefixtures("on_commit")


def test_messages_go_out_at_the_commit_in_one_pipeline(
    task: Any, atomic: Any, sent: Any, scripts_run: Any, client: RedisClient
) -> None:
    with atomic():
        task.delay(0)  # makes the script known
    scripts_run()

    with atomic():
        results = [task.delay(number) for number in range(1, 40)]
        assert sent() == [0]

    assert sent() == list(range(40))
    assert len({result.id for result in results}) == 39
    assert scripts_run() == 1


def test_duplicate_of_a_unique_task_is_found_at_the_commit_and_answers_for_the_first(
    task: Any, atomic: Any, sent: Any
) -> None:
    from django.test import override_settings

    limits = {"chat.tasks.send_message": {"unique": True}}
    with override_settings(CELERY_STREAMS_LIMITS=limits):
        first = task.delay(1)
        with atomic():
            second, third = task.delay(1), task.delay(2)
            assert second.id != first.id

    assert second.id == first.id != third.id
    assert sent() == [1, 2]


def test_nothing_goes_out_after_a_rollback(task: Any, atomic: Any, sent: Any) -> None:
    with pytest.raises(ZeroDivisionError), atomic():
        task.delay(1)
        raise ZeroDivisionError
    with atomic():
        task.delay(2)

    assert sent() == [2]


def test_nothing_of_a_rolled_back_inner_block_goes_out(task: Any, atomic: Any, sent: Any) -> None:
    with atomic():
        task.delay(1)
        with pytest.raises(ZeroDivisionError), atomic():
            task.delay(2)
            with atomic():
                task.delay(3)
            task.delay(4)
            raise ZeroDivisionError
        task.delay(5)
        with atomic():
            task.delay(6)
            with pytest.raises(ZeroDivisionError), atomic():
                task.delay(7)
                raise ZeroDivisionError
            task.delay(8)
        task.delay(9)

    assert sent() == [1, 5, 6, 8, 9]


def test_inner_block_without_a_savepoint_takes_the_transaction_with_it(task: Any, atomic: Any, sent: Any) -> None:
    with atomic():
        task.delay(1)
        with pytest.raises(ZeroDivisionError), atomic(savepoint=False):
            task.delay(2)
            raise ZeroDivisionError

    assert sent() == []


def test_savepoints_in_a_loop_make_two_pipelines(task: Any, atomic: Any, sent: Any, scripts_run: Any) -> None:
    task.delay(0)
    with atomic():
        task.delay(1)
    scripts_run()

    with atomic():
        for number in range(2, 30):
            with atomic():
                task.delay(number)

    assert sent() == list(range(30))
    assert scripts_run() == 2


def test_outside_of_transactions_and_in_manual_mode_messages_go_out_at_once(task: Any, sent: Any) -> None:
    from django.db import transaction

    task.delay(1)
    assert sent() == [1]

    transaction.set_autocommit(False)
    try:
        task.delay(2)
        assert sent() == [1, 2]
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)


def test_durable_blocks_send_at_their_end(task: Any, atomic: Any, sent: Any) -> None:
    with atomic(durable=True):
        task.delay(1)

    assert sent() == [1]


def test_hooks_of_others_keep_their_place(task: Any, atomic: Any, sent: Any) -> None:
    from django.db import transaction

    seen: list[Any] = []
    with atomic():
        task.delay(1)
        transaction.on_commit(lambda: seen.append(sent()))
        task.delay(2)
        transaction.on_commit(lambda: seen.append(sent()))

    assert seen == [[1], [1, 2]]


def test_several_databases_are_waited_for(task: Any, atomic: Any, sent: Any) -> None:
    with atomic(using="other"):
        with atomic():
            task.delay(1)
        assert sent() == []
        with pytest.raises(ZeroDivisionError), atomic():
            task.delay(2)
            raise ZeroDivisionError
    assert sent() == [1]

    with pytest.raises(ZeroDivisionError), atomic(using="other"):
        with atomic():
            task.delay(3)
        raise ZeroDivisionError
    assert sent() == [1]


def test_setting_may_name_databases(task: Any, atomic: Any, sent: Any) -> None:
    from django.test import override_settings

    with override_settings(CELERY_STREAMS_PUBLISH_ON_COMMIT="other"):
        with atomic():
            task.delay(1)
            assert sent() == [1]
        with atomic(using="other"):
            task.delay(2)
            assert sent() == [1]
        assert sent() == [1, 2]


def test_bulk_waits_for_the_database_that_it_names(task: Any, site: Celery, atomic: Any, sent: Any) -> None:
    from django.test import override_settings

    with override_settings(CELERY_STREAMS_PUBLISH_ON_COMMIT=False):
        with atomic():
            with bulk(site, using="default"):
                task.delay(1)
            task.delay(2)
            assert sent() == [2]
        assert sent() == [2, 1]

    with atomic():
        with bulk(site, using=False):
            task.delay(3)
        assert sent() == [2, 1, 3]


def test_block_around_transactions_takes_along_what_they_commit(
    task: Any, site: Celery, atomic: Any, sent: Any, scripts_run: Any
) -> None:
    with atomic():
        task.delay(0)
    scripts_run()

    with bulk(site):
        task.delay(1)
        for number in range(2, 10):
            with atomic():
                task.delay(number)
        assert sent() == [0]

    assert sent() == list(range(10))
    assert scripts_run() == 1


def test_groups_wait_for_the_commit_too(task: Any, site: Celery, atomic: Any, sent: Any) -> None:
    with atomic():
        group([task.s(number) for number in range(3)], app=site).apply_async()
        assert sent() == []

    assert sent() == [0, 1, 2]


def test_lists_are_not_held(site: Celery, atomic: Any, client: RedisClient) -> None:
    with atomic():
        site.tasks["chat.tasks.fetch_profile_pic"].delay(1)
        assert client.call("LLEN", "fetch_profile_pic") == 1


def test_result_of_a_held_task_says_so_at_once(task: Any, atomic: Any) -> None:
    with pytest.raises(ZeroDivisionError), atomic():
        result = task.apply_async((1,), ignore_result=False)
        with pytest.raises(NotPublished, match=result.id):
            result.get(timeout=20)
        raise ZeroDivisionError

    assert not streams_of(task.app).is_held(result.id)


# -- as tests of Django projects expect --------------------------------------------------------------------------------


def test_testcase_sends_what_it_captures(task: Any, atomic: Any, sent: Any) -> None:
    from django.db import transaction
    from django.test import TestCase

    with pytest.raises(ZeroDivisionError), atomic():  # what TestCase does
        task.delay("not captured")
        with TestCase.captureOnCommitCallbacks() as callbacks:
            task.delay("not run")
        assert len(callbacks) == 1
        with TestCase.captureOnCommitCallbacks(execute=True):
            task.delay(1)
            with TestCase.captureOnCommitCallbacks(execute=True), atomic():
                task.delay(2)
            assert sent() == [2]
            transaction.on_commit(lambda: task.delay(3))
        assert sent() == [2, 1, 3]
        with TestCase.captureOnCommitCallbacks(execute=True, using="other"):
            task.delay("of the other database")
        raise ZeroDivisionError

    assert sent() == [2, 1, 3]


# -- delay_on_commit ---------------------------------------------------------------------------------------------------


def test_delay_on_commit_goes_out_in_one_pipeline(task: Any, atomic: Any, sent: Any, scripts_run: Any) -> None:
    from django.test import override_settings

    with override_settings(CELERY_STREAMS_PUBLISH_ON_COMMIT=False):
        task.delay_on_commit(0)
        assert sent() == [0]
        with atomic():
            task.delay_on_commit(1)
        scripts_run()
        with atomic():
            for number in range(2, 20):
                task.delay_on_commit(number)
            task.apply_async_on_commit((20,), priority=0)
            assert sent() == [0, 1]

        assert sent() == list(range(21))
        assert scripts_run() == 1


def test_apply_async_on_commit_takes_another_database(task: Any, atomic: Any, sent: Any) -> None:
    with atomic(using="other"), pytest.raises(ZeroDivisionError), atomic():
        task.apply_async_on_commit((1,), using="other")
        task.delay_on_commit(2)
        raise ZeroDivisionError

    assert sent() == [1]


# -- failures ----------------------------------------------------------------------------------------------------------


def test_failed_send_is_told_kept_and_mended(
    task: Any, atomic: Any, sent: Any, client: RedisClient, caplog: pytest.LogCaptureFixture
) -> None:
    from django.db import transaction

    told: list[dict[str, Any]] = []
    hooks: list[int] = []

    def receive(**kwargs: Any) -> None:
        told.append(kwargs)

    signals.publish_failed.connect(receive)
    client.call("CONFIG", "SET", "maxmemory", 500_000)
    try:
        with caplog.at_level(logging.ERROR), atomic():
            result = task.delay(1)
            transaction.on_commit(lambda: hooks.append(1))
        assert hooks == [1]
        assert (list(told[0]["failed"]), told[0]["final"]) == ([result.id], False)
        assert result.id in caplog.text
        assert after_commit.still_kept() == 1
    finally:
        client.call("CONFIG", "SET", "maxmemory", 0)
        signals.publish_failed.disconnect(receive)

    eventually(lambda: sent() == [1])
    eventually(lambda: after_commit.still_kept() == 0)


def test_what_is_kept_is_bounded(task: Any, atomic: Any, client: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def receive(final: bool = False, **kwargs: Any) -> None:
        told.append(final)

    monkeypatch.setattr(after_commit, "MOST_KEPT", 1)
    signals.publish_failed.connect(receive)
    client.call("CONFIG", "SET", "maxmemory", 500_000)
    try:
        with atomic():
            task.delay(1)
            task.delay(2)
    finally:
        client.call("CONFIG", "SET", "maxmemory", 0)
        signals.publish_failed.disconnect(receive)

    assert told == [True]
    assert after_commit.still_kept() == 0


def test_without_django_integration_the_setting_is_an_error(app: Callable[..., Celery]) -> None:
    from celery_streams import app as app_module

    known = list(app_module._transactions)
    app_module._transactions.clear()
    try:
        with pytest.raises(ConfigurationError, match="django_integration"):
            app(streams_publish_on_commit=True).send_task("t")
    finally:
        app_module._transactions[:] = known

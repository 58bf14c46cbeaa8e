"""An entry that is no longer ours."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import Task
from celery.exceptions import Reject

import celery_streams
from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.exceptions import BrokerUnavailable
from celery_streams.signals import entry_lost, message_dead_lettered
from tests.support.bench import ME, STREAM, ActionError, Bench, but


def test_entry_that_another_worker_has_is_neither_acknowledged_nor_buried(both: Bench) -> None:
    @both.task()
    def fail() -> None:
        raise ActionError

    fail.delay()
    delivery = both.read()
    both.broker.client.call("XCLAIM", STREAM, keys.GROUP, "other", 0, delivery.entry_id)
    lost: list[Any] = []

    def receiver(**signal: Any) -> None:
        lost.append((signal["entry_id"], signal["consumer"]))

    entry_lost.connect(receiver, weak=False)
    try:
        both.run(delivery=delivery)
    finally:
        entry_lost.disconnect(receiver)

    assert both.left() == but(pending=1)
    assert lost == [(delivery.entry_id.decode(), ME)]


def test_task_can_ask_whether_it_still_owns_its_message(both: Bench) -> None:
    @both.task()
    def ask(lose: bool) -> None:
        both.ran.append(celery_streams.still_owned())
        if lose:
            ((entry_id, *_),) = both.broker.client.call("XPENDING", STREAM, keys.GROUP, "-", "+", 1)
            both.broker.client.call("XCLAIM", STREAM, keys.GROUP, "other", 0, entry_id)
            both.ran.append(celery_streams.still_owned())

    ask.delay(True)

    both.run()

    assert both.ran == [True, False]


def test_task_is_told_at_once_what_its_parent_found(both: Bench) -> None:
    both.notes.taken_away = True

    @both.task()
    def ask() -> None:
        both.ran.append(celery_streams.still_owned())

    ask.delay()

    both.run()

    assert both.ran == [False]


@pytest.mark.parametrize(("how", "noted"), [("return", False), ("fail", True), ("retry", True), ("reject", True)])
def test_heartbeat_can_know_that_the_outcome_of_a_task_is_being_settled(both: Bench, how: str, noted: bool) -> None:
    """What succeeded is acknowledged later, when it runs no more."""

    @both.task(bind=True)
    def end(self: Task) -> None:
        both.ran.append(both.notes.was_settling)
        if how == "fail":
            raise ActionError
        if how == "retry":
            self.retry(countdown=60)
        if how == "reject":
            raise Reject(requeue=True)

    end.delay()

    both.run()

    assert (both.ran, both.notes.was_settling) == ([False], noted)


@pytest.mark.parametrize("held", [False, True])
def test_heartbeat_can_know_that_a_limited_message_is_being_moved_aside(
    both: Bench, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """Its entry is gone before the reply comes, though nobody took it: a heartbeat in between says nothing."""
    asked: list[bool] = []

    @both.task(rate_limit="1/h")
    def limited() -> None:
        both.ran.append(both.notes.was_settling)

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def run(self, script: Any, names: Any, args: Any) -> Any:
            if script.name.startswith("admit"):
                asked.append(both.notes.was_settling)
            return client.run(script, names, args)

    client = both.settler.broker.client
    if held:
        limited.delay()
        both.run()
        both.ran.clear()
    limited.delay()
    monkeypatch.setattr(both.settler.broker, "client", Watched())

    both.run()

    assert asked == [True]
    assert both.ran == ([] if held else [False])


class _LosesReplies:
    """A client that loses the reply to a script so many times, after Redis has carried it out, or before."""

    def __init__(self, client: Any, name: str, *, times: int, arrives: bool) -> None:
        self._client, self._name, self._times, self._arrives = client, name, times, arrives

    def run(self, script: Any, names: Any, args: Any) -> Any:
        if script.name != self._name or not self._times:
            return self._client.run(script, names, args)
        self._times -= 1
        if self._arrives:
            self._client.run(script, names, args)
        raise BrokerUnavailable("the connection broke")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_dead_letter_is_told_of_once_however_often_the_reply_is_lost(
    both: Bench, caplog: pytest.LogCaptureFixture, times: int, arrives: bool, early: bool
) -> None:
    @both.task(streams_acks_late=not early)
    def fail() -> None:
        raise ActionError

    fail.delay()
    client: Any = _LosesReplies(both.broker.client, "reject", times=times, arrives=arrives)
    both.settler.broker = StreamBroker(client)
    told: list[Any] = []

    def receiver(**signal: Any) -> None:
        told.append((signal["entry_id"], signal["reason"]))

    message_dead_lettered.connect(receiver, weak=False)
    try:
        with caplog.at_level(logging.WARNING):
            both.run()
    finally:
        message_dead_lettered.disconnect(receiver)

    ((letter, _),) = both.broker.client.call("XRANGE", f"{STREAM}:dead", "-", "+")
    assert told == [(letter.decode(), "failed")]
    assert sum("is a dead letter" in text for text in caplog.messages) == 1
    assert both.settler.lost == 0

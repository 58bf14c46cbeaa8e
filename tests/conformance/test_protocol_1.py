"""Messages of Celery's first protocol (``task_protocol = 1``, and older programs), through every ending."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery, chain, chord, group

import celery_streams
from tests.conformance.conftest import SETTINGS, _forget_results
from tests.proj.actions import ActionError
from tests.proj.settings import celery_settings
from tests.support.eventually import eventually


@pytest.fixture
def old(side, another_worker):
    """A publisher of the first protocol; its worker speaks the first protocol, too."""
    worker = another_worker(side, "old", task_protocol=1)
    app = Celery(f"old-{side.name}", set_as_current=False)
    urls = {"broker": side.app.conf.broker_url, "results": side.app.conf.result_backend}
    app.conf.update(celery_settings(**urls, queue=worker.queue, task_protocol=1, **SETTINGS))
    app.conf.include = ["tests.proj.actions"]
    app.loader.import_default_modules()
    if side.on_streams:
        app.conf.streams_enabled = True
        celery_streams.install(app)
    app.finalize()
    app.set_current()
    app.worker = worker
    yield app
    _forget_results(app)
    app.close()
    if side.on_streams:
        celery_streams.streams_of(app).reload()
    side.app.set_current()


@pytest.fixture
def task(old):
    return lambda name: old.tasks[f"tests.proj.actions.{name}"]


def test_message_of_protocol_1_ends_in_every_way(side, old, task):
    act = task("act")

    assert side.value(act.delay("ok", {"a": [1]})) == {"a": [1]}
    assert isinstance(side.error(act.delay("error", "no")), ActionError)
    retried = act.delay("retry", "done", until=2, countdown=0.1)
    assert side.value(retried) == "done"
    assert [run["retries"] for run in side.ledger.runs(retried.id)] == [0, 1, 2]
    assert isinstance(side.error(act.delay("retry_error", "gave up", max_retries=1, countdown=0)), ActionError)
    assert side.value(task("act_autoretry").delay("transient_error", "x", until=2)) == 2
    assert side.state(act.delay("reject", "no"), "FAILURE", "PENDING")
    assert side.value(act.apply_async(("soft_limit",), soft_time_limit=1)) == "cleaned up"
    hard = act.apply_async(("sleep",), {"seconds": 30}, time_limit=1)
    assert type(side.error(hard)).__name__ == "TimeLimitExceeded"
    assert side.value(act.delay("replace", "instead")) == "instead"
    assert side.value(act.delay("retry_with", args=("ok", "other"), kwargs={})) == "other"
    assert side.value(act.delay("reject_requeue", "again")) == "again" if side.on_streams else True


def test_times_of_a_message_of_protocol_1_are_kept(side, old, task):
    act = task("act")
    now = datetime.now(timezone.utc)

    late = act.apply_async(("ok", 1), expires=-1)
    later = act.apply_async(("ok", 2), eta=now + timedelta(seconds=1.0))
    counted = act.apply_async(("ok", 3), countdown=1, expires=60)
    outlived = act.apply_async(("ok", 4), countdown=1.5, expires=0.5)

    assert [side.value(later), side.value(counted)] == [2, 3]
    assert side.state(late, "REVOKED") == side.state(outlived, "REVOKED") == "REVOKED"
    assert side.ledger.runs(later.id)[0]["at"] >= now.timestamp() + 1.0


def test_message_of_protocol_1_is_revoked(side, old, task, new_id):
    act = task("act")
    waiting = act.apply_async(("ok", 1), countdown=2)
    running = act.delay("sleep", seconds=30)
    side.ran(running.id)

    for one, options in ((waiting.id, {}), (running.id, {"terminate": True})):
        reply = side.app.control.revoke(
            one, destination=[old.worker.hostname], reply=True, timeout=5, limit=1, **options
        )
        assert reply

    assert side.state(running, "REVOKED")
    assert side.state(waiting, "REVOKED")


def test_canvas_of_protocol_1_messages(side, old, task):
    add, total = task("add"), task("total")

    assert side.value(chain(add.s(1, 2), add.s(3), add.s(4)).delay()) == 10
    assert side.value(group(add.s(n, n) for n in range(4)).delay()) == [0, 2, 4, 6]
    assert side.value(chord([add.s(n, n) for n in range(4)], total.s()).delay()) == 12
    assert side.value(chain(group(add.s(1, 1), add.s(2, 2)), total.s(), add.s(1)).delay()) == 7
    failed = chord([add.s(1, 1), task("fail").si()], total.s()).delay()
    assert type(side.error(failed)).__name__ == "ChordError"


def test_links_of_a_protocol_1_message_are_called(side, old, task, new_id):
    remember = task("remember").s().set(task_id=new_id)

    task("add").apply_async((1, 2), link=remember)
    (called,) = eventually(lambda: side.ledger.read("called", new_id))
    failed = task("fail").apply_async(link_error=task("on_error").s())
    named = task("fail").apply_async(link_error=task("on_error_by_id").s())

    assert called["args"] == [3]
    assert eventually(lambda: side.ledger.read("errback", failed.id))
    assert eventually(lambda: side.ledger.read("errback", named.id))

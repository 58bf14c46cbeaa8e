"""What cannot be executed is kept, whole, with the reason."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from celery_streams import keys, revocations
from celery_streams.dead_letters import obstacles, replay
from celery_streams.exceptions import CannotRun
from tests.support.eventually import eventually

HEADERS = {"lang": "py", "task": "tests.proj.actions.act", "id": "hand-made"}
PROPERTIES = {"content_type": "application/json", "content_encoding": "utf-8"}


def entry(body=b'[["ok"],{},{}]', *, headers=HEADERS, properties=PROPERTIES):
    """Return the fields of an entry; headers and properties are JSON, or bytes as they are."""
    return {
        b"headers": headers if isinstance(headers, bytes) else json.dumps(headers).encode(),
        b"properties": properties if isinstance(properties, bytes) else json.dumps(properties).encode(),
        b"body": body,
    }


MALFORMED = {
    "no known field": {b"spam": b"eggs"},
    "no body": {name: value for name, value in entry().items() if name != b"body"},
    "one field too many": {**entry(), b"more": b"x"},
    "headers are no JSON": entry(headers=b"{"),
    "headers are a list": entry(headers=[]),
    "headers are no UTF-8": entry(headers=b"\xff\xfe"),
    "properties are no JSON": entry(properties=b"nothing"),
    "properties are a list": entry(properties=[1]),
    "body is no JSON": entry(b"[[broken"),
    "body is a string": entry(b'"a string"'),
    "body is null": entry(b"null"),
    "body is no UTF-8": entry(b"\xff\xfe"),
    "unknown content type": entry(properties={**PROPERTIES, "content_type": "application/x-unknown"}),
    "unknown compression": entry(headers={**HEADERS, "compression": "application/x-unknown"}),
    "no id": entry(headers={"lang": "py", "task": "tests.proj.actions.act"}),
    "task is a list": entry(headers={**HEADERS, "task": ["tests.proj.actions.act"]}),
    "eta is nonsense": entry(headers={**HEADERS, "eta": "tomorrow"}),
    "expires is nonsense": entry(headers={**HEADERS, "expires": "tomorrow"}),
    "time limits are nonsense": entry(headers={**HEADERS, "timelimit": "soon"}),
}


def letters(project, count):
    """Wait for so many dead letters and return them."""
    return eventually(lambda: found if len(found := project.dead_letters()) >= count else None)


def test_malformed_entries_become_dead_letters_with_all_their_bytes(project, act, worker):
    stream = keys.queue_keys("celery-streams", "celery").streams[0]
    for fields in MALFORMED.values():
        project.broker.client.call("XADD", stream, "*", *[part for pair in fields.items() for part in pair])

    worker(concurrency=2)

    def reasons():
        kept = [
            ({name: value for name, value in letter.fields if name != b"history"}, letter.reason)
            for letter in project.dead_letters()
        ]
        return {name: [reason for one, reason in kept if one == fields] for name, fields in MALFORMED.items()}

    def all_given_up():
        assert [name for name, found in reasons().items() if not found] == []
        return True

    eventually(all_given_up)
    expected = {"malformed", "not-accepted", "invalid"}
    assert {name: found for name, found in reasons().items() if len(found) != 1 or found[0] not in expected} == {}
    assert all(letter.exception for letter in project.dead_letters())
    assert project.counted() == {}
    assert act.delay("ok", "goes on").get(timeout=10) == "goes on"
    assert eventually(lambda: project.status().length == 0)


def test_message_made_by_hand_that_is_not_malformed_runs(project, act, worker):
    stream = keys.queue_keys("celery-streams", "celery").streams[0]
    project.broker.client.call("XADD", stream, "*", *[part for pair in entry().items() for part in pair])

    worker(concurrency=1)

    project.starts("hand-made")
    assert project.dead_letters() == []


def test_failures_become_dead_letters_with_the_whole_message(project, act, worker):
    worker(concurrency=2)
    failed = act.apply_async(("error", "it broke"), headers={"tenant": "acme"}, priority=3)
    rejected = act.delay("reject", "unwanted")
    exhausted = act.delay("retry_error", "gave up", max_retries=1, countdown=0)
    fine = act.delay("ok", 1)

    found = {letter.task_id: letter for letter in letters(project, 3)}

    assert fine.get(timeout=10) == 1
    assert set(found) == {failed.id, rejected.id, exhausted.id}
    assert found[failed.id].reason == "failed"
    assert found[rejected.id].reason == "rejected"
    assert found[exhausted.id].reason == "failed"
    assert found[failed.id].exception == "ActionError('it broke')"
    assert "Traceback" in found[failed.id].traceback
    assert found[failed.id].worker == "worker@test"
    message = found[failed.id].message
    assert message.decode_headers()["tenant"] == "acme"
    assert message.decode_properties()["priority"] == 3
    assert json.loads(message.body)[0] == ["error", "it broke"]


def test_replayed_dead_letter_runs_again_with_its_id(project, act, worker):
    worker(concurrency=1)
    result = act.delay("error", "first")
    (letter,) = letters(project, 1)

    assert replay(project.broker, letter)

    assert len(project.starts(result.id, times=2)) == 2


def test_failures_are_not_kept_when_the_setting_says_so(project, act, worker):
    worker(concurrency=1, streams_dead_letter_failures=False)

    result = act.delay("error", "gone")
    assert str(result.get(timeout=10, propagate=False)) == "gone"
    act.delay("ok").get(timeout=10)

    assert project.dead_letters() == []
    assert eventually(lambda: project.status().length == 0)


@pytest.mark.slow
def test_unknown_task_is_given_up_only_after_its_time(project, act, worker):
    worker(concurrency=1, streams_unknown_task_ttl=1)

    result = act.app.send_task("tests.proj.actions.of_the_next_release", args=[7])
    (letter,) = letters(project, 1)

    assert letter.reason == "unknown-task"
    assert letter.task_id == result.id
    assert "never registered" in letter.exception
    assert letter.died - letter.published >= 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_replayed_dead_letter_runs_although_it_had_expired_or_was_revoked(project, app, act, worker, pool):
    worker(pool=pool)
    expired = act.apply_async(["error"], expires=2.0)
    revoked = act.apply_async(["error"])
    letters = eventually(lambda: found if len(found := project.dead_letters()) == 2 else None)
    app.control.revoke(revoked.id)
    eventually(lambda: revocations.revoked(project.broker))

    by_id = {letter.task_id: letter for letter in letters}
    with pytest.raises(CannotRun, match="was revoked"):
        replay(project.broker, by_id[revoked.id])
    eventually(lambda: obstacles(project.broker, [by_id[expired.id]])[0])
    with pytest.raises(CannotRun, match="it expired"):
        replay(project.broker, by_id[expired.id])
    assert len(project.dead_letters()) == 2

    replay(project.broker, by_id[expired.id], ignore_expires=True)
    replay(project.broker, by_id[revoked.id], ignore_revoked=True)

    project.starts(expired.id, 2)
    eventually(lambda: len(project.ledger.runs()) == 4)
    eventually(lambda: len(project.dead_letters()) == 2)  # they fail again, and nothing is lost


@pytest.mark.parametrize("where", ["body", "headers"])
@pytest.mark.parametrize("size", [100_000, 3_000_000])
def test_large_message_acknowledged_early_is_a_whole_dead_letter_when_its_child_dies(project, app, worker, where, size):
    worker(concurrency=1)
    act_early = app.tasks["tests.proj.actions.act_early"]
    text = "x" * size
    options = {"headers": {"text": text}} if where == "headers" else {}
    value = text if where == "body" else "small"
    result = act_early.apply_async(("kill", value), {"times": 1}, **options)

    (letter,) = eventually(project.dead_letters, timeout=15)

    assert (letter.task_id, letter.reason) == (result.id, "crashed")
    args = json.loads(letter.message.body)[0]
    assert args == ["kill", value]
    assert letter.message.decode_headers().get("text") == (text if where == "headers" else None)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_dead_letter_tells_when_and_where_each_start_ended(project, act, worker, pool):
    one = worker(concurrency=1, pool=pool)
    began = time.time()
    act.delay("retry_error", "a secret", countdown=0, max_retries=2)

    (letter,) = letters(project, 1)

    told = [(attempt.number, attempt.outcome, attempt.detail) for attempt in letter.attempts]
    assert told == [(1, "retried", "ActionError"), (2, "retried", "ActionError"), (3, "failed", "ActionError")]
    times = [at for attempt in letter.attempts for at in (attempt.began, attempt.ended)]
    assert times == sorted(times)
    assert began - 0.01 <= times[0]
    assert times[-1] <= time.time()
    assert all(attempt.worker.startswith(f"{one.hostname}/") for attempt in letter.attempts)
    assert "a secret" not in str(letter.attempts)


def test_dead_letter_tells_how_its_processes_ended(project, act, worker):
    first = worker(name="one", concurrency=1, streams_delivery_limit=3, streams_visibility_timeout=1.5)
    stuck = act.delay("sleep", seconds=60)
    project.starts(stuck.id)
    first.kill()
    second = worker(name="two", concurrency=1, streams_delivery_limit=3, streams_visibility_timeout=1.5)
    project.starts(stuck.id, times=2)
    second.kill()
    third = worker(name="three", concurrency=1, streams_delivery_limit=3, streams_visibility_timeout=1.5)
    project.starts(stuck.id, times=3)
    os.kill(project.starts(stuck.id, times=3)[2]["pid"], signal.SIGKILL)
    (letter,) = letters(project, 1)

    told = [(one.number, one.outcome, one.detail, one.worker.partition("/")[0]) for one in letter.attempts]
    assert told == [
        (1, "lost", "", first.hostname),
        (2, "lost", "", second.hostname),
        (3, "crashed", "signal 9 (SIGKILL)", third.hostname),
    ]

"""What cannot be executed is kept, whole, with the reason."""

from __future__ import annotations

import json

import pytest

from celery_streams import inspect, keys
from tests.eventually import eventually

GOOD = {
    b"headers": b'{"lang":"py","task":"tests.proj.actions.act","id":"hand-made"}',
    b"properties": b'{"content_type":"application/json","content_encoding":"utf-8"}',
    b"body": b'[["ok"],{},{}]',
}

MALFORMED = {
    "no known field": {b"spam": b"eggs"},
    "no body": {b"headers": GOOD[b"headers"], b"properties": GOOD[b"properties"]},
    "one field too many": {**GOOD, b"more": b"x"},
    "headers are no JSON": {**GOOD, b"headers": b"{"},
    "headers are a list": {**GOOD, b"headers": b"[]"},
    "headers are bytes": {**GOOD, b"headers": b"\xff\xfe"},
    "properties are no JSON": {**GOOD, b"properties": b"nothing"},
    "body is no JSON": {**GOOD, b"body": b"[[broken"},
    "body is something else": {**GOOD, b"body": b'"a string"'},
    "unknown content type": {
        **GOOD,
        b"properties": b'{"content_type":"application/x-unknown","content_encoding":"binary"}',
    },
    "task name is a number": {**GOOD, b"headers": b'{"task":42,"id":"hand-made"}'},
    "eta is nonsense": {
        **GOOD,
        b"headers": b'{"lang":"py","task":"tests.proj.actions.act","id":"hand-made","eta":"tomorrow"}',
    },
}


def letters(project, count):
    """Wait for so many dead letters and return them."""
    return eventually(lambda: found if len(found := project.dead_letters()) >= count else None)


def test_malformed_entries_become_dead_letters_with_all_their_bytes(project, act, worker):
    stream = keys.queue_keys("celery-streams", "celery").streams[0]
    for fields in MALFORMED.values():
        project.broker.client.call("XADD", stream, "*", *[part for pair in fields.items() for part in pair])

    worker(concurrency=2)

    def lost():
        kept = [dict(letter.fields) for letter in project.dead_letters()]
        return [name for name, fields in MALFORMED.items() if not any(fields.items() <= one.items() for one in kept)]

    def nothing_lost():
        assert lost() == []
        return True

    eventually(nothing_lost)
    found = project.dead_letters()
    assert len(found) == len(MALFORMED)
    assert {letter.reason for letter in found} <= {"malformed", "not-accepted", "invalid"}
    assert all(letter.exception for letter in found)
    assert act.delay("ok", "goes on").get(timeout=10) == "goes on"
    assert eventually(lambda: project.status().length == 0)


def test_message_made_by_hand_that_is_not_malformed_runs(project, act, worker):
    stream = keys.queue_keys("celery-streams", "celery").streams[0]
    project.broker.client.call("XADD", stream, "*", *[part for pair in GOOD.items() for part in pair])

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

    assert inspect.replay(project.broker, letter)

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

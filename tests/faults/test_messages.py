"""F16 to F21: messages that kill, that are none, that nobody knows, that are large, that vanish."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from celery_streams import inspect, keys
from celery_streams.embedded import EmbeddedRedis
from celery_streams.message import Message
from tests.faults.conftest import QUEUE, VISIBILITY_TIMEOUT, Stage

# -- F16 --------------------------------------------------------------------------------------------------------------


def test_f16_poison_is_dead_lettered_after_the_limit_with_growing_pauses_and_everything_else_finishes(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(settings={"streams_delivery_limit": 3})
    worker = stage.worker()
    poison, plain = [], []
    for number in range(600):
        if number % 100 == 50:
            poison.append(stage.send("poison"))
        plain.append(stage.send("ok"))

    stage.wait(lambda: stage.ended(*plain), timeout=20, message="everything else finishes")
    stage.wait(lambda: len(stage.letters()) == len(poison), timeout=20, message="all poison is dead-lettered")
    stage.wait(stage.empty)
    assert {(letter.task_id, letter.reason, letter.crashes) for letter in stage.letters()} == {
        (task_id, "crashed", 3) for task_id in poison
    }
    for task_id in poison:
        starts = [run.start for run in stage.runs(task_id)]
        assert len(starts) == 3
        assert starts[2] - starts[1] > 0.9, "the second re-delivery waits"
    runs = [run.id for run in stage.runs() if run.id in set(plain)]
    assert len(runs) == len(plain), "what was fetched beside the poison ran once"
    assert worker.running


# -- F17 --------------------------------------------------------------------------------------------------------------

_HEADERS = {"task": "tests.faults.app.quiet", "id": "odd", "lang": "py", "argsrepr": "", "kwargsrepr": "", "retries": 0}
_PROPERTIES = {"content_type": "application/json", "content_encoding": "utf-8", "priority": 0, "correlation_id": "odd"}
_BODY = b'[["ok"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


def _fields(**changes: object) -> list[bytes]:
    parts: dict[str, object] = {"headers": _HEADERS, "properties": _PROPERTIES, "body": _BODY, **changes}
    flat: list[bytes] = []
    for name, value in parts.items():
        if value is not None:
            flat += [name.encode(), value if isinstance(value, bytes) else json.dumps(value).encode()]
    return flat


_ODD = {
    "no headers": (_fields(headers=None), "malformed"),
    "no body": (_fields(body=None), "malformed"),
    "an unknown field": (_fields(more=b"x"), "malformed"),
    "one foreign field": ([b"packed", b"\x00\x01"], "malformed"),
    "headers that are not JSON": (_fields(headers=b"{"), "malformed"),
    "headers that are a list": (_fields(headers=[]), "malformed"),
    "headers that are not text": (_fields(headers=b"\xff\xfe"), "malformed"),
    "a history that is not JSON": (_fields(history=b"{"), "malformed"),
    "a body that is not JSON": (_fields(body=b"]["), "malformed"),
    "a body of another shape": (_fields(body=b'{"a": 1}'), None),
    "a content type that nobody knows": (_fields(properties={**_PROPERTIES, "content_type": "x/odd"}), None),
    "pickle that is not accepted": (
        _fields(
            properties={**_PROPERTIES, "content_type": "application/x-python-serialize", "content_encoding": "binary"},
            body=b"\x80\x04.",
        ),
        "not-accepted",
    ),
    "a task name that is a number": (_fields(headers={**_HEADERS, "task": 7}), None),
    "no properties at all": (_fields(properties={}), None),
    "an eta that is no date": (_fields(headers={**_HEADERS, "eta": "soon"}), None),
    "time limits that are words": (_fields(headers={**_HEADERS, "timelimit": ["a", "b"]}), None),
    "a chain that is none": (
        _fields(body=b'[["ok"], {}, {"callbacks": 3, "errbacks": 4, "chain": 5, "chord": 6}]'),
        None,
    ),
}


def test_f17_entries_that_are_no_messages_are_dead_lettered_with_their_bytes_and_hold_nobody_up(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(settings={"streams_unknown_task_ttl": 0, "accept_content": ["json"]})
    worker = stage.worker(concurrency=1)
    [pid] = stage.wait(worker.children)
    name = stage.broker.queue_keys(QUEUE).streams[0]

    for fields, _ in _ODD.values():
        stage.client.call("XADD", name, "*", *fields)
    after = stage.send("ok")

    stage.wait(lambda: stage.ended(after), message="what comes behind them runs")
    stage.wait(stage.empty, timeout=15)
    letters = {letter.fields: letter.reason for letter in stage.letters()}
    for what, (fields, reason) in _ODD.items():
        if reason is not None:
            key = tuple(zip(fields[::2], fields[1::2], strict=True))
            found = {
                pairs: given for pairs, given in letters.items() if {*pairs} >= {p for p in key if p[0] != b"history"}
            }
            assert reason in found.values(), f"{what}: {reason}, found {list(found.values())}"
    assert worker.children() == [pid], "no child died of them"


# -- F18 --------------------------------------------------------------------------------------------------------------

_NEWER = """
from tests.faults.app import app, record


@app.task(bind=True, name="newer.task")
def newer(self, *args, **kwargs):
    record(self, "start")
    record(self, "end")
"""


def test_f18_a_task_that_only_a_newer_worker_knows_waits_for_it_and_is_not_marked(stage: Stage) -> None:
    (stage.directory / "newer_module.py").write_text(_NEWER)
    old = stage.worker("old", concurrency=1)
    sent = stage.app.send_task("newer.task", retry=False).id
    stage.wait(lambda: "put back for a newer worker" in old.log)
    old.stop()

    path = {"PYTHONPATH": f"{stage.directory}:{old.environment['PYTHONPATH']}"}
    stage.worker("new", concurrency=1, include=["newer_module"], environment=path)

    stage.drained(sent)
    assert [run.redelivered for run in stage.runs(sent)] == [False]
    assert stage.letters() == []


def test_f18_a_task_that_nobody_gets_to_know_is_dead_lettered_after_its_time_and_not_before(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(settings={"streams_unknown_task_ttl": 2.0})
    stage.worker(concurrency=1)
    at = time.time()

    sent = stage.app.send_task("never.known", retry=False).id

    stage.wait(stage.letters)
    [letter] = stage.letters()
    assert (letter.task_id, letter.reason, letter.task) == (sent, "unknown-task", "never.known")
    assert 2.0 <= letter.died - at + 0.05 < 10
    stage.wait(stage.empty)


# -- F19 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["unserialisable", "odd_error"])
def test_f19_a_result_that_cannot_be_stored_fails_the_task_once_and_loops_nowhere(stage: Stage, action: str) -> None:
    worker = stage.worker(concurrency=1)

    sent = stage.send(action, task="loud")
    after = stage.send("ok", task="loud", value=5)

    stage.wait(lambda: stage.ended(after))
    stage.wait(stage.empty)
    assert len(stage.runs(sent)) == 1
    assert [letter.task_id for letter in stage.letters()] == [sent]
    assert worker.running


def test_f19_a_task_is_acknowledged_after_its_result_was_stored_and_the_backend_may_be_away_meanwhile(
    make_stage: Callable[..., Stage],
) -> None:
    with EmbeddedRedis(appendonly=True) as results:
        stage = make_stage()
        stage.worker(concurrency=1, settings={"result_backend": results.url, "result_backend_always_retry": True})
        first = stage.send("ok", task="loud", value=1)
        stage.drained(first)

        results.kill()
        sent = stage.send("ok", task="loud", value=2)
        stage.wait(lambda: stage.ended(sent))
        held = stage.status().pending
        results.start()

        stage.wait(stage.empty, timeout=30)
        with contextlib.closing(redis.Redis.from_url(results.url)) as client:
            stored = json.loads(client.get(f"celery-task-meta-{sent}") or "")
        assert held == 1, "not acknowledged before its result was stored"
        assert (stored["status"], stored["result"]) == ("SUCCESS", 2)
        assert len(stage.runs(sent)) == 1
        assert stage.letters() == []


@pytest.mark.faults
def test_f19_a_task_whose_result_cannot_be_stored_is_a_dead_letter_and_does_not_run_again(
    make_stage: Callable[..., Stage],
) -> None:
    with EmbeddedRedis() as results:
        stage = make_stage()
        worker = stage.worker(concurrency=1, settings={"result_backend": results.url})
        [child] = stage.wait(worker.children)

        results.kill()
        sent = stage.send("ok", task="loud")

        stage.wait(stage.letters, timeout=30)
        stage.wait(stage.empty)
        assert [letter.task_id for letter in stage.letters()] == [sent]
        assert len(stage.runs(sent)) == 1
        assert worker.children() == [child]


# -- F20 --------------------------------------------------------------------------------------------------------------


def _rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_f20_large_payloads_run_and_leave_no_memory_behind(stage: Stage) -> None:
    worker = stage.worker(concurrency=1)
    first = stage.send("ok", value="x" * 1_000_000)
    stage.drained(first)
    [child] = worker.children()
    before = _rss_kib(child), _rss_kib(worker.pid)

    large = stage.send("ok", value="x" * 50_000_000)
    many = [stage.send("ok", value="x" * 1_000_000) for _ in range(30)]

    stage.drained(large, *many, timeout=40)
    assert worker.children() == [child]
    grown = _rss_kib(child) - before[0]
    assert grown < 400_000, f"the child grew by {grown} KiB"
    assert _rss_kib(worker.pid) - before[1] < 20_000, "the parent never sees a payload"
    assert stage.client.call("MEMORY", "USAGE", stage.broker.queue_keys(QUEUE).streams[0]) < 2_000_000


def test_f20_a_backlog_of_tiny_tasks_is_fetched_in_bounded_batches(stage: Stage) -> None:
    [template] = [stage.send("ok", value=0)]
    name = stage.broker.queue_keys(QUEUE).streams[0]
    [(_, flat)] = stage.client.call("XRANGE", name, "-", "+")
    count = 2_000
    message = Message.from_fields(flat)
    commands = []
    for number in range(count):
        headers = message.headers.replace(template.encode(), f"tiny-{number}".encode())
        commands.append(("XADD", name, "*", *Message(headers, message.properties, message.body).as_fields()))
    stage.client.pipeline(commands)

    worker = stage.worker(level="WARNING", ready=False)
    most = 0
    while not stage.empty():
        most = max(most, stage.status().pending)
        time.sleep(0.02)  # a sample now and then, until the queue is empty
        assert worker.running

    assert len(stage.runs()) == count + 1
    assert 0 < most <= 2 * 100


# -- F21 --------------------------------------------------------------------------------------------------------------


def test_f21_pending_entries_that_somebody_deletes_are_cleared_and_said_loudly(stage: Stage) -> None:
    first = stage.worker("first", concurrency=1)
    sent = stage.send("nap", seconds=1.0)
    stage.wait(lambda: stage.started(sent))
    name = stage.broker.queue_keys(QUEUE).streams[0]

    stage.client.call("XTRIM", name, "MAXLEN", 0)
    first.kill()
    second = stage.worker("second", concurrency=1)

    stage.wait(stage.empty, timeout=VISIBILITY_TIMEOUT * 3 + 5, message="the pending list is cleared")
    stage.wait(lambda: "had been deleted by someone else" in second.log)
    summary = stage.client.call("XPENDING", name, keys.GROUP)
    assert summary[0] == 0
    assert inspect.queue_status(stage.broker, QUEUE).length == 0
    after = stage.send("ok")
    stage.drained(after)


def test_f21_a_running_task_whose_entry_is_deleted_ends_and_its_worker_goes_on(stage: Stage) -> None:
    worker = stage.worker(concurrency=1)
    sent = stage.send("nap", seconds=0.8)
    stage.wait(lambda: stage.started(sent))

    stage.client.call("XTRIM", stage.broker.queue_keys(QUEUE).streams[0], "MAXLEN", 0)

    after = stage.send("ok")
    stage.drained(sent, after)
    assert len(stage.runs(sent)) == 1
    assert worker.running

"""``python -m benchmarks.publisher SYSTEM VERB COUNT``: a process that publishes, and prints what it measured as JSON.

============  =======================================================================================================
``backlog``   publishes ``noop`` as fast as it can, COUNT first, then as many as each line of its input says; answers
              each with wall and CPU time, so that publishers can take turns
``bulk``      the same in bulk: ``bulk()`` of streams, kombu's ``Producer.batch`` of lists, pipelines of redis-py
``fill``      adds copies of what is in the stream, in pipelines, unmeasured (not for ``stock``)
``sized``     publishes one ``noop`` with as many characters as COUNT says
``steady``    publishes ``stamp`` about fifty times a second; the tasks say how long they took to start
``delayed``   publishes ``stamp`` with an eta one to two seconds ahead; the tasks say how late they are
a task        publishes COUNT of it: ``noop``, ``pause SECONDS``, ``pause_async SECONDS``, unmeasured
``results``   ``echo.delay().get()``, one after the other; the time of each
============  =======================================================================================================
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from typing import Any

import redis

import celery_streams
from celery_streams.keys import DEFAULT_PREFIX as PREFIX

from . import bare
from .peers import PEERS
from .project.settings import QUEUE, URL

__all__ = ("PADDING", "main")

#: The second argument of ``noop``.
PADDING = "x" * 64

#: Tasks that can be published by their names, with the seconds that they wait as one more argument.
_TASKS = ("noop", "pause", "pause_async")

#: Messages in one pipeline of ``bulk``.
_BATCH = 500

#: Entries in one pipeline of ``fill``.
_PIPELINE = 1_000

#: Seconds between two publishes of ``steady``; uneven, so that they meet no timer's rhythm.
_STEADY = (0.01, 0.03)

#: Seconds ahead of the etas of ``delayed``.
_AHEAD = (1.0, 2.0)


def main(system: str, verb: str, count: int, *arguments: str) -> dict[str, Any]:
    """Do what ``verb`` says ``count`` times."""
    if system == "bare":
        return _backlog(_bare_pipelines(), count) if verb == "bulk" else _VERBS[verb](_bare_send(), count)
    if system in PEERS:
        return _VERBS[verb](import_module(f"benchmarks.peers.{system}").send, count)
    project = import_module(f"benchmarks.project.{system}")
    if verb == "bulk":
        return _backlog(_celery_send(), count, partial(_TOGETHER[system], project.app))
    if verb in _TASKS:
        return _send_all(_celery_send(), verb, count, *arguments)
    return _VERBS[verb](_celery_send(), count)


Send = Callable[..., Any]


def _bare_send() -> Send:
    client = redis.Redis.from_url(os.environ[URL])

    def send(task: str, *args: Any, **options: Any) -> None:
        client.xadd(bare.KEY, bare.entry(task, *args))

    return send


def _celery_send() -> Send:
    from .project import tasks

    def send(task: str, *args: Any, **options: Any) -> Any:
        found = getattr(tasks, task)
        return found.apply_async(args, **options) if options else found.delay(*args)

    return send


class _Pipelines:
    """The bare publisher in bulk: what a block sends goes out 500 at a time."""

    def __init__(self) -> None:
        self._client = redis.Redis.from_url(os.environ[URL])
        self._pipeline = self._client.pipeline(transaction=False)

    def __call__(self, task: str, *args: Any) -> None:
        self._pipeline.xadd(bare.KEY, bare.entry(task, *args))
        if len(self._pipeline) >= _BATCH:
            self._pipeline.execute()


def _bare_pipelines() -> Send:
    return _Pipelines()


@contextmanager
def _in_bulk(app: Any, send: Send) -> Iterator[Send]:
    with celery_streams.bulk(app):
        yield send


@contextmanager
def _in_batch(app: Any, send: Send) -> Iterator[Send]:
    # Only what is published through this producer is held.
    with app.producer_pool.acquire(block=True) as producer, producer.batch(max_size=_BATCH):
        yield partial(send, producer=producer)


@contextmanager
def _apart(send: Send) -> Iterator[Send]:
    yield send


_TOGETHER = {"streams": _in_bulk, "stock": _in_batch}


def _backlog(send: Send, count: int, together: Callable[[Send], Any] = _apart) -> dict[str, Any]:
    _publish(send, count, together)
    print(json.dumps({"published": count}), flush=True)
    total = count
    for line in sys.stdin:
        print(json.dumps(_publish(send, int(line), together)), flush=True)
        total += int(line)
    return {"published": total}


def _publish(send: Send, count: int, together: Callable[[Send], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    with together(send) as one:
        for number in range(count):
            one("noop", number, PADDING)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_us": wall / count * 1e6, "cpu_us": cpu / count * 1e6}


def _fill(send: Send, count: int) -> dict[str, Any]:
    with redis.Redis.from_url(os.environ[URL]) as client:
        stream = bare.KEY if client.exists(bare.KEY) else f"{PREFIX}:{{{QUEUE}}}"
        # All that there are, where a short run published fewer than a pipeline takes.
        entries: Any = client.xrange(stream, count=_PIPELINE)
        for start in range(0, count, len(entries)):
            pipeline = client.pipeline(transaction=False)
            for _, fields in entries[: count - start]:
                pipeline.xadd(stream, fields)
            pipeline.execute()
    return {"published": count}


def _send_all(send: Send, task: str, count: int, seconds: str) -> dict[str, Any]:
    for number in range(count):
        if task == "noop":
            send(task, number, PADDING)
        else:
            send(task, float(seconds))
    return {"published": count}


def _sized(send: Send, count: int) -> dict[str, Any]:
    send("noop", 0, "x" * count)
    return {"published": 1}


def _steady(send: Send, count: int) -> dict[str, Any]:
    for _ in range(count):
        send("stamp", time.time_ns())
        time.sleep(random.uniform(*_STEADY))
    return {"published": count}


def _delayed(send: Send, count: int) -> dict[str, Any]:
    now = time.time()
    for _ in range(count):
        due = now + random.uniform(*_AHEAD)
        send("stamp", int(due * 1e9), eta=datetime.fromtimestamp(due, timezone.utc))
    return {"published": count, "took_s": time.time() - now}


def _results(send: Send, count: int) -> dict[str, Any]:
    took = []
    for number in range(-20, count):
        began = time.perf_counter()
        answer = send("echo", number).get(timeout=30)
        if answer != number:
            raise RuntimeError(f"echo({number}) returned {answer!r}")
        if number >= 0:
            took.append((time.perf_counter() - began) * 1e3)
    return {"ms": took}


_VERBS: dict[str, Callable[[Send, int], dict[str, Any]]] = {
    "backlog": _backlog,
    "fill": _fill,
    "sized": _sized,
    "steady": _steady,
    "delayed": _delayed,
    "results": _results,
}

if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])))

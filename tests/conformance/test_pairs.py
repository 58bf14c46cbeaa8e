"""Options in pairs: each way to declare a task with each way to call it and each way to end, the same on both sides.

A stock worker and ours run the same calls; then everything that a project sees of them is compared: results as they are
stored, executions, the methods of the task class, signals, what links and errbacks were called with, and the totals.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chord, group
from celery._state import _set_current_app, get_current_app
from celery.canvas import Signature, StampingVisitor

import celery_streams
from celery_streams import inspect as streams_inspect
from celery_streams.connection import RedisClient
from tests.proj.optional import DECLARED
from tests.support.eventually import eventually

#: Pools, and the side that is compared with lists: a plain message has a short way while nobody watches.
POOLS = {"prefork": "streams", "threads": "streams-watched"}

#: How a body ends: arguments of ``run_action``.
ENDINGS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "ok": (("ok", 1), {}),
    "error": (("error", "no"), {}),
    "expected error": (("expected_error", "no"), {}),
    "transient error": (("transient_error", "no"), {"until": 1}),
    "retry": (("retry", 1), {"until": 2, "countdown": 0}),
    "retries exhausted": (("retry_error", "no"), {"countdown": 0, "max_retries": 1}),
    "retry and go on": (("retry_quietly", 1), {}),
    "ignore": (("ignore",), {}),
    "reject": (("reject", "no"), {}),
    "unserialisable": (("unserialisable",), {}),
    "odd error": (("raise", "no"), {"kind": "own"}),
    "replaced": (("replace", 1), {}),
    "replaced by a group": (("replace_by_group", 1), {}),
    "one more in the chord": (("add_to_chord", 1), {}),
    "what it is told": (("told",), {}),
}


#: What is not compared: of task_failure of a rejected task the pools in one process of stock show the wrapping alone.
LEFT_OUT = ("id", "kind", "at", "pid", "traceback", "einfo")


class Stamps(StampingVisitor):
    """Stamps what it meets with names of its own."""

    def on_signature(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        return {"tenant": "acme", "color": ["red", "blue"], "stamped_headers": ["tenant", "color"]}


class Call:
    """One call on one side: the signature, and the ids of everything that comes of it, by what it is."""

    def __init__(self, side: Any, queue: str, task: str, ending: str) -> None:
        args, kwargs = ENDINGS[ending]
        self.ids: dict[str, str] = {}
        self._side, self._queue = side, queue
        self.sig = self.own("task", side.app.tasks[f"tests.proj.optional.{task}"].si(*args, **kwargs))

    def own(self, what: str, sig: Signature) -> Signature:
        """Give a signature an id that is known, and the queue of the worker."""
        self.ids[what] = str(uuid.uuid4())
        return sig.set(task_id=self.ids[what], queue=self._queue)

    def add(self, what: str) -> Signature:
        return self.own(what, self._side.task("add").si(1, 1))

    def remember(self, what: str) -> Signature:
        return self.own(what, self._side.task("remember").s())

    def outcome(self) -> Any:
        """Return what became of it, with what its ids are in their place."""
        text = json.dumps({what: _seen(self._side, task_id) for what, task_id in self.ids.items()}, default=repr)
        for what, task_id in self.ids.items():
            text = text.replace(task_id, f"<{what}>")
        text = re.sub(r" at 0x[0-9a-f]+|\d{4}-\d\d-\d\dT[0-9:.+]+", "", text.replace(self._queue, "<queue>"))
        return json.loads(re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>", text))

    @property
    def on_error(self) -> Signature:
        return self._side.task("on_error").s()

    @property
    def on_error_by_id(self) -> Signature:
        return self._side.task("on_error_by_id").s().set(queue=self._queue)


def _options(**options: Any) -> Callable[[Call], Any]:
    return lambda call: call.sig.apply_async(**options)


def _nested(call: Call) -> Any:
    groups = group([group([call.sig, call.add("other")]), group([call.add("third")])])
    groups.link_error(call.on_error)
    return groups.apply_async()


def _stamped(call: Call) -> Any:
    sig = call.sig | call.remember("next")
    sig.stamp(Stamps(), append_stamps=True)
    return sig.apply_async()


#: Ways to call.
CALLS: dict[str, Callable[[Call], Any]] = {
    "plain": _options(),
    "result ignored": _options(ignore_result=True),
    "shown otherwise": _options(shadow="tests.shadow", argsrepr="(secret)", kwargsrepr="{secret}"),
    "expired": _options(expires=-1),
    "delayed": _options(countdown=0.2),
    "retried before": _options(retries=1),
    "headers": _options(headers={"tenant": "acme"}, priority=3, serializer="pickle", compression="zlib"),
    "immutable links": lambda call: call.sig.apply_async(link=[call.add("link"), call.add("another link")]),
    "errback": lambda call: call.sig.apply_async(link_error=call.on_error),
    "errback of the old style": lambda call: call.sig.apply_async(link_error=call.on_error_by_id),
    "group of groups": _nested,
    "stamped": _stamped,
    "header of a chord with an errback": lambda call: chord(
        [call.add("other"), call.sig], call.remember("body").on_error(call.on_error)
    ).apply_async(),
    "body of a chord": lambda call: chord([call.add("header")], call.sig).apply_async(),
}


def _makes_sense(pool: str, task: str, call: str, ending: str) -> bool:
    """Return whether a case ends soon, and in the same way by intention."""
    # Stock's threads leave it pending; here every pool does what prefork does.
    return ending != "odd error" or pool == "prefork"


@functools.cache
def in_pairs(seed: int = 0) -> list[tuple[str, str, str, str]]:
    """Return cases (pool, task, call, ending) such that any two of those of different kinds meet in one of them."""
    factors = (tuple(POOLS), tuple(DECLARED), tuple(CALLS), tuple(ENDINGS))
    pairs = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(len(factors)), 2)
        for a in factors[i]
        for b in factors[j]
    }
    generator, found = random.Random(seed), []
    while pairs:
        seeded = min(pairs) if not found else generator.choice(sorted(pairs))
        best: tuple[str, str, str, str] | None = None
        covers: set[Any] = set()
        for _ in range(12):
            one = [generator.choice(values) for values in factors]
            for index, value in seeded:
                one[index] = value
            now = {pair for pair in itertools.combinations(enumerate(one), 2) if pair in pairs}
            if best is None or len(now) > len(covers):
                best, covers = (one[0], one[1], one[2], one[3]), now
        assert best is not None
        pairs -= covers
        found.append(best)
    return [one for one in found if _makes_sense(*one)]


@pytest.mark.parametrize("pool", POOLS)
def test_options_mean_the_same_whatever_they_meet(world, another_worker, pool):
    cases = [one[1:] for one in in_pairs() if one[0] == pool]
    both = [world("lists"), world(POOLS[pool])]
    found, totals = {}, {}
    workers = {
        side.name: another_worker(
            side,
            f"pairs-{pool}",
            pool=pool,
            wait=False,
            options=("-E",) if side.name == "streams-watched" else (),
            imports=["tests.proj.optional"],
            task_default_queue=f"{side.queue}-pairs-{pool}",
            result_extended=True,
        )
        for side in both
    }
    published = {}
    for side in both:
        workers[side.name].wait_ready()
        with _current(side):
            published[side.name] = _publish(side, workers[side.name], cases)
    for side in both:
        _wait_until_idle(side, workers[side.name])
        found[side.name] = {" / ".join(case): call.outcome() for case, call in published[side.name].items()}
        totals[side.name] = _totals(side, workers[side.name])

    differences = [*_differences(*found.values())]
    assert not differences, "\n".join(differences)
    there, here = totals.values()
    assert here == there


def _differences(lists: dict[str, Any], streams: dict[str, Any]) -> Iterator[str]:
    for case, expected in lists.items():
        for what, kind in itertools.product(expected, next(iter(expected.values()))):
            there, here = expected[what][kind], streams[case][what][kind]
            if there != here:
                yield f"{case}: {what}, {kind}:\n  on lists   {there}\n  on streams {here}"


@contextlib.contextmanager
def _current(side: Any) -> Iterator[None]:
    before = get_current_app()
    side.app.set_current()
    yield
    _set_current_app(before)


def _publish(side: Any, worker: Any, cases: list[tuple[str, str, str]]) -> dict[tuple[str, str, str], Call]:
    calls = {}
    for task, how, ending in cases:
        call = calls[task, how, ending] = Call(side, worker.queue, task, ending)
        CALLS[how](call)
    return calls


def _seen(side: Any, task_id: str) -> dict[str, Any]:
    """Return everything that a project sees of one task."""
    meta = side.app.backend.client.get(side.app.backend.get_key_for_task(task_id))
    result = json.loads(meta) if meta else {}
    result.pop("date_done", None)
    if result.get("status") == "STARTED":
        del result["result"]["pid"]
    traceback = result.pop("traceback", None)
    if traceback:
        result["traceback"] = traceback.strip().splitlines()[-1]
    return {
        "result": result,
        "runs": [line["retries"] for line in side.ledger.runs(task_id)],
        **{
            kind: [
                {name: value for name, value in line.items() if name not in LEFT_OUT}
                for line in sorted(side.ledger.read(kind, task_id), key=lambda line: line.get("retries") or 0)
                if line.get("signal") != "task_received"
            ]
            for kind in ("signal", "hook", "called", "errback")
        },
    }


def _wait_until_idle(side: Any, worker: Any) -> None:
    """Wait until the worker's queue is empty and nothing runs."""
    inspect = side.app.control.inspect([worker.hostname], timeout=5, limit=1)

    def empty() -> bool:
        if side.on_streams:
            status = streams_inspect.queue_status(celery_streams.streams_of(side.app).broker, worker.queue)
            return not (status.length or status.delayed or status.held)
        with contextlib.closing(RedisClient(side.app.conf.broker_url)) as client:
            lists = client.call("KEYS", f"{worker.queue}*")
            return not lists and not client.call("HLEN", "unacked")

    def nothing_runs() -> bool:
        answers = [look() for look in (inspect.active, inspect.reserved)]
        return all(answers) and not any(tasks for answer in answers for tasks in answer.values())

    # What ends between two looks may have published something.
    eventually(lambda: all(look() for look in (empty, nothing_runs) * 2), timeout=60, interval=0.1)


def _totals(side: Any, worker: Any) -> dict[str, int]:
    inspect = side.app.control.inspect([worker.hostname], timeout=5, limit=1)
    stats = eventually(inspect.stats, timeout=30)
    return dict(stats[worker.hostname]["total"])

"""Messages that other programs write: every header, property and part of the body with values of every odd kind.

Whatever stock Celery runs, keeps for later or calls unknown, streams do too. What it cannot take, streams do not run:
there it is a dead letter.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytest
from celery import signals
from celery.worker import state as worker_state

from celery_streams.connection import RedisClient
from celery_streams.message import encode
from tests.support.bench import Bench
from tests.support.calls import OnLists, OnStreams, Outcome

#: What JSON can say, in every kind.
ODD: list[Any] = [
    None, True, False, 0, 5, -1, 2**70, 1.5, "", "5", "1.5", "probe", "x" * 300, "ä ß 语", "\x00", "{a}:b",
    [], [None], ["a"], [1, 2], [[1], [2]], {}, {"a": 1}, {"a": [None]},
]  # fmt: skip

#: A header that is not there.
GONE = object()

PROTOCOL_2 = {
    "lang": "py", "task": "probe", "id": "an-id", "shadow": None, "eta": None, "expires": None, "group": None,
    "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": "an-id", "parent_id": None,
    "argsrepr": "()", "kwargsrepr": "{}", "origin": "gen1@host", "ignore_result": False,
    "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
}  # fmt: skip
PROTOCOL_1 = {
    "task": "probe", "id": "an-id", "args": [], "kwargs": {}, "group": None, "retries": 0, "eta": None,
    "expires": None, "utc": True, "callbacks": None, "errbacks": None, "timelimit": [None, None], "taskset": None,
    "chord": None,
}  # fmt: skip
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def _with(values: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    if value is GONE:
        changed.pop(name, None)
    else:
        changed[name] = value
    return changed


PROPERTIES = {"content_type": "application/json", "content_encoding": "utf-8", "priority": 0}

#: What differs with a reason: stock's solo pool never looks at time limits; its prefork pool cannot run these either.
DIFFERS = ("header timelimit [[1], [2]]", "protocol 1, timelimit [[1], [2]]")

#: Headers that Celery's workers know and do not write themselves, and names that they use for something else.
OTHER_HEADERS = (
    "args", "callbacks", "chain", "chord", "clock", "correlation_id", "delivery_info", "errbacks", "hostname",
    "kwargs", "periodic_task_name", "redelivered", "reply_to", "taskset", "utc",
)  # fmt: skip


@dataclass(frozen=True)
class Message:
    """One message as any program may write it."""

    what: str
    headers: dict[str, Any]
    body: Any
    properties: dict[str, Any]


def _made(what: str, headers: dict[str, Any], body: Any, properties: dict[str, Any] | None = None) -> Message:
    return Message(what, copy.deepcopy(headers), copy.deepcopy(body), copy.deepcopy(properties or PROPERTIES))


def _messages() -> Iterator[Message]:
    """Return messages that each have one odd thing."""
    body: list[Any] = [[], {}, EMBED]
    for value in [*ODD, GONE]:
        shown = f"{value!r:.40}" if value is not GONE else "missing"
        for name in (*PROTOCOL_2, *OTHER_HEADERS):
            yield _made(f"header {name} {shown}", _with(PROTOCOL_2, name, value), body)
        for name in PROTOCOL_1:
            yield _made(f"protocol 1, {name} {shown}", {}, _with(PROTOCOL_1, name, value))
        for name in EMBED:
            yield _made(f"embedded {name} {shown}", PROTOCOL_2, [[], {}, _with(EMBED, name, value)])
        for name in (*PROPERTIES, "reply_to", "correlation_id", "delivery_mode"):
            yield _made(f"property {name} {shown}", PROTOCOL_2, body, _with(PROPERTIES, name, value))
        if value is not GONE:
            for place in range(3):
                yield _made(f"body[{place}] {shown}", PROTOCOL_2, [*body[:place], value, *body[place + 1 :]])
            yield _made(f"body {shown}", PROTOCOL_2, value)
            yield _made(f"body {shown} without headers", {}, value)


class _Heard:
    """The signals that say of a message that it does not run."""

    def __enter__(self) -> list[str]:
        said: list[str] = []
        self._unknown = lambda **fields: said.append(f"unknown {fields['name']!r} {fields['id']!r}")
        self._rejected = lambda **_: said.append("rejected")
        signals.task_unknown.connect(self._unknown, weak=False)
        signals.task_rejected.connect(self._rejected, weak=False)
        return said

    def __exit__(self, *_: object) -> None:
        signals.task_unknown.disconnect(self._unknown)
        signals.task_rejected.disconnect(self._rejected)


class Pair:
    """Both sides, on one Redis."""

    def __init__(self, stock: OnLists, ours: OnStreams, client: RedisClient) -> None:
        self.stock, self.ours, self.client = stock, ours, client

    def on_lists(self, message: Message) -> Outcome:
        """Put the message on the list as kombu does, and let stock's worker have it."""
        rest = {name: value for name, value in message.properties.items() if not name.startswith("content_")}
        raw = {
            "body": base64.b64encode(json.dumps(message.body).encode()).decode(),
            "headers": message.headers,
            **{name.replace("_", "-"): value for name, value in message.properties.items() if name not in rest},
            "properties": {
                **rest,
                "body_encoding": "base64",
                "delivery_tag": "a-tag",
                "delivery_info": {"exchange": "", "routing_key": "celery"},
            },
        }
        found = self._became(self.stock, lambda task: self.client.call("LPUSH", "celery", json.dumps(raw)))
        self.client.call("DEL", "celery", "unacked", "unacked_index")
        return found

    def on_streams(self, message: Message) -> Outcome:
        """Put the message into the stream, and let our executor have it; says of what is left, too."""
        bench = self.ours.bench
        entry = encode(message.headers, message.properties, json.dumps(message.body))
        found = self._became(self.ours, lambda task: bench.broker.publish("celery", entry))
        found["left"] = bench.left()
        self.client.call("FLUSHDB")
        bench.broker.ensure_groups(["celery"])
        return found

    @staticmethod
    def _became(side: Any, publish: Any) -> Outcome:
        result = side.app.AsyncResult("an-id")
        try:
            with _Heard() as said:
                found = side.outcome(publish)
            return {**found, "said": said, "state": result.state}
        finally:
            result.forget()


@pytest.fixture
def pair(app: Any, broker: Any, client: RedisClient) -> Iterator[Pair]:
    shared = {"result_backend": "cache+memory://", "accept_content": ["json"], "worker_hijack_root_logger": False}
    stock = OnLists(app(installed=False, **shared))
    installed = app(streams_unknown_task_ttl=0, **shared)
    yield Pair(stock, OnStreams(installed, Bench(installed, broker)), client)
    stock.close()
    worker_state.reset_state()


def _differs(expected: Outcome, found: Outcome) -> str:
    """Return what is wrong with what streams made of a message; empty where nothing is."""
    left = found["left"]
    if left["waiting"] or left["pending"]:
        return "it is not settled"
    if expected["ran"] or expected["waits"]:
        same = all(found[name] == expected[name] for name in ("ran", "waits", "runs"))
        return "" if same else "stock runs it"
    if expected["said"]:
        same = found["said"] == expected["said"] and found["state"] == expected["state"] and len(left["dead"]) == 1
        return "" if same else "stock says something else of it"
    return "" if found["ran"] or left["dead"] or found["state"] == "REVOKED" else "it is gone"


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")  # what its callbacks are
@pytest.mark.parametrize(
    ("watched", "first"),
    [*((False, first) for first in range(4)), (True, 0)],
    ids=["fast-0", "fast-1", "fast-2", "fast-3", "slow"],
)
def test_a_message_with_one_odd_value_becomes_what_stock_makes_of_it(pair: Pair, watched: bool, first: int) -> None:
    # Every fourth is a quarter of the values for each place, and other places for each value. The fast way, which is
    # that of most messages, has all of them, in four parts that processes share.
    def receiver(**_: Any) -> None:
        """Only be there: it leads to the slow path."""

    if watched:
        signals.task_received.connect(receiver, weak=False)
    wrong = []
    try:
        for message in islice(_messages(), first, None, 4):
            expected, found = pair.on_lists(message), pair.on_streams(message)
            difference = _differs(expected, found)
            if difference and message.what not in DIFFERS:
                wrong.append(f"{message.what}: {difference}: {expected} {found}")
    finally:
        signals.task_received.disconnect(receiver)

    assert not wrong, "\n".join(wrong)

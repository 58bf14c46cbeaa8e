"""A bench for one executor: an app, a stand-in for its slot, and what is left of its one queue in Redis."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from celery import Celery, signals

from celery_streams import inspect, streams_of
from celery_streams.broker import StreamBroker
from celery_streams.entries import Delivery
from celery_streams.message import Message, encode
from celery_streams.worker.executor import Executor
from celery_streams.worker.settle import Settler
from tests.support.redis_state import redis_state

QUEUE = "celery"
STREAM = "celery-streams:{celery}"
ME = "me"


class ActionError(Exception):
    """What a task of these tests raises."""


class Expected(Exception):
    """What a task of these tests names in ``throws``."""


@dataclass
class Notes:
    """In the place of a slot: what the executor said of the running task."""

    limits: list[tuple[float | None, float | None]] = field(default_factory=list)
    kept: list[Message] = field(default_factory=list)
    taken_away: bool = False
    was_retried: bool = False
    was_settling: bool = False

    def limit(self, *, soft: float | None, hard: float | None) -> None:
        self.limits.append((soft, hard))

    def keep(self, message: Any) -> None:
        self.kept.append(message)

    def took(self) -> float:
        return 0.25

    def settling(self, *, ends: bool = False) -> None:
        self.was_settling = not ends

    def retried(self) -> None:
        self.was_retried = True

    def lost(self) -> bool:
        return self.taken_away


class NoBackend:
    """In the place of a result backend that is away."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("the result backend is away")


class Bench:
    """An app, its executor, and what is left of its one queue."""

    def __init__(self, app: Celery, broker: StreamBroker) -> None:
        app.set_current()
        self.app = app
        self.broker = broker
        self.notes = Notes()
        self.ran: list[Any] = []
        self.settler = Settler(broker, ME, conf=streams_of(app).conf, hostname="w@h")
        self.executor = Executor(app, "w@h", streams_of(app), self.settler, self.notes)
        broker.ensure_groups([QUEUE])

    def task(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        """Register a task under the name of its function; call before :meth:`run`."""
        return lambda fun: self.app.task(name=fun.__name__, shared=False, **options)(fun)

    def read(self) -> Delivery:
        (delivery,) = self.broker.read(self.broker.streams([QUEUE]), ME, count=1)
        return delivery

    def run(self, *, delivery: Delivery | None = None) -> Delivery:
        """Execute and settle the next message."""
        self.executor.prepare()
        delivery = delivery or self.read()
        self.executor.execute(delivery)
        self.settler.flush()
        return delivery

    def publish(self, headers: dict[str, Any], body: Any, **properties: Any) -> None:
        properties = {"content_type": "application/json", "content_encoding": "utf-8", "priority": 0, **properties}
        self.broker.publish(QUEUE, encode(headers, properties, body if isinstance(body, bytes) else json.dumps(body)))

    def publish_task(self, name: str, body: Any = None, /, **headers: Any) -> str:
        task_id = headers.setdefault("id", str(uuid.uuid4()))
        self.publish({"task": name, **headers}, [[], {}, {}] if body is None else body)
        return str(task_id)

    def left(self) -> dict[str, Any]:
        """What is left: waiting, pending, delayed, and the reasons of dead letters."""
        status = inspect.queue_status(self.broker, QUEUE)
        return {
            "waiting": status.waiting,
            "pending": status.pending,
            "delayed": status.delayed,
            "dead": [death["reason"] for death in self.deaths()],
        }

    def deaths(self) -> list[dict[str, Any]]:
        found = redis_state(self.broker.client).get(f"{STREAM}:dead")
        return [] if found is None else [json.loads(entry["death"]) for entry in found.entries.values()]

    def delayed(self) -> list[tuple[float, Message]]:
        from celery_streams.message import unpack

        state = redis_state(self.broker.client)
        packed = state.get(f"{STREAM}:delayed:messages", {})
        return [(due, unpack(packed[member])) for member, due in state.get(f"{STREAM}:delayed", {}).items()]

    def history(self) -> dict[str, Any]:
        """The history of the one message that waits."""
        ((_, entry),) = redis_state(self.broker.client)[STREAM].entries.items()
        return json.loads(entry.get("history", b"{}"))


NOTHING: dict[str, Any] = {"waiting": 0, "pending": 0, "delayed": 0, "dead": []}


@contextlib.contextmanager
def sent(name: str) -> Iterator[list[dict[str, Any]]]:
    """Collect what receivers of one of Celery's signals are given."""
    seen: list[dict[str, Any]] = []

    def receiver(**fields: Any) -> None:
        seen.append(fields)

    signal = getattr(signals, name)
    signal.connect(receiver, weak=False)
    try:
        yield seen
    finally:
        signal.disconnect(receiver)


def but(**more: Any) -> dict[str, Any]:
    return {**NOTHING, **more}

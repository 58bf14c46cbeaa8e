"""Executor and Settler: each thing that can happen to a message, from the entry to what is left of it in Redis."""

from __future__ import annotations

import contextlib
import gc
import json
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest
from celery import Celery, Task, chord, signals
from celery.backends.redis import RedisBackend
from celery.exceptions import Ignore, InvalidTaskError, NotRegistered, Reject
from celery.worker import state as worker_state
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed

import celery_streams
from celery_streams import inspect, keys, streams_of
from celery_streams.broker import Delivery, Entry, StreamBroker
from celery_streams.exceptions import BrokerUnavailable
from celery_streams.message import Message, encode
from celery_streams.signals import entry_lost
from celery_streams.worker.execution import Interruption
from celery_streams.worker.executor import Executor
from celery_streams.worker.settle import Settler
from tests.redis_state import redis_state

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

    def limit(self, *, soft: float | None, hard: float | None) -> None:
        self.limits.append((soft, hard))

    def keep(self, message: Any) -> None:
        self.kept.append(message)

    def retried(self) -> None:
        self.was_retried = True

    def lost(self) -> bool:
        return self.taken_away


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


@pytest.fixture
def make(app: Callable[..., Celery], broker: StreamBroker) -> Iterator[Callable[..., Bench]]:
    def made(**settings: Any) -> Bench:
        return Bench(app(**{"result_backend": "cache+memory://", **settings}), broker)

    before = set(worker_state.revoked), set(worker_state.successful_requests)
    yield made
    for known, now in zip(before, (worker_state.revoked, worker_state.successful_requests), strict=True):
        for task_id in set(now) - known:
            now.discard(task_id)


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    return make()


@pytest.fixture(params=["fast", "slow"])
def make_both(request: pytest.FixtureRequest, make: Callable[..., Bench]) -> Iterator[Callable[..., Bench]]:
    """The same test on the fast path, and on the slow one, to which a receiver of task_received leads."""

    def receiver(**_: Any) -> None:
        """Only be there."""

    if request.param == "slow":
        signals.task_received.connect(receiver, weak=False)
    yield make
    signals.task_received.disconnect(receiver)


@pytest.fixture
def both(make_both: Callable[..., Bench]) -> Bench:
    return make_both()


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


# -- what the body did


def test_task_that_succeeds_is_acknowledged_and_its_result_stored(both: Bench) -> None:
    @both.task()
    def add(x: int, y: int) -> int:
        return x + y

    result = add.delay(2, y=3)

    both.run()

    assert both.left() == NOTHING
    assert result.get(timeout=1) == 5


def test_acknowledgement_follows_the_body_and_never_comes_before(both: Bench) -> None:
    seen: list[dict[str, Any]] = []

    @both.task()
    def look() -> None:
        seen.append(both.left())

    look.delay()

    both.run()

    assert seen == [but(pending=1)]


def test_task_that_fails_is_a_dead_letter_with_everything_about_it(both: Bench) -> None:
    @both.task()
    def fail(number: int) -> None:
        raise ActionError(number)

    result = fail.delay(7)

    delivery = both.run()

    assert both.left() == but(dead=["failed"])
    (death,) = both.deaths()
    assert (death["task"], death["task_id"], death["queue"], death["worker"]) == ("fail", result.id, QUEUE, "w@h")
    assert "ActionError(7)" in death["exception"]
    assert "raise ActionError" in death["traceback"]
    assert death["entry_id"] == delivery.entry_id.decode()
    assert isinstance(result.result, Exception)


def test_failure_is_only_acknowledged_where_dead_letters_are_off(make: Callable[..., Bench]) -> None:
    bench = make(streams_dead_letter_failures=False)

    @bench.task()
    def fail() -> None:
        raise ActionError

    fail.delay()

    bench.run()

    assert bench.left() == NOTHING


def test_failure_that_the_task_expects_is_acknowledged(both: Bench) -> None:
    @both.task(throws=(Expected,))
    def fail() -> None:
        raise Expected

    result = fail.delay()

    both.run()

    assert both.left() == NOTHING
    assert result.state == "FAILURE"


def test_task_that_ignores_itself_is_acknowledged(both: Bench) -> None:
    @both.task()
    def ignore() -> None:
        raise Ignore

    result = ignore.delay()

    both.run()

    assert (both.left(), result.state) == (NOTHING, "PENDING")


def test_rejected_task_is_a_dead_letter_and_a_failure(both: Bench) -> None:
    @both.task()
    def reject() -> None:
        raise Reject("no", requeue=False)

    result = reject.delay()

    both.run()

    assert both.left() == but(dead=["rejected"])
    assert result.state == "FAILURE"


def test_task_that_asks_to_be_requeued_waits_again_and_is_marked(both: Bench) -> None:
    @both.task()
    def reject() -> None:
        raise Reject("later", requeue=True)

    reject.delay()

    delivery = both.run()

    assert both.left() == but(waiting=1)
    assert both.history() == {"first": delivery.entry_id.decode(), "redelivered": 1, "worker": "w@h"}


def test_exit_of_the_body_passes_and_leaves_the_message_pending(both: Bench) -> None:
    @both.task()
    def leave() -> None:
        raise SystemExit(3)

    leave.delay()

    with pytest.raises(SystemExit):
        both.run()

    assert both.left() == but(pending=1)


# -- retries


def test_retry_takes_the_place_of_its_entry_in_one_step(both: Bench) -> None:
    seen: list[dict[str, Any]] = []

    @both.task(bind=True)
    def again(self: Task) -> None:
        try:
            self.retry(countdown=60)
        finally:
            seen.append(both.left())

    result = again.delay()

    both.run()

    assert seen == [but(delayed=1)]
    assert both.left() == but(delayed=1)
    ((due, message),) = both.delayed()
    assert 58_000 < due - time.time() * 1000 < 61_000
    assert (message.decode_headers()["id"], message.decode_headers()["retries"]) == (result.id, 1)
    assert result.state == "RETRY"


def test_retry_without_a_countdown_waits_at_once(both: Bench) -> None:
    @both.task(bind=True)
    def again(self: Task) -> None:
        self.retry(countdown=0)

    again.delay()

    both.run()

    assert both.left() == but(waiting=1)


class RefusesRetries(StreamBroker):
    """A broker whose retries do not reach Redis."""

    def retry(self, *args: Any, **options: Any) -> bool:
        raise BrokerUnavailable


def test_process_that_dies_between_deciding_a_retry_and_storing_it_leaves_one_message(bench: Bench) -> None:
    @bench.task(bind=True)
    def again(self: Task) -> None:
        self.retry(countdown=60)

    again.delay()
    refusing = RefusesRetries(bench.broker.client)
    bench.executor.around.settler = Settler(
        refusing, ME, conf=streams_of(bench.app).conf, hostname="w@h", give_up=lambda: True
    )

    with pytest.raises(Interruption):
        bench.run()

    assert bench.left() == but(pending=1)


def test_retry_of_an_entry_that_another_worker_has_stores_nothing(both: Bench) -> None:
    @both.task(bind=True)
    def again(self: Task) -> None:
        self.retry(countdown=60)

    again.delay()
    delivery = both.read()
    both.broker.client.call("XCLAIM", STREAM, keys.GROUP, "other", 0, delivery.entry_id)
    before = redis_state(both.broker.client)

    both.run(delivery=delivery)

    assert redis_state(both.broker.client) == before
    assert both.settler.lost == 1


def test_retry_whose_exception_the_task_swallowed_is_published_all_the_same(both: Bench) -> None:
    @both.task(bind=True)
    def again(self: Task) -> str:
        try:
            self.retry(countdown=60)
        except Exception:
            return "swallowed"
        return ""

    again.delay()

    both.run()

    assert both.left() == but(delayed=1)


def test_task_that_used_up_its_retries_is_a_dead_letter(both: Bench) -> None:
    @both.task(bind=True, max_retries=1)
    def again(self: Task) -> None:
        self.retry(exc=ActionError(), countdown=0)

    again.delay()
    both.run()
    both.run()

    assert both.left() == but(dead=["failed"])


# -- ownership


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


# -- acknowledged early


@pytest.fixture(params=["setting", "task"])
def early(request: pytest.FixtureRequest, make: Callable[..., Bench]) -> tuple[Bench, dict[str, Any]]:
    """A bench and task options with which messages are acknowledged before they run."""
    if request.param == "setting":
        return make(streams_acks_late=False), {}
    return make(), {"streams_acks_late": False}


def test_early_acknowledgement_comes_before_the_body(early: tuple[Bench, dict[str, Any]]) -> None:
    bench, options = early

    @bench.task(**options)
    def look() -> None:
        bench.ran.append(bench.left())

    result = look.delay()

    delivery = bench.run()

    assert bench.ran == [NOTHING]
    assert bench.notes.kept == [delivery.message]
    assert (bench.left(), result.state) == (NOTHING, "SUCCESS")


def test_task_that_was_acknowledged_early_and_fails_is_a_dead_letter(early: tuple[Bench, dict[str, Any]]) -> None:
    bench, options = early

    @bench.task(**options)
    def fail() -> None:
        raise ActionError

    fail.delay()

    bench.run()

    assert bench.left() == but(dead=["failed"])


def test_task_that_was_acknowledged_early_can_retry(early: tuple[Bench, dict[str, Any]]) -> None:
    bench, options = early

    @bench.task(bind=True, **options)
    def again(self: Task) -> None:
        self.retry(countdown=60)

    again.delay()

    bench.run()

    assert bench.left() == but(delayed=1)


def test_task_that_was_acknowledged_early_owns_its_message(early: tuple[Bench, dict[str, Any]]) -> None:
    bench, options = early

    @bench.task(**options)
    def ask() -> None:
        bench.ran.append(celery_streams.still_owned())

    ask.delay()

    bench.run()

    assert bench.ran == [True]


def test_task_that_runs_at_most_once_does_not_run_when_another_worker_has_its_message(
    early: tuple[Bench, dict[str, Any]],
) -> None:
    bench, options = early

    @bench.task(**options)
    def note() -> None:
        bench.ran.append("ran")

    note.delay()
    delivery = bench.read()
    bench.broker.client.call("XCLAIM", STREAM, keys.GROUP, "other", 0, delivery.entry_id)

    bench.run(delivery=delivery)

    assert (bench.ran, bench.left()) == ([], but(pending=1))


class LosesReplies(StreamBroker):
    """A broker whose first acknowledgement reaches Redis, and whose reply is lost."""

    def ack(self, consumer: str, entries: Sequence[Entry]) -> list[Entry]:
        lost = super().ack(consumer, entries)
        if not getattr(self, "failed", False):
            self.failed = True
            raise BrokerUnavailable
        return lost


def test_task_runs_when_only_the_reply_to_its_early_acknowledgement_was_lost(
    early: tuple[Bench, dict[str, Any]],
) -> None:
    bench, options = early

    @bench.task(**options)
    def note() -> None:
        bench.ran.append("ran")

    note.delay()
    bench.executor.around.settler = Settler(
        LosesReplies(bench.broker.client), ME, conf=streams_of(bench.app).conf, hostname="w@h", sleep=lambda _: None
    )

    bench.run()

    assert (bench.ran, bench.left()) == (["ran"], NOTHING)


def test_task_that_says_acks_late_is_acknowledged_late_whatever_the_setting(make: Callable[..., Bench]) -> None:
    bench = make(streams_acks_late=False)

    @bench.task(acks_late=True)
    def look() -> None:
        bench.ran.append(bench.left())

    look.delay()

    bench.run()

    assert bench.ran == [but(pending=1)]


# -- messages that do not run


def test_expired_message_is_revoked_and_acknowledged(bench: Bench) -> None:
    @bench.task()
    def note() -> None:
        bench.ran.append("ran")

    result = note.apply_async(expires=datetime.now(timezone.utc) - timedelta(seconds=5))

    bench.run()

    assert (bench.ran, bench.left(), result.state) == ([], NOTHING, "REVOKED")


def test_revoked_message_is_acknowledged(bench: Bench) -> None:
    @bench.task()
    def note() -> None:
        bench.ran.append("ran")

    result = note.delay()
    worker_state.revoked.add(result.id)

    bench.run()

    assert (bench.ran, bench.left(), result.state) == ([], NOTHING, "REVOKED")


def test_message_that_is_not_due_yet_goes_back_until_it_is(both: Bench) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")

    both.publish_task("note", eta=(datetime.now(timezone.utc) + timedelta(seconds=60)).isoformat())

    both.run()

    assert (both.ran, both.left()) == ([], but(delayed=1))
    ((due, message),) = both.delayed()
    assert 58_000 < due - time.time() * 1000 < 61_000
    assert "redelivered" not in message.decode_history()


def test_message_whose_eta_is_over_runs(both: Bench) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")

    both.publish_task("note", eta=(datetime.now(timezone.utc) - timedelta(seconds=60)).isoformat())

    both.run()

    assert (both.ran, both.left()) == (["ran"], NOTHING)


def test_unknown_task_is_put_back_for_newer_workers(bench: Bench) -> None:
    bench.publish_task("not.yet")

    bench.run()

    assert bench.left() == but(delayed=1)
    ((due, message),) = bench.delayed()
    assert 0 < due - time.time() * 1000 < 2_000
    assert message.decode_history()["unknown"] == pytest.approx(time.time() * 1000, abs=5_000)


def test_task_that_stayed_unknown_is_a_dead_letter_and_a_failure(make: Callable[..., Bench]) -> None:
    bench = make(streams_unknown_task_ttl=0)
    task_id = bench.publish_task("never")

    with sent("task_unknown") as seen:
        bench.run()

    assert bench.left() == but(dead=["unknown-task"])
    assert bench.app.AsyncResult(task_id).state == "FAILURE"
    ((message, exc, name, known_as),) = [(one["message"], one["exc"], one["name"], one["id"]) for one in seen]
    assert (name, known_as) == ("never", task_id)
    assert (message.headers["task"], message.delivery_info["routing_key"]) == ("never", QUEUE)
    assert isinstance(exc, NotRegistered)


def test_unknown_task_that_is_put_back_is_not_announced(bench: Bench) -> None:
    bench.publish_task("not.yet")

    with sent("task_unknown") as seen:
        bench.run()

    assert seen == []


class NoBackend:
    """In the place of a result backend that is away."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("the result backend is away")


def test_unknown_task_is_a_dead_letter_also_while_the_result_backend_is_away(make: Callable[..., Bench]) -> None:
    bench = make(streams_unknown_task_ttl=0)
    bench.app._local.backend = NoBackend()
    bench.publish_task("never")

    bench.run()

    assert bench.left() == but(dead=["unknown-task"])


GOOD = {"task": "note", "id": "an-id"}
MALFORMED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "a body that is not JSON": (GOOD, b"{", {}),
    "a body that is no triple": (GOOD, [[], {}], {}),
    "a body that is a number": (GOOD, 5, {}),
    "keyword arguments that are a list": (GOOD, [[], [], {}], {}),
    "options that are a list": (GOOD, [[], {}, [1]], {}),
    "no id": ({"task": "note"}, [[], {}, {}], {}),
    "an id that is a list": ({"task": "note", "id": ["x"]}, [[], {}, {}], {}),
    "a task name that is a number": ({"task": 5, "id": "x"}, [[], {}, {}], {}),
    "time limits that are a number": ({**GOOD, "timelimit": 5}, [[], {}, {}], {}),
    "an eta that is a number": ({**GOOD, "eta": 5}, [[], {}, {}], {}),
    "an expiry that is no date": ({**GOOD, "expires": "soon"}, [[], {}, {}], {}),
    "no task at all": ({}, {"args": []}, {}),
    "an unknown compression": ({**GOOD, "compression": "application/x-nothing"}, [[], {}, {}], {}),
    "an unknown content type": (GOOD, b"x", {"content_type": "application/x-nothing"}),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_message_with_odd_parts_is_a_dead_letter_with_its_bytes(both: Bench, what: str) -> None:
    headers, body, properties = MALFORMED[what]

    @both.task()
    def note() -> None:
        both.ran.append("ran")

    both.publish(headers, body, **properties)

    delivery = both.run()

    assert both.ran == []
    assert (len(both.deaths()), {**both.left(), "dead": []}) == (1, NOTHING)
    ((_, entry),) = redis_state(both.broker.client)[f"{STREAM}:dead"].entries.items()
    assert delivery.message is not None
    assert (entry["headers"], entry["body"]) == (delivery.message.headers, delivery.message.body)


@pytest.mark.parametrize(
    "fields",
    [
        ["headers", "{}", "body", "x"],
        ["headers", "{", "properties", "{}", "body", "x"],
        ["headers", "[]", "properties", "{}", "body", "x"],
        ["headers", "{}", "properties", "{}", "body", "x", "history", "nonsense"],
        ["something", "else"],
    ],
)
def test_entry_that_is_no_message_is_a_dead_letter(bench: Bench, fields: list[str]) -> None:
    bench.broker.client.call("XADD", STREAM, "*", *fields)

    bench.run()

    assert bench.left() == but(dead=["malformed"])


def test_content_type_that_is_not_accepted_is_a_dead_letter(both: Bench) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")

    note.apply_async(serializer="pickle")

    both.run()

    assert (both.ran, both.left()) == ([], but(dead=["not-accepted"]))


@pytest.mark.parametrize(
    ("what", "refused"),
    [
        ("an unknown content type", ContentDisallowed),
        ("an eta that is a number", InvalidTaskError),
        ("an expiry that is no date", InvalidTaskError),
    ],
)
def test_message_that_is_refused_is_announced_once_with_the_reason(
    both: Bench, what: str, refused: type[Exception]
) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")

    headers, body, properties = MALFORMED[what]
    both.publish(headers, body, **properties)

    with sent("task_rejected") as seen:
        both.run()

    ((message, exc),) = [(one["message"], one["exc"]) for one in seen]
    assert isinstance(exc, refused)
    assert message.headers == headers
    assert message.body == (body if isinstance(body, bytes) else json.dumps(body).encode())
    assert message.delivery_info["routing_key"] == QUEUE


def test_message_without_a_task_name_is_announced_without_an_exception(bench: Bench) -> None:
    bench.publish({"id": "an-id"}, {"args": []})

    with sent("task_rejected") as seen:
        bench.run()

    assert [(one["message"].headers, one["exc"]) for one in seen] == [({"id": "an-id"}, None)]


@pytest.mark.parametrize("what", ["a body that is not JSON", "an unknown compression", "a body that is a number"])
def test_message_that_cannot_be_decoded_is_not_announced(both: Bench, what: str) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")

    headers, body, properties = MALFORMED[what]
    both.publish(headers, body, **properties)

    with sent("task_rejected") as seen:
        both.run()

    assert (seen, len(both.deaths())) == ([], 1)


def test_content_type_that_is_accepted_runs(make: Callable[..., Bench]) -> None:
    bench = make(accept_content=["pickle"], result_accept_content=["json"])

    @bench.task()
    def note(value: Any) -> None:
        bench.ran.append(value)

    note.apply_async(({1, 2},), serializer="pickle")

    bench.run()

    assert (bench.ran, bench.left()) == ([{1, 2}], NOTHING)


# -- rate limits


def limited(bench: Bench, rate: str) -> Any:
    """Register the task ``slow``, which notes the number that it is called with."""

    @bench.task(rate_limit=rate)
    def slow(number: int) -> None:
        bench.ran.append(number)

    return slow


@pytest.mark.parametrize(("scope", "key"), [("worker", f"{STREAM}:rate:slow:w@h"), ("global", f"{STREAM}:rate:slow")])
def test_task_beyond_its_rate_waits_for_its_turn(make: Callable[..., Bench], scope: str, key: str) -> None:
    bench = make(streams_rate_limit_scope=scope)

    slow = limited(bench, "1/m")
    slow.delay(1)
    slow.delay(2)

    bench.run()
    bench.run()

    assert (bench.ran, bench.left()) == ([1], but(delayed=1))
    assert key in redis_state(bench.broker.client)
    ((due, message),) = bench.delayed()
    assert "redelivered" not in message.decode_history()
    # A minute lies beyond the horizon: it asks again then, and has no token yet.
    assert "granted" not in message.decode_history()
    assert due - time.time() * 1000 < 11_000


def test_message_whose_turn_is_reserved_runs_without_asking_again(bench: Bench) -> None:
    slow = limited(bench, "1/s")
    slow.delay(1)
    slow.delay(2)
    bench.run()
    bench.run()
    ((_, message),) = bench.delayed()
    bench.broker.publish(QUEUE, message)
    waiting = Message(message.headers, message.properties, message.body, message.history)
    bench.broker.client.call("FLUSHDB")
    bench.broker.ensure_groups([QUEUE])
    bench.broker.client.call("XADD", STREAM, "*", *waiting.as_fields())

    bench.run()

    assert waiting.decode_history()["granted"] == 1
    assert (bench.ran, bench.left()) == ([1, 2], NOTHING)


def test_rate_limits_can_be_switched_off(make: Callable[..., Bench]) -> None:
    bench = make(worker_disable_rate_limits=True)

    slow = limited(bench, "1/h")
    slow.delay(1)
    slow.delay(2)

    bench.run()
    bench.run()

    assert bench.ran == [1, 2]


# -- other kinds of messages and tasks


def test_message_of_protocol_1_runs(bench: Bench) -> None:
    @bench.task()
    def add(x: int, y: int) -> int:
        return x + y

    bench.publish({}, {"task": "add", "id": "one", "args": [1], "kwargs": {"y": 2}, "retries": 0, "eta": None})

    bench.run()

    assert bench.left() == NOTHING
    assert bench.app.AsyncResult("one").get(timeout=1) == 3


def test_compressed_body_runs(bench: Bench) -> None:
    @bench.task()
    def note(text: str) -> None:
        bench.ran.append(text)

    note.apply_async(("x" * 10_000,), compression="zlib")

    bench.run()

    assert (bench.ran, bench.left()) == (["x" * 10_000], NOTHING)


class CountingRequest(Request):
    accepted: ClassVar[list[str]] = []

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        self.accepted.append(self.id)
        super().on_accepted(pid, time_accepted)


class WithRequest(Task):
    Request = CountingRequest


def test_request_class_of_a_task_is_used(bench: Bench) -> None:
    @bench.task(base=WithRequest)
    def note() -> None:
        bench.ran.append("ran")

    result = note.delay()

    bench.run()

    assert (bench.ran, bench.left(), CountingRequest.accepted[-1:]) == (["ran"], NOTHING, [result.id])


def test_receivers_of_task_received_are_told(bench: Bench) -> None:
    @bench.task()
    def note() -> None:
        bench.ran.append("ran")

    def receiver(request: Any, **_: Any) -> None:
        bench.ran.append(("received", request.id))

    result = note.delay()
    signals.task_received.connect(receiver, weak=False)
    try:
        bench.run()
    finally:
        signals.task_received.disconnect(receiver)

    assert bench.ran == [("received", result.id), "ran"]


def test_request_says_where_the_message_came_from(both: Bench) -> None:
    @both.task(bind=True)
    def note(self: Task) -> None:
        both.ran.append((self.request.delivery_info, self.request.hostname.split("@")[0], self.request.is_eager))

    note.apply_async(priority=3)

    both.run()

    ((info, _, eager),) = both.ran
    assert info == {"exchange": "", "routing_key": QUEUE, "priority": 3, "redelivered": False}
    assert eager is False


def test_second_delivery_is_marked_as_redelivered(both: Bench) -> None:
    @both.task(bind=True)
    def note(self: Task) -> None:
        both.ran.append(self.request.delivery_info["redelivered"])
        if len(both.ran) == 1:
            raise Reject("again", requeue=True)

    note.delay()

    both.run()
    both.run()

    assert both.ran == [False, True]


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # by Celery's backend
def test_task_that_succeeded_before_is_not_run_again_where_that_is_asked_for(
    app: Callable[..., Celery], broker: StreamBroker
) -> None:
    bench = Bench(app(worker_deduplicate_successful_tasks=True), broker)

    @bench.task()
    def note() -> None:
        bench.ran.append("ran")

    result = note.delay()
    delivery = bench.read()
    bench.executor.prepare()
    bench.executor.execute(delivery)
    worker_state.successful_requests.clear()
    bench.broker.requeue(ME, delivery.entry, history={"redelivered": 1})
    del bench.settler._acks[:]

    bench.run()

    assert (bench.ran, bench.left(), result.state) == (["ran"], NOTHING, "SUCCESS")


@pytest.mark.skipif(not hasattr(RedisBackend, "_chord_claim_extend_script"), reason="this Celery claims no chords")
@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # by Celery's backend
def test_part_of_a_chord_that_ran_before_waits_while_its_body_is_claimed(
    make_both: Callable[..., Bench], redis_url: str
) -> None:
    bench = make_both(result_backend=redis_url.rpartition("/")[0] + "/1")

    @bench.task()
    def part(number: int) -> int:
        bench.ran.append(number)
        return number

    @bench.task()
    def total(numbers: list[int]) -> None:
        bench.ran.append(sum(numbers))

    chord([part.s(1), part.s(2)], app=bench.app)(total.s())
    bench.run()
    delivery = bench.read()
    assert delivery.message is not None
    claim = part.backend.get_key_for_group(delivery.message.decode_headers()["group"], ".c")
    part.backend.client.set(claim, "of a process that is dead", ex=60)
    bench.broker.requeue(ME, delivery.entry, history={"redelivered": 1})

    bench.run()

    ((due_ms, waiting),) = bench.delayed()
    assert bench.ran == [1]
    assert bench.left() == but(delayed=1)
    assert due_ms == pytest.approx(time.time() * 1000 + 60_000, abs=5_000)

    part.backend.client.delete(claim)
    bench.broker.publish(QUEUE, waiting)
    bench.run()
    bench.run()

    assert bench.ran == [1, 2, 3]


# -- around the body


def test_task_whose_result_cannot_be_stored_is_not_run_again(both: Bench) -> None:
    @both.task()
    def note() -> None:
        both.ran.append("ran")
        both.app._local.backend = note.backend = NoBackend()

    note.delay()

    both.run()

    assert both.ran == ["ran"]
    assert both.left() == but(dead=["failed"])


def test_rejected_task_is_settled_while_the_result_backend_is_away(both: Bench) -> None:
    @both.task()
    def reject() -> None:
        reject.backend = NoBackend()
        raise Reject("no", requeue=False)

    reject.delay()

    both.run()

    assert {**both.left(), "dead": []} == NOTHING
    assert len(both.deaths()) == 1


def test_time_limits_are_known_while_the_body_runs_and_over_when_its_message_is_settled(both: Bench) -> None:
    @both.task(soft_time_limit=20, time_limit=30)
    def note() -> None:
        both.ran.append(both.notes.limits[-1])

    note.delay()

    both.run()

    assert both.ran == [(20, 30)]
    assert both.notes.limits[-1] == (None, None)


def test_limits_of_the_message_come_before_those_of_the_task_and_the_worker(both: Bench) -> None:
    both.executor.around.soft_limit, both.executor.around.hard_limit = 100, 200

    @both.task(soft_time_limit=20)
    def note() -> None:
        both.ran.append(both.notes.limits[-1])

    note.apply_async(soft_time_limit=5)
    note.delay()

    both.run()
    both.run()

    assert both.ran == [(5, 200), (20, 200)]


def test_success_and_failure_callbacks_are_published(both: Bench) -> None:
    @both.task()
    def add(x: int, y: int) -> int:
        return x + y

    add.apply_async((1, 2), link=add.s(10))

    both.run()

    assert both.left() == but(waiting=1)

    both.run()

    assert both.left() == NOTHING


@pytest.mark.parametrize("path", ["fast", "slow"])
def test_failed_task_leaves_nothing_for_the_garbage_collector(bench: Bench, path: str) -> None:
    raised: list[weakref.ref[ActionError]] = []

    @bench.task(ignore_result=True)
    def fails() -> None:
        exc = ActionError("boom")
        raised.append(weakref.ref(exc))
        raise exc

    expires = datetime.now(timezone.utc) + timedelta(hours=1)
    bench.publish_task("fails", **({} if path == "fast" else {"expires": expires.isoformat()}))
    gc.collect()
    gc.disable()
    try:
        bench.run()
        left = raised[0]()
    finally:
        gc.enable()

    assert left is None or left.__traceback__ is None


@pytest.mark.parametrize("countdown", [0, 60])
def test_retries_of_two_messages_with_one_task_id_both_survive(make_both: Callable[..., Bench], countdown: int) -> None:
    bench = make_both()

    @bench.task(bind=True)
    def again(self: Any) -> None:
        raise self.retry(countdown=countdown)

    for _ in range(2):
        bench.app.tasks["again"].apply_async(task_id="import-5")

    # Both have been read before either is retried, as by two children.
    deliveries = bench.broker.read(bench.broker.streams([QUEUE]), ME, count=2)
    for delivery in deliveries:
        bench.run(delivery=delivery)

    left = bench.left()
    assert len(deliveries) == 2
    assert left["waiting"] + left["delayed"] == 2
    assert (left["pending"], left["dead"]) == (0, [])

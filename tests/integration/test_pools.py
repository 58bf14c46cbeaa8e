"""What the pools do in the worker's own process, without a worker around them."""

from __future__ import annotations

import logging
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery, Task

from celery_streams import inspect
from celery_streams.broker import StreamBroker
from celery_streams.concurrency import solo, thread
from celery_streams.concurrency.base import StreamsPool
from celery_streams.entries import Entry, StreamRef
from celery_streams.worker.slots import Snapshot
from tests.support.eventually import eventually

QUEUE = "celery"
SHOT = Snapshot(
    pid=10, batch=1, finished=(), running=None, waiting=(), started_at=0.0, soft=None, hard=None,
    acked_early=False, exited=False, done=0,
)  # fmt: skip

#: Holders of a thread pool beside its threads: what waits for one, and what Redis refused.
BESIDE = 2


class Hub:
    """In the place of the event loop: one round calls what is due."""

    def __init__(self) -> None:
        self.soon: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.readers: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}

    def call_soon(self, work: Callable[..., Any], *args: Any) -> None:
        self.soon.append((work, args))

    def call_repeatedly(self, seconds: float, work: Callable[..., Any], *args: Any) -> None:
        """Chores are not needed here."""

    def add_reader(self, descriptor: int, work: Callable[..., Any], *args: Any) -> None:
        self.readers[descriptor] = (work, args)

    def remove(self, descriptor: int) -> None:
        self.readers.pop(descriptor, None)

    def round(self) -> None:
        for _ in range(len(self.soon)):
            work, args = self.soon.popleft()
            work(*args)
        for descriptor in select.select(list(self.readers), [], [], 0.05)[0]:
            work, args = self.readers[descriptor]
            work(*args)


@pytest.fixture(params=[solo.TaskPool])
def pool(
    request: pytest.FixtureRequest, app: Callable[..., Celery], broker: StreamBroker
) -> Iterator[solo.TaskPool | thread.TaskPool]:
    broker.ensure_groups([QUEUE])
    fresh = app(result_backend="cache+memory://")
    fresh.set_current()
    made = request.param(1, app=fresh, initargs=(fresh, "w@h"))
    made.start()
    made.register_with_event_loop(Hub())
    yield made
    made.stop()


class Exits(Task):
    """Its first task ends what runs it from inside the body, which Celery's tracer lets pass."""

    def __call__(self, number: int) -> None:
        self.run(number)
        if number == 1:
            raise SystemExit


class RunsOutOfMemory(Task):
    """Its first task ends what runs it from outside of the body, which Celery's tracer lets pass."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        if args == [1]:
            raise MemoryError


@pytest.mark.parametrize("base", [Exits, RunsOutOfMemory])
def test_solo_worker_goes_on_after_a_task_that_ended_what_ran_it(
    pool: solo.TaskPool, broker: StreamBroker, base: type[Task]
) -> None:
    ran: list[int] = []

    @pool.app.task(name="work", base=base, shared=False)
    def work(number: int) -> None:
        ran.append(number)

    pool.consume([QUEUE])
    pool._hub.round()
    work.delay(1)
    eventually(lambda: (pool._hub.round(), ran)[1] == [1])

    work.delay(2)
    eventually(lambda: (pool._hub.round(), ran)[1] == [1, 2])

    eventually(lambda: (pool._hub.round(), inspect.queue_status(broker, QUEUE).pending)[1] == 0)


def test_busy_solo_worker_asks_redis_once_for_many_tasks(pool: solo.TaskPool, broker: StreamBroker) -> None:
    ran: list[int] = []

    @pool.app.task(name="work", shared=False)
    def work(number: int) -> None:
        ran.append(number)

    for number in range(1000):
        work.delay(number)

    before = reads(broker)
    pool.consume([QUEUE])
    assert eventually(lambda: (pool._hub.round(), ran)[1] == list(range(1000)), timeout=30)
    after = reads(broker)

    assert eventually(lambda: (pool._hub.round(), inspect.queue_status(broker, QUEUE).pending)[1] == 0)
    # The services of the worker ask, too, the more often the longer it takes.
    assert after - before < 300


def test_solo_worker_does_not_sleep_in_its_event_loop_while_a_backlog_waits(
    pool: solo.TaskPool, broker: StreamBroker
) -> None:
    ran: list[int] = []

    @pool.app.task(name="work", shared=False)
    def work(number: int) -> None:
        time.sleep(0.02)  # no small task: it is not read in batches
        ran.append(number)

    for number in range(10):
        work.delay(number)
    pool.consume([QUEUE])
    pool._hub.round()

    while len(ran) < 10:
        assert not pool._hub.soon, "kombu's hub calls these after its next wait only"
        assert select.select(list(pool._hub.readers), [], [], 0)[0], "the hub would wait"
        pool._hub.round()

    assert ran == list(range(10))


def test_what_waits_behind_a_long_task_of_a_solo_worker_goes_back(pool: solo.TaskPool, broker: StreamBroker) -> None:
    ran: list[int] = []
    pending: list[tuple[int, int]] = []

    @pool.app.task(name="work", shared=False)
    def work(number: int) -> None:
        ran.append(number)
        if number == 150:
            status = lambda: inspect.queue_status(broker, QUEUE)  # noqa: E731
            before = status().pending
            eventually(lambda: status().pending == 1)
            pending.append((before, status().length))

    for number in range(300):
        work.delay(number)
    pool.consume([QUEUE])
    eventually(lambda: (pool._hub.round(), len(ran) == 300)[1])

    # Where small tasks wait by the hundred a read passes by what was put back, once.
    assert sorted(ran) == list(range(300))
    assert ran[:151] == list(range(151))
    assert max(abs(at - number) for at, number in enumerate(ran)) <= 100, "it comes one batch later at most"
    assert pending[0][0] > 2, "more was fetched than what ran"
    assert pending[0][1] == 150, "what had run was acknowledged in its place, and the rest went back"
    assert eventually(lambda: (pool._hub.round(), inspect.queue_status(broker, QUEUE).length == 0)[1])


def reads(broker: StreamBroker) -> int:
    """Return how often Redis has read from a connection."""
    return int(re.search(rb"total_reads_processed:(\d+)", broker.client.call("INFO", "stats"))[1])


def arrive_together(broker: StreamBroker, *messages: Any) -> None:
    """Have entries come to as many streams between two blocking reads, so that the next one finds them all.

    Args:
        messages: fields of entries.
    """
    blocked = eventually(
        lambda: re.search(rb"^id=(\d+) .* flags=b .* cmd=xreadgroup ", broker.client.call("CLIENT", "LIST"), re.M)
    )
    streams = broker.queue_keys(QUEUE).streams
    added = [("XADD", key, "*", *fields) for key, fields in zip(streams, messages, strict=False)]
    broker.client.pipeline([("MULTI",), ("CLIENT", "UNBLOCK", blocked[1]), *added, ("EXEC",)])


@pytest.mark.parametrize("pool", [solo.TaskPool, thread.TaskPool], indirect=True)
def test_nothing_waits_behind_a_task_although_one_read_brought_entries_of_two_priorities(
    pool: solo.TaskPool | thread.TaskPool, broker: StreamBroker
) -> None:
    ran: list[tuple[int, int]] = []

    @pool.app.task(name="work", shared=False)
    def work(number: int) -> None:
        ran.append((number, inspect.queue_status(broker, QUEUE).pending))

    for number in (1, 2):
        work.apply_async((number,), queue="aside")
    messages = [fields for _, fields in broker.client.call("XRANGE", broker.queue_keys("aside").streams[0], "-", "+")]
    pool.consume([QUEUE])
    pool._hub.round()

    arrive_together(broker, *messages)

    assert eventually(lambda: (pool._hub.round(), len(ran))[1] == 2)
    assert ran == [(1, 1), (2, 1)]
    assert eventually(lambda: (pool._hub.round(), inspect.queue_status(broker, QUEUE).length)[1] == 0)


@pytest.mark.parametrize("pool", [thread.TaskPool], indirect=True)
def test_threads_that_a_shrinking_pool_ended_are_forgotten(pool: thread.TaskPool) -> None:
    pool.grow(3)
    assert len(pool.holders()) == BESIDE + 4

    pool.shrink(3)

    assert eventually(lambda: len(pool.holders()) == BESIDE + 1)
    assert pool._get_info()["threads"] == 1


@pytest.mark.parametrize("pool", [thread.TaskPool], indirect=True)
@pytest.mark.parametrize(("idle", "ended"), [(1, 1), (2, 1), (2, 2), (1, 2)])
def test_nothing_is_left_behind_busy_threads_when_the_pool_shrinks(
    pool: thread.TaskPool, broker: StreamBroker, idle: int, ended: int
) -> None:
    over = threading.Event()
    ran: list[str] = []

    @pool.app.task(name="work", shared=False)
    def work(name: str) -> None:
        ran.append(name)
        over.wait(30 if name == "long" else 0)

    pool.grow(1 + idle)
    pool.consume([QUEUE])
    for _ in range(2):
        work.delay("long")
    assert eventually(lambda: ran == ["long", "long"])
    assert eventually(lambda: is_read_from(broker))

    pool.shrink(ended)
    for number in range(3):
        work.delay(str(number))

    try:
        if idle > ended:
            assert eventually(lambda: sorted(ran[2:]) == ["0", "1", "2"])
        else:
            assert eventually(lambda: not is_read_from(broker))
            assert eventually(lambda: inspect.queue_status(broker, QUEUE).pending == 2)
            assert [len(holder.snapshot().waiting) for holder in pool.handed_back()] == [0]
    finally:
        over.set()
    assert eventually(lambda: sorted(ran[2:]) == ["0", "1", "2"])
    assert eventually(lambda: inspect.queue_status(broker, QUEUE).length == 0)


def is_read_from(broker: StreamBroker) -> bool:
    """Return whether somebody waits for entries now."""
    return bool(re.search(rb"flags=b .* cmd=xreadgroup ", broker.client.call("CLIENT", "LIST")))


@pytest.mark.parametrize("pool", [thread.TaskPool], indirect=True)
def test_hand_back_looks_at_no_thread_for_none_has_anything_behind_what_it_runs(pool: thread.TaskPool) -> None:
    pool.grow(3)

    assert list(pool.handed_back()) == [pool._backlog]


@pytest.mark.parametrize("pool", [thread.TaskPool], indirect=True)
def test_terminated_pool_waits_for_its_busy_threads_together_and_not_for_each(pool: thread.TaskPool) -> None:
    pool.grow(99)
    met, over = threading.Barrier(101), threading.Event()

    @pool.app.task(name="work", shared=False)
    def work() -> None:
        met.wait(30)
        over.wait(30)

    for _ in range(100):
        work.delay()
    pool.consume([QUEUE])
    met.wait(30)

    began = time.monotonic()
    pool.terminate()
    took = time.monotonic() - began
    over.set()

    assert took < 4.0
    assert eventually(lambda: not pool._threads)


@pytest.mark.parametrize("pool", [thread.TaskPool], indirect=True)
def test_thread_that_dies_is_said_not_counted_and_replaced(
    pool: thread.TaskPool, broker: StreamBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    def set_current() -> None:
        raise RuntimeError("not yet")

    @pool.app.task(name="work", shared=False)
    def work(number: int) -> None:
        ran.append(number)

    with monkeypatch.context() as app:
        app.setattr(pool.app, "set_current", set_current)
        pool.grow(3)
        assert eventually(lambda: pool._get_info()["threads"] == 1)

    pool.chores()

    assert eventually(lambda: (pool._get_info()["threads"], len(pool.holders())) == (4, BESIDE + 4))
    assert "starting another" in caplog.text
    pool.consume([QUEUE])
    for number in range(20):
        work.delay(number)
    assert eventually(lambda: len(ran) == 20)


@pytest.mark.parametrize("pool", [thread.TaskPool], indirect=True)
def test_options_of_tasks_are_read_once_for_all_threads_and_again_when_they_change(
    pool: thread.TaskPool, broker: StreamBroker
) -> None:
    read: list[str] = []

    class Counted(Task):  # type: ignore[misc]
        name = "counted"

        @property
        def streams_acks_late(self) -> bool:
            read.append(self.name)
            return True

    pool.app.register_task(Counted())
    pool.grow(20)
    pool.look_at_tasks()
    once = len(read)

    pool.forward("task_option", "counted", {})

    assert len(pool.holders()) == BESIDE + 21
    assert (once, len(read)) == (1, 2)


class Holding(StreamsPool):
    """A pool with three children that hold a hundred entries each."""

    class Child:
        consumer = "c"

        def snapshot(self) -> Snapshot:
            stream = StreamRef(QUEUE, 0, "celery-streams:{celery}")
            return replace(SHOT, waiting=tuple(Entry(stream, b"%d-0" % number) for number in range(100)))

    def holders(self) -> Any:
        return [self.Child()] * 3

    def announce(self, streams: Any) -> None:
        """Nobody reads."""


def test_remote_control_waits_for_redis_once_and_not_for_each_entry(
    app: Callable[..., Celery], caplog: pytest.LogCaptureFixture
) -> None:
    away = app(broker_url="redis://127.0.0.1:1/0")
    pool = Holding(1, app=away, initargs=(away, "w@h"))

    with caplog.at_level(logging.WARNING, logger="celery_streams"):
        pool.sync_state()

    assert len(caplog.records) == 1


class Broken:
    """An autoscaler that fails."""

    looks = 0
    repaired = False

    def look(self) -> None:
        self.looks += 1
        if not self.repaired:
            raise AttributeError("on_task_received")


def test_chore_that_fails_keeps_no_other_waiting_and_is_logged_once(
    pool: solo.TaskPool, caplog: pytest.LogCaptureFixture
) -> None:
    pool.parent.queues, pool.autoscaler = [QUEUE], Broken()
    done: list[int] = []
    pool._look_at_connection = lambda: done.append(1)  # type: ignore[method-assign]

    for _ in range(3):
        pool.chores()
    pool.autoscaler.repaired = True
    pool.chores()

    assert (pool.autoscaler.looks, len(done)) == (4, 4)
    said = [record.getMessage() for record in caplog.records if "Broken.look" in record.getMessage()]
    assert len(said) == 1
    assert "keeps trying" in said[0]


class EndsWhoLooks(Exception):
    """An exception each attribute of which ends whoever asks for it."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(4)


@pytest.mark.parametrize("pool", [solo.TaskPool, thread.TaskPool], indirect=True)
def test_pool_goes_on_after_a_task_whose_exception_ends_whoever_looks_at_it(pool: Any, broker: StreamBroker) -> None:
    @pool.app.task(name="work", shared=False)
    def work(number: int) -> None:
        if number == 1:
            raise EndsWhoLooks

    pool.consume([QUEUE])
    pool._hub.round()
    failed, after = work.delay(1), work.delay(2)

    eventually(lambda: (pool._hub.round(), failed.state, after.state)[1:] == ("FAILURE", "SUCCESS"))

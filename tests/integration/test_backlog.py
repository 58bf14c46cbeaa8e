"""What stands between the reader of a pool of threads and the threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from celery_streams.concurrency.backlog import Backlog
from celery_streams.entries import Delivery, Entry, StreamRef
from celery_streams.message import Message
from celery_streams.worker.collected import Collected
from celery_streams.worker.hand_back import Handback
from celery_streams.worker.runner import Record
from tests.support.eventually import eventually

STREAM = StreamRef("celery", 0, "celery-streams:{celery}")


def delivery(number: int, *, history: bytes = b"") -> Delivery:
    return Delivery(Entry(STREAM, b"1-%d" % number), Message(b"{}", b"{}", b"", history))


def void(value: object) -> None:
    """Return nothing."""


class Pool:
    """A backlog with threads that run ``work``."""

    def __init__(self, threads: int, *, one_at_a_time: bool = False, trust: float = 60.0) -> None:
        self.done = Collected()
        self.woken: list[float] = []
        self.backlog = Backlog(
            "c", self.done, one_at_a_time=one_at_a_time, trust=trust, wake=lambda: self.woken.append(time.monotonic())
        )
        self.ran: list[tuple[int, int]] = []
        self.work: Callable[[int], None] = lambda number: None
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()
        eventually(lambda: self.backlog.room() == threads)

    def _run(self) -> None:
        record, ended = Record("c"), None
        while (ended := self.backlog.take(record, ended=ended)) is not None:
            number = int(ended.entry_id.split(b"-")[1])
            self.work(number)
            self.ran.append((number, threading.get_ident()))
            self.done.add(ended.entry)
            record.finish()

    def demand(self) -> int:
        return self.backlog.demand(reads=lambda: True, stopped=lambda: False).entries

    def close(self) -> None:
        self.backlog.end(len(self.threads))
        for thread in self.threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in self.threads)


@pytest.fixture
def pool() -> Iterator[Callable[..., Pool]]:
    made: list[Pool] = []

    def make(*args: int, **options: float) -> Pool:
        made.append(Pool(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_tasks_that_wait_for_each_other_all_start(pool: Callable[..., Pool]) -> None:
    one = pool(4)
    one.backlog.put(delivery(number) for number in range(200))
    eventually(lambda: len(one.ran) == 200)  # small ones, so that few threads are woken for what comes next
    one.done.entries.clear()
    meeting = threading.Barrier(4, timeout=10)
    one.work = lambda number: void(meeting.wait())

    one.backlog.put(delivery(number) for number in range(200, 204))

    # The reader finds nothing more, and looks whether the thread that was woken gets on.
    one.backlog.found(less=True)
    assert eventually(lambda: one.demand() >= 0 and len(one.ran) == 204)


def test_order_is_kept_and_acknowledgements_call_the_reader_that_waits_for_messages(
    pool: Callable[..., Pool],
) -> None:
    one = pool(1)
    assert not one.backlog.reading(), "nothing to acknowledge yet"

    one.backlog.put(delivery(number) for number in range(50))

    assert eventually(lambda: len(one.ran) == 50 and one.woken)
    assert [number for number, _ in one.ran] == list(range(50))
    assert one.backlog.reading()
    assert len(one.woken) == 1, "once for all of them"


def test_nothing_is_read_ahead_of_long_tasks_or_one_at_a_time_or_behind_what_killed_its_process(
    pool: Callable[..., Pool],
) -> None:
    busy, single, careful = pool(1), pool(1, one_at_a_time=True), pool(1)
    for one in (busy, single, careful):
        one.backlog.put(delivery(number) for number in range(3_000))
        eventually(lambda one=one: len(one.ran) == 3_000)
        one.done.entries.clear()
    over = threading.Event()
    for one in (busy, single, careful):
        one.work = lambda number: void(over.wait(20))
    assert busy.demand() > 20, "small ones are read ahead"

    single.backlog.put([delivery(3_000)])
    careful.backlog.put([delivery(3_000, history=b'{"crashes":1}')])
    eventually(lambda: single.backlog.room() == careful.backlog.room() == 0)
    assert single.demand() == careful.demand() == 0

    busy.backlog.put([delivery(3_000)])
    eventually(lambda: busy.demand() == 0)
    over.set()


def test_what_waits_behind_long_tasks_goes_back_and_is_started_by_no_thread(pool: Callable[..., Pool]) -> None:
    one = pool(1)
    over = threading.Event()
    one.work = lambda number: void(over.wait(20))
    one.backlog.put(delivery(number) for number in range(5))
    eventually(lambda: one.backlog.room() == 0 and len(one.backlog.snapshot().waiting) == 4)
    back: list[Entry] = []

    class Settler:
        def acknowledge(self, entries: tuple[Entry, ...]) -> None:
            assert not entries

        def put_back(self, entries: tuple[Entry, ...], *, insist: bool) -> int:
            back.extend(entries)
            return len(entries)

    handback = Handback(lambda consumer: Settler(), lambda: [one.backlog])  # type: ignore[arg-type,return-value]
    assert handback.run_once() == 0, "not before they have waited for a while"
    assert eventually(lambda: handback.run_once() == 4)
    over.set()

    assert back == [delivery(number).entry for number in range(1, 5)]
    assert one.backlog.snapshot().waiting == ()
    eventually(lambda: one.backlog.room() == 1)
    assert [number for number, _ in one.ran] == [0]


def test_what_waited_while_the_process_stood_still_is_not_started(pool: Callable[..., Pool]) -> None:
    one = pool(1, trust=0.05)
    one.work = lambda number: time.sleep(0.2)

    one.backlog.put(delivery(number) for number in range(3))

    eventually(lambda: one.backlog.room() == 1 and len(one.backlog.snapshot().waiting) == 2)
    assert [number for number, _ in one.ran] == [0]
    assert one.backlog.restrict().waiting == (delivery(1).entry, delivery(2).entry)


def test_taking_back_twice_at_once_forgets_only_what_is_back(pool: Callable[..., Pool]) -> None:
    one = pool(1)
    over = threading.Event()
    one.work = lambda number: void(over.wait(20))
    one.backlog.put([delivery(0), delivery(1)])
    eventually(lambda: len(one.backlog.snapshot().waiting) == 1)

    first = one.backlog.restrict()
    one.backlog.put([delivery(2)])
    second = one.backlog.restrict()
    one.backlog.returned(first.batch)

    assert second.waiting == (delivery(1).entry, delivery(2).entry)
    assert one.backlog.snapshot().waiting == (delivery(2).entry,)
    over.set()

"""What the parent tells a child that does not listen must not hold up the parent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import billiard
import pytest
from celery import Celery

from celery_streams.concurrency.base import parted
from celery_streams.concurrency.prefork import TaskPool
from celery_streams.concurrency.process import Child
from celery_streams.entries import StreamRef
from celery_streams.poll import readable
from celery_streams.worker.pieces import Assembly
from celery_streams.worker.slots import SlotTable


def child_with_pipe() -> tuple[Child, Any]:
    ours, theirs = billiard.Pipe(duplex=True)
    nothing: Any = None
    child = Child(0, process=nothing, slot=nothing, consumer="w/1", control=ours, ending=nothing, born=0.0)
    return child, theirs


def test_thousands_of_revokes_for_a_busy_child_are_kept_and_told_in_order_later() -> None:
    child, theirs = child_with_pipe()
    sent = [("revoke", [f"{number}-{'x' * 200}"]) for number in range(5_000)]
    told = threading.Thread(target=lambda: [child.tell(*message) for message in sent], daemon=True)

    told.start()
    told.join(timeout=10)

    assert not told.is_alive(), "the parent waits for the child"
    assert child.outbox
    assert heard_by(child, theirs) == sent


@pytest.mark.parametrize("size", [1, 32 * 1024 - 30, 32 * 1024, 64 * 1024, 539_000, 10_000_000])
def test_parent_does_not_wait_for_a_busy_child_however_large_the_message_is(size: int) -> None:
    child, theirs = child_with_pipe()
    sent = [("revoke", ["x" * size]), ("consume", [], []), ("revoke", ["y" * size])]
    told = threading.Thread(target=lambda: [child.tell(*message) for message in sent], daemon=True)

    told.start()
    told.join(timeout=10)

    assert not told.is_alive(), "the parent waits for the child"
    assert heard_by(child, theirs) == sent


def test_thousands_of_queues_are_told_once_and_a_new_one_costs_its_own_size_alone(
    app: Callable[..., Celery],
) -> None:
    child, theirs = child_with_pipe()
    pool = TaskPool(2, app=app())
    pool._table = SlotTable()
    pool._children[0] = child
    streams = [StreamRef(f"tenant-{number}", step, f"k{number}:{step}") for number in range(3_000) for step in (0, 1)]

    began = time.process_time()
    pool.announce(streams[:-1])
    first = heard_by(child, theirs)
    pool.announce(streams)
    (again,) = heard_by(child, theirs)
    took = time.process_time() - began

    assert took < 2.0
    assert len(first[0][1]) == 2 * len(streams[:-1])
    assert again[1] == [streams[-1], streams[-1].at_front()]
    known = first[0][1] + again[1]
    assert (first[0][0], again[0]) == ("consume", "consume_more")
    assert [known[number] for number in first[0][2]] == streams[:-1]
    assert [known[number] for number in again[2]] == streams[-1:]
    assert pool._table.streams == known


def heard_by(child: Child, theirs: Any) -> list[Any]:
    """Read as a child does, after its task."""
    heard = []
    assembly = Assembly()
    while readable([theirs.fileno()], timeout=0.0):
        message = assembly.add(theirs.recv_bytes())
        if message is not None:
            heard.append(message)
        child.send()
    return heard


def test_long_lists_are_cut_into_messages_that_a_pipe_takes_at_once() -> None:
    ids = [str(number) for number in range(1_203)]

    parts = list(parted(ids))

    assert [len(part) for part in parts] == [500, 500, 203]
    assert [one for part in parts for one in part] == ids

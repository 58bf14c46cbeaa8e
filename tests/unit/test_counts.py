"""Counts: what is counted in a piece of memory, and what its readers and a successor in its place find there."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator

import pytest

from celery_streams.worker.counts import (
    MOST_TASKS,
    OTHER,
    RUNTIME_BUCKETS,
    WAIT_BUCKETS,
    Counts,
    CountsTable,
    ErrorsRow,
    QueueRow,
    TaskRow,
)
from celery_streams.worker.outcome import Event, Reason


@pytest.fixture
def table() -> Iterator[CountsTable]:
    made = CountsTable()
    made.watch(0)
    yield made
    made.close()


def tasks(counts: Counts) -> dict[tuple[str, str], TaskRow]:
    return {(row.queue, row.task): row for row in counts.rows() if isinstance(row, TaskRow)}


def queues(counts: Counts) -> dict[str, QueueRow]:
    return {row.queue: row for row in counts.rows() if isinstance(row, QueueRow)}


def succeeded(counts: Counts) -> int:
    return sum(row.outcomes[Event.SUCCEEDED] for row in tasks(counts).values())


def test_what_a_child_counts_is_read_by_the_parent(table: CountsTable) -> None:
    child = table.of_child(0)
    child.ended("a", "t", Event.SUCCEEDED, 0.3)
    child.ended("a", "t", Event.SUCCEEDED, 7000.0)
    child.ended("a", "t", Event.EXPIRED, None)
    child.dead_letter("a", "t", "rejected")
    child.started("a", "t", 0.01)
    child.started("a", "t", -5.0)
    child.recovered("a", 3, of_child=True)
    child.lost_ownership("a")
    child.published("b", 1, to_stream=False)

    (parent,) = table.pieces()

    row = tasks(parent)["a", "t"]
    assert {event: count for event, count in row.outcomes.items() if count} == {Event.SUCCEEDED: 2, Event.EXPIRED: 1}
    assert (row.runtimes[RUNTIME_BUCKETS.index(0.5)], row.runtimes[-1], sum(row.runtimes)) == (1, 1, 2)
    assert row.runtime_sum == 7000.3
    assert {reason: count for reason, count in row.dead_letters.items() if count} == {Reason.REJECTED: 1}
    queue = queues(parent)["a"]
    assert (queue.waits[WAIT_BUCKETS.index(0.01)], sum(queue.waits), queue.wait_sum) == (2, 2, 0.01)
    assert (queue.from_children, queue.from_workers, queue.lost_ownership) == (3, 0, 1)
    assert queues(parent)["b"].to_list == 1


def test_errors_of_redis_are_counted_by_kind(table: CountsTable) -> None:
    child = table.of_child(0)
    for kind in ("connection", "full", "connection", "other"):
        child.redis_error(kind)

    (parent,) = table.pieces()
    (row,) = [row for row in parent.rows() if isinstance(row, ErrorsRow)]

    assert row.kinds == {"connection": 2, "readonly": 0, "full": 1, "busy": 0, "denied": 0, "other": 1}


def test_successor_in_the_place_of_a_child_goes_on_where_it_stopped(table: CountsTable) -> None:
    table.of_child(0).ended("a", "t", Event.SUCCEEDED, 0.1)
    successor = table.of_child(0)
    successor.ended("b", "t", Event.SUCCEEDED, 0.1)
    successor.ended("a", "t", Event.SUCCEEDED, 0.1)

    (parent,) = table.pieces()

    assert succeeded(parent) == 3
    assert tasks(parent).keys() == {("a", "t"), ("b", "t"), (OTHER, OTHER)}


def test_child_that_is_killed_while_it_counts_leaves_what_is_true_and_its_successor_goes_on(table: CountsTable) -> None:
    for round_ in range(5):
        pid = os.fork()
        if pid == 0:
            counts = table.of_child(0)
            number = 0
            while True:
                number += 1
                counts.ended("a", f"t{round_}.{number % 30}", Event.SUCCEEDED, 0.001)
        before = succeeded(table.pieces()[0])
        while succeeded(table.pieces()[0]) < before + 10:
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = tasks(table.pieces()[0])
        for row in found.values():
            # Killed between two stores, it has counted a task and not its time.
            assert 0 <= sum(row.outcomes.values()) - sum(row.runtimes) <= 1
        assert found.keys() >= {("a", f"t{earlier}.1") for earlier in range(round_ + 1)}


def test_tasks_beyond_the_bound_are_others_and_nothing_is_lost() -> None:
    counts = Counts()
    for number in range(MOST_TASKS + 50):
        counts.ended("a", f"t{number}", Event.SUCCEEDED, None)

    found = tasks(counts)

    assert succeeded(counts) == MOST_TASKS + 50
    assert len({task for _, task in found}) <= MOST_TASKS + 1
    assert found["a", OTHER].outcomes[Event.SUCCEEDED] >= 50


def test_rows_beyond_the_memory_and_labels_of_any_length_are_others_and_nothing_is_lost() -> None:
    counts = Counts()
    for number in range(2000):
        counts.ended(f"queue {number} " + "ä" * number, "t", Event.SUCCEEDED, 1.0)
        counts.started(f"queue {number} " + "ä" * number, "t", 1.0)

    assert succeeded(counts) == 2000
    assert sum(sum(row.waits) for row in queues(counts).values()) == 2000
    assert len(tasks(counts)) + len(queues(counts)) <= 256


def test_spawned_child_counts_in_the_same_memory() -> None:
    table = CountsTable(shared_by_path=True)
    table.watch(2)
    try:
        spawned = pickle.loads(pickle.dumps(table))
        spawned.of_child(2).ended("a", "t", Event.FAILED, None)
        spawned.close()

        assert tasks(table.pieces()[0])["a", "t"].outcomes[Event.FAILED] == 1
        assert os.path.exists(table.path)
    finally:
        table.close()
    assert not os.path.exists(table.path)

"""Fitness: what tells a process that cannot work any more from one whose tasks fail."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator

import pytest

from celery_streams.worker.fitness import MOST, Fitness

SHORT = [
    MemoryError(),
    OSError(errno.EMFILE, "Too many open files"),
    RuntimeError("can't start new thread"),
]
#: What a fork is told that is one too many, and whoever finds a file locked.
AGAIN = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
OTHERS = [
    None,
    ValueError("x"),
    FileNotFoundError(errno.ENOENT, "x"),
    ConnectionRefusedError(errno.ECONNREFUSED, "x"),
    AGAIN,
]


@pytest.mark.parametrize("error", SHORT, ids=repr)
def test_shortages_in_a_row_make_a_process_unfit(error: BaseException) -> None:
    fitness = Fitness()

    for _ in range(MOST - 1):
        fitness.ended(error)
    fitness.ended(None)
    for _ in range(MOST - 1):
        fitness.ended(error)
    assert not fitness.reason

    fitness.ended(error)
    assert "in a row" in fitness.reason


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_tasks_that_fail_and_report_it_make_no_process_unfit(error: BaseException | None) -> None:
    fitness = Fitness()

    for _ in range(3 * MOST):
        fitness.ended(error)

    assert not fitness.reason


def test_forks_that_fail_make_a_process_unfit_that_can_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    fitness = Fitness()

    for _ in range(MOST):
        fitness.ended(AGAIN)

    assert "in a row" in fitness.reason


def test_failures_that_cannot_be_reported_make_a_process_unfit() -> None:
    fitness = Fitness()

    for _ in range(MOST):
        assert not fitness.reason
        fitness.could_not_report()
        fitness.ended(ValueError("x"))

    assert "could not report" in fitness.reason


@pytest.fixture
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    (lowest, other) = os.pipe()
    os.close(lowest)
    os.close(other)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_process_that_can_open_nothing_is_unfit_once_redis_is_away(no_descriptors: None) -> None:
    fitness = Fitness()

    fitness.lost_redis()

    assert "no descriptor" in fitness.reason


def test_process_that_can_open_something_waits_for_redis() -> None:
    fitness = Fitness()

    fitness.lost_redis()

    assert not fitness.reason

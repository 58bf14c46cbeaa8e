"""What the parent tells a child that does not listen must not hold up the parent."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import billiard

from celery_streams.concurrency.base import parted
from celery_streams.concurrency.process import Child
from celery_streams.poll import readable


def child_with_pipe() -> tuple[Child, Any]:
    ours, theirs = billiard.Pipe(duplex=True)
    child = Child(index=0, process=None, slot=None, consumer="w/1", control=ours, born=0.0)  # type: ignore[arg-type]
    return child, theirs


def test_thousands_of_revokes_for_a_busy_child_are_kept_and_told_in_order_later() -> None:
    child, theirs = child_with_pipe()
    sent = [("revoke", [f"{number}-{'x' * 200}"]) for number in range(5_000)]
    told = threading.Thread(target=lambda: [child.tell(*message) for message in sent], daemon=True)

    told.start()
    told.join(timeout=10)

    assert not told.is_alive(), "the parent waits for the child"
    assert child.outbox
    heard: deque[Any] = deque()
    while readable([theirs.fileno()], timeout=0.0):
        heard.append(theirs.recv())
        child.send()
    assert list(heard) == sent


def test_long_lists_are_cut_into_messages_that_a_pipe_takes_at_once() -> None:
    ids = [str(number) for number in range(1_203)]

    parts = list(parted(ids))

    assert [len(part) for part in parts] == [500, 500, 203]
    assert [one for part in parts for one in part] == ids

"""Gates: no child is forked while a thread sends something, and none waits for one that does not come back."""

from __future__ import annotations

import threading

from celery_streams.worker.gates import all_held
from celery_streams.worker.later import Later


def test_fork_waits_until_what_is_being_sent_is_sent_and_nothing_begins_meanwhile() -> None:
    begun, go_on = threading.Event(), threading.Event()
    sent: list[int] = []

    def send(number: int) -> None:
        begun.set()
        go_on.wait(30)
        sent.append(number)

    later = Later[int]("celery-streams-test", send)
    later.put(1)
    assert begun.wait(30)
    timer = threading.Timer(0.05, go_on.set)
    timer.start()

    with all_held(patience=30):
        assert sent == [1]
        later.put(2)
        assert sent == [1]
    later.close()
    timer.join()

    assert sent == [1, 2]


def test_fork_goes_on_while_a_thread_waits_for_a_reply_that_does_not_come() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def send(number: int) -> None:
        begun.set()
        go_on.wait(30)

    later = Later[int]("celery-streams-test", send)
    later.put(1)
    assert begun.wait(30)

    with all_held(patience=0.01):
        assert not go_on.is_set()
    go_on.set()
    later.close()

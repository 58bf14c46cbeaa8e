"""Events of a process: best effort, bounded, never in anybody's way, and back when the broker is."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from celery_streams.embedded import EmbeddedRedis
from celery_streams.worker.events import MOST_KEPT, BackgroundEvents
from tests.faults.proxy import Proxy
from tests.support.eventually import eventually

Make = Callable[..., BackgroundEvents]


@pytest.fixture
def proxy(redis_server: EmbeddedRedis, redis_url: str) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as made:
        yield made


@pytest.fixture
def seen(redis_url: str) -> Iterator[list[dict[str, Any]]]:
    """All events that arrive at the broker."""
    app = Celery("monitor", broker=redis_url, set_as_current=False)
    found: list[dict[str, Any]] = []
    stop = threading.Event()
    listening = threading.Event()

    def listen() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": found.append})
            with receiver.consumer_context() as (own, _, _):
                listening.set()
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        own.drain_events(timeout=0.1)

    thread = threading.Thread(target=listen)
    thread.start()
    assert listening.wait(5)
    yield found
    stop.set()
    thread.join()
    app.close()


@pytest.fixture
def make(proxy: Proxy) -> Iterator[Make]:
    made: list[BackgroundEvents] = []

    def dispatcher(url: str | None = None, *, socket_timeout: float = 1.0, **options: Any) -> BackgroundEvents:
        app = Celery("worker", broker=url or proxy.url, set_as_current=False)
        app.conf.broker_transport_options = {"socket_timeout": socket_timeout}
        made.append(BackgroundEvents(app, "me@here", **options))
        return made[-1]

    yield dispatcher
    for one in made:
        one.leave()


def numbers(seen: list[dict[str, Any]]) -> list[int]:
    return [event["number"] for event in list(seen) if "number" in event]


def test_events_arrive_in_order_and_task_events_go_together(make: Make, seen: list[dict[str, Any]]) -> None:
    events = make()

    for number in range(1_000):
        events.send("worker-heartbeat" if number % 100 == 50 else "task-started", uuid="x", number=number)

    eventually(lambda: numbers(seen) == list(range(1_000)), message="all events arrive, in order")
    assert {event["hostname"] for event in seen} == {"me@here"}


def test_unwanted_groups_are_not_sent(make: Make, seen: list[dict[str, Any]]) -> None:
    events = make(groups=["task"])

    events.send("worker-heartbeat", number=1)
    events.send("task-sent", number=2)

    eventually(lambda: numbers(seen) == [2])


@pytest.mark.parametrize("how", ["gone", "silent"])
def test_events_cost_nothing_while_the_broker_is_away_and_the_newest_arrive_when_it_is_back(
    make: Make, seen: list[dict[str, Any]], proxy: Proxy, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celery_streams")
    events = make(socket_timeout=8.0)  # which no busy machine holds a send up for
    events.send("worker-online", number=-1)
    eventually(lambda: numbers(seen) == [-1])
    away(proxy, how)

    began, cpu = time.monotonic(), time.process_time()
    slowest = 0.0
    for number in range(3 * MOST_KEPT):
        before = time.monotonic()
        events.send("task-started", uuid="x", number=number)
        slowest = max(slowest, time.monotonic() - before)
    taken = time.monotonic() - began
    cpu_before = time.process_time()
    eventually(lambda: "Events cannot be sent" in caplog.text, timeout=30)
    threading.Event().wait(2.0)  # what is measured is the time in which nothing comes
    idle = time.process_time() - cpu_before

    assert slowest < 6.0, "no send waits for the broker"
    assert taken < 15
    assert cpu_before - cpu < 15
    assert idle < 1.5, "what is kept is not serialised again and again"
    assert events.dropped >= 2 * MOST_KEPT - 1_000
    back(proxy)
    eventually(lambda: numbers(seen)[-1:] == [3 * MOST_KEPT - 1], timeout=30, message="the newest event arrives")
    assert len(numbers(seen)) <= MOST_KEPT + 1_000
    eventually(lambda: "Events are being sent again" in caplog.text)
    assert caplog.text.count("Events cannot be sent") == 1


def away(proxy: Proxy, how: str) -> None:
    proxy.swallow_new = how == "silent"
    if how == "silent":
        proxy.black_hole()
    else:
        proxy.target, proxy.true_target = 1, proxy.target  # type: ignore[attr-defined]
        proxy.reset()


def back(proxy: Proxy) -> None:
    proxy.swallow_new = False
    proxy.target = getattr(proxy, "true_target", proxy.target)


def test_broker_that_was_silent_is_told_of_when_it_is_back(
    make: Make, seen: list[dict[str, Any]], proxy: Proxy
) -> None:
    told = threading.Event()
    events = make(on_silence=told.set)
    events._silent = True  # after a time-out as long as the default, which the test does not wait for

    events.send("worker-heartbeat", number=1)

    assert told.wait(5)


@pytest.mark.parametrize("how", ["gone", "silent"])
def test_end_of_a_process_does_not_wait_for_a_broker_that_is_away(make: Make, proxy: Proxy, how: str) -> None:
    events = make()
    away(proxy, how)
    for number in range(100):
        events.send("task-started", number=number)

    began = time.monotonic()
    events.close()

    assert time.monotonic() - began < 4.0


def test_last_events_arrive_when_the_dispatcher_is_closed(make: Make, seen: list[dict[str, Any]]) -> None:
    events = make()
    events.send("task-started", number=1)
    events.send("worker-offline", number=2)

    events.close()

    eventually(lambda: numbers(seen) == [1, 2])


def test_dispatcher_that_was_disabled_sends_again_when_it_is_enabled(make: Make, seen: list[dict[str, Any]]) -> None:
    events = make()
    events.send("task-started", number=1)
    events.disable()
    events.send("task-started", number=2)
    events.enable()
    events.send("task-started", number=3)

    eventually(lambda: numbers(seen) == [1, 3])


def test_event_that_cannot_be_serialised_hinders_no_later_one(make: Make, seen: list[dict[str, Any]]) -> None:
    events = make()

    events.send("task-started", number=1, odd=object())
    eventually(lambda: events.dropped == 1)
    events.send("task-started", number=2)

    eventually(lambda: numbers(seen) == [2])


def test_successor_sends_what_is_left(make: Make, seen: list[dict[str, Any]], proxy: Proxy) -> None:
    first = make("redis://127.0.0.1:1/0")
    for number in range(10):
        first.send("task-started", number=number)
    second = make()

    first.leave()
    second.extend_buffer(first)
    second.send("task-started", number=10)

    eventually(lambda: numbers(seen) == list(range(11)))


def test_event_of_another_dispatcher_of_the_app_comes_after_what_is_kept(
    make: Make, seen: list[dict[str, Any]]
) -> None:
    events = make(patience=30.0)
    events.goes_first()
    for number in range(0, 20, 2):
        events.send("task-started", number=number)
        with events.app.events.default_dispatcher(hostname="me@here") as other:
            other.send("task-own", number=number + 1)

    eventually(lambda: numbers(seen) == list(range(20)), message="all events arrive, in order")


@pytest.mark.parametrize("how", ["gone", "silent"])
def test_nobody_waits_long_for_kept_events_while_the_broker_is_away(make: Make, proxy: Proxy, how: str) -> None:
    events = make(patience=0.5)
    if how == "gone":
        proxy.refuse_new = True
        proxy.reset()
    else:
        proxy.swallow_new = True
        proxy.black_hole()
    events.send("task-started", number=1)

    began = time.monotonic()
    for _ in range(20):
        events.catch_up()

    # A second at most until the broker is known to be away, in two tries; then nothing.
    assert time.monotonic() - began < 5


def test_what_was_kept_and_what_was_sent_of_it_is_told(make: Make, seen: list[dict[str, Any]], proxy: Proxy) -> None:
    told: dict[str, int] = {}
    events = make(on_kept=lambda count: told.update(kept=count), on_sent=lambda count: told.update(sent=count))
    for number in range(300):
        events.send("task-started", number=number)
    eventually(lambda: told == {"kept": 300, "sent": 300})

    proxy.refuse_new = True
    proxy.reset()
    for number in range(MOST_KEPT + 10):
        events.send("task-started", number=number)

    # Those that were dropped are nobody's to send any more.
    assert told["kept"] - told["sent"] <= MOST_KEPT + 200


def test_process_that_a_task_forks_may_send_without_being_hindered(make: Make) -> None:
    events = make()
    events.send("task-started", number=1)

    pid = os.fork()
    if not pid:
        for number in range(100):
            events.send("task-started", number=number)
        os._exit(7)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

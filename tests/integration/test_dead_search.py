"""Search among dead letters: the newest first, every filter, and steps that neither skip nor repeat a letter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.dead_letters import purge_dead
from celery_streams.dead_search import Cursor, Wanted, search, shown
from celery_streams.message import encode


def bury(
    broker: StreamBroker,
    entry_id: str,
    *,
    queue: str = "q",
    task: str = "chat.send",
    args: Any = (),
    kwargs: Any = None,
    reason: str = "failed",
    exception: str = "ValueError('no')",
    body: bytes | None = None,
    content_type: str = "application/json",
) -> str:
    headers = {"task": task, "id": f"id-{entry_id}"}
    properties = {"content_type": content_type, "content_encoding": "utf-8"}
    message = encode(headers, properties, json.dumps([list(args), kwargs or {}, {}]) if body is None else body)
    death = json.dumps({"reason": reason, "task": task, "task_id": f"id-{entry_id}", "exception": exception})
    dead = broker.queue_keys(queue).dead
    return str(broker.client.call("XADD", dead, entry_id, *message.as_fields(), "death", death).decode())


def ids(broker: StreamBroker, wanted: Wanted | None = None, queues: tuple[str, ...] = ("q",), **options: Any) -> Any:
    found = search(broker, queues, wanted or Wanted(), accept=["json"], **options)
    return [letter.entry_id for letter in found.letters]


def test_newest_comes_first_over_all_queues(broker: StreamBroker) -> None:
    for entry_id, queue in (("1-0", "a"), ("2-0", "b"), ("3-0", "a"), ("3-1", "b")):
        bury(broker, entry_id, queue=queue)

    assert ids(broker, queues=("a", "b")) == ["3-1", "3-0", "2-0", "1-0"]


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(task="other.task"),
        Wanted(task="other.*"),
        Wanted(reason="crashed"),
        Wanted(exception="KEYerror"),
        Wanted(text="Émile"),
        Wanted(text="émile"),
        Wanted(text='say "hi"'),
        Wanted(text="12345678901234567890"),
        Wanted(id="id-2000-0"),
        Wanted(id="2000-0"),
        Wanted(since=1.5, until=2.5),
    ],
)
def test_filter_finds_the_one_that_is_meant(broker: StreamBroker, wanted: Wanted) -> None:
    bury(broker, "1000-0")
    bury(
        broker,
        "2000-0",
        task="other.task",
        args=["Émile", 'say "hi"', 12345678901234567890],
        reason="crashed",
        exception="KeyError('x')",
    )
    bury(broker, "3000-0", args=["callbacks"])

    assert ids(broker, wanted) == ["2000-0"]


def test_text_is_looked_for_in_the_arguments_only(broker: StreamBroker) -> None:
    bury(broker, "1-0", body=b'[[], {"a": 1}, {"callbacks": null, "chain": null}]')

    assert ids(broker, Wanted(text="callbacks")) == []
    assert ids(broker, Wanted(text='"a": 1')) == ["1-0"]


def test_what_may_not_be_decoded_does_not_match_and_stops_nothing(broker: StreamBroker) -> None:
    bury(broker, "1-0", args=["needle"])
    bury(broker, "2-0", body=b"\x80needle", content_type="application/x-python-serialize")
    broker.client.call("XADD", broker.queue_keys("q").dead, "3-0", "odd", b"\xff needle")

    assert ids(broker, Wanted(text="needle")) == ["3-0", "1-0"]


def test_steps_look_at_each_letter_once_while_letters_come_and_go(broker: StreamBroker) -> None:
    for number in range(1, 41):
        for queue in ("a", "b"):
            bury(broker, f"{number}-0", queue=queue, args=[number])
    seen: list[tuple[str, str]] = []
    looked_at, before = 0, None

    for step in range(100):
        found = search(
            broker, ("a", "b"), Wanted(), accept=["json"], before=before, limit=7, look_at=5 if step % 2 else 9
        )
        seen += [(letter.queue, letter.entry_id) for letter in found.letters]
        looked_at += found.looked_at
        bury(broker, f"{1000 + step}-0", queue="a")
        purge_dead(broker, "b", [seen[-1][1]])
        if found.next is None:
            break
        before = Cursor.parse(str(found.next))

    assert seen == [(queue, f"{number}-0") for number in range(40, 0, -1) for queue in ("b", "a")]
    assert looked_at == 80


def test_step_is_bounded_when_nothing_matches(broker: StreamBroker) -> None:
    for number in range(1, 30):
        bury(broker, f"{number}-0")

    found = search(broker, ("q",), Wanted(task="nobody"), accept=["json"], look_at=10)

    assert (found.letters, found.looked_at, found.total) == ((), 10, 29)
    assert str(found.next) == "20-0 q"


@pytest.mark.parametrize("text", ["", "x", "1", "1-", "1-2-3", "-1-0 q", f"{2**64}-0 q", "1-0;q"])
def test_place_that_is_none_is_none(text: str) -> None:
    assert Cursor.parse(text) is None


def test_place_survives_odd_queue_names() -> None:
    place = Cursor.of("a b\n-0 é", "5-7")

    assert Cursor.parse(str(place)) == place


def test_arguments_are_shown_exactly() -> None:
    assert shown([[2**70, "é\u2028"], {"a": None}]) == '[[1180591620717411303424, "é\u2028"], {"a": null}]'


def test_search_of_no_queue_finds_nothing(client: RedisClient, broker: StreamBroker) -> None:
    assert ids(broker, queues=()) == []


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("limit", [7, 100, 2_000])
def test_hundreds_of_queues_come_in_one_order_whatever_was_read_of_each(
    broker: StreamBroker, oldest_first: bool, limit: int
) -> None:
    queues = tuple(f"q{number}" for number in range(120))
    buried: list[tuple[int, int, str]] = []
    for number in range(1_000):
        # One queue has most of them, and a few have some at the same moment.
        queue = queues[0] if number % 2 else queues[number * 7 % 120]
        bury(broker, f"{1 + number // 3}-{number}", queue=queue)
        buried.append((1 + number // 3, number, queue))

    found: list[tuple[int, int, str]] = []
    before = None
    while True:
        step = search(broker, queues, Wanted(), accept=["json"], limit=limit, before=before, oldest_first=oldest_first)
        for one in step.letters:
            milliseconds, _, sequence = one.entry_id.partition("-")
            found.append((int(milliseconds), int(sequence), one.queue))
        before = step.next
        if before is None:
            break

    assert found == sorted(buried, reverse=not oldest_first)


def test_first_page_of_many_queues_reads_little_more_than_it_shows(broker: StreamBroker) -> None:
    queues = tuple(f"q{number}" for number in range(100))
    for number in range(5_000):
        bury(broker, f"{number + 1}-1", queue=queues[number % 100], body=b"x" * 200)
    before = int(_info(broker, "total_net_output_bytes"))

    found = search(broker, queues, Wanted(), accept=["json"], limit=50)

    assert len(found.letters) == 50
    assert int(_info(broker, "total_net_output_bytes")) - before < 500_000, "all of them are more than two megabytes"


def _info(broker: StreamBroker, name: str) -> str:
    lines = broker.client.call("INFO", "stats").decode().splitlines()
    return next(line.partition(":")[2] for line in lines if line.startswith(f"{name}:"))

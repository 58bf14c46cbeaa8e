"""What the pages of the dashboard cost with 200 queues and 100,000 dead letters, in CPU time (``-s`` prints it)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from celery import Celery
from django.test import Client

from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.message import Message, encode
from celery_streams.tallies import Tally
from django_integration.dashboard.pages import PAGES
from tests.django_app.test_dashboard import form_of, hold, person

pytestmark = pytest.mark.slow

QUEUES, LETTERS = 200, 100_000

#: CPU time of web process and Redis together, as a multiple of :func:`yardstick`; 5 is 0.3 s where that takes 0.06 s.
#: A machine that has much else to do, or is slow, is so for both, within limits. The dearest pages took 2 to 5.
MOST = 7.0

#: The name of a page -> how it is asked for, at its worst.
ASKED = {
    "queues": ["", "?format=json"],
    "dead": ["dead/", "dead/?task=nobody.*", "dead/?text=nowhere", "dead/?exception=nowhere", "dead/?queue=queue-0"],
    "message": ["dead/message/?queue=queue-0&id={letter}"],
    "delayed": ["delayed/", "delayed/?queue=queue-0", "delayed/?queue=queue-0&skip=900"],
    "delayed_message": ["delayed/message/?key={delayed}"],
    "held": ["held/", "held/?queue=queue-0"],
    "history": ["history/?queue=queue-0", "history/?queue=queue-0&span=day"],
    "workers": ["workers/"],
    "running_message": ["workers/message/?queue=queue-0&id=held-1999", "workers/message/?queue=queue-0&id=nobodys"],
    "doctor": ["alerts/"],
}


def content(task_id: str) -> Message:
    return encode(
        {"task": "chat.tasks.send_message", "id": task_id, "lang": "py", "retries": 0, "eta": None, "expires": None},
        {"content_type": "application/json", "content_encoding": "utf-8", "correlation_id": task_id, "priority": 0},
        json.dumps([[task_id, "a message of some length " * 8], {"to": "5511999999999"}, {}]),
    )


def send(client: RedisClient, commands: Iterator[tuple[Any, ...]]) -> None:
    while some := list(islice(commands, 2_000)):
        client.pipeline(some)


def letters(broker: StreamBroker) -> Iterator[tuple[Any, ...]]:
    """Half of the dead letters are of one queue."""
    for number in range(LETTERS):
        queue = f"queue-{0 if number % 2 else number // 2 % QUEUES}"
        about = {
            "reason": "failed", "task": "chat.tasks.send_message", "task_id": f"dead-{number}",
            "exception": f"ConnectionError('no answer from host {number}')", "traceback": "Traceback ..." * 40,
            "worker": "celery@host",
        }  # fmt: skip
        fields = content(f"dead-{number}").as_fields()
        yield ("XADD", broker.queue_keys(queue).dead, "*", *fields, "death", json.dumps(about))


@pytest.fixture
def much(site: Celery, broker: StreamBroker) -> dict[str, str]:
    """Fill Redis; returns what the addresses of single messages need."""
    queues = [f"queue-{number}" for number in range(QUEUES)]
    client, now = broker.client, broker.clock_ms()
    broker.ensure_groups(queues)
    send(client, letters(broker))
    words = " ".join(f"{name}={number}" for name, number in Tally(done=7, failed=2, waits={0.25: 9}).names().items())
    for queue in queues:
        names = broker.queue_keys(queue)
        send(client, (("XADD", names.history, f"{now - 60_000 * minute}-0", "w", minute, "x", 1, "a", 7 * minute)
                      for minute in range(60, 0, -1)))  # fmt: skip
        send(client, (("HSET", names.tallies[0], now // 60_000 - minute, words) for minute in range(60)))
        for number in range(1_000 if queue == "queue-0" else 20):
            broker.delay(queue, content(f"later-{number}"), due_ms=2**41 + number, member=str(number))
    send(client, (("XADD", broker.queue_keys("queue-0").streams[0], "*", *content(f"held-{number}").as_fields())
                  for number in range(2_000)))  # fmt: skip
    broker.read(broker.streams(["queue-0"]), "celery@host/1.aa", count=2_000)
    for number in range(300):
        hold(broker, f"customer-{number}", 1, queue="queue-1")
    letter = client.call("XREVRANGE", broker.queue_keys("queue-0").dead, "+", "-", "COUNT", 1)[0][0].decode()
    return {"letter": letter, "delayed": f"{b'queue-0'.hex()}%20{b'7'.hex()}"}


def redis_seconds(broker: StreamBroker) -> float:
    said = broker.client.call("INFO", "cpu").decode()
    return sum(float(line.partition(":")[2]) for line in said.splitlines()
               if line.startswith(("used_cpu_sys:", "used_cpu_user:")))  # fmt: skip


@pytest.mark.timeout(300)
def test_no_page_takes_more_than_its_time(site: Celery, broker: StreamBroker, much: dict[str, str]) -> None:
    assert ASKED.keys() == {page.name for page in PAGES if "GET" in page.methods}, "each page is measured"
    admin = person(superuser=True)
    took: dict[str, tuple[float, float]] = {}
    for addresses in ASKED.values():
        for address in addresses:
            took[address] = cost(broker, lambda at=address: get(admin, at.format(**much)))
    counting = {"verb": "replay", "scope": "matching", "task": "nobody.*"}
    took["POST dead/act/"] = cost(broker, lambda: count(admin, counting))

    print(f"{1000 * yardstick():6.1f} ms  the yardstick")
    for address, (seconds, share) in took.items():
        print(f"{1000 * seconds:6.1f} ms  {share:4.2f}  {address}")
    assert {address: share for address, (_, share) in took.items() if share >= MOST} == {}


def yardstick() -> float:
    """Return the CPU seconds of some plain work: JSON and text, as in the pages, and no module of ours."""
    began = time.thread_time()
    for _ in range(6_000):
        json.dumps(json.loads(_TEXT)).upper().split()
    return time.thread_time() - began


_TEXT = json.dumps([["a message of some length " * 8, 10**18], {"to": "5511999999999", "from": {"a": [1, 2, 3]}}, {}])


def get(admin: Client, address: str) -> None:
    response = admin.get("/queues/" + address)
    assert response.status_code == (404 if "nobodys" in address else 200), address
    assert response.getvalue()


def count(admin: Client, fields: dict[str, str]) -> None:
    response = admin.post("/queues/dead/act/", fields)
    assert response.status_code == 200
    assert form_of(response.content.decode())


def cost(broker: StreamBroker, do: Any) -> tuple[float, float]:
    """Return the CPU seconds of the fastest of five runs, and the least multiple of the yardstick at the same time."""
    seconds, shares = [], []
    for _ in range(5):
        server, began = redis_seconds(broker), time.thread_time()
        do()
        seconds.append(time.thread_time() - began + redis_seconds(broker) - server)
        shares.append(seconds[-1] / yardstick())
    return min(seconds), min(shares)

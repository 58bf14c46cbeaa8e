"""The dashboard of a queue with partitions: one row, one list, and actions that reach what lies in any of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from django.test import Client

from celery_streams import history
from celery_streams.broker import StreamBroker
from celery_streams.partitions import partitions
from celery_streams.pauses import paused_queues
from tests.django_app.test_dashboard import SEND, bury, confirm, left, person
from tests.support.redis_state import message

QUEUE = "send_message"
NAMES = partitions(QUEUE, 4)


@pytest.fixture
def admin(site: Celery) -> Client:
    return person(superuser=True)


def rows(client: Client, page: str, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(b"".join(client.get("/queues/" + page, {**query, "format": "json"})))
    return found


def test_queue_is_one_row_and_is_paused_and_resumed_as_a_whole(admin: Client, broker: StreamBroker) -> None:
    for number, name in enumerate(NAMES):
        broker.publish(name, message(number))
    history.record(broker, NAMES)

    [row] = [one for one in rows(admin, "") if one["waiting"]]
    assert (row["queue"], row["waiting"]) == (QUEUE, 4)
    for page in ("", "history/", "dead/", "delayed/", "held/", "alerts/", "workers/"):
        assert "::partition" not in admin.get("/queues/" + page).content.decode()
    assert [one["waiting"] for one in rows(admin, "history/", queue=QUEUE) if one["waiting"] is not None][-1] == 4
    confirm(admin, "/queues/", "act/", verb="pause", key=SEND)
    assert set(paused_queues(broker, NAMES)) == set(NAMES)
    confirm(admin, "/queues/", "act/", verb="resume", key=SEND)
    assert paused_queues(broker, NAMES) == {}


def test_dead_letters_are_one_list_whose_letters_are_shown_replayed_and_deleted(
    admin: Client, broker: StreamBroker
) -> None:
    ids = [bury(broker, number, queue=NAMES[number % 4]) for number in range(8)]

    shown = rows(admin, "dead/", queue=QUEUE)
    assert {one["queue"] for one in shown} == {QUEUE}
    assert [one["died"] for one in shown] == sorted((one["died"] for one in shown), reverse=True)
    assert {one["task_id"] for one in shown} == {f"id-{number}" for number in range(8)}
    page = admin.get("/queues/dead/message/", {"queue": QUEUE, "id": f"{ids[3]}/3"})
    assert page.status_code == 200
    assert "id-3" in page.content.decode()
    key = f"{SEND} {ids[3]}/3"
    confirm(admin, "/queues/", "dead/act/", verb="replay", scope="chosen", key=key)
    assert broker.client.call("XLEN", broker.queue_keys(NAMES[3]).streams[0]) == 1
    confirm(admin, "/queues/", "dead/act/", verb="purge", scope="matching", id="id-6")
    assert set(left(broker)) == {f"id-{number}" for number in range(8) if number not in (3, 6)}
    confirm(admin, "/queues/", "dead/act/", verb="purge", scope="matching", queue=QUEUE)
    assert left(broker) == []


def test_delayed_messages_are_one_list_from_which_each_is_run_or_cancelled(admin: Client, broker: StreamBroker) -> None:
    for number in range(60):
        due = broker.clock_ms() + 600_000 + number
        broker.delay(NAMES[number % 4], message(number), due_ms=due, member=str(number))

    first = admin.get("/queues/delayed/", {"queue": QUEUE}).content.decode()
    second = admin.get("/queues/delayed/", {"queue": QUEUE, "skip": "50"}).content.decode()
    confirm(admin, "/queues/", "delayed/act/", verb="run_now", key=f"{SEND} {b'7'.hex()}")
    confirm(admin, "/queues/", "delayed/act/", verb="cancel", key=f"{SEND} {b'8'.hex()}")

    assert first.count("data-cs-row") == 50
    assert second.count("data-cs-row") == 10
    assert len(rows(admin, "delayed/", queue=QUEUE)) == 58
    assert broker.client.call("XLEN", broker.queue_keys(NAMES[3]).streams[0]) == 1

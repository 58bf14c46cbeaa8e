"""The dashboard on a Redis Cluster: every page, and what is done to letters of several slots at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from django.test import Client

from celery_streams import streams_of
from celery_streams.broker import StreamBroker
from celery_streams.cluster import ClusterClient
from celery_streams.message import encode
from celery_streams.pauses import paused_queues
from tests.django_app.test_dashboard import PAGES, PLACES, bury, confirm, left, person, waiting
from tests.support.cluster import Cluster
from tests.support.redis_state import message

pytestmark = pytest.mark.slow

QUEUES = ("send_message", "mark_as_read", "a", "b", "c")


@pytest.fixture
def sharded(site: Celery, three_masters: Cluster) -> Iterator[StreamBroker]:
    """A broker on an empty cluster, where the project's streams are."""
    three_masters.flush()
    client: ClusterClient = three_masters.client()
    site.conf.streams_url = three_masters.url
    streams_of(site).reload()
    broker = StreamBroker(client)
    broker.ensure_groups(QUEUES)
    yield broker
    client.close()
    del site.conf.changes["streams_url"]
    streams_of(site).reload()


@pytest.mark.parametrize("place", PLACES)
def test_every_page_answers(sharded: StreamBroker, place: str) -> None:
    admin: Client = person(superuser=True)
    for number, queue in enumerate(QUEUES):
        one = bury(sharded, number, queue=queue)
        sharded.publish(queue, message(number))
        sharded.delay(queue, message(number), due_ms=2**42, member=str(number))

    pages = [*PAGES, "history/?queue=a&span=day", "alerts/?examine=yes", "?format=json", "dead/?format=csv"]
    for page in [*pages, f"dead/message/?queue=c&id={one}", "delayed/?queue=b"]:
        response = admin.get(place + page)
        assert response.status_code == 200, page
        assert b"does not answer" not in response.getvalue(), page


def test_letters_of_all_slots_are_found_replayed_and_deleted(sharded: StreamBroker) -> None:
    admin = person(superuser=True)
    for number in range(10):
        bury(sharded, number, queue=QUEUES[number % 5], task="wanted" if number < 5 else "other")

    found = admin.get("/queues/dead/", {"task": "wanted"}).content.decode()
    confirm(admin, "/queues/", "dead/act/", verb="replay", scope="matching", task="wanted")
    confirm(admin, "/queues/", "dead/act/", verb="purge", scope="matching", id="id-7")

    assert "Looked at 10 of 10." in found
    assert {queue: (left(sharded, queue), waiting(sharded, queue)) for queue in QUEUES} == {
        "send_message": (["id-5"], 1),
        "mark_as_read": (["id-6"], 1),
        "a": ([], 1),
        "b": (["id-8"], 1),
        "c": (["id-9"], 1),
    }


def test_delayed_messages_and_queues_are_acted_on(sharded: StreamBroker) -> None:
    admin = person(superuser=True)
    content = encode({"task": "t", "id": "1"}, {"content_type": "application/json"}, b"[[], {}, {}]")
    for queue in ("a", "b"):
        sharded.delay(queue, content, due_ms=2**42, member="1")
    keys = [f"{queue.encode().hex()} {b'1'.hex()}" for queue in ("a", "b")]

    confirm(admin, "/queues/", "delayed/act/", verb="run_now", key=keys)
    confirm(admin, "/queues/", "act/", verb="pause", key=b"c".hex())

    assert [waiting(sharded, queue) for queue in ("a", "b")] == [1, 1]
    assert set(paused_queues(sharded, QUEUES)) == {"c"}

"""The page of a queue's history: lines, the same figures as a table, marks, and what is asked for in its address."""

from __future__ import annotations

import csv
import io
from typing import Any
from xml.etree import ElementTree

import pytest
from celery import Celery
from django.test import Client

from celery_streams.broker import StreamBroker
from celery_streams.history import record
from celery_streams.tallies import Tally, add, mark
from tests.django_app.test_dashboard import text_of

HOSTILE = "<script>alert(1)</script>\x1b[2J'\"&\u202e"


@pytest.fixture
def admin(site: Celery) -> Client:
    from django.contrib.auth.models import User

    client = Client()
    client.force_login(User.objects.create(username="root", is_staff=True, is_superuser=True))
    return client


def sample(broker: StreamBroker, *, ago: float, queue: str = "send_message", **held: int) -> None:
    at = broker.clock_ms() - int(ago * 1000)
    values = [part for name in "wpdx" for part in (name, held.get(name, 0))]
    added = ["a", held["a"]] if "a" in held else []
    broker.client.call("SADD", "celery-streams:queues", queue)
    broker.client.call("XADD", broker.queue_keys(queue).history, f"{at}-0", *values, *added)


def drawings(page: str) -> list[ElementTree.Element]:
    """Return the charts of a page, each read as XML."""
    return [ElementTree.fromstring(f"<svg{one}".partition("</svg>")[0] + "</svg>") for one in charts(page)]


def charts(page: str) -> list[str]:
    return page.split('<svg class="cs-chart"')[1:]


def get(admin: Client, **query: Any) -> str:
    response = admin.get("/queues/history/", {"queue": "send_message", **query})
    assert response.status_code == 200
    return str(response.content.decode())


def test_lines_are_drawn_and_said_and_stand_in_the_table(admin: Client, broker: StreamBroker) -> None:
    sample(broker, ago=900, w=8, a=100)
    sample(broker, ago=840, w=8, a=100)
    sample(broker, ago=600, w=4, a=130)
    some = Tally(done=7, failed=2, waits={0.25: 9}, runs={1.0: 9}, wait_sum=1.8, run_sum=4.5)
    add(broker, {"send_message": some.names()})
    key = broker.queue_keys("send_message").tallies[0]
    step, text = broker.client.call("HGETALL", key)
    broker.client.call("HSET", key, int(step) - 5, text)
    broker.client.call("HDEL", key, step)

    page = get(admin)

    found = drawings(page)
    assert len(found) == 4
    assert "Waiting: from 4 to 8, at the end 4" in found[0].attrib["aria-label"]
    assert "Done: from 7 to 7, at the end 7" in found[1].attrib["aria-label"]
    assert "95 of 100 within: from 250 ms to 250 ms" in found[2].attrib["aria-label"]
    assert "Mean: from 500 ms to 500 ms" in found[3].attrib["aria-label"]
    assert any("polyline" in one.tag for one in found[0])
    table = page[page.index("<table") :]
    assert '<td class="cs-n">7</td><td class="cs-n">2</td>' in table
    assert '<td class="cs-n">200 ms</td><td class="cs-n">250 ms</td>' in table
    assert "known of workers that count" not in page


def test_everything_that_is_drawn_lies_within_the_drawing(admin: Client, broker: StreamBroker) -> None:
    for ago, waiting in ((3_000, 0), (1_500, 1_000_000), (1_300, 1), (300, 3)):
        sample(broker, ago=ago, w=waiting)
    mark(broker, ["send_message"], worker="w", version="1")

    for one in (drawing for span in ("hour", "day") for drawing in drawings(get(admin, span=span))):
        _, _, width, height = map(float, one.attrib["viewBox"].split())
        for node in one:
            for name, value in node.attrib.items():
                if name in ("x", "x1", "x2", "cx"):
                    assert 0 <= float(value) <= width
                elif name in ("y", "y1", "y2", "cy"):
                    assert 0 <= float(value) <= height
                elif name == "points":
                    points = [tuple(map(float, point.split(","))) for point in value.split()]
                    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_page_says_how_to_have_more_counted(admin: Client, broker: StreamBroker) -> None:
    sample(broker, ago=100, w=2)

    page = get(admin)

    assert len(charts(page)) == 2
    assert "streams_count_tasks" in page
    assert "Run time" not in page


def test_new_versions_of_workers_are_marked(admin: Client, broker: StreamBroker) -> None:
    sample(broker, ago=100, w=2)
    mark(broker, ["send_message"], worker="w", version="0.9.1")

    page = get(admin)

    assert all('class="cs-mark"' in chart and ">0.9.1</text>" in chart for chart in charts(page))
    assert "<td>0.9.1</td>" in page


def test_day_has_steps_of_ten_minutes(admin: Client, broker: StreamBroker) -> None:
    for minutes in (0, 5, 10):
        sample(broker, ago=20 * 3_600 - 60 * minutes, w=5)
    sample(broker, ago=100, w=2)

    assert "from 2 to 2" in get(admin)
    assert "from 2 to 5" in get(admin, span="day")
    assert "Each row is 10 min" in get(admin, span="day")
    assert "Each row is 1 min" in get(admin, span="a year")


def test_figures_are_exported(admin: Client, broker: StreamBroker) -> None:
    sample(broker, ago=100, w=2)
    add(broker, {"send_message": Tally(done=7, runs={1.0: 9}, run_sum=4.5).names()})

    answer = admin.get("/queues/history/", {"queue": "send_message", "format": "csv"})
    rows = list(csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode().lstrip("\ufeff"))))  # type: ignore[attr-defined]
    as_json = b"".join(  # type: ignore[attr-defined]
        admin.get("/queues/history/", {"queue": "send_message", "format": "json"}).streaming_content
    )

    assert len(rows) == 60
    assert rows[-1]["waiting"] == "2"
    assert sum(int(row["done"] or 0) for row in rows) == 7
    assert [row["run_mean"] for row in rows if row["done"]] == ["0.5"]
    assert as_json.count(b'"waiting"') == 60


def test_page_is_not_sent_again_while_nothing_changes(admin: Client, broker: StreamBroker) -> None:
    sample(broker, ago=100, w=2)
    page = admin.get("/queues/history/", {"queue": "send_message"})

    add(broker, {"send_message": {"done": 1}})
    changed = admin.get("/queues/history/", {"queue": "send_message"}, headers={"If-None-Match": page.headers["ETag"]})
    same = [
        admin.get("/queues/history/", {"queue": "send_message"}, headers={"If-None-Match": one.headers["ETag"]})
        for one in (changed,) * 2
    ]

    assert changed.status_code == 200
    # A minute may end in between, once.
    assert 304 in [one.status_code for one in same]


def test_hostile_names_do_no_harm(admin: Client, broker: StreamBroker) -> None:
    sample(broker, ago=100, queue=HOSTILE, w=2)
    mark(broker, [HOSTILE], worker="w", version=HOSTILE)

    page = get(admin, queue=HOSTILE)

    assert "<script>alert" not in page
    assert "\x1b" not in text_of(page)  # a form keeps a name as it is
    assert "from 2 to 2" in page
    assert len(drawings(page)) == 2


def test_queue_that_is_none_is_one_line(admin: Client, broker: StreamBroker) -> None:
    broker.ensure_groups(["send_message"])

    response = admin.get("/queues/history/", {"queue": "nobody's"})

    assert response.status_code == 404
    assert "There is no such queue." in response.content.decode()
    assert admin.get("/queues/history/").status_code == 200


def test_line_of_the_queue_table_leads_to_the_history(admin: Client, broker: StreamBroker) -> None:
    sample(broker, ago=600, w=4)
    record(broker, ["send_message"])

    assert 'href="/queues/history/?queue=send_message"' in admin.get("/queues/").content.decode()

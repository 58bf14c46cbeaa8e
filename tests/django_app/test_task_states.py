"""The state of one task as JSON: who may see it, and how it is polled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from django.http import HttpRequest
from django.test import Client, override_settings

from celery_streams import streams_of
from tests.django_app.test_views import AWAY, browser, logged_in, staff  # noqa: F401  (fixtures)

asked: list[tuple[str, dict[str, Any]]] = []


def owns(request: HttpRequest, task_id: str, headers: dict[str, Any]) -> bool:
    """Allow who published a task, as its header says."""
    asked.append((task_id, headers))
    return headers.get("owner") is not None and request.GET.get("me") == str(headers["owner"])


OWNS = "tests.django_app.test_task_states.owns"


@pytest.fixture
def tracked(site: Celery) -> Iterator[str]:
    """The id of a tracked task of owner 7."""
    send_message = site.tasks["chat.tasks.send_message"]
    send_message.streams_track = True
    asked.clear()
    try:
        yield send_message.apply_async((1,), headers={"owner": 7}).id
    finally:
        del send_message.streams_track


def test_staff_sees_the_state_of_a_task(staff: Client, tracked: str) -> None:  # noqa: F811
    response = staff.get(f"/queues/tasks/{tracked}/")

    found = response.json()
    assert response.status_code == 200
    assert found.pop("since") > 1.7e9
    assert found == {
        "task_id": tracked,
        "state": "queued",
        "until": None,
        "attempt": 1,
        "of": 4,
        "reason": "",
    }


@pytest.mark.parametrize("task_id", ["nobody-knows-it", "%00", "a b", "x" * 3000])
def test_foreign_task_and_unknown_task_answer_alike(browser: Client, tracked: str, task_id: str) -> None:  # noqa: F811
    foreign, unknown = (browser.get(f"/queues/tasks/{one}/") for one in (tracked, task_id))

    assert foreign.status_code == unknown.status_code == 404
    assert foreign.content == unknown.content
    assert foreign.headers == unknown.headers
    assert "ETag" not in foreign.headers


def test_user_who_is_not_staff_sees_nothing_by_default(tracked: str) -> None:
    assert logged_in(is_staff=False).get(f"/queues/tasks/{tracked}/").status_code == 404


def test_project_says_who_may_see_it_by_the_headers_of_the_message(browser: Client, tracked: str) -> None:  # noqa: F811
    with override_settings(CELERY_STREAMS_TASK_PERMISSION=OWNS):
        mine = browser.get(f"/queues/tasks/{tracked}/?me=7")
        theirs = browser.get(f"/queues/tasks/{tracked}/?me=8")

    assert (mine.status_code, theirs.status_code) == (200, 404)
    assert asked[0][0] == tracked
    assert (asked[0][1]["task"], asked[0][1]["owner"]) == ("chat.tasks.send_message", 7)


def test_polling_gets_304_until_the_state_changes(staff: Client, site: Celery, tracked: str) -> None:  # noqa: F811
    first = staff.get(f"/queues/tasks/{tracked}/")
    tag = first.headers["ETag"]
    again = staff.get(f"/queues/tasks/{tracked}/", headers={"If-None-Match": tag})
    streams_of(site).broker.client.call("SET", "celery-streams:{send_message}:paused", "1700000000000 by hand")
    changed = staff.get(f"/queues/tasks/{tracked}/", headers={"If-None-Match": tag})

    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert (changed.status_code, changed.json()["state"]) == (200, "held")
    assert first.headers["Cache-Control"] == "private, no-cache"


def test_redis_away_says_nothing_of_the_project(
    staff: Client,  # noqa: F811
    tracked: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with override_settings(CELERY_STREAMS_URL=AWAY), caplog.at_level(logging.WARNING):
        response = staff.get(f"/queues/tasks/{tracked}/")

    assert (response.status_code, response.json()["error"]) == (503, "unavailable")
    assert "127.0.0.1" not in response.content.decode()
    assert tracked in caplog.text


def test_wrong_permission_setting_lets_nobody_in(staff: Client, tracked: str) -> None:  # noqa: F811
    with override_settings(CELERY_STREAMS_TASK_PERMISSION="chat.nowhere.test"):
        assert staff.get(f"/queues/tasks/{tracked}/").status_code == 500


def test_only_reads_are_answered(staff: Client, tracked: str) -> None:  # noqa: F811
    assert staff.post(f"/queues/tasks/{tracked}/").status_code == 405

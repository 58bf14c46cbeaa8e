"""The status pages of a Django project: who may see them, what they show, and what they say when Redis is away."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from celery import Celery
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.test import Client, override_settings

from celery_streams.broker import StreamBroker
from tests.support.processes import ROOT
from tests.support.redis_state import message

AWAY = "redis://:secret@127.0.0.1:1/0"

PAGES = ["/queues/status/", "/queues/metrics/"]


def has_token(request: HttpRequest) -> bool:
    return request.headers.get("Authorization") == "Bearer token"


@pytest.fixture
def browser(site: Celery) -> Client:
    """A browser in which nobody is logged in."""
    return Client()


def logged_in(**rights: Any) -> Client:
    from django.contrib.auth.models import User

    client = Client()
    client.force_login(User.objects.create(username="alice", **rights))
    return client


@pytest.fixture
def staff(site: Celery) -> Client:
    """A browser in which staff is logged in."""
    return logged_in(is_staff=True)


def test_status_is_json_for_staff(staff: Client, broker: StreamBroker) -> None:
    broker.publish("send_message", message(1))

    response = staff.get("/queues/status/")

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    found = response.json()
    assert [(queue["queue"], queue["waiting"]) for queue in found["queues"]] == [
        ("mark_as_read", 0),
        ("send_message", 1),
    ]
    assert (found["enabled"], found["level"]) == (True, "critical")
    assert found["alerts"][0]["name"] == "no_consumer"


def test_status_of_named_queues_only(staff: Client, broker: StreamBroker) -> None:
    broker.publish("send_message", message(1))

    found = staff.get("/queues/status/", {"queue": ["mark_as_read"]}).json()

    assert [queue["queue"] for queue in found["queues"]] == ["mark_as_read"]


@pytest.mark.parametrize("page", PAGES)
def test_nobody_logged_in_is_refused_in_json_without_a_redirect(browser: Client, page: str) -> None:
    response = browser.get(page)

    assert response.status_code == 403
    assert response.json()["error"] == "forbidden"


@pytest.mark.parametrize("page", PAGES)
def test_user_who_is_not_staff_is_refused(site: Celery, page: str) -> None:
    assert logged_in(is_staff=False).get(page).status_code == 403


@pytest.mark.parametrize("page", PAGES)
@override_settings(MIDDLEWARE=[])
def test_project_without_authentication_refuses_everybody(site: Celery, page: str) -> None:
    assert Client().get(page).status_code == 403


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("test", [has_token, "tests.django_app.test_views.has_token"])
def test_project_may_choose_another_test(browser: Client, staff: Client, page: str, test: Any) -> None:
    with override_settings(CELERY_STREAMS_STATUS_PERMISSION=test):
        assert browser.get(page, headers={"Authorization": "Bearer token"}).status_code == 200
        assert staff.get(page).status_code == 403


def test_function_of_the_guide_lets_staff_in_and_who_has_the_token(
    browser: Client, staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "MIGRATION.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"os": os}
    exec(guide.partition("# chatbackend/permissions.py\nimport os\n")[2].partition("```")[0], namespace)

    def answers(client: Client, token: str) -> int:
        return client.get("/queues/status/", headers={"Authorization": f"Bearer {token}"}).status_code

    with override_settings(CELERY_STREAMS_STATUS_PERMISSION=namespace["may_see_queues"]):
        assert (answers(browser, ""), answers(staff, "")) == (403, 200)
        monkeypatch.setenv("QUEUES_TOKEN", "s3cret")
        assert [answers(browser, token) for token in ("s3cret", "S3cret", "", "é")] == [200, 403, 403, 403]


@pytest.mark.parametrize("page", PAGES)
def test_permission_that_cannot_be_imported_lets_nobody_in(staff: Client, page: str) -> None:
    name = "CELERY_STREAMS_STATUS_PERMISSION"

    with override_settings(**{name: "chat.nowhere.test"}), pytest.raises(ImproperlyConfigured, match=name):
        staff.get(page)


@pytest.mark.parametrize("page", PAGES)
def test_pages_only_answer_reads_and_are_never_cached(staff: Client, page: str) -> None:
    assert staff.post(page).status_code == 405
    assert "no-store" in staff.get(page).headers["Cache-Control"]


def test_redis_away_is_an_error_in_json_that_names_the_reason(staff: Client) -> None:
    with override_settings(CELERY_STREAMS_URL=AWAY):
        response = staff.get("/queues/status/")

    assert response.status_code == 503
    assert response.json()["error"] == "unavailable"
    assert "127.0.0.1:1/0 cannot be reached" in response.json()["message"]
    assert "secret" not in response.content.decode()


def test_wrong_setting_is_an_error_in_json_that_names_it(staff: Client) -> None:
    with override_settings(CELERY_STREAMS_DELIVERY_LIMIT=0):
        response = staff.get("/queues/status/")

    assert response.status_code == 500
    assert response.json() == {
        "error": "misconfigured",
        "message": "streams_delivery_limit must be at least 1, got 0",
    }


def test_metrics_have_the_text_format_of_prometheus(staff: Client, broker: StreamBroker) -> None:
    broker.publish("send_message", message(1))

    response = staff.get("/queues/metrics/")

    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert 'celery_streams_queue_waiting{queue="send_message"} 1.0' in response.content.decode().splitlines()


def test_metrics_of_a_redis_that_is_away_say_that_it_is_down(staff: Client) -> None:
    with override_settings(CELERY_STREAMS_URL=AWAY):
        response = staff.get("/queues/metrics/")

    assert response.status_code == 200
    assert "celery_streams_up 0.0" in response.content.decode().splitlines()


def test_metrics_without_prometheus_client_say_what_to_install(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "celery_streams.monitoring.prometheus", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)

    response = staff.get("/queues/metrics/")

    assert response.status_code == 501
    assert "pip install 'celery-streams[prometheus]'" in response.json()["message"]


def test_pages_have_names(site: Celery) -> None:
    from django.urls import reverse

    assert [reverse(f"celery_streams:{name}") for name in ("status", "metrics")] == PAGES

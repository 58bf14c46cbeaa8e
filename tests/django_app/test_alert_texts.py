"""Alerts in the language of the page: in English word for word as on the command line, in Portuguese all of them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from celery import Celery
from django.test import Client
from django.utils import translation

from celery_streams.broker import StreamBroker
from celery_streams.conf import Alerts
from celery_streams.history import Sample
from celery_streams.inspect import QueueStatus
from celery_streams.monitoring.alerts import Alert, judge, never_used
from celery_streams.monitoring.growth import judge_growth
from celery_streams.monitoring.lists import ListSide
from tests.django_app.test_dashboard import bury, person

#: Every threshold that there is, met by anything.
LOW = Alerts(**{field.name: 0.5 for field in fields(Alerts)})  # type: ignore[arg-type]

#: What English and Portuguese exchange in numbers.
POINTS = str.maketrans(",.", ".,")

NAMES = {field.name.rpartition("_")[0] for field in fields(Alerts)}


def alerts(value: int) -> list[Alert]:
    """Return every alert that there is, each of ``value``."""
    state = QueueStatus("q", value, 0, 0, value, 0, None, 0.0)
    lively = replace(
        state,
        consumers=1,
        pending=value,
        oldest_waiting=value + 0.25,
        overdue=float(value),
        crashes=value,
        paused=value,
    )
    dead = replace(state, waiting=0, dead_workers=("w",) * value)
    before = [Sample(0.0, waiting=0, pending=0, delayed=0, dead=0)]
    found = [
        *judge(state, LOW, ListSide(value, stock_workers=())),
        *judge(lively, LOW, ListSide(value, stock_workers=("c@h",), share=0.5)),
        *judge(dead, LOW, ListSide(value, stock_workers=("c@h",), share=1.0)),
        *judge_growth(state, before, LOW),
    ]
    assert {alert.name for alert in found} == NAMES
    return found


@pytest.mark.parametrize("value", [1, 2, 12_345])
def test_alert_says_on_the_page_what_it_says_on_the_command_line(chatsite: Celery, value: int) -> None:
    from django_integration.dashboard.alert_texts import text_of

    for alert in alerts(value):
        with translation.override("en"):
            assert text_of(alert) == alert.message
            assert text_of(replace(alert, level="warning")) == alert.message.replace("critical", "warning")
        with translation.override("pt-br"):
            text = text_of(alert)
        assert text.endswith(f"(crítico a partir de {alert.message.split()[-1].translate(POINTS)}")
        assert f"{value:,}".translate(POINTS) in text
        assert not {"queue", "waiting", "dead", "message", "Celery's"} & set(text.split())


def test_what_is_no_measure_is_said_as_it_is(chatsite: Celery) -> None:
    from django_integration.dashboard.alert_texts import text_of

    odd = Alert("critical", "", "redis", "100% away %(value)s {value}", 0, 0)

    with translation.override("pt-br"):
        assert text_of(odd) == odd.message
        assert text_of(never_used("q")).startswith("nunca foi usada")
    with translation.override("en"):
        assert text_of(never_used("q")) == never_used("q").message


@pytest.mark.parametrize("page", ["", "alerts/"])
def test_pages_say_alerts_in_portuguese(site: Celery, broker: StreamBroker, page: str) -> None:
    bury(broker, 1)
    client: Client = person(superuser=True)

    found = client.get("/queues/" + page, headers={"Accept-Language": "pt-br"}).content.decode()

    assert "1 mensagem morta (aviso a partir de 1)" in found
    assert "dead letter" not in found

"""When a delayed message is due: countdown and eta, time zones and the hours that clocks leave out or repeat.

The publisher's clock is stopped, so that due times are exact; Redis only keeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.utils.time import maybe_make_aware
from freezegun import freeze_time

from celery_streams.broker import StreamBroker
from tests.support.versions import needs_celery

MakeApp = Callable[..., Celery]

NOW = datetime(2026, 3, 28, 12, 0, tzinfo=timezone.utc)  # clocks go forward in Europe in the following night
BERLIN = ZoneInfo("Europe/Berlin")


def ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def due(broker: StreamBroker) -> list[int]:
    """Return when the delayed messages are due, in milliseconds since the epoch."""
    flat = broker.client.call("ZRANGE", broker.queue_keys("celery").delayed, 0, -1, "WITHSCORES")
    return [int(score) for score in flat[1::2]]


def publish(app: MakeApp, *, now: datetime = NOW, settings: dict[str, Any] | None = None, **options: Any) -> None:
    project = app(**(settings or {}))
    with freeze_time(now):
        project.send_task("t", **options)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu"])
@pytest.mark.parametrize("enable_utc", [True, False])
def test_countdown_is_seconds_from_now_in_every_time_zone(
    app: MakeApp, broker: StreamBroker, zone: str, enable_utc: bool
) -> None:
    publish(app, settings={"timezone": zone, "enable_utc": enable_utc}, countdown=90)

    assert due(broker) == [ms(NOW) + 90_000]


@needs_celery((5, 7), "before, it adds a countdown to what the clock on the wall shows")
@pytest.mark.parametrize("enable_utc", [True, False])
def test_countdown_of_a_day_is_a_day_when_clocks_go_forward_meanwhile(
    app: MakeApp, broker: StreamBroker, enable_utc: bool
) -> None:
    publish(app, settings={"timezone": "Europe/Berlin", "enable_utc": enable_utc}, countdown=86_400)

    assert due(broker) == [ms(NOW) + 86_400_000]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
@pytest.mark.parametrize("eta", [datetime(2026, 7, 1, 12, 0), datetime(2026, 3, 29, 2, 30), "2026-10-25T02:30:00"])
def test_eta_without_a_zone_is_utc_as_a_stock_worker_takes_it(
    app: MakeApp, broker: StreamBroker, eta: datetime | str, zone: str
) -> None:
    publish(app, settings={"timezone": zone}, eta=eta)

    at = eta if isinstance(eta, datetime) else datetime.fromisoformat(eta)
    assert maybe_make_aware(at, ZoneInfo(zone)) == at.replace(tzinfo=timezone.utc)  # Celery's own, in its Request
    assert due(broker) == [ms(at.replace(tzinfo=timezone.utc))]


@pytest.mark.parametrize(
    "eta",
    [
        datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
        datetime(2026, 7, 1, 12, 0, tzinfo=timezone(timedelta(hours=5, minutes=45))),
        "2026-07-01T12:00:00-03:00",
        "2026-07-01T12:00:00Z",
    ],
    ids=["second of two", "offset", "text", "text in UTC"],
)
def test_eta_with_a_zone_is_what_it_says_whatever_the_projects_zone(
    app: MakeApp, broker: StreamBroker, eta: datetime | str
) -> None:
    publish(app, settings={"timezone": "Asia/Kathmandu"}, eta=eta)

    expected = eta if isinstance(eta, datetime) else datetime.fromisoformat(eta.replace("Z", "+00:00"))
    assert due(broker) == [ms(expected)]


@pytest.mark.parametrize(
    ("ahead", "at"),
    [
        (timedelta(days=-1), None),
        (timedelta(0), None),
        (timedelta(microseconds=1), 1),  # a due time is whole milliseconds, and never before the eta
        (timedelta(milliseconds=1), 1),
        (timedelta(milliseconds=1, microseconds=1), 2),
    ],
)
def test_message_is_delayed_when_its_eta_is_ahead_and_published_at_once_when_not(
    app: MakeApp, broker: StreamBroker, ahead: timedelta, at: int | None
) -> None:
    publish(app, eta=NOW + ahead)

    length = broker.client.call("XLEN", broker.streams(["celery"])[0].key)
    assert (length, due(broker)) == ((1, []) if at is None else (0, [ms(NOW) + at]))

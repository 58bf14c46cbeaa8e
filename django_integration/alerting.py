"""Alerting: sends ``queue_alert`` when the level of an alert changes, once for all processes of the project.

Looked at each minute by the workers that ``manage.py`` started, by turns, and by ``manage.py celery_streams alerts``,
for cron: when no worker lives, nobody else would say so. The levels that were sent are kept in Redis.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict
from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from celery_streams import BrokerError, ConfigurationError, Streams, streams_of
from celery_streams.monitoring.alerts import Alert
from celery_streams.monitoring.growth import watch
from celery_streams.signals import alerts_seen
from celery_streams.told_alerts import Change, changes, take_turn

from .signals import queue_alert

__all__ = ("look", "start_watching")

logger = logging.getLogger("celery_streams.alerts")

#: Seconds between two looks; one of all workers looks.
EVERY = 60.0


def look(streams: Streams, *, alerts: list[Alert] | None = None) -> list[Change]:
    """Send the signal for each alert whose level changed, one that is over as level ``ok``; returns them.

    Raises:
        BrokerError: Redis is away, or refuses.
        ConfigurationError: a setting is wrong.
    """
    found = {(one.queue, one.name): one for one in (watch(streams) if alerts is None else alerts)}
    changed = changes(streams.broker, {about: one.level for about, one in found.items()})
    for change in changed:
        alert = found.get((change.queue, change.name))
        _send(change, "is over" if alert is None else alert.message)
    return changed


def _send(change: Change, message: str) -> None:
    for receiver, failure in queue_alert.send_robust(sender=look, **asdict(change), message=message):
        if isinstance(failure, Exception):
            logger.error("The receiver %r of queue_alert failed: %r", receiver, failure)


class _Watch(threading.Thread):
    def __init__(self, streams: Streams) -> None:
        super().__init__(name="celery-streams-alerts", daemon=True)
        self._streams = streams
        self._stopped = threading.Event()
        self._failing = False

    def stop(self, **named: Any) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.wait(EVERY):
            try:
                if take_turn(self._streams.broker):
                    look(self._streams)
            except (BrokerError, ConfigurationError) as exc:
                if not self._failing:
                    logger.warning("Cannot check the alerts: %s. Trying again.", exc)
                self._failing = True
            except Exception:
                logger.exception("Cannot check the alerts; trying again.")
            else:
                self._failing = False


def start_watching() -> None:
    """Have each worker of this process, and ``celery-streams alerts``, send the signal if somebody receives it."""
    worker_ready.connect(_on_ready, dispatch_uid="celery-streams-alerts", weak=False)
    alerts_seen.connect(_on_seen, dispatch_uid="celery-streams-alerts", weak=False)


def _on_seen(sender: Any, alerts: list[Alert], **named: Any) -> None:
    if queue_alert.receivers:
        look(streams_of(sender), alerts=alerts)


def _on_ready(sender: Any, **named: Any) -> None:
    app = getattr(sender, "app", None)
    if app is None or not queue_alert.receivers:
        return
    watching = _Watch(streams_of(app))
    worker_shutting_down.connect(watching.stop, weak=False)
    watching.start()

"""Told alerts: of which alerts a project was told, and their level; in Redis, so that one of its processes tells it.

What an alert is, and whom to tell, is the matter of ``monitoring`` and ``django_integration``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from . import keys
from .broker import StreamBroker

__all__ = ("Change", "changes", "take_turn")

#: Milliseconds for which one process has the turn: a little less than a minute.
_TURN_MS = 50_000


@dataclass(frozen=True, slots=True)
class Change:
    """An alert whose level changed; ``ok`` is the level of none."""

    queue: str
    name: str
    before: str
    level: str


def take_turn(broker: StreamBroker) -> bool:
    """Return whether this process looks at the alerts in this minute, and no other one.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    return bool(broker.client.call("SET", keys.alerts_turn(broker.prefix), "1", "NX", "PX", _TURN_MS))


def changes(broker: StreamBroker, levels: Mapping[tuple[str, str], str]) -> list[Change]:
    """Keep the levels of all alerts there are, by queue and name, and return those that changed.

    Of two processes that see an alert begin or end at once, one gets it.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    key = keys.alerts(broker.prefix)
    flat = broker.client.call("HGETALL", key)
    before = {
        name.decode(errors="replace"): level.decode(errors="replace")
        for name, level in zip(flat[::2], flat[1::2], strict=True)
    }
    now = {json.dumps(alert): level for alert, level in levels.items()}
    found: list[Change] = []
    for name, level in now.items():
        old = before.get(name, "ok")
        # HSET tells whether the field is new: then nobody else was there before.
        if old != level and (broker.client.call("HSET", key, name, level) or name in before):
            found.append(_change(name, old, level))
    gone = [name for name in before.keys() - now.keys() if _alert(name) is not None]
    ended = [name for name in gone if broker.client.call("HDEL", key, name)]
    return [*found, *(_change(name, before[name], "ok") for name in ended)]


def _change(name: str, before: str, level: str) -> Change:
    queue, alert = _alert(name) or ("", "")
    return Change(queue, alert, before, level)


def _alert(name: str) -> tuple[str, str] | None:
    """Return queue and name of an alert; None when the field is somebody else's."""
    try:
        queue, alert = json.loads(name)
    except (ValueError, TypeError, RecursionError):
        return None
    return (queue, alert) if isinstance(queue, str) and isinstance(alert, str) else None

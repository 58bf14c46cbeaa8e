"""News: says in Redis that something changed which workers else look at now and then; it does not say what.

Each worker listens to one stream of one entry, and looks when there is a new one: at pauses, at limits that were set at
run time, at the tasks that other workers know. Who may not use its key looks by itself, more often.
"""

from __future__ import annotations

import logging
from typing import Any

from . import keys
from .broker import StreamBroker
from .exceptions import BrokerError

__all__ = ("spread", "story")

logger = logging.getLogger(__name__)


def story(broker: StreamBroker, about: str) -> tuple[Any, ...]:
    """Return the command that says so, for a pipeline; ``about`` is for people who look at the key."""
    return ("XADD", keys.news(broker.prefix), "MAXLEN", 1, "*", "about", about)


def spread(broker: StreamBroker, about: str) -> None:
    """Say that something changed. One round trip; where Redis refuses, workers notice by themselves."""
    [said] = broker.client.pipeline([story(broker, about)])
    if isinstance(said, BrokerError):
        logger.debug("Cannot notify workers of %s; they notice it within seconds: %s", about, said)

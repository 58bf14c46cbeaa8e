"""Replies: sends the answers to remote control, in a thread of its own.

kombu sends each at once and tries for ever: with a broker that went silent after the question, the worker's main thread
would never come back from it. Who asked waits for a second, or a few; an answer that cannot be sent is dropped.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kombu import Exchange

from .later import Later

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Replies",)

logger = logging.getLogger(__name__)

#: Answers that are kept while the broker does not take them: the newest.
_MOST = 100

#: One more try, over a new connection: the one that was open may have died since the last answer.
_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0}

#: What is sent, to which exchange with which routing key, and the ticket of the question.
_Answer = tuple[Any, str, str, str]


class Replies:
    """The answers of one worker."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._later = Later[_Answer]("celery-streams-replies", self._publish, most=_MOST)

    def send(self, data: Any, exchange: str, routing_key: str, ticket: str, **_: Any) -> None:
        """Send one answer soon; called as kombu's ``Node.reply``."""
        self._later.put((data, exchange, routing_key, ticket))

    def close(self) -> None:
        """Send what is left, if that can be done within a second."""
        self._later.close()

    def _publish(self, answer: _Answer) -> None:
        data, exchange, routing_key, ticket = answer
        mailbox = self._app.control.mailbox
        to = Exchange(exchange, exchange_type="direct", delivery_mode="transient", durable=False)
        headers = {"ticket": ticket, "clock": mailbox.clock.forward()}
        try:
            with self._app.amqp.producer_pool.acquire(block=True) as producer:
                producer.publish(
                    data,
                    exchange=to,
                    routing_key=routing_key,
                    declare=[to],
                    headers=headers,
                    serializer=mailbox.serializer,
                    retry=True,
                    retry_policy=_POLICY,
                )
        except Exception as exc:  # noqa: BLE001
            # A boundary: transports and serializers raise anything, and the next answer may be sent.
            logger.warning("An answer to remote control could not be sent: %s", exc)

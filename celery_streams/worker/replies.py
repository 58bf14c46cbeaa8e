"""Replies: sends the answers to remote control, in a thread of its own.

kombu sends each at once and tries for ever: with a broker that went silent after the question, the worker's main thread
would never come back from it. Who asked waits for a second, or a few; an answer that cannot be sent is dropped.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from kombu import Exchange

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Replies",)

logger = logging.getLogger(__name__)

#: Answers that are kept while the broker does not take them: the newest.
_MOST = 100

#: One more try, over a new connection: the one that was open may have died since the last answer.
_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0}

#: Seconds that the end of the worker may wait for the last answers.
_LAST = 1.0


class Replies:
    """The answers of one worker."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._waiting: deque[tuple[Any, str, str, str]] = deque(maxlen=_MOST)
        self._due = threading.Event()
        self._stop = False
        self._thread: threading.Thread | None = None

    def send(self, data: Any, exchange: str, routing_key: str, ticket: str, **_: Any) -> None:
        """Send one answer soon; called as kombu's ``Node.reply``."""
        self._waiting.append((data, exchange, routing_key, ticket))
        self._due.set()
        if self._thread is None:
            self._stop = False
            self._thread = threading.Thread(target=self._run, name="celery-streams-replies", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Send what is left, if that can be done within a second."""
        thread, self._thread = self._thread, None
        self._stop = True
        self._due.set()
        if thread is not None:
            thread.join(timeout=_LAST)

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            while self._waiting:
                self._publish(*self._waiting.popleft())
            if self._stop:
                return

    def _publish(self, data: Any, exchange: str, routing_key: str, ticket: str) -> None:
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

"""Published: a broker that says what is published through it, for whoever counts; a retry is none, but an outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .broker import StreamBroker
from .message import Message
from .partitions import queue_of

__all__ = ("CountingBroker",)


class CountingBroker(StreamBroker):
    """Calls ``counted`` with a queue and the number of messages that were stored for it."""

    def __init__(self, *args: Any, counted: Callable[[str, int], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counted = counted

    def publish(self, queue: str, message: Message, *, max_length: int | None = None) -> bytes:
        """Store and count one message."""
        entry_id = super().publish(queue, message, max_length=max_length)
        self.stored(queue, 1)
        return entry_id

    def delay(self, queue: str, message: Message, *, due_ms: int, member: str, max_length: int | None = None) -> None:
        """Likewise one that is due later."""
        super().delay(queue, message, due_ms=due_ms, member=member, max_length=max_length)
        self.stored(queue, 1)

    def stored(self, queue: str, count: int) -> None:
        """Count the messages of a block."""
        self._counted(queue_of(queue), count)

"""A store that Redis refuses half-way: nothing was settled, and the message is still pending for its consumer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_streams import keys
from celery_streams.broker import Delivery, StreamBroker
from celery_streams.exceptions import BrokerError
from tests.redis_state import delivered, message, redis_state

STREAM = "celery-streams:{q}"

#: verb -> the key that has the wrong type, and the call.
REFUSED: dict[str, tuple[str, Callable[[StreamBroker, Delivery], Any]]] = {
    "reject": (
        f"{STREAM}:dead",
        lambda broker, one: broker.reject(
            "me", one.stream, one.entry_id, death=b'{"reason":"failed"}', max_length=None, ttl=None
        ),
    ),
    "retry": (
        f"{STREAM}:delayed",
        lambda broker, one: broker.retry(
            "me", one.stream, one.entry_id, message(2), queue="q", due_ms=2**45, member="m"
        ),
    ),
    "requeue": (
        f"{STREAM}:delayed",
        lambda broker, one: broker.requeue("me", one.stream, one.entry_id, history={"crashes": 1}, delay_ms=60_000),
    ),
}


@pytest.mark.parametrize("verb", REFUSED)
def test_message_stays_pending_when_its_new_place_cannot_be_written(broker: StreamBroker, verb: str) -> None:
    wrong, act = REFUSED[verb]
    (held,) = delivered(broker, "q", "me", message(1))
    broker.client.call("SET", wrong, "of another type")

    with pytest.raises(BrokerError):
        act(broker, held)

    state = redis_state(broker.client)[STREAM]
    assert state.pending[keys.GROUP] == {held.entry_id.decode(): ("me", 1)}
    assert list(state.entries) == [held.entry_id.decode()]


def test_stream_that_is_gone_does_not_hide_what_is_held_on_others(broker: StreamBroker) -> None:
    (gone,) = delivered(broker, "gone", "me", message(1))
    (held,) = delivered(broker, "q", "me", message(2))
    broker.client.call("DEL", "celery-streams:{gone}")

    extended = broker.extend([(gone.stream, "me", gone.entry_id), (held.stream, "me", held.entry_id)])
    lost = broker.ack("me", [(gone.stream, gone.entry_id), (held.stream, held.entry_id)])

    assert extended == [0]
    assert lost == [gone.entry_id]
    assert redis_state(broker.client)[STREAM].entries == {}

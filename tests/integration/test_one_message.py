"""One message, delayed or held, is found by its name, in whichever partition of its queue it lies."""

from __future__ import annotations

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.delayed_messages import delayed_message
from celery_streams.partitions import partition
from celery_streams.running_messages import held_message
from tests.support.redis_state import message, redis_state


@pytest.mark.parametrize("number", [0, 1, 3])
def test_one_message_is_found_in_any_partition_and_nothing_is_changed(broker: StreamBroker, number: int) -> None:
    names = [partition("q", each) for each in range(4)]
    broker.ensure_groups(names)
    for each, name in enumerate(names):
        broker.delay(name, message(each), due_ms=2**41 + each, member=f"member-{each}")
        for held in range(60):
            broker.publish(name, message(100 * each + held, step=held % 2))
    broker.read(broker.streams(names), "w@h/1.aa", count=500)
    while broker.read(broker.streams(names), "w@h/2.bb", count=500):
        pass
    before = redis_state(broker.client)

    later = delayed_message(broker, "q", f"member-{number}")
    held_one = held_message(broker, "q", str(100 * number + 59))

    assert later is not None
    assert (later.queue, later.due, later.message) == ("q", (2**41 + number) / 1000, message(number))
    assert held_one is not None
    assert held_one.consumer.startswith("w@h/")
    assert held_one.delivery.stream.queue == names[number]
    assert delayed_message(broker, "q", "member-9") is None
    assert held_message(broker, "q", "999") is None
    assert held_message(broker, "nobody's", "1") is None
    assert redis_state(broker.client) == before

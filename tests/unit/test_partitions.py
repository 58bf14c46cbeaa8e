"""Partitions: their names, where these lie in a Redis Cluster, and which of them a key belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_streams import partitions
from celery_streams.cluster_map import SLOTS, slot_of
from celery_streams.entries import StreamRef
from celery_streams.exceptions import ConfigurationError
from celery_streams.keys import queue_keys
from celery_streams.setting_values import partitions as parse
from celery_streams.worker.reading_order import ReadingOrder

NAMES = st.text(min_size=1, max_size=30)


@given(NAMES, st.integers(1, partitions.MOST - 1))
def test_name_of_a_partition_tells_its_queue_and_its_number_and_is_reserved(queue: str, number: int) -> None:
    name = partitions.partition(queue, number)

    assert partitions.queue_of(name) == queue
    assert partitions.is_partition(name)
    assert partitions.located(queue, partitions.shown_id(name, "17-0")) == (name, "17-0")


@given(NAMES)
def test_queue_itself_is_its_first_partition(queue: str) -> None:
    assert partitions.partition(queue, 0) == queue
    assert partitions.shown_id(queue, "17-0") == "17-0"
    assert partitions.located(queue, "17-0") == (queue, "17-0")


@pytest.mark.parametrize("odd", ["q::partition-1", "q::partition-1.31", "q::partition-0.0", "q::partition-256.1", "::"])
def test_name_that_only_resembles_one_of_ours_is_a_queue_like_any_other(odd: str) -> None:
    assert partitions.queue_of(odd) == odd
    assert not partitions.is_partition(odd)
    assert partitions.by_queue([odd]) == {odd: [odd]}


def test_names_do_not_change_with_versions() -> None:
    # Messages lie under them.
    found = partitions.partitions("send_message", 4)

    assert found == [
        "send_message",
        "send_message::partition-1.151",
        "send_message::partition-2.68",
        "send_message::partition-3.43",
    ]


@pytest.mark.parametrize("queue", ["celery", "send_message", "chat.*", "ü", "0"])
@pytest.mark.parametrize(("count", "masters", "most"), [(8, 3, 3), (6, 3, 3), (4, 2, 3), (16, 4, 5), (256, 3, 88)])
def test_partitions_are_spread_evenly_over_the_slots(queue: str, count: int, masters: int, most: int) -> None:
    keys = [queue_keys("celery-streams", name).streams[0] for name in partitions.partitions(queue, count)]

    found = Counter(slot_of(key) * masters // SLOTS for key in keys)

    assert max(found.values()) <= most
    assert len(found) == masters


def test_queue_whose_name_ends_its_hash_tag_has_partitions_in_one_slot() -> None:
    assert len(set(partitions.partitions("a}b", 8))) == 8


@given(st.lists(st.text(), min_size=1, max_size=50), st.integers(1, 40), st.integers(1, 40))
def test_greater_number_moves_keys_to_new_partitions_only(keys: list[str], few: int, more: int) -> None:
    for key in keys:
        before, after = partitions.choose(key, few), partitions.choose(key, few + more)

        assert 0 <= before < few
        assert after == before or after >= few


def test_choice_is_the_same_in_every_process_and_even() -> None:
    # Not Python's hash(), which differs from process to process.
    assert [partitions.choose(key, 8) for key in ("", "a", "chat-5", "é", "\ud800")] == [5, 6, 3, 2, 6]
    found = Counter(partitions.choose(f"task-{number}", 8) for number in range(8_000))
    assert len(found) == 8
    assert min(found.values()) > 850
    assert max(found.values()) < 1_150


def test_names_are_told_by_their_queues_in_the_order_of_partitions() -> None:
    eight = partitions.partitions("q", 12)

    assert partitions.by_queue(sorted({"other", *eight})) == {"other": ["other"], "q": eight}
    # What the queue's own name is not among, as when it was never used
    assert partitions.by_queue(eight[3:5]) == {"q": ["q", *eight[3:5]]}


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"q": 0}, "queue 'q' must have a whole number of partitions from 1 to 256, got 0"),
        ({"q": -1}, "from 1 to 256, got -1"),
        ({"q": 257}, "from 1 to 256, got 257"),
        ({"q": "8"}, "from 1 to 256, got '8'"),
        ({"q": 2.0}, r"from 1 to 256, got 2\.0"),
        ({"q": True}, "from 1 to 256, got True"),
        ({"q": None}, "from 1 to 256, got None"),
        ({"": 2}, "must name queues, got ''"),
        ({7: 2}, "must name queues, got 7"),
        ({partitions.partition("q", 1): 2}, "must name queues, got 'q::partition-1"),
        (8, "must be a mapping of queue to number"),
        ('{"q": }', "is not valid JSON"),
        ("[1]", "must be a mapping of queue to number"),
    ],
)
def test_setting_that_makes_no_sense_is_one_clear_line(value: object, error: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^streams_partitions.*{error}"):
        parse("streams_partitions", value)


def test_setting_may_be_json_and_one_partition_is_none() -> None:
    assert parse("streams_partitions", '{"q": 8, "other": 1}') == {"q": 8}
    assert parse("streams_partitions", "") == {}


class OneSlot:
    """A broker on one server: all that the order asks of it."""

    steps = (0, 3)

    def streams_by_slot(self, streams: Sequence[StreamRef]) -> Sequence[Sequence[StreamRef]]:
        return [streams]


class EachItsSlot(OneSlot):
    """A broker on a Redis Cluster."""

    def streams_by_slot(self, streams: Sequence[StreamRef]) -> Sequence[Sequence[StreamRef]]:
        names = dict.fromkeys(ref.queue for ref in streams)
        return [[ref for ref in streams if ref.queue == name] for name in names]


@pytest.mark.parametrize("broker", [OneSlot(), EachItsSlot()])
def test_queue_has_its_turn_as_often_beside_one_with_many_partitions_and_each_partition_has_its_own(
    broker: Any,
) -> None:
    names = ["other", *partitions.partitions("q", 8)]
    streams = [StreamRef(name, step, f"{name}:{step}") for step in (0, 1) for name in names]
    order = ReadingOrder(broker)

    turns = [order.parts(streams) for _ in range(32)]

    firsts = Counter(parts[0][0].queue for parts in turns)
    assert firsts.pop("other") == 16
    assert firsts == Counter(dict.fromkeys(names[1:], 2))
    for parts in turns:
        everything = [ref for part in parts for ref in part]
        assert sorted(ref.key for ref in everything) == sorted(ref.key for ref in streams)
        assert all([ref.step for ref in part] == sorted(ref.step for ref in part) for part in parts)

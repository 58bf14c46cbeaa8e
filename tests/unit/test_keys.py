"""The names of Redis keys: one cluster slot for each queue, and kombu's direction of priorities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_streams import keys


def all_keys(names: keys.QueueKeys) -> list[str]:
    return [*names.streams, names.delayed, names.delayed_messages, names.wake, names.dead, names.claims]


def test_keys_are_those_of_the_data_model() -> None:
    names = keys.queue_keys("celery-streams", "send_message")

    assert names.streams == (
        "celery-streams:{send_message}",
        "celery-streams:{send_message}:3",
        "celery-streams:{send_message}:6",
        "celery-streams:{send_message}:9",
    )
    assert names.delayed == "celery-streams:{send_message}:delayed"
    assert names.delayed_messages == "celery-streams:{send_message}:delayed:messages"
    assert names.wake == "celery-streams:{send_message}:wake"
    assert names.dead == "celery-streams:{send_message}:dead"
    assert names.claims == "celery-streams:{send_message}:claims"
    assert keys.queues("p") == "p:queues"
    assert keys.revoked("p") == "p:revoked"
    assert keys.revoked_stamps("p") == "p:revoked:stamps"


@given(queue=st.text(min_size=1, max_size=20))
def test_no_two_keys_of_a_queue_are_the_same(queue: str) -> None:
    names = all_keys(keys.queue_keys("p", queue))

    assert len(set(names)) == len(names)


def test_all_keys_of_a_queue_have_one_cluster_hash_tag() -> None:
    for key in all_keys(keys.queue_keys("p", "mail.high")):
        assert key[key.index("{") + 1 : key.index("}")] == "mail.high"


def test_queue_named_like_a_suffix_does_not_meet_another_queue() -> None:
    assert not set(all_keys(keys.queue_keys("p", "a"))) & set(all_keys(keys.queue_keys("p", "a:delayed")))


@pytest.mark.parametrize(
    ("priority", "index"),
    [(None, 0), (0, 0), (1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (8, 2), (9, 3), (10, 3), (255, 3), (-1, 0)],
)
def test_priority_goes_to_the_step_at_or_below_it(priority: int | None, index: int) -> None:
    assert keys.queue_keys("p", "q").step_index(priority) == index


def test_own_priority_steps_give_their_own_streams() -> None:
    names = keys.queue_keys("p", "q", (0, 5))

    assert names.streams == ("p:{q}", "p:{q}:5")
    assert [names.step_index(priority) for priority in (0, 4, 5, 9)] == [0, 0, 1, 1]

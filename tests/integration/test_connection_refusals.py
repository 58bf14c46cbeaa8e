"""Replies of a Redis that is not ready, as a real one gives them: which error of ours they become."""

from __future__ import annotations

import pytest

from celery_streams.connection import RedisClient
from celery_streams.exceptions import BrokerError, BrokerFull, BrokerUnavailable
from celery_streams.scripts import DELAY


@pytest.mark.parametrize("stale", ["yes", "no"], ids=["READONLY", "MASTERDOWN"])
def test_a_replica_that_lost_its_master_is_unavailable_and_not_broken(client: RedisClient, stale: str) -> None:
    client.call("CONFIG", "SET", "replica-serve-stale-data", stale)
    client.call("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(BrokerUnavailable):
            client.call("SET", "key", "value")
        with pytest.raises(BrokerUnavailable):
            client.run(DELAY, ["{q}:delayed", "{q}:messages", "{q}:wake"], [1, "member", "packed", 0])
    finally:
        client.call("REPLICAOF", "NO", "ONE")
        client.call("CONFIG", "SET", "replica-serve-stale-data", "yes")


def test_server_that_became_a_replica_is_asked_for_anew(client: RedisClient) -> None:
    first = client.call("CLIENT", "ID")
    client.call("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(BrokerUnavailable):
            client.call("SET", "key", "value")
        second = client.call("CLIENT", "ID")
        assert isinstance(client.pipeline([("PING",), ("SET", "key", "value")])[1], BrokerUnavailable)
        third = client.call("CLIENT", "ID")
    finally:
        client.call("REPLICAOF", "NO", "ONE")

    # The name that was dialled may lead to another server by now.
    assert len({first, second, third}) == 3


@pytest.mark.parametrize("queue", ["CHATROOM", "LOADING ", "a-READONLY x", "x: OOM command"])
def test_name_of_a_queue_does_not_change_what_an_error_means(client: RedisClient, queue: str) -> None:
    with pytest.raises(BrokerError, match="NOGROUP") as caught:
        client.call("XREADGROUP", "GROUP", "g", "c", "STREAMS", f"celery-streams:{{{queue}}}", ">")

    assert not isinstance(caught.value, (BrokerUnavailable, BrokerFull))

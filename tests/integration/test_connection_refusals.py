"""Replies of a Redis that is not ready, as a real one gives them: which error of ours they become."""

from __future__ import annotations

import pytest

from celery_streams.connection import RedisClient
from celery_streams.exceptions import BrokerUnavailable
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

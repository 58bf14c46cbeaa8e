"""No command grows with the number of messages: ElastiCache Serverless takes 3,999 arguments at most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from celery import Celery

from celery_streams import bulk, keys
from celery_streams.broker import StreamBroker
from celery_streams.conf import StreamsConf
from celery_streams.connection import RedisClient
from celery_streams.dead_letters import purge_dead
from celery_streams.delayed_messages import cancel, run_now
from celery_streams.embedded import EmbeddedRedis
from celery_streams.entries import Entry
from celery_streams.exceptions import CommandMissing
from celery_streams.message import Message
from celery_streams.recovery import recover
from celery_streams.revocations import revoke, revoked
from celery_streams.worker.heartbeat import Heartbeat
from celery_streams.worker.outcome import Action, Outcome
from celery_streams.worker.settle import Settler
from celery_streams.worker.slots import Snapshot
from tests.support.redis_state import delivered, make_idle, message
from tests.support.serverless import MOST, Serverless

MANY = 4_500


@pytest.fixture
def proxy(redis_server: EmbeddedRedis, redis_url: str) -> Iterator[Serverless]:
    with Serverless(redis_server.port) as made:
        yield made


@pytest.fixture
def limited(proxy: Serverless) -> Iterator[StreamBroker]:
    """A broker that sends through the proxy."""
    made = StreamBroker(RedisClient(proxy.url))
    yield made
    made.client.close()


def tracked(number: int) -> Message:
    return message(number)._replace(headers=b'{"id":"%d","task":"t","retries":0,"streams_track":[60,null]}' % number)


def test_proxy_refuses_what_is_too_long_and_nothing_else(limited: StreamBroker, proxy: Serverless) -> None:
    with pytest.raises(CommandMissing):
        limited.client.call("DEL", *["key"] * MOST)

    assert limited.client.call("DEL", *["key"] * (MOST - 1)) == 0
    assert proxy.longest == MOST + 1


@pytest.mark.parametrize("track", [False, True])
def test_messages_of_a_block_are_stored_in_several_commands(
    proxy: Serverless, app: object, broker: StreamBroker, track: bool
) -> None:
    publisher: Celery = app(streams_url=proxy.url)  # type: ignore[operator]

    @publisher.task(name="t", shared=False, streams_track=track)
    def task() -> None: ...

    with bulk(publisher, max_count=2 * MANY, max_bytes=10**9):
        for _ in range(MANY):
            task.delay()

    assert broker.client.call("XLEN", "celery-streams:{celery}") == MANY
    assert proxy.longest <= MOST


def test_what_a_worker_holds_is_kept_alive_acknowledged_and_put_back(
    broker: StreamBroker, limited: StreamBroker, proxy: Serverless
) -> None:
    held = [one.entry for one in delivered(broker, "q", "me", *map(tracked, range(2 * MANY)))]
    done, left = held[:MANY], held[MANY:]

    @dataclass
    class Holder:
        consumer: str = "me"

        def snapshot(self) -> Snapshot:
            return Snapshot(1, 1, (), None, tuple(held), 0.0, None, None, False, False, 0)

        def mark_lost(self, batch: int) -> None:
            raise AssertionError("nothing is lost")

    assert Heartbeat(limited, lambda: [Holder()], visibility_timeout=15).run_once() == 2 * MANY

    settler = Settler(limited, "me", conf=StreamsConf(), hostname="me@here")
    for one in done:
        delivery = broker.fetch(Entry(*one))
        assert delivery is not None
        settler.settle(delivery, Outcome(Action.ACK))
    assert settler.waiting == MANY
    settler.flush()
    assert settler.waiting == 0
    assert limited.put_back("me", left) == len(left)

    assert broker.client.call("XPENDING", "celery-streams:{q}", keys.GROUP)[0] == 0
    assert len(broker.client.call("KEYS", "celery-streams:state:*")) >= MANY
    assert proxy.longest <= MOST


def test_entries_of_thousands_of_holders_come_back(
    broker: StreamBroker, limited: StreamBroker, proxy: Serverless
) -> None:
    (one,) = delivered(broker, "q", "dead", message(1))
    make_idle(broker, one.stream, "dead", one.entry_id, idle_ms=60_000)
    patience: dict[bytes, int | None] = {b"other-%d" % number: None for number in range(MANY)}

    kept = recover(limited, "q", "me", idle_ms=1, turn_ms=1, pauses_ms=[0], patience={**patience, b"dead": None})
    broker.client.call("DEL", "celery-streams:{q}:claims")
    found = recover(limited, "q", "me", idle_ms=1, turn_ms=1, pauses_ms=[0], patience={**patience, b"dead": 10_000})

    assert (kept.moved, kept.strangers, found.moved, found.strangers) == (0, (), 1, ())
    assert proxy.longest <= MOST


def test_an_operator_may_name_thousands(broker: StreamBroker, limited: StreamBroker, proxy: Serverless) -> None:
    names = [str(number) for number in range(MANY)]
    for number in range(2 * MANY):
        broker.delay("q", tracked(number), due_ms=2**45, member=str(number))

    assert run_now(limited, "q", names) == MANY
    assert len(cancel(limited, "q", [str(MANY + number) for number in range(MANY)])) == MANY
    assert purge_dead(limited, "q", [f"{number}-1" for number in range(1, MANY)]) == 0
    revoke(limited, names, seconds=60)
    assert len(revoked(limited)) == MANY
    assert proxy.longest <= MOST

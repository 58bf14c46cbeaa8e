"""A Redis that listens at a Unix socket, as Celery names it and as redis-py does: publish, wait, run, settle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from celery_streams import inspect, streams_of
from celery_streams.embedded import EmbeddedRedis
from celery_streams.reads import receive_blocking_read, send_blocking_read
from tests.support.eventually import eventually

MakeApp = Callable[..., Celery]


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("redis") / "redis.sock"
    with EmbeddedRedis(args=("--unixsocket", str(path))):
        yield path


@pytest.mark.parametrize("own_url", [True, False], ids=["streams_url", "broker_url"])
@pytest.mark.parametrize("number", [0, 5])
def test_message_goes_through_a_unix_socket(app: MakeApp, socket: Path, own_url: bool, number: int) -> None:
    lists = f"redis+socket://{socket}?virtual_host={number}"
    made = app(broker_url=lists, **({"streams_url": f"unix://{socket}?db={number}"} if own_url else {}))
    broker, queue = streams_of(made).broker, f"q{number}{own_url:d}"
    broker.client.greet()
    broker.ensure_groups([queue])
    streams = broker.streams([queue])
    with contextlib.closing(broker.client.open()) as reading:
        send_blocking_read(reading, streams, "me", block_ms=20_000)

        sent = made.send_task("chat.send", (1,), queue=queue)

        eventually(reading.ready)
        (found,) = receive_blocking_read(reading, streams, timeout=5)
    assert found.message is not None
    assert found.message.decode_headers()["id"] == sent.id
    assert f"db={number}".encode() in broker.client.call("CLIENT", "INFO")
    assert broker.ack("me", [found.entry]) == []
    assert inspect.queue_status(broker, queue).length == 0

"""The commands on a cluster, as they are typed: what they move lies in several slots there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

import celery_streams
from celery_streams.bin.adopt import adopt
from celery_streams.broker import StreamBroker
from celery_streams.cluster import connect
from celery_streams.cluster_map import slot_of
from tests.support.cluster import Cluster


@pytest.fixture
def app(nodes: Cluster) -> Iterator[Celery]:
    made = Celery("tools", broker=nodes.url, set_as_current=False)
    made.conf.update(streams_queues="*", streams_enabled=True, broker_connection_retry_on_startup=False)
    celery_streams.install(made)

    @made.task(name="tools.send", shared=False)
    def send(chat_id: str) -> None: ...

    yield made
    celery_streams.streams_of(made).reload()
    made.close()


@pytest.fixture
def run_adopt(app: Celery) -> Callable[..., Result]:
    context = CLIContext(app=app, no_color=True, workdir=None)
    words = ("--task", "tools.send", "--map", "chat=chat_id", "-Q", "jobs")
    return lambda key, *more: CliRunner().invoke(adopt, [key, *words, *more], obj=context)


@pytest.mark.parametrize("database", [(), ("--db", "0")], ids=["", "--db 0"])
@pytest.mark.parametrize("key", ["chat:send", "{celery-streams:{jobs}", "old:{jobs}"])
def test_stream_of_home_made_code_is_adopted_whatever_slot_it_lies_in(
    run_adopt: Callable[..., Result], on_shards: StreamBroker, key: str, database: tuple[str, ...]
) -> None:
    assert slot_of("old:{jobs}") == slot_of("celery-streams:{jobs}") != slot_of("chat:send")
    client = on_shards.client
    for number in range(5):
        client.call("XADD", key, "*", "chat", number)
    client.call("XGROUP", "CREATE", key, "old", "0")
    client.call("XREADGROUP", "GROUP", "old", "w1", "COUNT", 2, "STREAMS", key, ">")

    done = run_adopt(key, "--json", *database)
    again = run_adopt(key, "--json", *database)

    assert done.exit_code == again.exit_code == 0, done.output
    assert [json.loads(one.output)["adopted"] for one in (done, again)] == [5, 0]
    assert client.call("XLEN", on_shards.queue_keys("jobs").streams[0]) == 5
    assert client.call("XLEN", key) == 0


@pytest.mark.parametrize("way", ["server to cluster", "cluster to cluster"])
def test_stream_of_home_made_code_is_adopted_from_another_redis(
    run_adopt: Callable[..., Result], on_shards: StreamBroker, nodes: Cluster, redis_url: str, way: str
) -> None:
    url = redis_url.replace("/0", "/7") if way == "server to cluster" else nodes.url
    with contextlib.closing(connect(url)) as old:
        for number in range(5):
            old.call("XADD", "chat:send", "*", "chat", number)
        old.call("XGROUP", "CREATE", "chat:send", "old", "0")
        (_, read), *_ = old.call("XREADGROUP", "GROUP", "old", "w1", "COUNT", 2, "STREAMS", "chat:send", ">")
        old.call("XACK", "chat:send", "old", read[0][0])

        done = run_adopt("chat:send", "--json", "--url", url)
        again = run_adopt("chat:send", "--json", "--url", url)

        assert done.exit_code == again.exit_code == 0, done.output
        assert [json.loads(one.output)["adopted"] for one in (done, again)] == [4, 0]
        assert on_shards.client.call("XLEN", on_shards.queue_keys("jobs").streams[0]) == 4
        assert old.call("XLEN", "chat:send") == 1, "what was acknowledged has run, and stays"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--url", "redis://127.0.0.1:1/0", "--db", "1"), "exclude each other"),
        (("--url", "redis://127.0.0.1:1/0"), "127.0.0.1:1"),
        (("--url", "http://127.0.0.1/"), "need a Redis or Valkey URL"),
    ],
)
def test_redis_that_cannot_be_adopted_from_is_said_in_one_line(
    run_adopt: Callable[..., Result], more: tuple[str, ...], said: str
) -> None:
    done = run_adopt("chat:send", *more)

    assert done.exit_code != 0
    assert said in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_other_database_than_0_is_refused_with_one_line(run_adopt: Callable[..., Result]) -> None:
    done = run_adopt("chat:send", "--db", "3")

    assert done.exit_code != 0
    assert "no database but 0" in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)

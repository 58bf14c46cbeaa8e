"""A delayed message whose reply was lost: the client's retry sends it again, and it is stored once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_streams.broker import StreamBroker
from celery_streams.embedded import EmbeddedRedis
from tests.faults.proxy import Proxy
from tests.support.eventually import eventually

MakeApp = Callable[..., Celery]


@pytest.mark.parametrize("option", [{"countdown": 600}, {"countdown": 600, "task_id": "import-5"}, {"priority": 3}])
def test_message_whose_reply_was_lost_is_sent_again_and_never_lost(
    app: MakeApp, broker: StreamBroker, redis_server: EmbeddedRedis, option: dict[str, Any]
) -> None:
    server = broker.client

    def scripts() -> int:
        """Return how many scripts the server was told to run."""
        lines = bytes(server.call("INFO", "commandstats")).decode().splitlines()
        calls = [line for line in lines if line.startswith(("cmdstat_eval", "cmdstat_xadd"))]
        return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in calls)

    def stored() -> int:
        names = broker.queue_keys("celery")
        waiting = sum(int(server.call("XLEN", stream)) for stream in names.streams)
        return waiting + int(server.call("ZCARD", names.delayed))

    with Proxy(redis_server.port) as proxy:
        far = app(streams_url=f"{proxy.url}?socket_timeout=0.3&socket_connect_timeout=0.3")
        far.send_task("warm", countdown=600)  # connects, and loads the script
        far.send_task("warm", **option)
        before, ran = stored(), scripts()
        proxy.drop_replies = True

        def mend() -> None:
            eventually(lambda: stored() > before)
            proxy.reset()  # before replies come again: this one never does
            proxy.drop_replies = False

        mending = threading.Thread(target=mend)
        mending.start()
        far.send_task("sure", **option, retry=True, retry_policy={"max_retries": 50, "interval_start": 0.1})
        mending.join(10)

    assert scripts() - ran >= 2, "it was sent more than once"
    if "countdown" in option:
        assert stored() == before + 1
    else:
        # What is due at once may be stored for each attempt: a publish that is repeated may run twice.
        assert stored() >= before + 1

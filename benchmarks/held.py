"""What held messages cost: commands a second while they wait, and bytes in Redis, beside messages that wait unheld.

``python -m benchmarks.held``, about four minutes. A worker runs a task with a rate for each key; many messages of one
key are published. With one start an hour nothing is released while it is watched; then the rate is raised.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from celery import Celery

import celery_streams
from celery_streams import inspect, streams_of
from celery_streams.broker import StreamBroker
from celery_streams.embedded import EmbeddedRedis
from celery_streams.lanes import set_limits

from .marks import RECORDS
from .processes import Program, wait_for
from .project.settings import QUEUE, URL
from .project.tasks import noop

TASK = noop.name

#: Seconds that a worker is left alone before it is watched: it looks around when it starts.
_REST = 15.0


def _calls(broker: StreamBroker) -> Counter[str]:
    """Return the commands that Redis has carried out so far, those inside scripts too."""
    lines = broker.client.call("INFO", "commandstats").decode().splitlines()
    parts = (line.removeprefix("cmdstat_").partition(":calls=") for line in lines if ":calls=" in line)
    return Counter({name: int(rest.partition(",")[0]) for name, _, rest in parts})


def _memory(broker: StreamBroker) -> int:
    lines = broker.client.call("INFO", "memory").decode().splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("used_memory:"))


def _held(broker: StreamBroker) -> int:
    return inspect.queue_status(broker, QUEUE, workers=()).held


def _watch(broker: StreamBroker, seconds: float) -> str:
    """Say how many commands a second there were, the most frequent ones, and how many messages were released."""
    held, calls, began = _held(broker), _calls(broker), time.monotonic()
    time.sleep(seconds)
    more, took = _calls(broker) - calls, time.monotonic() - began
    del more["info"]  # of this watching itself
    most = ", ".join(f"{name} {count / took:.1f}" for name, count in more.most_common(5))
    return f"{more.total() / took:>10.1f}  ({(held - _held(broker)) / took:.2f} released; {most})"


class _Worker:
    def __init__(self, url: str, directory: Path, limits: dict[str, Any]) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
        environment = {**clean, URL: url, "CELERY_STREAMS_LIMITS": json.dumps(limits), "C_FORCE_ROOT": "1"}
        environment[RECORDS] = str(directory / "records")
        command = [sys.executable, "-m", "celery_streams", "-A", "benchmarks.project.streams", "worker"]
        options = ["-Q", QUEUE, "-c", "2", "-l", "WARNING"]
        self._program = Program([*command, *options], environment=environment, log=directory / "worker.log")

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None:
        self._program.stop()


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.held", description=main.__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long each state is watched")
    chosen = parser.parse_args()
    limits = {TASK: {"rate": "1/h", "rate_key": "padding"}}
    with EmbeddedRedis() as server, tempfile.TemporaryDirectory() as name:
        app = Celery("held", broker=server.url, set_as_current=True)
        app.conf.update(streams_enabled=True, task_ignore_result=True, task_default_queue=QUEUE, streams_limits=limits)
        celery_streams.install(app)
        broker = streams_of(app).broker
        with _Worker(server.url, Path(name), limits):
            # One message makes the worker know the task as one that was limited here.
            noop.delay(0, "the one key")
            time.sleep(_REST)
            nothing = _watch(broker, chosen.seconds)
        before = _memory(broker)
        with celery_streams.bulk(app):
            for number in range(chosen.messages):
                noop.delay(number, "the one key")
        waiting = _memory(broker) - before
        with _Worker(server.url, Path(name), limits):
            if not wait_for(lambda: _held(broker) >= chosen.messages, seconds=300, pause=0.5):
                raise SystemExit(f"only {_held(broker):,} of {chosen.messages:,} are held")
            time.sleep(_REST)
            held = _memory(broker) - before
            still = _watch(broker, chosen.seconds)
            set_limits(broker, TASK, {"rate": "2/s"})
            time.sleep(_REST)
            going = _watch(broker, chosen.seconds)
    print(f"messages of one key                      {chosen.messages:>10,}")
    print(f"bytes of Redis each, waiting             {waiting / chosen.messages:>10.0f}")
    print(f"bytes of Redis each, held                {held / chosen.messages:>10.0f}")
    print(f"commands a second, nothing held          {nothing}")
    print(f"commands a second, all held, none due    {still}")
    print(f"commands a second, all held, two due     {going}")


if __name__ == "__main__":
    main()

"""What it costs to keep the states of tasks: commands and CPU time with ``streams_track`` on and off, interleaved.

``python -m benchmarks.states``. One process publishes and runs noop tasks, one after the other as a child does that has
one message at a time; its CPU time is measured with ``process_time``, that of Redis by what it says of itself.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from celery import Celery

import celery_streams
from celery_streams import streams_of
from celery_streams.broker import StreamBroker
from celery_streams.embedded import EmbeddedRedis
from celery_streams.reads import parse_read, read_command
from celery_streams.worker.executor import Executor
from celery_streams.worker.settle import Settler

ROUNDS, TASKS = 15, 300


class _Slot:
    """In the place of a child's slot."""

    def limit(self, **_: Any) -> None: ...

    def keep(self, message: Any) -> None: ...

    def took(self) -> float:
        return 0.0

    def settling(self, *, ends: bool = False) -> None: ...

    def retried(self) -> None: ...

    def lost(self) -> bool:
        return False


def _stats(broker: StreamBroker) -> tuple[int, float, int]:
    """Return the commands, the CPU seconds and the round trips of Redis so far."""
    cpu, said, calls = 0.0, broker.client.call("INFO", "everything").decode(), 0
    trips = 0
    for line in said.splitlines():
        name, _, rest = line.partition(":")
        if name in ("used_cpu_sys", "used_cpu_user"):
            cpu += float(rest)
        elif name.startswith("cmdstat_"):
            count = int(rest.split(",")[0].partition("=")[2])
            calls += count
        elif name == "total_reads_processed":
            trips = int(rest)
    return calls, cpu, trips


def _round(app: Celery, broker: StreamBroker, executor: Executor, settler: Settler, name: str) -> dict[str, float]:
    streams = broker.streams(["celery"])
    task = app.tasks[name]
    found = {}
    before, began = _stats(broker), time.process_time()
    for _ in range(TASKS):
        task.delay(1)
    after = _stats(broker)
    found["publish_cpu"] = time.process_time() - began
    found |= _spent("publish", before, after)
    before, began = after, time.process_time()
    for _ in range(TASKS):
        acks = settler.commands()
        read = read_command(streams, settler.consumer, count=1)
        replies = broker.client.pipeline([*acks, read])
        if acks:
            settler.take_replies(replies[:-1], assisted=False)
        (delivery,) = parse_read(streams, replies[-1])
        executor.execute(delivery)
    settler.flush()
    found["run_cpu"] = time.process_time() - began
    return found | _spent("run", before, _stats(broker))


def _spent(what: str, before: tuple[int, float, int], after: tuple[int, float, int]) -> dict[str, float]:
    names = (f"{what}_commands", f"{what}_redis_cpu", f"{what}_trips")
    return {name: (now - then) for name, then, now in zip(names, before, after, strict=True)}


def main() -> None:
    """Measure, and print a table."""
    with EmbeddedRedis() as server:
        app = Celery("states", broker=server.url, set_as_current=True)
        app.conf.update(streams_enabled=True, task_ignore_result=True)
        celery_streams.install(app)
        for name, track in (("plain", False), ("tracked", True)):
            app.task(name=name, shared=False, streams_track=track)(_noop)
        streams = streams_of(app)
        settler = Settler(streams.broker, "me", conf=streams.conf, hostname="w@h")
        executor = Executor(app, "w@h", streams, settler, _Slot())
        executor.prepare()
        streams.broker.ensure_groups(["celery"])
        rounds: dict[str, list[dict[str, float]]] = {"plain": [], "tracked": []}
        for number in range(ROUNDS + 2):
            for name, found in rounds.items():
                figures = _round(app, streams.broker, executor, settler, name)
                if number >= 2:
                    found.append(figures)
        for name in rounds["plain"][0]:
            middle = {kind: statistics.median(one[name] for one in some) / TASKS for kind, some in rounds.items()}
            scale = 1e6 if name.endswith("cpu") else 1
            plain, tracked = middle["plain"] * scale, middle["tracked"] * scale
            print(f"{name:20} untracked {plain:8.2f}  tracked {tracked:8.2f}  more {tracked - plain:8.2f}")


def _noop(number: int) -> None:
    """Do nothing."""


if __name__ == "__main__":
    main()

"""A Redis Cluster beside one server: messages a second, CPU time of the clients, and of each master.

``python -m benchmarks.partitions``, about two minutes. The same messages of one queue are published one by one and run
by a worker with two children: on one server, on three masters, and with the queue in eight partitions on either, in
turn. Celery's own broker is a server apart, which nobody measures. CPU time of the worker needs /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

import celery_streams
from celery_streams import streams_of
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from tests.support.cluster import cluster

from .marks import RECORDS
from .processes import Program, cpu_seconds, descendants, wait_for
from .project.settings import QUEUE, URL
from .project.tasks import noop
from .publisher import PADDING

#: The part of the backlog within which the worker is watched: starting and ending are left out.
_FROM, _TO = 0.9, 0.05

#: Seconds for which the servers are watched while nothing happens: nodes of a cluster talk to each other.
_IDLE = 3.0


@dataclass(frozen=True)
class _Home:
    """Where the streams are."""

    url: str
    clients: Sequence[RedisClient]

    def cpu(self) -> list[float]:
        """Return the seconds of CPU time that each server has taken."""
        found = []
        for client in self.clients:
            lines = client.call("INFO", "cpu").decode().splitlines()
            said = dict(line.split(":") for line in lines if ":" in line)
            found.append(float(said["used_cpu_user"]) + float(said["used_cpu_sys"]))
        return found


@contextmanager
def _one_server() -> Iterator[_Home]:
    with EmbeddedRedis() as server:
        yield _Home(server.url, [RedisClient(server.url)])


@contextmanager
def _three_masters() -> Iterator[_Home]:
    with cluster() as nodes:
        yield _Home(nodes.url, nodes.clients)


_FIGURES = ("busiest", "servers", "client", "rate")

HOMES = {"one server": _one_server, "three masters": _three_masters}


@dataclass(frozen=True)
class _Spent:
    """Messages a second, and microseconds of CPU time for each message."""

    rate: float
    busiest: float
    servers: float
    #: Of the publisher, or the worker.
    client: float


class _Watch:
    """The CPU time from now on: of the servers, without what they take when nobody asks anything of them; and of whom
    ``asking`` tells, who asks them.
    """

    def __init__(self, home: _Home, idle: Sequence[float], asking: Callable[[], float]) -> None:
        self._home, self._idle, self._asking = home, idle, asking
        self._began, self._before, self._asked = time.perf_counter(), home.cpu(), asking()

    def spent(self, count: int) -> _Spent:
        """Return what was spent on so many messages."""
        seconds, asked = time.perf_counter() - self._began, self._asking() - self._asked
        used = zip(self._home.cpu(), self._before, self._idle, strict=True)
        each = [(now - then - idle * seconds) / count * 1e6 for now, then, idle in used]
        return _Spent(count / seconds, max(each), sum(each), asked / count * 1e6)


def _idle(home: _Home) -> list[float]:
    """Return the seconds of CPU time that each server takes in a second in which nobody asks anything of it."""
    before = home.cpu()
    time.sleep(_IDLE)
    return [(now - then) / _IDLE for now, then in zip(home.cpu(), before, strict=True)]


def _measure(home: _Home, broker: str, directory: Path, count: int, partitions: int) -> dict[str, _Spent]:
    app = Celery("partitions", broker=broker, set_as_current=True)
    app.conf.update(
        streams_enabled=True,
        streams_url=home.url,
        task_ignore_result=True,
        task_default_queue=QUEUE,
        streams_partitions={QUEUE: partitions},
    )
    celery_streams.install(app)
    for number in range(200):
        noop.apply_async((number, PADDING), priority=9)  # connections, scripts, and the plan that follows
    idle = _idle(home)
    watch = _Watch(home, idle, time.process_time)
    for number in range(count):
        noop.delay(number, PADDING)
    published = watch.spent(count)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    environment = {
        **clean,
        URL: broker,
        "CELERY_STREAMS_URL": home.url,
        "CELERY_STREAMS_PARTITIONS": json.dumps({QUEUE: partitions}),
        RECORDS: str(directory / "records"),
        "C_FORCE_ROOT": "1",
    }
    command = [sys.executable, "-m", "celery_streams", "-A", "benchmarks.project.streams", "worker"]
    streams = streams_of(app).broker

    looks = [("XLEN", streams.queue_keys(name).streams[0]) for name in streams.partitions(QUEUE)]

    def left() -> int:
        return sum(map(int, streams.client.call_all(looks)))  # little, for it is part of what is measured

    worker = Program(
        [*command, "-Q", QUEUE, "-c", "2", "-l", "WARNING"], environment=environment, log=directory / "worker.log"
    )
    try:
        _reach(left, _FROM * count)
        pids = descendants(worker.pid)
        first, watch = left(), _Watch(home, idle, lambda: cpu_seconds(pids))
        _reach(left, _TO * count)
        drained = watch.spent(first - left())
    finally:
        worker.stop()
        streams_of(app).reload()
    return {"publish": published, "drain": drained}


def _reach(left: Callable[[], int], most: float) -> None:
    if not wait_for(lambda: left() <= most, seconds=300, pause=0.1):
        raise SystemExit("the worker does not drain the queue")


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.partitions", description=main.__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3, help="figures are their medians")
    parser.add_argument("--partitions", type=int, default=8)
    chosen = parser.parse_args()
    found: dict[tuple[str, int], list[dict[str, _Spent]]] = {}
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedRedis()).url
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for _ in range(chosen.rounds):
            for name, home in HOMES.items():
                for partitions in (1, chosen.partitions):
                    with home() as made:
                        one = _measure(made, broker, directory, chosen.messages, partitions)
                    found.setdefault((name, partitions), []).append(one)
    print(
        "us of CPU time for each message: the busiest server, all servers, publisher or worker; and messages a second,"
    )
    print("those beside one server with one partition, round by round")
    for verb in ("publish", "drain"):
        for (name, partitions), rounds in found.items():
            figures = [statistics.median(getattr(one[verb], what) for one in rounds) for what in _FIGURES]
            pairs = zip(rounds, found["one server", 1], strict=True)
            beside = statistics.median(one[verb].rate / other[verb].rate for one, other in pairs)
            shown = f"{name}, {partitions} partition{'s' if partitions > 1 else ''}"
            print(f"{verb:<8} {shown:<30}" + "".join(f"{figure:>10,.1f}" for figure in figures) + f"{beside:>8.2f}")


if __name__ == "__main__":
    main()

"""Presence: which workers live, what they read, and whether they do; each worker says so in Redis, monitors read it.

Redis itself cannot tell: a consumer stays in its group when its worker dies, and before Redis 7.2 a consumer that waits
for work is as silent as a dead one. So each worker beats: every fifth of its visibility timeout it writes, by Redis'
clock, when and what it reads. A worker that did not beat for its visibility timeout is dead; so is what beat "later"
than now, before the clock was set back. It knows neither Celery nor the worker's parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from . import keys, scripts
from .broker import StreamBroker

__all__ = (
    "FORGOTTEN",
    "READ_WITHIN",
    "ConsumerPresence",
    "WorkerPresence",
    "beat",
    "depart",
    "parse_workers",
    "task_mark",
    "workers",
)

#: Seconds: a living worker forgets those that have been silent for so long.
FORGOTTEN = 3_600.0

#: Seconds within which an idle consumer reads again: a blocking read lasts up to 30 s, and one that hangs is given up
#: after 33.
READ_WITHIN = 35.0

#: Seconds: a visibility timeout that nobody has.
_LONGEST_TIMEOUT = 366 * 86_400.0

#: Seconds by which a beat may lie ahead of the reply to TIME that it is compared with.
_AHEAD = 1.0


@dataclass(frozen=True, slots=True)
class ConsumerPresence:
    """One consumer of a worker: a child, or the reader of threads."""

    name: str
    #: What it reads of the worker's queues; None is all of them.
    queues: tuple[str, ...] | None
    #: Seconds from its last read to the worker's beat; None while it is busy with tasks.
    read: float | None

    @property
    def is_reading(self) -> bool:
        """Whether it reads, or is busy and reads when it has done."""
        return self.read is None or self.read < READ_WITHIN


@dataclass(frozen=True, slots=True)
class WorkerPresence:
    """A worker as it last said."""

    #: A name that no other worker has, also of the same node name.
    worker: str
    #: The node name.
    node: str
    pid: int
    #: Version of celery-streams.
    version: str
    visibility_timeout: float
    queues: tuple[str, ...]
    consumers: tuple[ConsumerPresence, ...]
    #: Seconds since its last beat, by Redis' clock.
    silent: float = 0.0
    #: The names of the tasks that it knows, each as :func:`task_mark` makes it, in one string.
    tasks: str = ""
    #: It knows of pauses; a version that does not reads paused queues.
    pauses: bool = False
    #: It takes messages of its tasks that other workers do not know.
    takes: bool = False
    #: Children of it that crashed within the last ten minutes.
    crashes: int = 0
    #: When it beat last, by Redis' clock, in ms since the epoch: what changes lives, however that clock is set.
    beat_ms: int = 0

    def knows(self, task: str) -> bool:
        """Return whether it knows a task of this name; of a version that does not say so, nobody can tell."""
        mark = task_mark(task)
        return any(self.tasks[at : at + len(mark)] == mark for at in range(0, len(self.tasks), len(mark)))

    @property
    def is_alive(self) -> bool:
        """Whether its heart beats."""
        return -_AHEAD <= self.silent < self.visibility_timeout

    def consumers_of(self, queue: str) -> list[ConsumerPresence]:
        """Return the consumers that read ``queue``."""
        if queue not in self.queues:
            return []
        return [one for one in self.consumers if one.queues is None or queue in one.queues]

    def unread_queues(self) -> list[str]:
        """Return the queues that it should read, and that none of its consumers reads."""
        return [queue for queue in self.queues if not any(one.is_reading for one in self.consumers_of(queue))]


def task_mark(name: str) -> str:
    """Return eight characters for a task's name: a worker says all of its tasks with each beat."""
    return f"{crc32(name.encode(errors='surrogatepass')):08x}"


def beat(broker: StreamBroker, about: WorkerPresence, *, forget: bool) -> None:
    """Say that a worker lives; with ``forget`` those that were silent for :data:`FORGOTTEN` are forgotten."""
    said = {
        "node": about.node,
        "pid": about.pid,
        "version": about.version,
        "visibility_timeout": about.visibility_timeout,
        "queues": about.queues,
        "tasks": about.tasks,
        "takes": about.takes,
        "pauses": about.pauses,
        "crashes": about.crashes,
        "consumers": [[one.name, one.queues, one.read] for one in about.consumers],
    }
    args = [about.worker, json.dumps(said, separators=(",", ":")), int(FORGOTTEN * 1000) if forget else ""]
    broker.client.run(scripts.BEAT, [keys.workers(broker.prefix)], args)


def depart(broker: StreamBroker, worker: str) -> None:
    """Forget a worker that has stopped."""
    broker.client.call("HDEL", keys.workers(broker.prefix), worker)


def workers(broker: StreamBroker) -> list[WorkerPresence]:
    """Return all workers that beat and did not say farewell, the dead too, by node name. One round trip."""
    clock, found = broker.client.call_all([("TIME",), ("HGETALL", keys.workers(broker.prefix))])
    return parse_workers(int(clock[0]) * 1000 + int(clock[1]) // 1000, found)


def parse_workers(now_ms: int, flat: Iterable[bytes]) -> list[WorkerPresence]:
    """Turn the reply to HGETALL into workers; what is not understood, which a later version may write, is left out."""
    words = list(flat)
    found = []
    for worker, raw in zip(words[::2], words[1::2], strict=True):
        try:
            found.append(_parsed(worker.decode(), raw, now_ms))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return sorted(found, key=lambda one: (one.node, one.worker))


def _parsed(worker: str, raw: bytes, now_ms: int) -> WorkerPresence:
    at, _, text = raw.partition(b" ")
    said: dict[str, Any] = json.loads(text)
    return WorkerPresence(
        worker=worker,
        node=str(said["node"]),
        pid=int(said["pid"]),
        version=str(said["version"]),
        visibility_timeout=_timeout(said["visibility_timeout"]),
        queues=tuple(map(str, said["queues"])),
        consumers=tuple(
            ConsumerPresence(
                str(name),
                None if queues is None else tuple(map(str, queues)),
                None if read is None else float(read),
            )
            for name, queues, read in said["consumers"]
        ),
        tasks=str(said.get("tasks", "")),
        takes=bool(said.get("takes")),
        pauses=bool(said.get("pauses")),
        crashes=int(said.get("crashes", 0)),
        silent=(now_ms - int(at)) / 1000,
        beat_ms=int(at),
    )


def _timeout(said: Any) -> float:
    """Return a visibility timeout that a worker may have: by it others judge when its entries may be claimed."""
    found = float(said)
    if not 0.0 < found <= _LONGEST_TIMEOUT:
        raise ValueError(f"no worker has a visibility timeout of {said!r}")
    return found

"""The measures: each looks at one system once and returns figures; nothing here knows of rounds or tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import redis

from .processes import HAS_PROC, cpu_seconds, descendants, memory, wait_for
from .systems import Bench

__all__ = (
    "BULK_CHUNK",
    "FIGURES",
    "MEASURES",
    "Figure",
    "Figures",
    "Target",
    "bulk",
    "delayed",
    "drain",
    "idle",
    "latency",
    "memory_use",
    "publish",
    "result",
)

#: Name of a figure -> its value.
Figures = dict[str, float]

#: A system, and a client of its Redis.
Target = tuple[Bench, redis.Redis]

#: Publishes in a row before it is the next system's turn.
CHUNK = 200

#: The same in bulk: four pipelines.
BULK_CHUNK = 2_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the tables."""

    name: str
    measure: str
    title: str
    unit: str
    #: Whether a greater value is the better one.
    more_is_better: bool = False


#: All figures in the order of the tables.
FIGURES: tuple[Figure, ...] = (
    Figure("publish_wall_us", "publish", "publish: time for each .delay()", "us"),
    Figure("publish_cpu_us", "publish", "publish: CPU of the publisher", "us"),
    Figure("publish_redis_us", "publish", "publish: CPU of Redis", "us"),
    Figure("publish_bytes", "publish", "publish: memory of a waiting task in Redis", "B"),
    Figure("bulk_wall_us", "bulk", "publish in bulk: time for each message", "us"),
    Figure("bulk_cpu_us", "bulk", "publish in bulk: CPU of the publisher", "us"),
    Figure("bulk_redis_us", "bulk", "publish in bulk: CPU of Redis", "us"),
    Figure("drain_rate", "drain", "drain of a noop backlog", "tasks/s", more_is_better=True),
    Figure("drain_cpu_us", "drain", "drain: CPU of the worker for each task", "us"),
    Figure("drain_redis_us", "drain", "drain: CPU of Redis for each task", "us"),
    Figure("drain_commands", "drain", "drain: Redis commands for each task", "1"),
    Figure("drain_reads", "drain", "drain: requests to Redis for each task", "1"),
    Figure("latency_p50_ms", "latency", "publish to start at 50/s: median", "ms"),
    Figure("latency_p95_ms", "latency", "publish to start: 95 %", "ms"),
    Figure("latency_p99_ms", "latency", "publish to start: 99 %", "ms"),
    Figure("delayed_p50_ms", "delayed", "lateness of an eta: median", "ms"),
    Figure("delayed_p99_ms", "delayed", "lateness of an eta: 99 %", "ms"),
    Figure("delayed_max_ms", "delayed", "lateness of an eta: greatest", "ms"),
    Figure("result_p50_ms", "result", "delay().get(): median", "ms"),
    Figure("result_p95_ms", "result", "delay().get(): 95 %", "ms"),
    Figure("idle_commands", "idle", "idle: Redis commands a second", "1/s"),
    Figure("idle_requests", "idle", "idle: requests to Redis a second", "1/s"),
    Figure("idle_cpu_percent", "idle", "idle: CPU of the worker", "%"),
    Figure("idle_connections", "idle", "idle: connections to Redis", "1"),
    Figure("memory_parent_mb", "memory", "memory of the parent (PSS)", "MB"),
    Figure("memory_child_mb", "memory", "memory of a child (PSS)", "MB"),
    Figure("memory_child_private_mb", "memory", "memory of a child (its own pages)", "MB"),
    Figure("memory_total_mb", "memory", "memory of the whole worker (PSS)", "MB"),
)

#: The measures by the names that ``--only`` takes.
MEASURES = tuple(dict.fromkeys(figure.measure for figure in FIGURES))

#: Seconds that a worker may take to start and run its first task, or to run the last ones.
_PATIENCE = 90.0

#: Part of the backlog after which the drain is measured, and at which it ends: no start, no end effects.
_WINDOW = (0.1, 0.95)

#: Etas may be kept in whole milliseconds: a task that starts earlier than that is an error.
_CLOCK_MS = 1.0


def publish(benches: Sequence[Target], count: int) -> tuple[list[Figures], int]:
    """Publish a backlog of about ``count`` on every system, a chunk at a time in turn, with no worker running.

    Returns the figures, which are medians of the chunks, and how many messages each system got.
    """
    return _in_turn(benches, count, "publish", "backlog", CHUNK)


def bulk(benches: Sequence[Target], count: int) -> list[Figures]:
    """Publish about ``count`` in bulk on every system, a few pipelines at a time in turn; nobody runs them."""
    found, _ = _in_turn(benches, count, "bulk", "bulk", BULK_CHUNK)
    return found


def _in_turn(benches: Sequence[Target], count: int, name: str, verb: str, chunk_size: int) -> tuple[list[Figures], int]:
    turns = max(count // chunk_size, 2)
    chunks: list[list[Figures]] = [[] for _ in benches]
    with ExitStack() as stack:
        publishers = [stack.enter_context(bench.publisher(verb, chunk_size)) for bench, _ in benches]
        before = [_info(client)["used_memory"] for _, client in benches]
        for turn in range(turns):
            for number in range(len(benches)):
                at = (turn + number) % len(benches)
                client = benches[at][1]
                began = _redis_cpu(_info(client))
                done = publishers[at](str(chunk_size))
                took = _redis_cpu(_info(client)) - began
                chunks[at].append({**done, "redis_us": took / chunk_size * 1e6})
        after = [_info(client)["used_memory"] for _, client in benches]
    found = [
        {
            **{f"{name}_{one}": median(chunk[one] for chunk in mine) for one in ("wall_us", "cpu_us", "redis_us")},
            f"{name}_bytes": (last - first) / (turns * chunk_size),
        }
        for mine, first, last in zip(chunks, before, after, strict=True)
    ]
    return found, (turns + 1) * chunk_size


def drain(bench: Bench, client: redis.Redis, total: int) -> Figures:
    """Start a worker on a backlog of ``total`` and watch it between a tenth and 95 % of it."""
    bench.clear_records()
    bench.start()
    first, last = (int(part * total) for part in _WINDOW)
    began = _reading(bench, client, first)
    ended = _reading(bench, client, last)
    if not wait_for(lambda: bench.count_bytes() >= total, seconds=_PATIENCE):
        raise bench.complain(f"only {bench.count_bytes()} of {total} tasks ran")
    tasks = ended.tasks - began.tasks
    figures = {
        "drain_rate": tasks / (ended.at - began.at),
        "drain_redis_us": (_redis_cpu(ended.info) - _redis_cpu(began.info)) / tasks * 1e6,
        # One INFO is our own.
        "drain_commands": (_commands(ended.info) - _commands(began.info) - 1) / tasks,
        "drain_reads": (ended.info["total_reads_processed"] - began.info["total_reads_processed"] - 1) / tasks,
    }
    if HAS_PROC:
        figures["drain_cpu_us"] = (ended.cpu - began.cpu) / tasks * 1e6
    return figures


@dataclass(frozen=True, slots=True)
class _Reading:
    tasks: int
    at: float
    cpu: float
    info: dict[str, Any]


def _reading(bench: Bench, client: redis.Redis, tasks: int) -> _Reading:
    """Wait until so many tasks ran, then read everything at once."""

    def reached() -> bool:
        return bench.count_bytes() >= tasks or any(program.ended for program in bench.programs)

    if not wait_for(reached, seconds=_PATIENCE, pause=0.004) or bench.count_bytes() < tasks:
        raise bench.complain(f"only {bench.count_bytes()} of {tasks} tasks ran")
    pids = [pid for program in bench.programs for pid in descendants(program.pid)] if HAS_PROC else []
    return _Reading(bench.count_bytes(), time.monotonic(), cpu_seconds(pids), _info(client))


def warm_up(bench: Bench) -> None:
    """Start the worker, unless it runs, and wait until it has run something."""
    if not bench.programs:
        bench.start()
    bench.clear_records()
    bench.publish("steady", 3)
    if not wait_for(lambda: len(bench.read_milliseconds()) >= 3, seconds=_PATIENCE):
        raise bench.complain("it ran no task")
    bench.clear_records()


def latency(bench: Bench, count: int) -> Figures:
    """Publish about fifty a second to an idle worker; how long until each starts."""
    took = _stamps(bench, "steady", count)
    return {f"latency_p{part}_ms": percentile(took, part) for part in (50, 95, 99)}


def delayed(bench: Bench, count: int) -> Figures:
    """Publish tasks that are due in one to two seconds; how late each starts."""
    if not bench.system.is_celery:
        return {}
    took = _stamps(bench, "delayed", count)
    return {
        "delayed_p50_ms": percentile(took, 50),
        "delayed_p99_ms": percentile(took, 99),
        "delayed_max_ms": max(took),
    }


def _stamps(bench: Bench, verb: str, count: int) -> list[float]:
    bench.clear_records()
    bench.publish(verb, count)
    if not wait_for(lambda: len(bench.read_milliseconds()) >= count, seconds=30):
        raise bench.complain(f"only {len(bench.read_milliseconds())} of {count} tasks ran")
    took = bench.read_milliseconds()
    if verb == "delayed" and min(took) < -_CLOCK_MS:
        raise bench.complain(f"a task started {-min(took):.1f} ms before its eta")
    return took


def result(bench: Bench, count: int) -> Figures:
    """``delay().get()``, one after the other."""
    if not bench.system.is_celery:
        return {}
    took = bench.publish("results", count)["ms"]
    return {"result_p50_ms": percentile(took, 50), "result_p95_ms": percentile(took, 95)}


def memory_use(bench: Bench) -> Figures:
    """Look at a worker that has worked."""
    if not HAS_PROC:
        return {}
    trees = [descendants(program.pid) for program in bench.programs]
    total = {pid: memory(pid) for tree in trees for pid in tree}
    figures = {"memory_total_mb": sum(one.pss for one in total.values()) / 1024}
    # Each bare process is a child without a parent.
    parents = [tree[0] for tree in trees if len(tree) > 1]
    children = [one for pid, one in total.items() if pid not in parents]
    if parents:
        figures["memory_parent_mb"] = sum(total[pid].pss for pid in parents) / 1024
    figures["memory_child_mb"] = mean(one.pss for one in children) / 1024
    figures["memory_child_private_mb"] = mean(one.private for one in children) / 1024
    return figures


def idle(benches: Sequence[Target], seconds: float) -> list[Figures]:
    """Watch idle workers, all at the same time."""
    before = [_idle_reading(bench, client) for bench, client in benches]
    time.sleep(seconds)
    found = []
    for (bench, client), began in zip(benches, before, strict=True):
        ended = _idle_reading(bench, client)
        took = ended.at - began.at
        figures = {
            "idle_commands": (_commands(ended.info) - _commands(began.info) - 1) / took,
            "idle_requests": (ended.info["total_reads_processed"] - began.info["total_reads_processed"] - 1) / took,
            # One of them is our own.
            "idle_connections": float(ended.info["connected_clients"] - 1),
        }
        if HAS_PROC:
            figures["idle_cpu_percent"] = (ended.cpu - began.cpu) / took * 100
        found.append(figures)
    return found


def _idle_reading(bench: Bench, client: redis.Redis) -> _Reading:
    if any(program.ended for program in bench.programs):
        raise bench.complain("it ended")
    pids = [pid for program in bench.programs for pid in descendants(program.pid)] if HAS_PROC else []
    return _Reading(0, time.monotonic(), cpu_seconds(pids), _info(client))


def percentile(values: list[float], part: float) -> float:
    """Return the value that ``part`` percent of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part / 100), len(ordered) - 1)]


def _info(client: redis.Redis) -> dict[str, Any]:
    return dict(client.info())


def _redis_cpu(info: dict[str, Any]) -> float:
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def _commands(info: dict[str, Any]) -> int:
    return int(info["total_commands_processed"])

"""The pools: noop and waiting tasks with each of them, stock Celery and ours in turn, at one Redis.

``python -m benchmarks.pools [--only NAME,...]`` runs them alone. A backlog is published, the worker is started on it
and watched from a tenth to 95 % of it, as in the drain. Every system gets the same broker, so that both have the
same neighbours; a queue is emptied before it is the other one's turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import click
import redis

from celery_streams.embedded import EmbeddedRedis

from . import measures
from .measures import Figures
from .systems import Bench, System

__all__ = ("CASES", "Case", "drain_pool", "main")


@dataclass(frozen=True, slots=True)
class Case:
    """One pool with one kind of work."""

    name: str
    pool: str
    concurrency: int
    #: Name of the task.
    task: str
    #: Seconds that each task waits.
    seconds: float
    #: Tasks in the backlog of stock Celery, which is the slower one, and of ours.
    tasks: tuple[int, int]
    #: Systems that have such a pool.
    systems: Collection[str] = ("stock", "streams")

    @property
    def ideal(self) -> float | None:
        """Tasks a second if nothing but the waiting took time; None for a noop."""
        return self.concurrency / self.seconds if self.seconds else None


def _waiting(pool: str, concurrency: int, seconds: float, tasks: tuple[int, int]) -> Case:
    name = f"{pool} -c {concurrency}, {seconds * 1000:.0f} ms"
    if pool == "asyncio":
        return Case(name, pool, concurrency, "pause_async", seconds, tasks, ("streams",))
    return Case(name, pool, concurrency, "pause", seconds, tasks)


CASES = (
    Case("solo, noop", "solo", 1, "noop", 0.0, (3_000, 30_000)),
    Case("threads -c 8, noop", "threads", 8, "noop", 0.0, (3_000, 30_000)),
    *(_waiting(pool, 100, 0.05, (3_000, 10_000)) for pool in ("gevent", "threads", "asyncio")),
    *(_waiting(pool, 1_000, 0.5, (6_000, 10_000)) for pool in ("gevent", "asyncio")),
)


def system_of(system: System, case: Case) -> System:
    """Return ``system`` with the pool of ``case``."""
    (command,) = system.commands
    at = command.index("-c")
    options = ("-c", str(case.concurrency), "-P", case.pool)
    return replace(system, commands=((*command[:at], *options, *command[at + 2 :]),))


def drain_pool(bench: Bench, client: redis.Redis, case: Case) -> Figures:
    """Drain a backlog of ``case``; rate, CPU and commands for each task, and the part of the ideal rate."""
    streams = bench.system.name == "streams"
    total = case.tasks[streams]
    first = min(total, 1_000 if streams else total)
    bench.publish(case.task, first, str(case.seconds))
    if total > first:
        bench.publish("fill", total - first)
    found = measures.drain(bench, client, total)
    if case.ideal:
        found["drain_ideal"] = found["drain_rate"] / case.ideal
    return found


def run_cases(cases: Sequence[Case], systems: Sequence[System], rounds: int) -> dict[tuple[str, str], list[Figures]]:
    """Measure ``cases``, systems in turn; returns the rounds of each case and system."""
    found: dict[tuple[str, str], list[Figures]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-streams-bench-")))
        server = stack.enter_context(EmbeddedRedis())
        client = stack.enter_context(redis.Redis.from_url(server.url))
        for number in range(rounds):
            for case in cases:
                for system in systems if number % 2 == 0 else reversed(systems):
                    if system.name not in case.systems:
                        continue
                    client.flushall()
                    bench = Bench(system_of(system, case), server.url, directory)
                    try:
                        figures = drain_pool(bench, client, case)
                    finally:
                        bench.stop()
                    found.setdefault((case.name, system.name), []).append(figures)
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--rounds", default=3, type=click.IntRange(1))
@click.option("--only", default="", help="Parts of names of cases, with commas between them.")
@click.option("--systems", "names", default="stock,streams")
def main(rounds: int, only: str, names: str) -> None:
    """Measure the pools."""
    from .systems import STOCK, STREAMS

    parts = [part for part in only.split(",") if part]
    cases = [case for case in CASES if not parts or any(part in case.name for part in parts)]
    systems = [one for one in (STOCK, STREAMS) if one.name in names.split(",")]
    found = run_cases(cases, systems, rounds)
    for (case, system), figures in found.items():
        shown = {name: median(one[name] for one in figures if name in one) for name in figures[0]}
        best = max(one["drain_rate"] for one in figures)
        click.echo(f"{case:28} {system:8} best {best:8.0f} " + " ".join(f"{k[6:]} {v:.2f}" for k, v in shown.items()))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.pools")

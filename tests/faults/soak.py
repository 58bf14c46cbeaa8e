"""``python -m tests.faults.soak --minutes N``: load while every connection is cut every few seconds, and what grows.

Each second it samples the memory, descriptors and threads of all worker processes, and Redis' consumers, keys and
clients; at the end the last third is compared with the first. Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import redis
from rich.console import Console
from rich.table import Table

from celery_streams import inspect
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.dead_letters import dead_letters
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerError
from tests.faults import faults, load
from tests.faults.ledger import Ledger
from tests.faults.workers import FaultWorker, Fleet

#: What is sampled, and by how much its mean may grow from the first to the last third: share, and in its own unit.
LIMITS: dict[str, tuple[float, float]] = {
    "parent_kib": (0.10, 4_000),
    "child_kib": (0.10, 4_000),
    "parent_descriptors": (0.10, 3),
    "child_descriptors": (0.10, 3),
    "parent_threads": (0.0, 0.5),
    "child_threads": (0.0, 0.5),
    "consumers": (0.0, 1.0),
    "keys": (0.0, 2.0),
    "clients": (0.25, 4.0),
}


@dataclass(frozen=True)
class Growth:
    """One figure in the first and in the last third of the run."""

    name: str
    first: float
    last: float

    @property
    def ok(self) -> bool:
        share, absolute = LIMITS[self.name]
        return self.last - self.first <= max(self.first * share, absolute)


@dataclass
class Samples:
    """The samples of a run, one dict each second."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def growth(self) -> list[Growth]:
        """Compare the means of the thirds; the first tenth, in which caches fill, is left out."""
        rows = self.rows[len(self.rows) // 10 :]
        third = max(len(rows) // 3, 1)
        return [
            Growth(name, _mean(rows[:third], name), _mean(rows[-third:], name))
            for name in LIMITS
            if any(name in row for row in rows)
        ]


def _mean(rows: Sequence[dict[str, float]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return statistics.fmean(values) if values else 0.0


def sample(fleet: Fleet, client: RedisClient) -> dict[str, float]:
    """Take one sample; of a figure that cannot be had just now there is none."""
    row: dict[str, float] = {}
    parents = [worker.pid for worker in fleet.alive]
    children = [pid for worker in fleet.alive for pid in worker.children()]
    for name, pids in (("parent", parents), ("child", children)):
        found = [figures for figures in map(_process, pids) if figures is not None]
        if found:
            for index, what in enumerate(("kib", "descriptors", "threads")):
                row[f"{name}_{what}"] = statistics.fmean(figures[index] for figures in found)
    with contextlib.suppress(BrokerError):
        row["consumers"] = len(inspect.consumers(StreamBroker(client), load.QUEUE))
        row["keys"] = client.call("DBSIZE")
        row["clients"] = len(client.call("CLIENT", "LIST").splitlines())
    return row


def _process(pid: int) -> tuple[float, float, float] | None:
    folder = Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
        return float(status["VmRSS"].split()[0]), float(descriptors), float(status["Threads"])
    except (OSError, KeyError):
        return None  # it ended just now


def run(plan: load.Plan, *, every: float, say: Callable[[str], None]) -> tuple[Samples, dict[str, Any]]:
    """Run the load and cut all connections each ``every`` seconds; returns the samples and the counts."""
    directory = Path(plan.directory or tempfile.mkdtemp(prefix="celery-streams-soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    samples = Samples()
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(EmbeddedRedis(executable=plan.server))
        books = stack.enter_context(EmbeddedRedis())
        ledger = Ledger(books.url)
        stack.callback(ledger.close)
        client = RedisClient(target.url)
        stack.callback(client.close)
        environment = load.environment(plan, target.url, books)
        workers: list[FaultWorker] = [load.worker(plan, n, directory, environment) for n in range(plan.workers)]
        fleet = Fleet(workers)
        stack.callback(fleet.kill)
        scene = faults.Scene(target, fleet, random.Random(plan.seed), plan.visibility_timeout)
        fleet.start()
        producer = load.start_producer(plan, directory, environment)
        stack.callback(load.end, producer)
        began = cut_at = time.monotonic()
        cuts = 0
        while producer.poll() is None:
            samples.rows.append(sample(fleet, client))
            if time.monotonic() - cut_at > every:
                with contextlib.suppress(redis.RedisError):
                    faults.F12KillClients().strike(scene)
                cut_at, cuts = time.monotonic(), cuts + 1
            fleet.supervise()
            if len(samples.rows) % 60 == 0:
                say(f"{time.monotonic() - began:7.0f} s  {samples.rows[-1]}")
            time.sleep(1.0)  # a sample a second
        load.drain(plan, scene, ledger, target.url)
        hangs = fleet.stop(timeout=20.0)
        accounted: set[str | None] = {one.id for one in ledger.runs() if one.end is not None}
        accounted |= {letter.task_id for letter in dead_letters(StreamBroker(client), load.QUEUE)}
        submitted = ledger.submissions()
        lost = [one.id for one in submitted if one.id not in accounted]
        counts = {
            "seconds": round(time.monotonic() - began),
            "submitted": len(submitted),
            "executed": ledger.count("runs") // 2,
            "connections_cut": cuts,
            "lost": len(lost),
            "hangs": hangs,
        }
    return samples, counts


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=float, default=60.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--rate", type=float, default=80.0, show_default=True, help="Publishes a second.")
@click.option("--every", type=float, default=4.0, show_default=True, help="Seconds between two cuts.")
@click.option("--pool", type=click.Choice(["prefork", "threads", "solo"]), default="prefork", show_default=True)
@click.option("--server", type=click.Path(exists=True), help="The redis-server or valkey-server to run.")
@click.option("--json", "json_path", type=click.Path(), help="Write the figures there.")
@click.option("--logs", "directory", type=click.Path(), help="Where the logs of the processes go.")
def main(minutes: float, every: float, json_path: str | None, **options: Any) -> None:
    """Load with reconnects; fails when memory, descriptors, threads, consumers or keys grow, or a task is lost."""
    load.end_with_the_caller()
    console = Console()
    plan = load.Plan(seconds=minutes * 60, visibility_timeout=5.0, calm=True, **options)
    plan = replace(plan, server=plan.server and str(plan.server))
    samples, counts = run(plan, every=every, say=lambda line: console.print(line, style="dim", markup=False))
    table = Table(title=f"Soak, {minutes:g} minutes, {counts}", title_justify="left")
    for name in ("figure", "first third", "last third", ""):
        table.add_column(name)
    growth = samples.growth()
    for one in growth:
        table.add_row(one.name, f"{one.first:.1f}", f"{one.last:.1f}", "ok" if one.ok else "GREW")
    console.print(table)
    ok = all(one.ok for one in growth) and not counts["lost"] and not counts["hangs"]
    if json_path:
        figures = {one.name: {"first": one.first, "last": one.last, "ok": one.ok} for one in growth}
        Path(json_path).write_text(json.dumps({**counts, "growth": figures, "ok": ok}, indent=2) + "\n")
    console.print("PASS" if ok else "FAIL")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()

"""Rounds: which system is measured when. Systems take turns, so that a noisy minute does not hit one of them alone."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import redis

from celery_streams.embedded import EmbeddedRedis

from . import measures
from .measures import Figures
from .processes import HAS_PROC, busy_seconds
from .publisher import WARM_UP
from .systems import BARE, STOCK, STREAMS, SYSTEMS, Bench, System

__all__ = ("Options", "Results", "run")

#: How many times the backlog a system gets: the faster ones would be done before they can be watched.
_FACTORS = {STOCK: 1, STREAMS: 5, BARE: 10}

#: Seconds that idle workers settle before they are watched.
_SETTLE = 4.0


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured."""

    rounds: int = 3
    #: ``noop`` tasks in a backlog.
    tasks: int = 8_000
    #: Tasks for the latency, and for the lateness of etas.
    samples: int = 200
    #: Calls of ``delay().get()``.
    calls: int = 100
    #: Seconds that idle workers are watched.
    idle_seconds: float = 20.0
    only: Collection[str] = measures.MEASURES


@dataclass(slots=True)
class Results:
    """The figures of all rounds: system -> figure -> one value a round."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    #: Cores that other processes used meanwhile; None where nobody can tell.
    foreign_load: float | None = None
    seconds: float = 0.0

    def add(self, system: System, figures: Figures) -> None:
        """Add the figures of one round."""
        known = self.values.setdefault(system.name, {})
        for name, value in figures.items():
            known.setdefault(name, []).append(value)

    def median(self, system: System, figure: str) -> float | None:
        """Return the median of the rounds; None when it was not measured."""
        found = self.values.get(system.name, {}).get(figure)
        return median(found) if found else None

    def ratios(self, figure: str) -> list[float]:
        """Return streams divided by stock, round by round."""
        ours, theirs = (self.values.get(system.name, {}).get(figure, []) for system in (STREAMS, STOCK))
        return [one / other for one, other in zip(ours, theirs, strict=False) if other]

    def spread(self, system: System, figure: str) -> float | None:
        """Return the width of all rounds as a part of their median; None with fewer than two rounds."""
        found = self.values.get(system.name, {}).get(figure, [])
        middle = median(found) if len(found) > 1 else 0
        return (max(found) - min(found)) / middle if middle else None


def run(options: Options, *, say: Callable[[str], None]) -> Results:
    """Measure everything that ``options`` ask for; ``say`` is told what happens.

    Raises:
        BenchmarkError: a system did not do what it was told.
        ServerMissing: there is no Redis to be started.
    """
    results = Results()
    began, busy, own = time.monotonic(), _busy(), _own()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-streams-bench-")))
        if set(options.only) != {"idle"}:
            with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
                for number in range(options.rounds):
                    for system in _turned(SYSTEMS, number):
                        say(f"round {number + 1} of {options.rounds}: {system.title}")
                        client.flushall()
                        results.add(system, _round(Bench(system, server.url, directory), client, options))
        if "idle" in options.only:
            say(f"idle workers, {options.idle_seconds:.0f} s")
            _watch_idle(results, options, directory)
    results.seconds = time.monotonic() - began
    if HAS_PROC:
        results.foreign_load = max(_busy() - busy - (_own() - own), 0.0) / results.seconds
    return results


def _round(bench: Bench, client: redis.Redis, options: Options) -> Figures:
    only = options.only
    figures: Figures = {}
    try:
        if "publish" in only or "drain" in only:
            count = options.tasks
            found = measures.publish(bench, client, count)
            more = count * (_FACTORS[bench.system] - 1)
            if more and "drain" in only:
                count += bench.publish("fill", more)["published"]
            if "publish" in only:
                figures.update(found)
            if "drain" in only:
                figures.update(measures.drain(bench, client, count + WARM_UP))
            else:
                client.flushall()
        if {"latency", "delayed", "result", "memory"}.intersection(only):
            measures.warm_up(bench)
        if "latency" in only:
            figures.update(measures.latency(bench, options.samples))
        if "delayed" in only:
            figures.update(measures.delayed(bench, options.samples))
        if "result" in only:
            figures.update(measures.result(bench, options.calls))
        if "memory" in only:
            figures.update(measures.memory_use(bench))
    finally:
        bench.stop()
    return figures


def _watch_idle(results: Results, options: Options, directory: Path) -> None:
    with ExitStack() as stack:
        benches = []
        for system in SYSTEMS:
            server = stack.enter_context(EmbeddedRedis())
            bench = Bench(system, server.url, directory)
            stack.callback(bench.stop)
            measures.warm_up(bench)
            benches.append((bench, stack.enter_context(redis.Redis.from_url(server.url))))
        time.sleep(_SETTLE)
        for (bench, _), figures in zip(benches, measures.idle(benches, options.idle_seconds), strict=True):
            results.add(bench.system, figures)


def _turned(systems: Sequence[System], number: int) -> list[System]:
    at = number % len(systems)
    return [*systems[at:], *systems[:at]]


def _busy() -> float:
    return busy_seconds() if HAS_PROC else 0.0


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

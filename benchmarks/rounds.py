"""Rounds: which system is measured when. Systems take turns, so that a noisy minute does not hit one of them alone.

Each has a Redis of its own; publishers take turns every few hundred messages, workers run one after the other."""

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
from .measures import Figures, Target
from .processes import HAS_PROC, busy_seconds
from .systems import BARE, STOCK, STREAMS, SYSTEMS, TRACED, Bench, System

__all__ = ("Options", "Results", "run")

#: How many times the backlog a system gets: the faster ones would be done before they can be watched.
_FACTORS = {STOCK: 1, STREAMS: 8, TRACED: 10, BARE: 15}

#: Seconds that idle workers settle before they are watched: one of ours counts on its turns after half a minute.
_SETTLE = 45.0


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
    idle_seconds: float = 60.0
    only: Collection[str] = measures.MEASURES
    #: Other task queues beside ours.
    peers: tuple[System, ...] = ()


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

    def ratios(self, figure: str, other: System = STOCK) -> list[float]:
        """Return streams divided by the ``other``, round by round."""
        ours, theirs = (self.values.get(system.name, {}).get(figure, []) for system in (STREAMS, other))
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
        targets: list[Target] = []
        for system in (*SYSTEMS, *options.peers):
            server = stack.enter_context(EmbeddedRedis())
            bench = Bench(system, server.url, directory)
            targets.append((bench, stack.enter_context(redis.Redis.from_url(server.url))))
        if set(options.only) != {"idle"}:
            for number in range(options.rounds):
                _round(
                    results,
                    _turned(targets, number),
                    options,
                    _numbered(say, number, options),
                )
        if "idle" in options.only:
            say(f"idle workers, {options.idle_seconds:.0f} s")
            _watch_idle(results, targets, options)
    results.seconds = time.monotonic() - began
    if HAS_PROC:
        results.foreign_load = max(_busy() - busy - (_own() - own), 0.0) / results.seconds
    return results


def _numbered(say: Callable[[str], None], number: int, options: Options) -> Callable[[str], None]:
    return lambda text: say(f"round {number + 1} of {options.rounds}: {text}")


def _round(results: Results, targets: Sequence[Target], options: Options, say: Callable[[str], None]) -> None:
    only = options.only
    published = 0
    for _, client in targets:
        client.flushall()
    if "bulk" in only:
        say("publishing in bulk, in turn")
        able = [target for target in targets if target[0].system not in options.peers]
        for (bench, client), figures in zip(able, measures.bulk(able, 2 * options.tasks), strict=True):
            if not bench.system.publisher:
                results.add(bench.system, figures)
            client.flushall()
    if "publish" in only or "drain" in only:
        say("publishing, in turn")
        found, published = measures.publish(targets, options.tasks)
        if "publish" in only:
            for (bench, _), figures in zip(targets, found, strict=True):
                if not bench.system.publisher:
                    results.add(bench.system, figures)
    for bench, client in targets:
        say(bench.system.title)
        try:
            results.add(bench.system, _work(bench, client, options, published))
        finally:
            bench.stop()


def _work(bench: Bench, client: redis.Redis, options: Options, published: int) -> Figures:
    only = options.only
    figures: Figures = {}
    if "drain" in only:
        more = published * (_FACTORS.get(bench.system, 1) - 1)
        if more:
            bench.publish("fill", more)
        figures.update(measures.drain(bench, client, published + more))
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
    return figures


def _watch_idle(results: Results, targets: Sequence[Target], options: Options) -> None:
    with ExitStack() as stack:
        for bench, client in targets:
            client.flushall()
            stack.callback(bench.stop)
            measures.warm_up(bench)
        time.sleep(_SETTLE)
        for (bench, _), figures in zip(targets, measures.idle(targets, options.idle_seconds), strict=True):
            results.add(bench.system, figures)


def _turned(targets: Sequence[Target], number: int) -> list[Target]:
    at = number % len(targets)
    return [*targets[at:], *targets[:at]]


def _busy() -> float:
    return busy_seconds() if HAS_PROC else 0.0


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

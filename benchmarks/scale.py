"""``python -m benchmarks.scale``: what a task costs as a system grows, as curves; one command, JSON and an SVG picture.

Each point is a worker that is watched over the same number of tasks, while as many are added as it runs: so the
backlog stays what the point says. The cost is CPU time for a task, of the worker and of Redis, which depends on other
load of the machine less than a rate does. Points take turns round by round; a curve shows medians, least and most.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import redis
from rich.console import Console

from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.message import Message, pack

from . import curves, report
from .processes import HAS_PROC, cpu_seconds, descendants, wait_for
from .project.settings import QUEUE
from .systems import Bench, BenchmarkError, System

__all__ = ("CURVES", "MARKS", "Curve", "Point", "measure")

#: The lines of a Markdown file between which the picture stands.
MARKS = (
    "<!-- scale: begin (python -m benchmarks.scale --svg docs/scale.svg --update README.md) -->",
    "<!-- scale: end -->",
)

#: Bytes of messages that a run may hold in Redis, or move in all.
_MOST_BYTES = 150_000_000

#: Entries in one pipeline.
_PIPELINE = 500

#: Seconds that a worker may take.
_PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class Point:
    """One worker at one backlog."""

    waiting: int = 10_000
    queues: int = 1
    children: int = 2
    #: Characters of the second argument of ``noop``.
    size: int = 64
    delayed: int = 0


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of points that differ in one thing."""

    name: str
    title: str
    points: tuple[Point, ...]

    def x(self, point: Point) -> int:
        """Return what tells ``point`` from the others."""
        return int(getattr(point, self.name))


#: All curves.
CURVES: tuple[Curve, ...] = (
    Curve("waiting", "messages waiting", tuple(Point(waiting=n) for n in (1_000, 10_000, 100_000, 1_000_000))),
    Curve("queues", "queues", tuple(Point(queues=n) for n in (1, 5, 10, 50))),
    Curve("children", "children", tuple(Point(children=n) for n in (1, 2, 4, 8))),
    Curve("size", "bytes of an argument", tuple(Point(size=n) for n in (100, 1_000, 10_000, 100_000, 1_000_000))),
    Curve("delayed", "delayed messages", tuple(Point(delayed=n) for n in (0, 1_000, 20_000, 200_000))),
)


def measure(point: Point, server: EmbeddedRedis, directory: Path, *, tasks: int) -> dict[str, float]:
    """Return what a task costs at ``point``: CPU of worker and Redis in microseconds, and tasks a second.

    Raises:
        BenchmarkError: the worker did not run them.
    """
    names = [QUEUE, *(f"{QUEUE}{number}" for number in range(1, point.queues))]
    program = (sys.executable, "-m", "celery_streams", "-A", "benchmarks.project.streams", "worker", "-l", "WARNING")
    command = (*program, "-Q", ",".join(names), "-c", str(point.children))
    bench = Bench(System("scale", f"{point}", (command,), is_celery=True, publisher="streams"), server.url, directory)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        bench.publish("sized", point.size)
        store = RedisClient(server.url)
        broker = StreamBroker(store)
        broker.ensure_groups(names)
        streams = [ref.key for ref in broker.streams(names) if ref.step == 0]
        fields: dict[Any, Any] = dict(client.xrange(streams[0], count=1)[0][1])
        client.delete(streams[0])
        broker.ensure_groups(names)
        size = sum(map(len, fields.values()))
        waiting = max(min(point.waiting, _MOST_BYTES // size if point.size > 10_000 else point.waiting), 20)
        watched = max(min(tasks, _MOST_BYTES // size), 50)
        _delay(client, broker, fields, point.delayed)
        feed = _Feed(client, streams, fields)
        feed.add(waiting)
        store.close()
        bench.start()
        try:
            return _watch(bench, client, feed, waiting, watched)
        finally:
            bench.stop()


def _watch(bench: Bench, client: redis.Redis, feed: _Feed, waiting: int, watched: int) -> dict[str, float]:
    first = max(min(watched // 5, waiting // 2), 10)

    def reached(count: int) -> Callable[[], bool]:
        def look() -> bool:
            done = bench.count_bytes()
            feed.add(done + waiting - feed.added)
            return done >= count or any(program.ended for program in bench.programs)

        return look

    readings = []
    for count in (first, first + watched):
        if not wait_for(reached(count), seconds=_PATIENCE, pause=0.002) or bench.count_bytes() < count:
            raise bench.complain(f"only {bench.count_bytes()} of {count} tasks ran")
        pids = [pid for program in bench.programs for pid in descendants(program.pid)] if HAS_PROC else []
        info: Any = client.info()
        used = float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
        readings.append((bench.count_bytes(), time.monotonic(), cpu_seconds(pids), used))
    (ran, began, cpu, store), (ran_then, ended, cpu_then, store_then) = readings
    done = ran_then - ran
    found = {"redis_us": (store_then - store) / done * 1e6, "rate": done / (ended - began)}
    if HAS_PROC:
        found["worker_us"] = (cpu_then - cpu) / done * 1e6
    return found


def _delay(client: redis.Redis, broker: StreamBroker, fields: dict[Any, Any], count: int) -> None:
    names = broker.queue_keys(QUEUE)
    packed = pack(Message(fields[b"headers"], fields[b"properties"], fields[b"body"]))
    due = (time.time() + 86_400) * 1000
    for start in range(0, count, _PIPELINE):
        members = [f"m{number}" for number in range(start, min(start + _PIPELINE, count))]
        pipeline = client.pipeline(transaction=False)
        pipeline.zadd(names.delayed, {member: due + at for at, member in enumerate(members)})
        pipeline.hset(names.delayed_messages, mapping=dict.fromkeys(members, packed))
        pipeline.execute()


class _Feed:
    """Adds copies of one message to streams, in turn."""

    def __init__(self, client: redis.Redis, streams: Sequence[str], fields: dict[Any, Any]) -> None:
        self.added = 0
        self._client, self._streams, self._fields = client, streams, fields

    def add(self, count: int) -> None:
        """Add ``count`` messages."""
        while count > 0:
            part = min(count, _PIPELINE)
            pipeline = self._client.pipeline(transaction=False)
            for _ in range(part):
                pipeline.xadd(self._streams[self.added % len(self._streams)], self._fields)
                self.added += 1
            pipeline.execute()
            count -= part


def _rounds(chosen: Sequence[Curve], rounds: int) -> Iterator[tuple[Curve, Point]]:
    every = [(curve, point) for curve in chosen for point in curve.points]
    for number in range(rounds):
        at = number * len(every) // rounds
        yield from [*every[at:], *every[:at]]


def _names(context: click.Context, parameter: click.Parameter, value: str) -> tuple[Curve, ...]:
    names = value.split(",")
    known = {curve.name: curve for curve in CURVES}
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}")
    return tuple(known[name] for name in names)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--rounds", default=3, type=click.IntRange(1), help="Rounds; curves are their medians.")
@click.option("--tasks", default=20_000, type=click.IntRange(500), help="Tasks over which a point is watched.")
@click.option("--only", "chosen", default=",".join(curve.name for curve in CURVES), metavar="NAME,...", callback=_names)
@click.option("--most", type=click.IntRange(1), help="Leave out points beyond this: a quick run.")
@click.option("--save", type=click.Path(path_type=Path), help="Keep the results as JSON in this file.")
@click.option("--svg", type=click.Path(path_type=Path), help="Draw the curves into this file.")
@click.option("--update", type=click.Path(path_type=Path, exists=True), help="Show --svg in this Markdown file.")
@click.option("--load", type=click.Path(path_type=Path, exists=True), help="Draw kept results; run nothing.")
def main(
    rounds: int,
    tasks: int,
    chosen: tuple[Curve, ...],
    most: int | None,
    save: Path | None,
    svg: Path | None,
    update: Path | None,
    load: Path | None,
) -> None:
    """Measure what a task costs from 1 thousand to 1 million waiting, and as queues, children, sizes and delays grow.

    \b
    python -m benchmarks.scale --save scale.json --svg docs/scale.svg --update README.md
    python -m benchmarks.scale --only queues,children --rounds 1
    """
    if update is not None and svg is None:
        raise click.UsageError("--update shows the picture that --svg draws: give both.")
    terminal = Console(stderr=True, highlight=False)
    if load is not None:
        data = json.loads(load.read_text())
    else:
        if most is not None:
            chosen = tuple(
                Curve(curve.name, curve.title, tuple(point for point in curve.points if curve.x(point) <= most))
                for curve in chosen
            )
        with terminal.status("starting") as status:
            data = _run(chosen, rounds, tasks, status.update)
    text = json.dumps(data, indent=2)
    if save is not None:
        save.write_text(text + "\n")
    if svg is not None:
        svg.write_text(curves.draw(data), encoding="utf-8")
    if update is not None and svg is not None:
        try:
            report.update(update, _shown(data, Path(os.path.relpath(svg, update.parent))), marks=MARKS)
        except ValueError as exc:
            raise click.UsageError(str(exc)) from exc
    if save is None and svg is None:
        click.echo(text)


def _shown(data: dict[str, Any], svg: Path) -> str:
    """Return what a Markdown file says of the picture."""
    return (
        "What a task that does nothing costs as a system grows, in microseconds of CPU time, of the worker and of "
        f"Redis: medians of {data['rounds']} rounds of {data['tasks']:,} tasks each.\n\n"
        f"![What a task costs as a system grows]({svg.as_posix()})"
    )


def _run(chosen: Sequence[Curve], rounds: int, tasks: int, say: Callable[[str], None]) -> dict[str, Any]:
    about = report.machine()
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-streams-scale-")))
        server = stack.enter_context(EmbeddedRedis())
        for curve, point in _rounds(chosen, rounds):
            say(f"{curve.title}: {curve.x(point):,}")
            try:
                figures = measure(point, server, directory, tasks=tasks)
            except BenchmarkError as exc:
                raise click.ClickException(str(exc)) from exc
            found.setdefault((curve.name, curve.x(point)), []).append(figures)
    return {
        "machine": about,
        "rounds": rounds,
        "tasks": tasks,
        "curves": [
            {
                "name": curve.name,
                "title": curve.title,
                "points": [
                    {
                        "x": curve.x(point),
                        **{
                            name: median(one[name] for one in found[curve.name, curve.x(point)])
                            for name in found[curve.name, curve.x(point)][0]
                        },
                        "rounds": found[curve.name, curve.x(point)],
                    }
                    for point in curve.points
                ],
            }
            for curve in chosen
        ],
    }


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.scale")

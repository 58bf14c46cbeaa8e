"""A load run: servers, producer, fleet and faults for some seconds, then the drain, then the verdict."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from prometheus_client.parser import text_string_to_metric_families

import celery_streams
from celery_streams import inspect, keys
from celery_streams.broker import StreamBroker
from celery_streams.cluster import connect
from celery_streams.dead_letters import dead_letters
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerError
from celery_streams.monitoring.prometheus import exposition
from celery_streams.monitoring.status import collect
from tests.faults import faults
from tests.faults.ledger import Ledger
from tests.faults.verdict import FIGURES, Bounds, FaultRecord, FinalState, Verdict, judge
from tests.faults.workers import FaultWorker, Fleet
from tests.proj.settings import celery_settings
from tests.support.cluster import cluster
from tests.support.processes import ROOT, project_environment

QUEUE = "faults"

#: How the sentence about a worker ends that a task of the load ended: SIGKILL, SIGSEGV, or exit code 3.
SELF_INFLICTED = ("by itself with -9", "by itself with -11", "by itself with 3")


@dataclass(frozen=True)
class Plan:
    """Everything that makes one run differ from another."""

    seconds: float
    seed: int
    rate: float = 120.0
    workers: int = 2
    children: int = 2
    visibility_timeout: float = 3.0
    #: Seconds between two faults, least and most.
    pause: tuple[float, float] = (0.8, 2.2)
    kinds: tuple[type[faults.Fault], ...] = faults.ALL
    pool: str = "prefork"
    side: str = "streams"
    #: ``ack-first`` or ``no-ownership``: a build that must fail.
    broken: str | None = None
    server: str | None = None
    appendfsync: str = "always"
    #: Streams and Celery's broker are on a Redis Cluster of three masters; the faults hit the one that has the queue,
    #: but for REPLICAOF, which makes no replica of a master there.
    cluster: bool = False
    #: Only tasks that sleep and retry.
    only_flaky: bool = False
    #: No task that ends its process.
    calm: bool = False
    directory: str | None = None


#: The profiles of the command line.
PROFILES = {
    "short": Plan(seconds=25.0, seed=0),
    "medium": Plan(seconds=240.0, seed=0, pause=(1.0, 4.0)),
    "long": Plan(seconds=1020.0, seed=0, pause=(1.5, 6.0)),
}


#: What brings the fault of each broken build to light soonest.
BROKEN = {
    "ack-first": Plan(
        seconds=9.0,
        seed=0,
        kinds=(faults.F1KillWorker, faults.F2KillChild),
        pause=(0.4, 1.0),
        visibility_timeout=2.0,
        calm=True,
    ),
    "no-ownership": Plan(
        seconds=10.0,
        seed=0,
        kinds=(faults.F8Stop,),
        pause=(0.2, 0.5),
        rate=10.0,
        visibility_timeout=1.5,
        only_flaky=True,
    ),
}


@dataclass
class Report:
    """What a run found."""

    plan: Plan
    verdict: Verdict
    faults: list[FaultRecord]
    directory: Path

    @property
    def ok(self) -> bool:
        return self.verdict.ok

    def as_dict(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "verdict": "PASS" if self.ok else "FAIL",
            "seed": plan.seed,
            "side": plan.side,
            "pool": plan.pool,
            "broken": plan.broken,
            "seconds": plan.seconds,
            "workers": plan.workers,
            "children": plan.children,
            "visibility_timeout": plan.visibility_timeout,
            "appendfsync": plan.appendfsync,
            "cluster": plan.cluster,
            "checks": {check.letter: {"ok": check.ok, "text": check.text} for check in self.verdict.checks},
            **self.verdict.figures,
        }


def end_with_the_caller() -> None:
    """Let SIGTERM end this process as Ctrl-C does: what it started is cleaned up."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def run(plan: Plan, *, say: Callable[[str], None] = lambda line: None) -> Report:
    """Carry out a plan. No process outlives it."""
    directory = Path(plan.directory or tempfile.mkdtemp(prefix="celery-streams-faults-"))
    directory.mkdir(parents=True, exist_ok=True)
    arguments = ("--appendfsync", plan.appendfsync)
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"appendonly": True, "args": arguments, "executable": plan.server}
        if plan.cluster:
            nodes = stack.enter_context(cluster(full_coverage=False, **options))
            target = nodes.servers[nodes.owner(keys.queue_keys(keys.DEFAULT_PREFIX, QUEUE).delayed)]
            url = nodes.url
        else:
            target = stack.enter_context(EmbeddedRedis(**options))
            url = target.url
        books = stack.enter_context(EmbeddedRedis())
        ledger = Ledger(books.url)
        stack.callback(ledger.close)
        variables = environment(plan, url, books)
        fleet = Fleet([worker(plan, index, directory, variables) for index in range(plan.workers)])
        stack.callback(fleet.kill)
        if plan.cluster:
            plan = replace(plan, kinds=tuple(kind for kind in plan.kinds if kind is not faults.F12ReadOnly))
        chance = random.Random(plan.seed)
        scene = faults.Scene(target, fleet, chance, plan.visibility_timeout)
        fleet.start()
        producer = start_producer(plan, directory, variables)
        stack.callback(end, producer)
        _load(plan, scene, ledger, producer, say)
        fleet.supervise()
        say("drain")
        drain(plan, scene, ledger, url)
        hangs = fleet.stop(timeout=15.0)
        if plan.pool != "prefork":
            # There a task that ends its process ends its worker.
            hangs = [hang for hang in hangs if not hang.endswith(SELF_INFLICTED)]
        runs = ledger.runs()
        uncertain = [line["id"] for line in ledger.lines("uncertain")]
        submissions = ledger.submissions()
        if plan.side == "lists":
            # Nothing is dead-lettered there: what fails is done.
            submissions = [replace(one, dead=None) for one in submissions]
        records = [*scene.records, *_self_inflicted(ledger, submissions, runs)]
        verdict = judge(
            submissions,
            runs,
            records,
            final_state(plan.side, target, url=url),
            bounds=Bounds(plan.visibility_timeout),
            uncertain=uncertain,
            hangs=hangs,
        )
    return Report(plan, verdict, records, directory)


def environment(plan: Plan, url: str, books: EmbeddedRedis) -> dict[str, str]:
    streams = plan.side == "streams"
    more: dict[str, Any] = {"broker_connection_retry_on_startup": True}
    if streams:
        more["streams_visibility_timeout"] = plan.visibility_timeout
    else:
        # What a careful user of lists does: late acknowledgement, and a visibility timeout beyond his longest task.
        more.update(
            task_acks_late=True,
            task_reject_on_worker_lost=True,
            broker_transport_options={"visibility_timeout": int(plan.visibility_timeout * 3)},
        )
    variables = project_environment(
        broker=url,
        results=books.database_url(1),
        ledger=books.url,
        queue=QUEUE,
        install=streams,
        enabled=True if streams else None,
        **more,
    )
    if plan.broken:
        variables["FAULTS_BROKEN"] = plan.broken
    return variables


def worker(plan: Plan, index: int, directory: Path, environment: dict[str, str]) -> FaultWorker:
    return FaultWorker(
        name=f"w{index + 1}",
        queues=QUEUE,
        directory=directory,
        environment=environment,
        side=plan.side,
        concurrency=plan.children,
        pool=plan.pool,
        level="WARNING",
        include=["tests.faults.broken"] if plan.broken else [],
    )


def start_producer(plan: Plan, directory: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.faults.producer"]
    command += ["--seconds", str(plan.seconds), "--rate", str(plan.rate), "--seed", str(plan.seed)]
    command += ["--long", str(plan.visibility_timeout * 1.6)]
    if plan.only_flaky:
        command.append("--only-flaky")
    if plan.calm:
        command.append("--calm")
    if plan.side == "lists":
        command.append("--harmless")
    with (directory / "producer.log").open("wb") as output:
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _load(
    plan: Plan,
    scene: faults.Scene,
    ledger: Ledger,
    producer: subprocess.Popen[bytes],
    say: Callable[[str], None],
) -> None:
    began = time.monotonic()
    while not ledger.count("runs"):
        # A fault before anything runs would hit nothing.
        if producer.poll() is not None or time.monotonic() - began > 30.0:
            raise RuntimeError("Nothing ran before the faults began, see the logs")
        scene.fleet.supervise()
        time.sleep(0.02)  # between two looks
    scheduler = faults.Scheduler(plan.kinds, chance=scene.chance, pause=plan.pause)
    deadline = began + plan.seconds + 20.0
    while producer.poll() is None and time.monotonic() < deadline:
        scene.run_due()
        scene.fleet.supervise()
        struck = scheduler.run_once(scene)
        if struck is not None:
            say(f"{time.monotonic() - began:7.1f} s  {struck.kind}")
        time.sleep(0.02)  # between two looks
    if producer.poll() is None:
        producer.send_signal(signal.SIGTERM)
        producer.wait(10)
    scene.run_due(everything=True)
    if producer.returncode:
        raise RuntimeError(f"The producer ended with {producer.returncode}, see producer.log")


def drain(plan: Plan, scene: faults.Scene, ledger: Ledger, url: str) -> None:
    """Wait until nothing is left, or nothing has moved for a while."""
    patience = plan.visibility_timeout * (3 if plan.side == "streams" else 6) + 12.0
    moved, seen = time.monotonic(), -1
    quiet_since = None
    deadline = moved + plan.seconds + 90.0
    while time.monotonic() - moved < patience and time.monotonic() < deadline:
        scene.fleet.supervise()
        count = ledger.count("runs")
        if count != seen:
            moved, seen = time.monotonic(), count
        left = remaining(plan.side, url)
        if left == 0:
            quiet_since = quiet_since or time.monotonic()
            if time.monotonic() - quiet_since > 0.5:
                return
        else:
            quiet_since = None
        time.sleep(0.1)  # between two looks


def remaining(side: str, url: str) -> int:
    """Return the number of messages that wait, run or are delayed."""
    if side == "streams":
        with contextlib.closing(connect(url)) as client:
            try:
                status = inspect.queue_status(StreamBroker(client), QUEUE)
            except BrokerError:
                return -1
            return status.waiting + status.pending + status.delayed
    with contextlib.closing(redis.Redis.from_url(url, socket_timeout=5)) as client:
        names = [QUEUE, *(f"{QUEUE}\x06\x16{step}" for step in (3, 6, 9))]
        return sum(client.llen(name) for name in names) + client.hlen("unacked")


def final_state(side: str, server: EmbeddedRedis, queue: str = QUEUE, *, url: str = "") -> FinalState:
    """Count what is left in Redis, command by command, and ask every export of the figures for the same.

    ``url`` is that of the cluster that the server, which has the queue, is a node of.
    """
    url = url or server.url
    if side != "streams":
        return FinalState(waiting=remaining(side, url))
    with contextlib.closing(connect(url)) as client:
        broker = StreamBroker(client)
        names = broker.queue_keys(queue)
        letters = tuple((letter.task_id, letter.reason) for letter in dead_letters(broker, queue))
    with contextlib.closing(redis.Redis.from_url(server.url, socket_timeout=5)) as raw:
        streams = (*names.streams, *names.fronts)
        pending = sum(_pending(raw, stream) for stream in streams)
        return FinalState(
            waiting=sum(raw.xlen(stream) for stream in streams) - pending,
            pending=pending,
            delayed=raw.zcard(names.delayed),
            dead=raw.xlen(names.dead),
            letters=letters,
            shown=_exports(url, queue),
        )


def _pending(raw: redis.Redis, stream: str) -> int:
    """Count the entries that were delivered and not settled, over all groups: there must be one."""
    groups = [group["name"] for group in raw.xinfo_groups(stream)] if raw.exists(stream) else []
    return sum(int(raw.xpending(stream, name)["pending"]) for name in groups)


def _exports(url: str, queue: str) -> dict[str, dict[str, float]]:
    """Return what operators are told of ``queue``, in the form in which they get it."""
    app = Celery("faults-exports", set_as_current=False)
    app.conf.update(celery_settings(broker=url, results="cache+memory://", queue=queue))
    celery_streams.install(app)
    streams = celery_streams.streams_of(app)
    try:
        status = json.loads(json.dumps(collect(streams).as_dict()))
        metrics = exposition(streams).decode()
    finally:
        streams.reload()
        app.close()
    told = {"status": next((one for one in status["queues"] if one["queue"] == queue), {})}
    told["totals of the status"] = status["totals"]
    told["Prometheus"] = {
        sample.name.removeprefix("celery_streams_queue_"): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.labels == {"queue": queue}
    }
    return {source: {name: values[name] for name in FIGURES if name in values} for source, values in told.items()}


def _self_inflicted(ledger: Ledger, submissions: Sequence[Any], runs: Sequence[Any]) -> list[FaultRecord]:
    """Return the crashes that tasks were told to cause."""
    found = [
        FaultRecord(f"F2 {note['crash']} in a task", note["at"], note["at"], frozenset((note["pid"],)))
        for note in ledger.notes()
        if "crash" in note
    ]
    poison = {one.id for one in submissions if one.action == "poison"}
    found += [
        FaultRecord("F16 poison", run.start, run.start, frozenset((run.pid,))) for run in runs if run.id in poison
    ]
    return found


def with_minutes(plan: Plan, minutes: float | None) -> Plan:
    """Return the plan with another length."""
    return plan if minutes is None else replace(plan, seconds=minutes * 60)


def logs(report: Report) -> str:
    """Return where the logs of a run lie."""
    return os.fspath(report.directory)

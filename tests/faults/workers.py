"""The workers of a run as real processes: start, find their children, kill, stop and continue, replace."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.proj import settings
from tests.support.eventually import eventually
from tests.support.processes import PROGRAMS, Program


class FaultWorker(Program):
    """A worker of the harness' project, in a process group of its own.

    Args:
        side: ``streams`` or ``lists`` (a stock Celery worker).
        include: modules to import into the worker, e.g. ``tests.faults.points``.
    """

    def __init__(
        self,
        *,
        name: str,
        queues: str,
        directory: Path,
        environment: Mapping[str, str],
        side: str = "streams",
        app: str = "tests.faults.app",
        concurrency: int = 2,
        pool: str = "prefork",
        level: str = "INFO",
        include: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        self.hostname = f"{name}@faults"
        self.name = name
        modules = ["-I", ",".join(include)] if include else []
        super().__init__(
            [
                *(*PROGRAMS[side], "-A", app, "worker", "-n", self.hostname, "-Q", queues, "-l", level),
                *("-c", str(concurrency), "-P", pool),
                *modules,
                *options,
            ],
            log=directory / f"{name}.log",
            environment={**environment, settings.WORKER: name},
        )

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait for Celery's line ``NODE ready.`` (level INFO)."""
        seen = len(self._ready_before)

        def ready() -> bool:
            assert self.running, f"{self.name} ended with exit code {self.wait()}:\n{self.log}"
            return self.log.count(f"{self.hostname} ready.") > seen

        eventually(ready, timeout=timeout, message=f"{self.name} is ready")

    _ready_before: Sequence[int] = ()

    def start(self) -> None:
        if self.log_path.exists():
            self._ready_before = [0] * self.log.count(f"{self.hostname} ready.")
        super().start()

    def children(self) -> list[int]:
        """Return the process ids of the living children."""
        return sorted(pid for pid, parent, state, _ in _processes() if parent == self.pid and state != "Z")

    def group(self) -> list[int]:
        """Return the process ids of everything that belongs to this worker, orphans too."""
        return sorted(pid for pid, _, state, group in _processes() if group == self.pid and state != "Z")

    def signal_all(self, number: int) -> None:
        """Signal the parent and all children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill_parent(self) -> None:
        """Kill the parent only; reap it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    @property
    def orphans_gone(self) -> bool:
        return not self.group()


def signal_process(pid: int, number: int) -> None:
    """Signal one process; it may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _processes() -> list[tuple[int, int, str, int]]:
    """Return (pid, parent, state, process group) of all processes."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat=,pgid="], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split() for line in listing.splitlines())
    return [(int(pid), int(parent), state[0], int(group)) for pid, parent, state, group in rows]


class Fleet:
    """The workers of a load run; whoever was killed is replaced a moment later, as a supervisor would."""

    #: Seconds between the end of a worker and the start of its successor.
    PAUSE = 0.3

    def __init__(self, workers: Sequence[FaultWorker]) -> None:
        self.workers = list(workers)
        #: Groups of workers that were killed without their children.
        self._old_groups: dict[int, float] = {}
        self._ended: dict[str, float] = {}
        #: Workers that ended by themselves.
        self.surprises: list[str] = []
        self._expected: set[int] = set()

    def start(self) -> None:
        for worker in self.workers:
            worker.start()

    @property
    def alive(self) -> list[FaultWorker]:
        return [worker for worker in self.workers if worker.running]

    def expect_end(self, worker: FaultWorker) -> None:
        """Say that a fault ended this worker."""
        self._expected.add(worker.pid)
        self._old_groups[worker.pid] = time.time()

    def supervise(self) -> None:
        """Start successors of workers that ended."""
        now = time.time()
        for worker in self.workers:
            if worker.running:
                continue
            ended = self._ended.setdefault(worker.name, now)
            if now - ended < self.PAUSE:
                continue
            if worker.pid not in self._expected:
                assert worker.process is not None
                self.surprises.append(f"{worker.name} ended by itself with {worker.process.returncode}")
                self._old_groups[worker.pid] = now
            del self._ended[worker.name]
            worker.start()

    def stop(self, *, timeout: float) -> list[str]:
        """End all workers with SIGTERM; returns a sentence for each that had to be killed."""
        hangs = list(self.surprises)
        for worker in self.alive:
            worker.signal_all(signal.SIGCONT)
            worker.signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout
        for worker in self.workers:
            try:
                if worker.process is not None:
                    worker.process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                hangs.append(f"{worker.name} did not end within {timeout:g} s of SIGTERM")
        groups = {group for _, _, state, group in _processes() if state != "Z"}
        hangs += [
            f"children of the killed worker {pid} are still there after {time.time() - since:.0f} s"
            for pid, since in self._old_groups.items()
            if pid in groups and pid not in {worker.pid for worker in self.workers}
        ]
        self.kill()
        return hangs

    def kill(self) -> None:
        """Kill whatever is left, orphans of earlier workers too."""
        for pid in self._old_groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for worker in self.workers:
            worker.kill()

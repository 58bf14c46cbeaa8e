"""Worker and beat processes for tests: start, wait until ready, look at the log, end; no process outlives its test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.proj import settings
from tests.support import template
from tests.support.eventually import eventually

ROOT = template.ROOT

#: The two programs under comparison.
PROGRAMS = {"lists": (sys.executable, "-m", "celery"), "streams": (sys.executable, "-m", "celery_streams")}


def project_environment(
    *,
    broker: str,
    results: str,
    ledger: str,
    queue: str = "celery",
    install: bool = True,
    enabled: bool | None = None,
    watched: bool = False,
    worker: str = "worker",
    **more: Any,
) -> dict[str, str]:
    """Return the environment in which the sample project runs; ``more`` are Celery settings."""
    environment = template.inherited()
    environment.update(
        {
            settings.BROKER: broker,
            settings.RESULTS: results,
            settings.LEDGER: ledger,
            settings.QUEUE: queue,
            settings.INSTALL: "1" if install else "0",
            settings.WATCHED: "1" if watched else "0",
            settings.WORKER: worker,
            settings.SETTINGS: json.dumps(more),
        }
    )
    if enabled is not None:
        environment["CELERY_STREAMS_ENABLED"] = str(enabled)
    return environment


def alive(pid: int) -> bool:
    """Return whether there is a process with this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of living processes that work in ``folder`` or were told of it."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        try:
            # Redis overwrites its environment with its title, but works in its own directory.
            told = str(folder) in os.readlink(one / "cwd") or str(folder).encode() in (one / "environ").read_bytes()
            command = (one / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if told and command:
            found.append(command)
    return found


class Program:
    """A process of its own session, with its output in a file."""

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str], directory: Path = ROOT
    ) -> None:
        self.command = list(command)
        self.directory = directory
        self.log_path = log
        self.environment = dict(environment)
        self.process: subprocess.Popen[bytes] | template.Forked | None = None

    def start(self) -> None:
        with self.log_path.open("ab") as output:
            self.process = template.start(
                self.command,
                environment=self.environment,
                directory=self.directory,
                output=output.fileno(),
                errors=output.fileno(),
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """Everything that the process has printed so far."""
        return self.log_path.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the process itself, not to its children."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 15.0) -> int:
        """Wait for the end of the process and return its exit code."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self, timeout: float = 15.0) -> None:
        """End the process: SIGTERM, and SIGKILL for what is left of its session."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kill the process and everything that it started."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


class Worker(Program):
    """``celery worker`` or ``celery-streams worker`` of the sample project.

    Args:
        program: a key of :data:`PROGRAMS`.
        name: the first part of the node name, and the name in the ledger.
    """

    def __init__(
        self,
        program: str,
        *,
        name: str,
        queues: str,
        directory: Path,
        environment: Mapping[str, str],
        concurrency: int | None = 2,
        pool: str = "prefork",
        options: Sequence[str] = (),
    ) -> None:
        self.hostname = f"{name}@test"
        super().__init__(
            [
                *(*PROGRAMS[program], "-A", "tests.proj", "worker", "-n", self.hostname, "-Q", queues),
                *(() if concurrency is None else ("-c", str(concurrency))),
                *("-P", pool, "-l", "INFO"),
                *options,
            ],
            log=directory / f"{name}.log",
            environment={**environment, settings.WORKER: name},
        )
        self.name = name
        self.queue = queues.partition(",")[0]

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait for the line ``NODE ready.`` in the log."""

        def ready() -> bool:
            if not self.running:  # no AssertionError, which would mean "not yet"
                raise RuntimeError(f"The worker ended with exit code {self.wait()}:\n{self.log}")
            return f"{self.hostname} ready." in self.log

        try:
            eventually(ready, timeout=timeout)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.log}") from exc

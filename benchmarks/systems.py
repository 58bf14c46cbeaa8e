"""The systems: how each is started, told where its Redis is, and asked to publish."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .marks import RECORDS
from .peers import PEERS, environment
from .processes import Program
from .project.settings import QUEUE, URL

__all__ = ("BARE", "STOCK", "STREAMS", "SYSTEMS", "TRACED", "Bench", "BenchmarkError", "System", "peer")

_ROOT = Path(__file__).resolve().parent.parent


class BenchmarkError(Exception):
    """A system did not do what it was told; there is no figure."""


@dataclass(frozen=True, slots=True)
class System:
    """One column of the tables."""

    name: str
    #: As the tables call it.
    title: str
    #: One command for each program that has to run.
    commands: tuple[tuple[str, ...], ...]
    #: Has delayed tasks and a result backend.
    is_celery: bool
    #: Whose publisher it shares; what publishing costs is not measured again.
    publisher: str = ""
    #: Runs its publisher.
    python: str = sys.executable


def _worker(program: str, app: str) -> tuple[str, ...]:
    options = ("worker", "-Q", QUEUE, "-c", "2", "-l", "WARNING")
    return sys.executable, "-m", program, "-A", f"benchmarks.project.{app}", *options


STOCK = System("stock", "celery worker -c 2", (_worker("celery", "stock"),), is_celery=True)
STREAMS = System("streams", "celery-streams worker -c 2", (_worker("celery_streams", "streams"),), is_celery=True)


def _bare(*words: str) -> tuple[tuple[str, ...], ...]:
    return tuple((sys.executable, "-m", "benchmarks.bare", name, *words) for name in ("one", "two"))


TRACED = System(
    "traced",
    "bare loop with Celery's tracer, 2 processes",
    _bare("traced"),
    is_celery=False,
    publisher="bare",
)
BARE = System("bare", "bare redis-py, 2 processes", _bare(), is_celery=False)


def peer(name: str, directory: Path) -> System:
    """Return another task queue, with its environment below ``directory``.

    Raises:
        PeerError: it cannot be installed here.
    """
    python = environment(name, directory)
    return System(name, PEERS[name].title, ((python, *PEERS[name].command),), is_celery=False, python=python)


#: In the order of the columns.
SYSTEMS = (STOCK, STREAMS, TRACED, BARE)


class Bench:
    """One system at one Redis, with its own records and logs in ``directory``."""

    def __init__(self, system: System, url: str, directory: Path) -> None:
        self.system = system
        self.programs: list[Program] = []
        self._directory = directory
        self._records = directory / f"{system.name}.records"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CELERY_")},
            URL: url,
            RECORDS: str(self._records),
            "C_FORCE_ROOT": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
        }
        self.clear_records()

    def start(self) -> None:
        """Start the worker; it may not be ready yet."""
        self.programs = [
            Program(command, environment=self._environment, log=self._directory / f"{self.system.name}.log")
            for command in self.system.commands
        ]

    def stop(self) -> None:
        """End the worker."""
        for program in self.programs:
            program.stop()
        self.programs = []

    def publish(self, verb: str, count: int, *arguments: str) -> dict[str, Any]:
        """Have a process of its own publish, and return what it measured.

        Raises:
            BenchmarkError: it failed.
        """
        command = [*self._publisher(verb, count), *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise BenchmarkError(f"{self.system.title}: publishing ({verb}) failed:\n{done.stderr[-2000:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    @contextmanager
    def publisher(self, verb: str, count: int) -> Iterator[Callable[[str], dict[str, Any]]]:
        """Start a publisher that takes orders: yields what sends one line and returns the answer."""
        command = self._publisher(verb, count)
        process = subprocess.Popen(
            command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(line: str) -> dict[str, Any]:
            if line:
                stdin.write(f"{line}\n")
            answer = stdout.readline()
            if not answer:
                raise BenchmarkError(f"{self.system.title}: its publisher ({verb}) ended")
            return dict(json.loads(answer))

        with process:
            try:
                ask("")
                yield ask
            finally:
                with suppress(BrokenPipeError):
                    stdin.close()
                stdout.read()

    def _publisher(self, verb: str, count: int) -> list[str]:
        name = self.system.publisher or self.system.name
        return [self.system.python, "-m", "benchmarks.publisher", name, verb, str(count)]

    # -- records of the tasks

    def clear_records(self) -> None:
        """Forget what the tasks wrote."""
        self._records.write_bytes(b"")

    def count_bytes(self) -> int:
        """Return how many ``noop`` tasks ran, if nothing else did."""
        return self._records.stat().st_size

    def read_milliseconds(self) -> list[float]:
        """Return what the ``stamp`` tasks wrote, in milliseconds."""
        return [int(line) / 1e6 for line in self._records.read_bytes().split()]

    def complain(self, what: str) -> BenchmarkError:
        """Return an error with the end of the worker's output."""
        tails = "\n".join(program.tail for program in self.programs)
        return BenchmarkError(f"{self.system.title}: {what}\n{tails}")

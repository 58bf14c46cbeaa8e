"""Supervisor: worker programs as children of a small process, for ``--processes`` and ``--reload``; it runs no task.

1. Each worker is the same command line once more, with a node name of its own.
2. Signals (TERM, INT, QUIT, HUP, USR1, USR2) are passed on; the workers do what Celery's worker does with them. They
   have sessions of their own, so that Ctrl-C in a terminal reaches each of them once. The handler only notes a signal;
   the loop passes it on, between two starts: a worker either gets it or is never started.
3. A worker that is killed or crashes is started again, after a pause that grows while it keeps dying. One that ends
   with an error of its own ends the others, warmly, and the supervisor with that exit code, for
   the service manager. One that ends with 0 (remote control) is not replaced.
4. With a :class:`Watcher`, workers are replaced when a file changes; one that cannot start waits for the next change.
5. Workers do not outlive a supervisor that is killed (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..poll import readable

__all__ = ("Supervisor", "Watcher", "project_modules")

#: Seconds between two looks at the workers, and at the files.
_TICK, _LOOK = 0.1, 0.5

#: Seconds: a worker that lived longer than this starts again at once; least and greatest pause otherwise.
_YOUNG, _PAUSES = 10.0, (1.0, 30.0)

#: Signals for a worker that is to be replaced, and after how many seconds: running tasks soon go back to their queues.
_ENDING = ((0.0, signal.SIGTERM), (3.0, signal.SIGQUIT), (8.0, signal.SIGKILL))

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1

#: Directories that hold no code of the project.
_SKIPPED = {"node_modules", "site-packages", "__pycache__"}


class Watcher:
    """Finds ``.py`` files that were changed, made or deleted under ``directory`` and among ``files``."""

    def __init__(self, directory: Path, *, files: Iterable[Path] = ()) -> None:
        self._directory = directory
        self._files = set(files)
        self._seen = self._look()

    def changed(self) -> Path | None:
        """Return a file that is not as it was at the last call, or None."""
        before, self._seen = self._seen, self._look()
        for path in {*before, *self._seen}:
            if before.get(path) != self._seen.get(path):
                return path
        return None

    def _look(self) -> dict[Path, tuple[int, int]]:
        found: dict[Path, tuple[int, int]] = {}
        for path in {*self._files, *self._under(self._directory)}:
            try:
                status = path.stat()
            except OSError:
                continue  # deleted, or not for us to read
            found[path] = (status.st_mtime_ns, status.st_size)
        return found

    @staticmethod
    def _under(directory: Path) -> Iterable[Path]:
        for parent, names, files in os.walk(directory):
            if "pyvenv.cfg" in files:
                names.clear()
                continue
            names[:] = [name for name in names if name not in _SKIPPED and not name.startswith(".")]
            yield from (Path(parent, name) for name in files if name.endswith(".py"))


def project_modules() -> list[Path]:
    """Return the files of all imported modules that neither Python nor an installed package brought."""
    foreign = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return [Path(name) for name in files if name and name.endswith(".py") and not name.startswith(foreign)]


class _Worker:
    """One worker program."""

    def __init__(self, command: Sequence[str], again: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._again = again
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None
        self._born = 0.0
        self._start_at = 0.0
        self._pause = _PAUSES[0]
        self._signals_due: list[tuple[float, int]] = []
        #: It is being ended, to be started again at once.
        self.replacing = False
        #: It shall not be started again.
        self.over = False

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, env=self._environment, start_new_session=True, preexec_fn=_die_with_parent
        )
        self._command = self._again
        self._born = time.monotonic()
        self._signals_due = []
        self.replacing = False

    def start_if_due(self, now: float) -> None:
        if self.process is None and not self.over and now >= self._start_at:
            self.start()

    def ended(self, now: float) -> int | None:
        """Return the exit code of a worker that has ended since the last call, or None."""
        if self.process is None:
            return None
        code = self.process.poll()
        if code is None:
            while self._signals_due and now >= self._signals_due[0][0]:
                self.signal(self._signals_due.pop(0)[1])
            return None
        self.process = None
        self._pause = _PAUSES[0] if now - self._born > _YOUNG else min(self._pause * 2, _PAUSES[1])
        return code

    def wait(self, now: float) -> float:
        """Start again after a pause; returns its length in seconds."""
        self._start_at = now + self._pause
        return self._pause

    def hold(self) -> None:
        """Wait for :meth:`replace`."""
        self._start_at = float("inf")

    def replace(self, now: float) -> None:
        """End the worker, and start it again."""
        self._start_at = 0.0
        if self.process is not None and not self.replacing:
            self.replacing = True
            self._signals_due = [(now + after, number) for after, number in _ENDING]

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


class Supervisor:
    """Runs one worker for each of ``commands``, of which ``again`` are the later starts.

    Args:
        watcher: replaces the workers when a file changes.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        *,
        again: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        watcher: Watcher | None = None,
    ) -> None:
        self._workers = [_Worker(command, later, environment) for command, later in zip(commands, again, strict=True)]
        self._watcher = watcher
        self._next_look = 0.0
        self._stopping = False
        self._code = 0
        self._received: deque[int] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def run(self) -> int:
        """Run until all workers have ended; returns the exit code."""
        for number in _PASSED_ON:
            if number == signal.SIGHUP and sys.stdout.isatty():
                continue  # the terminal was closed: as Celery's worker, end
            signal.signal(number, self._note)
        while True:
            now = time.monotonic()
            for worker in self._workers:
                self._pass_on_received()
                if not self._stopping:
                    worker.start_if_due(now)
                code = worker.ended(now)
                if code is not None:
                    self._on_end(worker, code, now)
            if all(worker.process is None and (worker.over or self._stopping) for worker in self._workers):
                return self._code
            if self._watcher is not None and now >= self._next_look and not self._stopping:
                self._next_look = now + _LOOK
                self._reload(self._watcher.changed(), now)
            # Only the end of a process is noticed a tick later. What would wake this loop for that differs between
            # systems (pidfd, kqueue, SIGCHLD with a pipe).
            if readable([self._wake_read], timeout=_TICK):
                os.read(self._wake_read, 4096)
            self._pass_on_received()

    def _note(self, number: int, frame: Any) -> None:
        self._received.append(number)
        with contextlib.suppress(BlockingIOError):  # it was woken often enough
            os.write(self._wake_write, b".")

    def _pass_on_received(self) -> None:
        while self._received:
            self._pass_on(self._received.popleft())

    def _pass_on(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._stopping = True
        for worker in self._workers:
            worker.signal(number)

    def _on_end(self, worker: _Worker, code: int, now: float) -> None:
        if self._stopping:
            self._code = self._code or (code if code >= 0 else 128 - code)
        elif worker.replacing:
            worker.replacing = False
        elif self._watcher is not None and code > 0:
            worker.hold()
            _say(f"The worker ended with exit code {code}; it restarts when a file changes.")
        elif code < 0:
            _say(f"A worker was killed by signal {-code}; it restarts in {worker.wait(now):g}s.")
        else:
            worker.over = True
            if code:
                self._code = code
                _say(f"A worker ended with exit code {code}; stopping the others.")
                self._pass_on(signal.SIGTERM)

    def _reload(self, path: Path | None, now: float) -> None:
        if path is None:
            return
        _say(f"{path} changed; restarting the worker.")
        for worker in self._workers:
            worker.replace(now)


def _say(text: str) -> None:
    click.echo(text, err=True)


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

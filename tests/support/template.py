"""A process that has imported what every ``celery-streams`` imports, and forks each that a test starts.

Importing is most of a worker's start, and the suite would pay it a thousand times. What is forked goes on as
``python -m celery_streams`` does: with a session, environment, arguments, directory and output of its own, through the
program's entry point, and to the end of an interpreter. No app and no project is imported before. What asks for
something that is looked at only when an interpreter starts is a process from nothing (:meth:`Template.fits`), and
``pytest --from-nothing`` starts all so.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

#: The one program that is forked.
PROGRAM = (sys.executable, "-m", "celery_streams")

#: Words of a command line that begins as it would from nothing: it patches the standard library first, imports less,
#: or starts itself once more.
_FROM_NOTHING = ("gevent", "eventlet", "health", "demo", "-D", "--detach", "--reload", "--processes")

#: Variables that are read when they are needed. All others must be as they were when the template began.
_READ_LATE = (
    "CELERY_STREAMS_",
    "CHAT_",
    "FAULTS_",
    "PROJ_",
    "PROJECT_SPANS",
    "PYTEST_CURRENT_TEST",
    "TOKEN_OF_THE_TEST",
)

#: What a worker imports once it knows its app, its pool and its transport.
_MODULES = (
    *("celery.app.amqp", "celery.app.control", "celery.app.events", "celery.app.log", "celery.app.task"),
    *("celery.apps.worker", "celery.backends.redis", "celery.concurrency.prefork", "celery.events.snapshot"),
    *("celery.loaders.app", "celery.worker.autoscale", "celery.worker.control", "celery.worker.strategy"),
    *("kombu.transport.redis", "kombu.transport.virtual.exchange", "billiard.pool"),
    *("celery_streams.bin.root", "celery_streams.worker.autoscale", "celery_streams.worker.consumer"),
    *("celery_streams.worker.program", "celery_streams.worker.child", "celery_streams.concurrency.prefork"),
    *("celery_streams.concurrency.thread", "celery_streams.concurrency.solo", "celery_streams.concurrency.aio"),
)


# -- the side of the tests ---------------------------------------------------------------------------------------------


class Forked:
    """A process that the template forked, with what the tests use of ``subprocess.Popen``."""

    def __init__(self, args: Sequence[str], pid: int, status: int) -> None:
        self.args, self.pid = list(args), pid
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code."""
        code = self._look(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if poll.poll(None if timeout is None else max(timeout, 0) * 1000):
                said = os.read(self._status, 16)
                os.close(self._status)
                if not said:
                    raise RuntimeError("The template of the workers has ended")
                self.returncode = os.waitstatus_to_exitcode(int(said))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Template:
    """The template of this test process, which ends with it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._fixed = _fixed(environment)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(number)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=dict(environment),
                cwd=ROOT,
                pass_fds=[number],
                start_new_session=True,
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait(10)

    def fits(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Return whether a fork begins as a process with this command and environment would."""
        parts = {part for word in command[len(PROGRAM) :] for part in word.split("=", 1)}
        return (
            tuple(command[: len(PROGRAM)]) == PROGRAM
            and parts.isdisjoint(_FROM_NOTHING)
            and _fixed(environment) == self._fixed
        )

    def start(
        self, command: Sequence[str], *, environment: Mapping[str, str], directory: Path, output: int, errors: int
    ) -> Forked:
        """Fork a process, whose standard output and errors are the files with these numbers."""
        said = {"words": list(command[len(PROGRAM) :]), "environment": dict(environment), "directory": str(directory)}
        status, theirs = os.pipe()
        try:
            socket.send_fds(self._socket, [json.dumps(said).encode()], [output, errors, theirs])
            pid = self._socket.recv(16)
        finally:
            os.close(theirs)
        if not pid:
            raise RuntimeError("The template of the workers has ended")
        return Forked(command, int(pid), status)


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_READ_LATE)}


def inherited() -> dict[str, str]:
    """Return the environment of a process that a test starts, before what the test asks for."""
    ours = {
        "C_FORCE_ROOT": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
    }
    return {**{name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "PROJ_"))}, **ours}


#: Whether processes begin from nothing: ``pytest --from-nothing``, and where a fork is no good (macOS).
from_nothing = sys.platform != "linux"

#: The environment before any test has changed it.
AT_FIRST = inherited()


@functools.cache
def the_template() -> Template:
    """Return this test process' template, which begins when it is first asked for."""
    return Template(AT_FIRST)


def start(
    command: Sequence[str], *, environment: Mapping[str, str], directory: Path, output: int, errors: int
) -> subprocess.Popen[bytes] | Forked:
    """Start a process in a session of its own, by a fork where that is the same."""
    if not from_nothing and the_template().fits(command, environment):
        return the_template().start(command, environment=environment, directory=directory, output=output, errors=errors)
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        env=dict(environment),
        cwd=directory,
        start_new_session=True,
    )


# -- the template itself -----------------------------------------------------------------------------------------------


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each request, and tell how each fork ended.

    Returns:
        In a fork: the request that it is for. In the template: None, once its test process has ended.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    statuses: dict[int, int] = {}
    parent = os.getppid()
    # What the test process has forked, and left behind, keeps its end of the socket open.
    while os.getppid() == parent:
        ready, _, _ = select.select([control.fileno(), woken], [], [], 5.0)
        if woken in ready:
            os.read(woken, 4096)
            _tell_ends(statuses)
        if control.fileno() not in ready:
            continue
        said, numbers, _, _ = socket.recv_fds(control, 1 << 20, 3)
        if not said:
            return None
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become_its_own(control, *numbers[:2])
            return json.loads(said)
        output, errors, statuses[pid] = numbers
        os.close(output)
        os.close(errors)
    return None


def _tell_ends(statuses: dict[int, int]) -> None:
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        number = statuses.pop(pid)
        try:
            os.write(number, str(status).encode())
        except BrokenPipeError:  # nobody asks any more
            pass
        finally:
            os.close(number)


def _become_its_own(control: socket.socket, output: int, errors: int) -> None:
    """Begin a session, take the files, say that this process is there, and keep nothing else open."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(errors, 2)
    control.send(str(os.getpid()).encode())
    control.detach()
    os.closerange(3, 1 + max(int(one) for one in os.listdir("/proc/self/fd")))


def main() -> None:
    """Be the template; in each of its forks be the program that it is for."""
    importlib.import_module("celery_streams.celery_private").import_program_alone()  # as the program itself does
    for name in _MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is None:
        return
    os.chdir(asked["directory"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.path[0] = asked["directory"]
    sys.argv = [PROGRAM[-1], *asked["words"]]
    sys.orig_argv = [*PROGRAM, *asked["words"]]
    importlib.invalidate_caches()
    runpy.run_module(PROGRAM[-1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

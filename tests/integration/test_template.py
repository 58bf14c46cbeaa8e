"""Processes that tests fork from a template begin, and end, as processes from nothing do."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import template
from tests.support.eventually import eventually
from tests.support.processes import PROGRAMS, Program

#: A project that tells what its process is like, leaves something for the end, and ends in the middle of its import.
TELLING = """
import atexit, json, os, signal, sys, threading

with open("started", "a") as file:
    file.write(f"{os.getpid()}\\n")
if os.environ["PROJ_SETTINGS"] == "wait":
    signal.pause()
print(json.dumps({
    "arguments": [sys.argv, sys.orig_argv], "directory": os.getcwd(), "path": sys.path,
    "environment": dict(os.environ), "a session of its own": os.getsid(0) == os.getpid(),
    "main": [sys.modules["__main__"].__name__, sys.modules["__main__"].__spec__.name],
    "files": [os.path.exists(f"/proc/self/fd/{number}") for number in range(3, 64)],
    "input": os.readlink("/proc/self/fd/0"),
    "output": [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stdout.write_through],
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "woken": signal.set_wakeup_fd(-1),
    "threads": [one.name for one in threading.enumerate()], "limits": sys.getrecursionlimit(),
    "no other project": [name for name in sys.modules if name.startswith("tests.proj")],
}))
atexit.register(print, "the end")
sys.exit(7)
"""


def telling(directory: Path, how: str, **variables: str) -> Program:
    (directory / "telling.py").write_text(TELLING)
    # As it was at first: other tests of this process may have changed it, and then nothing is forked.
    environment = {**template.AT_FIRST, "PROJ_SETTINGS": how, **variables}
    command = [*PROGRAMS["streams"], "-A", "telling", "report"]
    return Program(command, log=directory / "log", environment=environment, directory=directory)


def told(program: Program) -> Any:
    program.start()
    assert program.wait(30) == 7, program.log
    said, end = program.log.splitlines()
    program.log_path.unlink()
    assert end == "the end"
    return json.loads(said)


@pytest.mark.skipif(template.from_nothing, reason="nothing is forked")
def test_forked_process_is_like_one_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = telling(tmp_path, "tell", CELERY_STREAMS_QUEUES="a,b")

    forked = told(program)
    was_forked = isinstance(program.process, template.Forked)
    monkeypatch.setattr(template, "from_nothing", True)
    from_nothing = told(program)

    assert was_forked
    assert isinstance(program.process, subprocess.Popen)
    assert forked == from_nothing


@pytest.mark.skipif(template.from_nothing, reason="nothing is forked")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_end_of_a_forked_process_is_known_at_once_and_by_its_signal(tmp_path: Path, number: int) -> None:
    (tmp_path / "started").touch()
    program, other = telling(tmp_path, "wait"), telling(tmp_path, "wait")
    for one in (program, other):
        one.start()
    eventually(lambda: len((tmp_path / "started").read_text().splitlines()) == 2)
    assert program.running
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.01)

    program.signal(number)

    assert program.wait(10) == -number
    assert program.process.poll() == -number
    assert other.running
    other.kill()
    assert other.wait() == -signal.SIGKILL


@pytest.mark.skipif(template.from_nothing, reason="nothing is forked")
@pytest.mark.parametrize(
    ("program", "words", "variables"),
    [
        ("streams", ("-A", "telling", "report"), {"PYTHONHASHSEED": "1"}),
        ("streams", ("-A", "telling", "report"), {"CELERY_TRACE_APP": "1"}),
        ("streams", ("-A", "telling", "worker", "-P", "gevent"), {}),
        ("streams", ("-A", "telling", "worker", "--pool=eventlet"), {}),
        ("streams", ("-A", "telling", "worker", "--processes=2", "-P", "solo"), {}),
        ("streams", ("-A", "telling", "health"), {}),
        ("lists", ("-A", "telling", "report"), {}),
    ],
)
def test_what_begins_otherwise_is_not_forked(program: str, words: tuple[str, ...], variables: dict[str, str]) -> None:
    environment = {**template.inherited(), **variables}

    assert not template.the_template().fits([*PROGRAMS[program], *words], environment)

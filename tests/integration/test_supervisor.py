"""The supervisor of ``--processes`` and ``--reload``, with small programs in the place of workers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.processes import ROOT

#: Runs a supervisor over programs that say that they started and then wait for a signal; the n-th start, and what
#: comes before or after it, is up to the arguments.
SCRIPT = """
import os, signal, subprocess, sys
from celery_streams.bin.supervisor import Supervisor

workers, nth, number, when, directory = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
started = 0

class Popen(subprocess.Popen):
    def __init__(self, *args, **options):
        global started
        started += 1
        if started == nth and when == "before":
            os.kill(os.getpid(), number)
        super().__init__(*args, **options)
        if started == nth and when == "after":
            os.kill(os.getpid(), number)

subprocess.Popen = Popen
first = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
waiting = (
    "import os, signal, sys, time\\n"
    "signal.signal(signal.SIGUSR1, lambda *_: open(sys.argv[1] + '/usr1', 'a').write('.'))\\n"
    "open(sys.argv[1] + '/%d' % os.getpid(), 'w').close()\\n"
    "time.sleep(60)"
)
lasting = [sys.executable, "-c", waiting, directory]
dies = "replace" in sys.argv[6:]
supervisor = Supervisor([first if dies else lasting] * workers, again=[lasting] * workers, environment=dict(os.environ))
sys.exit(supervisor.run())
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    programs: list[subprocess.Popen[bytes]] = []

    def make(*, workers: int = 3, nth: int = 0, number: int = 0, when: str = "", replace: bool = False) -> Any:
        words = [str(workers), str(nth), str(number), when, str(tmp_path), *(["replace"] if replace else [])]
        programs.append(subprocess.Popen([sys.executable, "-c", SCRIPT, *words], cwd=ROOT, start_new_session=True))
        return programs[-1]

    yield make
    for program in programs:
        if program.poll() is None:
            program.kill()
        program.wait()


def pids(directory: Path) -> list[int]:
    return [int(file.name) for file in directory.iterdir() if file.name.isdigit()]


def gone(directory: Path) -> bool:
    for pid in pids(directory):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_signal_that_comes_while_a_worker_is_started_ends_all(
    start: Start, tmp_path: Path, nth: int, when: str, number: int
) -> None:
    program = start(nth=nth, number=number, when=when)

    program.wait(15)

    assert gone(tmp_path)


@pytest.mark.parametrize("when", ["before", "after"])
def test_signal_that_comes_while_a_killed_worker_is_replaced_ends_all(start: Start, tmp_path: Path, when: str) -> None:
    program = start(workers=2, nth=4, number=signal.SIGTERM, when=when, replace=True)

    program.wait(20)

    assert gone(tmp_path)


def test_signal_at_any_instant_of_the_start_ends_all(start: Start, tmp_path: Path) -> None:
    for _ in range(6):
        program = start(workers=8)
        eventually(lambda: pids(tmp_path), message="a worker is there")
        time.sleep(random.uniform(0.0, 0.05))  # the instant is what varies
        program.send_signal(signal.SIGTERM)

        program.wait(15)

        assert gone(tmp_path)
        for file in tmp_path.iterdir():
            file.unlink()


def test_signal_is_passed_on_once_to_each_worker(start: Start, tmp_path: Path) -> None:
    program = start(workers=3)
    eventually(lambda: len(pids(tmp_path)) == 3)

    program.send_signal(signal.SIGUSR1)

    eventually(lambda: (tmp_path / "usr1").exists() and (tmp_path / "usr1").read_text() == "...")
    program.send_signal(signal.SIGTERM)
    program.wait(15)
    assert (tmp_path / "usr1").read_text() == "..."

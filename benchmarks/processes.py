"""What the kernel says of processes: CPU time, memory, load; and programs that end with the benchmark.

Read from /proc from the outside, so that what is measured does not measure itself. Where there is no /proc (macOS)
the figures that need it are left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ("HAS_PROC", "Memory", "Program", "busy_seconds", "cpu_seconds", "descendants", "memory")

#: Whether figures of other processes can be read.
HAS_PROC = Path("/proc/self/smaps_rollup").exists()

_TICK = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """KiB of one process."""

    #: Its own pages, and its share of those that it has in common with others.
    pss: int
    #: Its own pages only.
    private: int


class Program:
    """A program in a session of its own, with its output in a file."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=_death_signal(),
            )
        self.pid = self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process.poll() is not None

    @property
    def tail(self) -> str:
        """The end of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def stop(self, *, seconds: float = 10.0) -> None:
        """End it with SIGTERM, and its whole session with SIGKILL after ``seconds``."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()


def descendants(pid: int) -> list[int]:
    """Return ``pid`` and all processes below it, parents first."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(path)[1]), []).append(int(path.parent.name))
    found = [pid]
    for parent in found:
        found += sorted(children.get(parent, ()))
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the CPU time that the processes used until now."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = _stat(Path(f"/proc/{pid}/stat"))
            total += int(fields[11]) + int(fields[12])
    return total / _TICK


def busy_seconds() -> float:
    """Return the CPU time that the whole machine used until now."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, _steal = map(int, fields)
    return (user + nice + system + irq + softirq) / _TICK


def memory(pid: int) -> Memory:
    """Return the memory of one process."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0])
    return Memory(pss=found["Pss"], private=found["Private_Clean"] + found["Private_Dirty"])


def wait_for(condition: Callable[[], bool], *, seconds: float, pause: float = 0.02) -> bool:
    """Return whether ``condition`` came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def _stat(path: Path) -> list[str]:
    """Return the fields of a stat file after the name of the program (which may hold blanks)."""
    return path.read_text(errors="replace").rpartition(")")[2].split()


def _death_signal() -> Callable[[], object] | None:
    # A benchmark that is killed must not leave workers behind.
    if not sys.platform.startswith("linux"):
        return None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

"""Other task queues on Redis, each in a virtual environment of its own; a module for each, with its tasks and ``send``.

They run with two processes and their own defaults, publish the same two tasks, and leave the same marks. None is
installed unless ``--peers`` asks for it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ("PEERS", "Peer", "PeerError", "environment")


class PeerError(Exception):
    """An environment cannot be made."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One of them."""

    #: As the tables call it.
    title: str
    #: What is installed.
    requirements: tuple[str, ...]
    #: The worker, without the interpreter.
    command: tuple[str, ...]
    #: The oldest Python that it runs on.
    python: tuple[int, int] = (3, 10)


#: By the names of their modules.
PEERS: dict[str, Peer] = {
    "huey": Peer(
        "huey, 2 processes",
        ("huey", "redis", "hiredis"),
        ("-m", "huey.bin.huey_consumer", "benchmarks.peers.huey.huey", "-w", "2", "-k", "process", "-q"),
    ),
    "dramatiq": Peer(
        "dramatiq, 2 processes",
        ("dramatiq[redis]", "hiredis"),
        ("-m", "dramatiq", "benchmarks.peers.dramatiq", "-p", "2", "--log-file", "/dev/null"),
    ),
    "taskiq": Peer(
        "taskiq list, 2 processes",
        ("taskiq", "taskiq-redis", "hiredis"),
        ("-m", "taskiq", "worker", "benchmarks.peers.taskiq:broker", "-w", "2", "--log-level", "WARNING"),
    ),
    "plus": Peer(
        "celery-redis-plus -c 2",
        ("celery-redis-plus", "redis", "hiredis"),
        ("-m", "celery", "-A", "benchmarks.peers.plus", "worker", "-Q", "bench", "-c", "2", "-l", "WARNING"),
        python=(3, 13),
    ),
}


def environment(name: str, directory: Path) -> str:
    """Return the interpreter of a peer's environment, which is made below ``directory`` when it is not there.

    Raises:
        PeerError: no interpreter is new enough, or something cannot be installed.
    """
    peer = PEERS[name]
    place = (directory / name).resolve()
    python = place / "bin" / "python"
    done = place / "complete"
    if done.exists():
        return str(python)
    base = _interpreter(peer.python)
    for command in (
        (base, "-m", "venv", "--clear", str(place)),
        (str(python), "-m", "pip", "install", "-q", *peer.requirements),
    ):
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise PeerError(f"{peer.title}: {' '.join(command[:4])} failed:\n{ended.stderr[-1500:]}")
    done.touch()
    return str(python)


def _interpreter(oldest: tuple[int, int]) -> str:
    if sys.version_info[:2] >= oldest:
        return sys.executable
    for minor in range(oldest[1], oldest[1] + 4):
        found = shutil.which(f"python{oldest[0]}.{minor}")
        if found:
            return found
    raise PeerError(f"no Python {oldest[0]}.{oldest[1]} or newer is on the PATH")

"""chunks: the parts in which the integration suite runs, each a pytest process with a worker of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ("QUICK", "Chunk", "all_chunks", "parse")

#: Parts of the classes that take long, so that a failure is seen early.
_PARTS = {"test_chord": 10, "test_chain": 3, "test_group": 3, "test_tasks": 3}

#: Files that are run class by class.
_BY_CLASS = ("test_canvas.py", "test_tasks.py")

#: Files that are not run, and why.
LEFT_OUT = {"test_backend.py": "needs an account of Azure Blob Storage, and imports its client"}

#: About four minutes that touch everything.
QUICK = (
    "test_inspect.py",
    "test_group_chains.py",
    "test_canvas.py::test_link_error",
    "test_canvas.py::test_stamping_mechanism",
    "test_tasks.py::test_task_replacement",
    "test_tasks.py::test_trace_log_arguments",
    "test_tasks.py::test_task_redis_result_backend",
    "test_tasks.py::test_signal_bound_method_receivers",
    "test_beat.py",
)


@dataclass(frozen=True)
class Chunk:
    """What pytest is given, and which part of it is run."""

    what: str
    part: str = ""

    def __str__(self) -> str:
        return f"{self.what}@{self.part}" if self.part else self.what

    @property
    def log_name(self) -> str:
        return re.sub(r"[^A-Za-z0-9.]+", "_", str(self)) + ".log"


def parse(text: str) -> Chunk:
    """Read ``file.py``, ``file.py::class`` or ``file.py::class@2/10`` (the third of ten parts)."""
    what, _, part = text.partition("@")
    if part and not re.fullmatch(r"\d+/\d+", part):
        raise ValueError(f"{text!r}: the part is I/N, e.g. test_canvas.py::test_chord@0/10")
    return Chunk(what, part)


def all_chunks(folder: Path) -> list[Chunk]:
    """Return the whole integration suite, in the order of its files."""
    chunks: list[Chunk] = []
    for path in sorted(folder.glob("test_*.py")):
        if path.name in LEFT_OUT:
            continue
        if path.name not in _BY_CLASS:
            chunks.append(Chunk(path.name))
            continue
        for name in re.findall(r"^class (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            parts = _PARTS.get(name, 1)
            chunks += [Chunk(f"{path.name}::{name}", f"{part}/{parts}" if parts > 1 else "") for part in range(parts)]
    return chunks

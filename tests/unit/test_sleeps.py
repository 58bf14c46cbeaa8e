"""Tests wait for conditions (``eventually``). Where one sleeps, time itself is what it is about, and it says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

#: What tasks do, in processes of their own; and ``eventually`` itself.
TASKS = {TESTS / "proj" / "actions.py", TESTS / "faults" / "app.py", TESTS / "support" / "eventually.py"}

FILES = sorted({*TESTS.rglob("*.py")} - TASKS - {Path(__file__)})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_sleep_of_a_test_says_why(path: Path) -> None:
    lines = path.read_text().splitlines()

    unexplained = [
        f"{number}: {line.strip()}"
        for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False), start=1)
        if re.search(r"^\s*(time\.|gevent\.|eventlet\.)sleep\(", line) and "#" not in line + before
    ]

    assert unexplained == []

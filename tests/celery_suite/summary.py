"""summary: what the tests gave, and what of it is worse than a recorded run, or than Celery's worker beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ("BY_THE_CLOCK", "describe", "load", "otherwise", "worse")

Rows = dict[str, dict[str, Any]]

#: Outcomes that are no worse than "passed": what is left out is named with its reason.
_GOOD = ("passed", "deselected")

#: Tests that go by the clock of the machine, with Celery's worker too, and why: they are named, and not called worse.
BY_THE_CLOCK: dict[str, str] = {
    "test_canvas.py::test_chord::test_mutable_errback_called_by_chord_from_group_fail_multiple_on_body_failure": (
        "gives the one child about two seconds for 50 tasks and 42 errbacks, and looks at each of them once"
    ),
}


def load(path: Path) -> Rows:
    """Return the rows of a results file by test; the last one of a test counts."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["test"]: row for row in map(json.loads, lines)}


def describe(rows: Rows) -> Iterable[str]:
    """Say how many tests ended how, and name those that deserve a look."""
    counted = Counter(row["outcome"] for row in rows.values())
    seconds = sum(row["seconds"] for row in rows.values())
    yield ", ".join(f"{number} {outcome}" for outcome, number in counted.most_common()) + f"; {seconds:.0f} s in tests"
    for name, row in sorted(rows.items()):
        if row["outcome"] in ("failed", "error", "xpassed"):
            yield f"{row['outcome']:10} {name}  {row['message']}"
            if _by_the_clock(name):
                yield f"           goes by the clock: {_by_the_clock(name)}"
        elif row["outcome"] == "deselected":
            yield f"left out   {name}  {row['message']}"
        elif row["reruns"]:
            yield f"rerun x{row['reruns']}   {name}  {row.get('rerun_message', '')}"


def worse(rows: Rows, baseline: Rows, *, whole: bool) -> list[str]:
    """Name the tests that passed in ``baseline`` and did not here; in a ``whole`` run also those that did not run."""
    found = []
    for name, before in sorted(baseline.items()):
        row = rows.get(name)
        if before["outcome"] != "passed":
            continue
        if row is None:
            if whole:
                found.append(f"{name}: not run")
        elif row["outcome"] not in _GOOD and not _by_the_clock(name):
            found.append(f"{name}: {row['outcome']} {row['message']}")
    return found


def otherwise(rows: Rows, baseline: Rows) -> Iterable[str]:
    """Name the tests that ended otherwise in ``baseline``, and how they ended in both."""
    for name, row in sorted(rows.items()):
        before = baseline.get(name)
        if before is None:
            yield f"only here: {row['outcome']} {name}"
        elif before["outcome"] != row["outcome"]:
            yield f"{before['outcome']} there, {row['outcome']} here: {name}"


def _by_the_clock(name: str) -> str | None:
    return BY_THE_CLOCK.get(name.partition("[")[0])

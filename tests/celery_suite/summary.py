"""summary: what the tests gave, and what of it is worse than a recorded run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ("describe", "load", "worse")

Rows = dict[str, dict[str, Any]]

#: Outcomes that are no worse than "passed": what is left out is named with its reason.
_GOOD = ("passed", "deselected")


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
        elif row["outcome"] not in _GOOD:
            found.append(f"{name}: {row['outcome']} {row['message']}")
    return found

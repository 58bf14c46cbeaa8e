"""results: one JSON line for each test, appended to the file that ``SUITE_RESULTS`` names."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

__all__ = ("Results", "short")


def short(nodeid: str) -> str:
    """Return a test's id without the folders of Celery's tests."""
    return re.sub(r"^.*t/(integration|unit)/", "", nodeid)


class Results:
    """What the tests of this session gave."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}

    def leave_out(self, nodeid: str, reason: str) -> None:
        """Note that a test is not run, and why."""
        self._rows[short(nodeid)] = {"outcome": "deselected", "seconds": 0.0, "reruns": 0, "message": reason}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how one phase of a test ended."""
        first = {"outcome": "passed", "seconds": 0.0, "reruns": 0, "message": ""}
        row = self._rows.setdefault(short(report.nodeid), first)
        row["seconds"] = round(row["seconds"] + report.duration, 3)
        outcome: str = report.outcome
        if outcome == "rerun":
            row["reruns"] += 1
            row["rerun_message"] = _message(report)
        elif outcome == "failed":
            row["outcome"] = "failed" if report.when == "call" else "error"
            row["message"] = _message(report)
        elif outcome == "skipped" and row["outcome"] == "passed":
            row["outcome"] = "xfailed" if hasattr(report, "wasxfail") else "skipped"
            row["message"] = _message(report)
        elif outcome == "passed" and hasattr(report, "wasxfail"):
            row["outcome"] = "xpassed"

    def pytest_sessionfinish(self) -> None:
        """Append the lines."""
        path = os.environ.get("SUITE_RESULTS")
        if path:
            with open(path, "a", encoding="utf-8") as handle:
                for test, row in sorted(self._rows.items()):
                    handle.write(json.dumps({"test": test, **row}) + "\n")


def _message(report: pytest.TestReport) -> str:
    text = getattr(report, "longreprtext", "") or str(report.longrepr or "")
    lines = text.strip().splitlines()
    return next((line for line in lines if line.startswith("E ")), lines[-1] if lines else "")[:300]

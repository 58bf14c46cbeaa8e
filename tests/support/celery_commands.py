"""Celery's own command line, many commands in one process: ``python -m tests.support.celery_commands``.

Reads a JSON list of argument lists, runs ``celery -A tests.proj`` with each, one after another, and prints a JSON list
of exit codes and outputs. A process for each command would take a second each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.processes import ROOT


@dataclass(frozen=True)
class Ran:
    """How one command ended."""

    code: int
    output: str

    def answer(self, hostname: str) -> Any:
        """Return what one worker answered to a command with ``--json``."""
        replies = json.loads(self.output.splitlines()[0])
        if isinstance(replies, list):  # control prints a list of objects, inspect and status print one
            replies = {name: said for reply in replies for name, said in reply.items()}
        return replies[hostname]


def run_celery(environment: Mapping[str, str], *commands: Sequence[str]) -> list[Ran]:
    """Run the commands in a process of their own, in their order."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.celery_commands"],
        input=json.dumps(commands),
        env=dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Ran(code, output) for code, output in json.loads(done.stdout)]


def main() -> None:
    from celery.bin.celery import celery
    from click.testing import CliRunner

    runner = CliRunner()
    results = []
    for arguments in json.load(sys.stdin):
        result = runner.invoke(celery, ["-A", "tests.proj", *arguments])
        results.append((result.exit_code, result.output))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
